"""What `shiftfsctl` asks of a running mount: a private ioctl on its root, so that no socket, no name and no namespace
is between. Holds the root open for no longer than an answer takes, since that is in the way of umount(8).
"""

import errno
import fcntl
import os
from typing import Final

from .ops.control import REPORT, REPORT_IN, REPORT_OUT, REPORT_SIZE, REPORTS

_ATTEMPTS: Final = 10
_TEMPORARY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


class CtlError(Exception):
    """One line for standard error."""


class NotThere(CtlError):
    """There is no shiftfs mount, or none that serves; or none any more."""


def ask(mountpoint: str, name: str, after: int = 0, when: float = 0.0) -> str:
    """The report `name` of a mount, as JSON text; of `events` those after a number, at a time or later. Raises
    CtlError."""
    try:
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in _TEMPORARY:
            raise CtlError(f"{mountpoint}: {error.strerror}; ask again") from None
        raise NotThere(f"{mountpoint}: {error.strerror}; give the mountpoint of a running shiftfs") from None
    try:
        return _asked(fd, name, after, when).decode()
    except OSError as error:
        if error.errno == errno.EPERM:
            raise CtlError(f"{mountpoint}: only root and whoever mounted it may ask") from None
        if error.errno == errno.EINVAL and name == "events":
            raise CtlError(f"{mountpoint}: its process is of a version without events; mount it anew") from None
        if error.errno in _TEMPORARY:
            raise CtlError(f"{mountpoint}: {error.strerror}; ask again") from None
        raise NotThere(f"{mountpoint}: not the root of a shiftfs mount ({error.strerror})") from None
    finally:
        os.close(fd)


def _asked(fd: int, name: str, after: int, when: float) -> bytes:
    """A long report comes in parts. Whoever else asks at the same time has it made anew: its length tells."""
    text, expected = b"", 0
    for _ in range(_ATTEMPTS):
        while True:
            argument = bytearray(REPORT_SIZE)
            REPORT_IN.pack_into(argument, 0, REPORTS.index(name), len(text), after, when)
            fcntl.ioctl(fd, REPORT, argument)
            (total,) = REPORT_OUT.unpack_from(argument)
            if text and total != expected:
                text = b""
                break
            expected = total
            text += argument[REPORT_OUT.size : REPORT_OUT.size + total - len(text)]
            if len(text) >= total:
                return text
    raise OSError(errno.EAGAIN, "others ask for its reports all the time")
