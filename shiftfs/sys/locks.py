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

# struct flock of 64-bit offsets: type, whence, start, length, pid (fcntl(2)); l_pid is to be 0.
_FLOCK = struct.Struct("=hh4xqqi4x")
_OPERATIONS: Final = {READ: fcntl.LOCK_SH, WRITE: fcntl.LOCK_EX, NONE: fcntl.LOCK_UN}
_BUSY: Final = frozenset({errno.EAGAIN, errno.EACCES})

# Whoever waits is to be called off by a signal; Python's own calls go on after one (PEP 475).
_fcntl = libc.function("fcntl", [libc.INT, libc.INT, libc.POINTER])
_flock = libc.function("flock", [libc.INT, libc.INT])

Range = tuple[int, int, int]
"""First byte, last byte, type."""


def set_range(fd: int, start: int, end: int, kind: int, wait: bool = False) -> bool:
    """Lock bytes, or unlock them for NONE; False if somebody else's lock is in the way. With `wait`, as long as that
    takes; EINTR by a signal. EBADF where the descriptor is not open for what the lock is for."""
    packed = _packed(start, end, kind)
    if wait:
        request = ctypes.create_string_buffer(packed)
        if _fcntl(fd, fcntl.F_OFD_SETLKW, ctypes.addressof(request)):
            raise libc.failure()
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, packed)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def in_the_way(fd: int, start: int, end: int, kind: int) -> tuple[Range, int] | None:
    """A lock of somebody else's that keeps this one from being taken, and the holder's pid: -1 for that of an open
    file description, 0 for one that has no number here."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _packed(start, end, kind))
    found, _, first, length, pid = _FLOCK.unpack(answer)
    if found == NONE:
        return None
    return (first, END if length == 0 else first + length - 1, found), pid


def set_whole(fd: int, kind: int, wait: bool = False) -> bool:
    """flock(2), with the types of ranges: False if somebody else's is in the way. What was held before is let go of
    while it waits."""
    operation = _OPERATIONS[kind]
    if wait:
        if _flock(fd, operation):
            raise libc.failure()
        return True
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _packed(start: int, end: int, kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, 0 if end == END else end - start + 1, 0)
