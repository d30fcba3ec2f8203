"""Opening what lies beneath a directory, and nothing else. openat2(2). Any thread."""

import os
import struct
from typing import Final

from . import libc

_OPENAT2: Final = 437
_NO_XDEV: Final = 0x01
_NO_MAGICLINKS: Final = 0x02
_NO_SYMLINKS: Final = 0x04
_BENEATH: Final = 0x08
_HOW = struct.Struct("=QQQ")


def open_beneath(directory: int, path: bytes, flags: int, *, same_mount: bool = False) -> int:
    """Open a relative path, following no symlink and never leaving the directory. ELOOP, EXDEV otherwise."""
    resolve = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS | (_NO_XDEV if same_mount else 0)
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    fd = int(
        libc.syscall(
            libc.LONG(_OPENAT2), libc.INT(directory), libc.PATH(path), libc.PATH(how), libc.SIZE(_HOW.size)
        )
    )
    if fd < 0:
        raise libc.failure(path)
    return fd


def is_beneath(directory: int, path: bytes) -> bool:
    """Does the path lead to anything?"""
    try:
        os.close(open_beneath(directory, path, os.O_PATH | os.O_NOFOLLOW))
    except OSError:
        return False
    return True
