"""File handles: an inode's identity that survives renames. name_to_handle_at(2), open_by_handle_at(2). Any thread."""

import ctypes
import os
import struct

from .. import native
from . import libc

_AT_EMPTY_PATH = 0x1000
_AT_HANDLE_FID = 0x200
_MAX_HANDLE = 128

_to_handle = libc.function("name_to_handle_at", [libc.INT, libc.PATH, libc.POINTER, libc.POINTER, libc.INT])
_by_handle = libc.function("open_by_handle_at", [libc.INT, libc.PATH, libc.INT])


def of(fd: int, name: bytes = b"") -> bytes | None:
    """The handle of a name beneath `fd`, or of what `fd` (O_PATH too) names itself; None where the filesystem has
    none. Four bytes of length, four of type, then the handle (struct file_handle)."""
    return _encoded(fd, name, 0)


def identity(fd: int, name: bytes) -> bytes | None:
    """A handle that may only tell inodes apart, which more filesystems have (AT_HANDLE_FID, Linux 6.5)."""
    return _encoded(fd, name, 0) or _encoded(fd, name, _AT_HANDLE_FID)


def number(fd: int, name: bytes) -> int:
    """A number of 63 bits made of such a handle, the same in every process; 0 where there is none."""
    from hashlib import blake2b  # with all of OpenSSL, for filesystems that are rare

    handle = _encoded(fd, name, _AT_HANDLE_FID)
    return int.from_bytes(blake2b(handle, digest_size=8).digest(), "little") >> 1 if handle is not None else 0


def _encoded(fd: int, name: bytes, flags: int) -> bytes | None:
    if native.encode_handle is not None:
        made: bytes | None = native.encode_handle(fd, name, flags | (0 if name else _AT_EMPTY_PATH))
        return made
    room = bytearray(8 + _MAX_HANDLE)
    struct.pack_into("=I", room, 0, _MAX_HANDLE)
    mount_id = ctypes.c_int()
    hold = (ctypes.c_char * len(room)).from_buffer(room)
    flags |= 0 if name else _AT_EMPTY_PATH
    if _to_handle(fd, name, ctypes.addressof(hold), ctypes.addressof(mount_id), flags):
        return None
    (size,) = struct.unpack_from("=I", room)
    return bytes(room[: 8 + size])


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open by handle on the filesystem of `mount_fd`. Needs CAP_DAC_READ_SEARCH; ESTALE if the inode is gone."""
    fd = _by_handle(mount_fd, handle, flags | os.O_CLOEXEC)
    if fd < 0:
        raise libc.failure()
    return fd
