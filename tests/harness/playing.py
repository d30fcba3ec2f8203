"""What a process does that plays a part on the stage of harness.lockers: step by step what it is told through a socket.

Owns the descriptors that it opens, by their names, until it ends.
"""

import ctypes
import errno
import fcntl
import os
import pickle
import signal
import socket
import struct
import threading

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWPID = 0x20000000

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid
_RECORD = {"read": fcntl.F_RDLCK, "write": fcntl.F_WRLCK, "none": fcntl.F_UNLCK}
_WHOLE = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}
COMMANDS = {  # of fcntl(2): at once, waiting, asking
    "posix": (fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_GETLK),
    "ofd": (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW, fcntl.F_OFD_GETLK),
}
OPENING = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR, "nonblock": os.O_NONBLOCK}

_WRITTEN = b"written"
_ERRORS = {**errno.errorcode, errno.EDEADLK: "EDEADLK"}  # which Python knows as EDEADLOCK

Files = dict[str, int]


def record(files: Files, which: str, how: int, kind: str, span: str, name: str = "f") -> str:
    """F_SETLK (`how` 0), F_SETLKW (1), F_GETLK (2) or those for OFD locks."""
    first, _, last = span.partition("-")
    length = 0 if last == "end" else int(last) - int(first) + 1
    wanted = _FLOCK.pack(_RECORD[kind], os.SEEK_SET, int(first), length, 0)
    found = _FLOCK.unpack(fcntl.fcntl(files[name], COMMANDS[which][how], wanted))
    if how < 2:
        return "it"
    if found[0] == fcntl.F_UNLCK:
        return "free"
    held = next(word for word, number in _RECORD.items() if number == found[0])
    return f"{held} {found[2]}-{found[2] + found[3] - 1 if found[3] else 'end'} by {found[4]}"


def flock(files: Files, waits: bool, kind: str, name: str = "f") -> str:
    fcntl.flock(files[name], _WHOLE[kind] | (0 if waits else fcntl.LOCK_NB))
    return "it"


def lease(files: Files, kind: str, name: str = "f") -> str:
    fcntl.fcntl(files[name], fcntl.F_SETLEASE, _RECORD[kind])
    return "it"


def leased(files: Files, name: str = "f") -> str:
    found = fcntl.fcntl(files[name], fcntl.F_GETLEASE)
    return next(word for word, number in _RECORD.items() if number == found)


def open_as(files: Files, path: str, name: str, *how: str) -> str:
    files[name] = os.open(path, sum(OPENING[word] for word in how))
    return "it"


def truncate(files: Files, path: str) -> str:
    os.truncate(path, 0)
    return "it"


def read(files: Files, name: str = "f") -> str:
    return os.pread(files[name], len(_WRITTEN), 0).decode()


def write(files: Files, name: str = "f") -> str:
    os.pwrite(files[name], _WRITTEN, 0)
    return "it"


def close(files: Files, name: str) -> str:
    os.close(files.pop(name))
    return "it"


def dup(files: Files, name: str, other: str) -> str:
    files[other] = os.dup(files[name])
    return "it"


def hear(files: Files, seconds: float) -> str:
    return "nothing" if signal.sigtimedwait({signal.SIGIO}, seconds) is None else "SIGIO"


def _interrupted(number: int, frame: object) -> None:
    raise InterruptedError(errno.EINTR, "a signal")  # or Python would call again


def begin(wire: socket.socket) -> None:
    """What a process does that the tests' own has forked."""
    try:
        kept = wire.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, 65536)
        _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        signal.signal(signal.SIGUSR1, _interrupted)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody needs to wait for those that it forks
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
        _serve(wire, {})
    finally:
        os._exit(0)


def _serve(wire: socket.socket, files: Files) -> None:
    """A process or a thread: does what it is told until nobody can tell it any more."""
    while True:
        content, others, _, _ = socket.recv_fds(wire, 65536, 1)
        if not content:
            return
        call, *args = pickle.loads(content)
        passed = []
        if call in ("fork", "apart"):
            if call == "apart" and _libc.unshare(_CLONE_NEWPID):
                raise OSError(ctypes.get_errno(), "unshare")
            child = os.fork()
            if child == 0:
                wire.close()
                wire = socket.socket(fileno=others[0])
                continue
            os.close(others[0])
            passed = [os.pidfd_open(child)]
            answer = "it"
        elif call == "thread":
            threading.Thread(target=_serve, args=(socket.socket(fileno=others[0]), files), daemon=True).start()
            answer = "it"
        else:
            try:
                answer = call(files, *args)
            except OSError as error:
                answer = _ERRORS[error.errno or 0]
        socket.send_fds(wire, [answer.encode()], passed)
        for fd in passed:
            os.close(fd)
