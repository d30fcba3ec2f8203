"""File handles: an inode's identity that survives renames. name_to_handle_at(2), open_by_handle_at(2). Any thread."""

import ctypes
import os
import struct

from . import libc

_AT_EMPTY_PATH = 0x1000
_MAX_HANDLE = 128

_to_handle = libc.function("name_to_handle_at", [libc.INT, libc.PATH, libc.POINTER, libc.POINTER, libc.INT])
_by_handle = libc.function("open_by_handle_at", [libc.INT, libc.PATH, libc.INT])


def of(fd: int) -> bytes | None:
    """The handle of what `fd` (O_PATH too) names; None where the filesystem has none."""
    room = bytearray(8 + _MAX_HANDLE)
    struct.pack_into("=I", room, 0, _MAX_HANDLE)
    mount_id = ctypes.c_int()
    hold = (ctypes.c_char * len(room)).from_buffer(room)
    if _to_handle(fd, b"", ctypes.addressof(hold), ctypes.addressof(mount_id), _AT_EMPTY_PATH):
        return None
    (size,) = struct.unpack_from("=I", room)
    return bytes(room[: 8 + size])


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open by handle on the filesystem of `mount_fd`. Needs CAP_DAC_READ_SEARCH; ESTALE if the inode is gone."""
    fd = _by_handle(mount_fd, handle, flags | os.O_CLOEXEC)
    if fd < 0:
        raise libc.failure()
    return fd
