"""File calls that the os module lacks: statx, getdents64, renameat2, utimensat, fallocate, syncfs.

Every path is one name beneath a directory descriptor, or empty to mean the descriptor itself. A StatxBuffer or
DirectoryBuffer belongs to the thread that made it; the functions may be called by any thread.
"""

import ctypes
import os
import struct
from typing import Final

from .. import native
from . import libc

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
STATX_MNT_ID: Final = 0x1000

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

_statx = libc.function("statx", [libc.INT, libc.PATH, libc.INT, libc.UINT, libc.POINTER])
_renameat2 = libc.function("renameat2", [libc.INT, libc.PATH, libc.INT, libc.PATH, libc.UINT])
_utimensat = libc.function("utimensat", [libc.INT, libc.PATH, libc.POINTER, libc.INT])
_fchownat = libc.function("fchownat", [libc.INT, libc.PATH, libc.UINT, libc.UINT, libc.INT])
_fallocate = libc.function("fallocate", [libc.INT, libc.INT, libc.OFFSET, libc.OFFSET])
_syncfs = libc.function("syncfs", [libc.INT])
_sync_file_range = libc.function("sync_file_range", [libc.INT, libc.OFFSET, libc.OFFSET, libc.UINT])
_fstatfs = libc.function("fstatfs", [libc.INT, libc.POINTER])
_openat = libc.brief("openat", [libc.INT, libc.PATH, libc.INT])
_close = libc.brief("close", [libc.INT])
_getdents64 = libc.function("getdents64", [libc.INT, libc.POINTER, libc.SIZE], ctypes.c_ssize_t)

_WAIT_BEFORE: Final = 1
_WRITE: Final = 2
_WAIT_AFTER: Final = 4

_TIMES = struct.Struct("=qqqq")
_ENOENT: Final = 2

# struct statx (statx(2)): mask blksize attributes nlink uid gid mode ino size blocks attributes_mask
# atime btime ctime mtime (seconds, nanoseconds) rdev dev (major, minor) mnt_id
STATX_FORMAT: Final = struct.Struct("=IIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIIIQ")
StatxFields = tuple[int, ...]


_STATX_MASK: Final = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID


class StatxBuffer:
    """Room for one statx result, reused by each call of its thread."""

    __slots__ = ("_address", "_hold", "_view")

    def __init__(self) -> None:
        self._view = bytearray(256)
        self._hold = (ctypes.c_char * 256).from_buffer(self._view)
        self._address = ctypes.addressof(self._hold)

    def at(self, directory: int, name: bytes) -> StatxFields:
        """The fields of `name` beneath `directory`, never following it; an empty name is `directory` itself."""
        # AT_EMPTY_PATH changes nothing for a name that is not empty (statx(2)), so one call serves both.
        flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH
        if _statx(directory, name, flags, _STATX_MASK, self._address):
            raise libc.failure(name)
        return STATX_FORMAT.unpack_from(self._view)

    def found(self, directory: int, name: bytes) -> StatxFields | None:
        """The same, None where there is no such name: cheaper than an exception, where many layers are asked."""
        flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH
        if _statx(directory, name, flags, _STATX_MASK, self._address):
            if ctypes.get_errno() == _ENOENT:
                return None
            raise libc.failure(name)
        return STATX_FORMAT.unpack_from(self._view)


def device(fd: int) -> str:
    """MAJOR:MINOR of the filesystem that a descriptor is on, without asking that."""
    room = ctypes.create_string_buffer(256)
    if _statx(fd, b"", AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, 0, ctypes.addressof(room)):
        raise libc.failure()
    major, minor = STATX_FORMAT.unpack_from(room)[21:23]
    return f"{major}:{minor}"


def rename(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _renameat2(old_directory, old, new_directory, new, flags):
        raise libc.failure(old)


def set_times(path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) on a /proc/self/fd path: (seconds, nanoseconds) pairs, UTIME_NOW and UTIME_OMIT allowed.

    The path is a magic link, so following it ends at the very inode, be it a symlink.
    """
    if _utimensat(AT_FDCWD, path, _TIMES.pack(*atime, *mtime), 0):
        raise libc.failure()


def set_times_at(directory: int, name: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) of what is at `name`, be it a symlink: pairs as above."""
    if _utimensat(directory, name, _TIMES.pack(*atime, *mtime), AT_SYMLINK_NOFOLLOW):
        raise libc.failure(name)


def change_owner(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) of the inode behind any descriptor, O_PATH too; 0xffffffff leaves an id as it is."""
    if _fchownat(fd, b"", uid, gid, AT_EMPTY_PATH):
        raise libc.failure()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), with every mode that the filesystem has."""
    if _fallocate(fd, mode, offset, length):
        raise libc.failure()


def write_out(fd: int) -> None:
    """Have all that was written to a file on its way to the disk, and wait until it is there (sync_file_range(2)): what
    a journal says of the file afterwards comes behind that. Not the metadata, and no flush of the disk's own cache."""
    if _sync_file_range(fd, 0, 0, _WAIT_BEFORE | _WRITE | _WAIT_AFTER):
        raise libc.failure()


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    if _syncfs(fd):
        raise libc.failure()


def filesystem_type(fd: int) -> int:
    """f_type of fstatfs(2), which os.fstatvfs leaves out; O_PATH descriptors will do."""
    room = (ctypes.c_long * 32)()
    if _fstatfs(fd, ctypes.addressof(room)):
        raise libc.failure()
    return int(room[0])


_RECORD = struct.Struct("=QqHB")
_LISTING_SIZE = 256 * 1024


def list_directory(fd: int) -> list[tuple[bytes, int, int]]:
    """All entries of an open directory but `.` and `..`: (name, inode number, DT_ type). getdents64(2)."""
    if native.list_directory is not None:
        return native.list_directory(fd)  # type: ignore[no-any-return]
    buffer = ctypes.create_string_buffer(_LISTING_SIZE)
    entries: list[tuple[bytes, int, int]] = []
    append = entries.append
    unpack = _RECORD.unpack_from
    os.lseek(fd, 0, os.SEEK_SET)
    while True:
        size = _getdents64(fd, buffer, _LISTING_SIZE)
        if size < 0:
            raise libc.failure()
        if size == 0:
            return entries
        chunk = ctypes.string_at(buffer, size)
        position = 0
        while position < size:
            number, _, length, kind = unpack(chunk, position)
            start = position + 19
            name = chunk[start : chunk.index(0, start)]
            if name != b"." and name != b"..":
                append((name, number, kind))
            position += length


def touch_for_writing(held: int, flags: int, descriptors: int) -> None:
    """Open for writing what an O_PATH descriptor names, and close it in the next moment: as long as it is open nobody
    can execute it (ETXTBSY). `descriptors`: a descriptor of our /proc/self/fd, for those who see no /proc."""
    fd = _openat(descriptors, b"%d" % held if descriptors >= 0 else b"/proc/self/fd/%d" % held, flags)
    if fd < 0:
        raise libc.failure()
    _close(fd)
