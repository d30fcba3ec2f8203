"""fcntl(2) locks of open file descriptions, and flock(2), as system calls that a signal interrupts.

A lock belongs to the descriptor's open file description, and is gone with its last descriptor. Any thread.
"""

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

from . import libc

READ: Final = fcntl.F_RDLCK
WRITE: Final = fcntl.F_WRLCK
NONE: Final = fcntl.F_UNLCK
END: Final = (1 << 63) - 1
"""The last byte of a range that has no end."""

_GET: Final = 36
_SET: Final = 37
_WAIT: Final = 38
# struct flock of 64-bit offsets: type, whence, start, length, pid (fcntl(2)); l_pid is to be 0.
_FLOCK = struct.Struct("=hh4xqqi4x")
_BUSY: Final = frozenset({errno.EAGAIN, errno.EACCES})

# Not fcntl.fcntl: that goes on after a signal (PEP 475), and whoever waits is to be called off by one.
_fcntl = libc.function("fcntl", [libc.INT, libc.INT, libc.POINTER])
_flock = libc.function("flock", [libc.INT, libc.INT])

Range = tuple[int, int, int]
"""First byte, last byte, type."""


def set_range(fd: int, start: int, end: int, kind: int, wait: bool = False) -> bool:
    """Lock bytes, or unlock them for NONE; False if somebody else's lock is in the way. With `wait`, as long as that
    takes; EINTR by a signal. EBADF where the descriptor is not open for what the lock is for."""
    request = ctypes.create_string_buffer(_packed(start, end, kind))
    if _fcntl(fd, _WAIT if wait else _SET, ctypes.addressof(request)) == 0:
        return True
    if not wait and ctypes.get_errno() in _BUSY:
        return False
    raise libc.failure()


def in_the_way(fd: int, start: int, end: int, kind: int) -> tuple[Range, int] | None:
    """A lock of somebody else's that keeps this one from being taken, and the holder's pid: -1 for that of an open
    file description, 0 for one that has no number here."""
    request = ctypes.create_string_buffer(_packed(start, end, kind))
    if _fcntl(fd, _GET, ctypes.addressof(request)):
        raise libc.failure()
    found, _, first, length, pid = _FLOCK.unpack(request.raw[: _FLOCK.size])
    if found == NONE:
        return None
    return (first, END if length == 0 else first + length - 1, found), pid


def set_whole(fd: int, kind: int, wait: bool = False) -> bool:
    """flock(2), with the types of ranges: False if somebody else's is in the way. What was held before is let go of
    while it waits."""
    operation = {READ: fcntl.LOCK_SH, WRITE: fcntl.LOCK_EX, NONE: fcntl.LOCK_UN}[kind]
    if _flock(fd, operation if wait else operation | fcntl.LOCK_NB) == 0:
        return True
    if not wait and ctypes.get_errno() == errno.EWOULDBLOCK:
        return False
    raise libc.failure()


def _packed(start: int, end: int, kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, 0 if end == END else end - start + 1, 0)
