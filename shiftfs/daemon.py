"""Going into the background once the mount serves.

Owns the pipe between the command and the daemon, and where the daemon's last words go. Main thread, before any other is
started; and after the others are of no account.
"""

import contextlib
import os
import signal
import socket
import syslog
from typing import Final, NoReturn

_READY: Final = b"\0"


class Daemon:
    """The child's side; the parent never returns from `fork`."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    @classmethod
    def fork(cls) -> "Daemon":
        """Split. The parent waits for word from the child and exits: 0 once it serves, else 1 with its reason on
        standard error."""
        read, write = os.pipe2(os.O_CLOEXEC)
        if child := os.fork():
            os.close(write)
            try:
                _wait(read)
            except KeyboardInterrupt:
                os.kill(child, signal.SIGTERM)  # which leads a session of its own: the terminal did not tell it
                os._exit(130)
        os.close(read)
        os.setsid()
        return cls(write)

    def ready(self) -> None:
        """Let the command return, and let go of its streams and directory: whoever waits for their end is freed."""
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for stream in range(3):
            os.dup2(null, stream)
        os.close(null)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, _READY)
        os.close(self._pipe)
        self._pipe = -1
        syslog.openlog("shiftfs", syslog.LOG_PID, syslog.LOG_DAEMON)

    def failed(self, message: str, details: str) -> None:
        """Tell why there is no mount, or, once the command has returned, why there is none any more: then the log gets
        the details too."""
        if self._pipe >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._pipe, f"shiftfs: {message}\n".encode(errors="surrogateescape"))
        else:
            for line in (message, *details.splitlines()):
                syslog.syslog(syslog.LOG_ERR, line)


def tell_service_manager() -> None:
    """READY=1 to whoever runs us in the foreground and wants to know (sd_notify(3), systemd's Type=notify)."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.sendto(b"READY=1", address)


def _wait(pipe: int) -> NoReturn:
    said = b""
    while chunk := os.read(pipe, 65536):
        said += chunk
        if said == _READY:
            os._exit(0)
    # Not by sys.stderr, which is None if there was no standard error to begin with.
    with contextlib.suppress(OSError):
        os.write(2, said or b"shiftfs: the daemon ended before the mount was served\n")
    os._exit(1)
