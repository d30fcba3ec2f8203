"""Mount calls: copies of mounts, their flags, moving and unmounting. open_tree(2), mount_setattr(2), move_mount(2),
umount2(2), fsopen(2)."""

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

from . import libc

MNT_DETACH: Final = 2
RDONLY: Final = 0x1
NOSUID: Final = 0x2
NODEV: Final = 0x4
NOEXEC: Final = 0x8
NOATIME: Final = 0x10
_ATIME: Final = 0x70  # all that is said of access times, which NOATIME takes the place of
"""Flags of one mount, not of its filesystem."""

_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSOPEN_CLOEXEC = 1
_MOUNT_SETATTR = 442
_MOVE_FROM_EMPTY_PATH = 0x4
_MOVE_BENEATH = 0x200
_AT_FDCWD = -100
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MS_PRIVATE = 1 << 18
_MS_REC = 1 << 14
_CLONE_NEWNS = 0x20000
_STATMOUNT = 457
_STATMOUNT_MNT_BASIC = 0x2
_STATX_MNT_ID_UNIQUE = 0x4000
_AT_STATX_DONT_SYNC = 0x4000
_MNT_ID_OFFSET = 144
_NS_GET_MNTNS_ID = 0x8008B705

_mount = libc.function("mount", [libc.PATH, libc.PATH, libc.PATH, libc.ULONG, libc.PATH])
_pivot_root = libc.function("pivot_root", [libc.PATH, libc.PATH])
_unshare = libc.function("unshare", [libc.INT])
_statx = libc.function("statx", [libc.INT, libc.PATH, libc.INT, libc.UINT, libc.POINTER])
_umount2 = libc.function("umount2", [libc.PATH, libc.INT])


def clone_tree(fd: int, recursive: bool = True, noatime: bool = False) -> int:
    """A descriptor of a detached copy of the mounts at and below `fd`, where later mounts do not show; unless
    `recursive`, of the one at `fd` alone. `noatime`: no access through the copy counts as one.

    Needs CAP_SYS_ADMIN over the mount namespace.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    clone = int(libc.syscall(libc.LONG(_OPEN_TREE), libc.INT(fd), libc.PATH(b""), libc.UINT(flags)))
    if clone < 0:
        raise libc.failure()
    try:
        on, off = (NOATIME, _ATIME) if noatime else (0, 0)
        set_flags(clone, on=on, off=off, private=True, recursive=True)
    except OSError:
        os.close(clone)
        raise
    return clone


def clone_at(path: bytes) -> int:
    """A descriptor of a detached mount whose root is the directory at `path`. Needs CAP_SYS_ADMIN."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    clone = int(libc.syscall(libc.LONG(_OPEN_TREE), libc.INT(_AT_FDCWD), libc.PATH(path), libc.UINT(flags)))
    if clone < 0:
        raise libc.failure(path)
    return clone


def set_flags(mount: int, *, on: int = 0, off: int = 0, private: bool = False, recursive: bool = False) -> None:
    """Flags and propagation of the mount at a descriptor, detached or not; CAP_SYS_ADMIN over the mount namespace."""
    attributes = struct.pack("=QQQQ", on, off, _MS_PRIVATE if private else 0, 0)
    if libc.syscall(
        libc.LONG(_MOUNT_SETATTR),
        libc.INT(mount),
        libc.PATH(b""),
        libc.UINT(_AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)),
        libc.PATH(attributes),
        libc.SIZE(len(attributes)),
    ):
        raise libc.failure()


def may_mount() -> bool:
    """Has this process CAP_SYS_ADMIN over its mount namespace, whose user namespace may be another than its own? A
    filesystem that is never made tells."""
    fd = int(libc.syscall(libc.LONG(_FSOPEN), libc.PATH(b"fuse"), libc.UINT(_FSOPEN_CLOEXEC)))
    if fd < 0:
        return False
    os.close(fd)
    return True


def attach(clone: int, path: bytes, *, beneath: bool) -> None:
    """Mount a detached mount at `path`; beneath what is mounted there already, from Linux 6.5 (EINVAL before)."""
    flags = _MOVE_FROM_EMPTY_PATH | (_MOVE_BENEATH if beneath else 0)
    if libc.syscall(
        libc.LONG(_MOVE_MOUNT), libc.INT(clone), libc.PATH(b""), libc.INT(_AT_FDCWD), libc.PATH(path), libc.UINT(flags)
    ):
        raise libc.failure(path)


def mount(source: bytes, path: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """mount(2) of a filesystem; `flags` are of RDONLY and the others here, which MS_RDONLY and so on equal."""
    if _mount(source, path, kind, flags, data):
        raise libc.failure(path)


def place_of(path: bytes) -> tuple[int, int]:
    """Which mount a path leads to, and in which mount namespace: by numbers that are never used again, and keep
    nothing. OSError where the kernel has none (before Linux 6.11)."""
    mount = _lasting_number(_AT_FDCWD, path, 0)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = fcntl.ioctl(namespace, _NS_GET_MNTNS_ID, bytes(8))
    finally:
        os.close(namespace)
    return mount, struct.unpack("=Q", number)[0]


def lasting_number(fd: int) -> int:
    """Which mount a descriptor (O_PATH too) leads to, by a number that is never used again. OSError where the kernel
    has none (before Linux 6.8). Asks nothing of the filesystem."""
    return _lasting_number(fd, b"", _AT_EMPTY_PATH)


def _lasting_number(fd: int, path: bytes, flags: int) -> int:
    room = ctypes.create_string_buffer(256)
    if _statx(fd, path, flags | _AT_STATX_DONT_SYNC, _STATX_MNT_ID_UNIQUE, ctypes.addressof(room)):
        raise libc.failure(path)
    (mask,) = struct.unpack_from("=I", room)
    if not mask & _STATX_MNT_ID_UNIQUE:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    (number,) = struct.unpack_from("=Q", room, _MNT_ID_OFFSET)
    return int(number)


def is_mounted(mount: int, namespace: int) -> bool:
    """Is the mount still there, by the numbers of `place_of`? Needs CAP_SYS_ADMIN over the namespace."""
    request = struct.pack("=IIQQQ", 32, 0, mount, _STATMOUNT_MNT_BASIC, namespace)
    room = ctypes.create_string_buffer(4096)
    if not libc.syscall(
        libc.LONG(_STATMOUNT), libc.PATH(request), libc.POINTER(ctypes.addressof(room)), libc.SIZE(4096), libc.UINT(0)
    ):
        return True
    return ctypes.get_errno() != errno.ENOENT


def leave_for_nothing(path: bytes) -> None:
    """A mount namespace of our own with nothing in it but an empty directory; `path` is any directory. Nothing that is
    mounted elsewhere is kept by us then. For a process that has one thread; needs CAP_SYS_ADMIN."""
    if _unshare(_CLONE_NEWNS) or _mount(None, b"/", None, _MS_PRIVATE | _MS_REC, None):
        raise libc.failure()
    if _mount(b"none", path, b"tmpfs", NOSUID | NODEV | NOEXEC, b"size=4k,mode=0555"):
        raise libc.failure(path)
    os.chdir(path)
    if _pivot_root(b".", b".") or _umount2(b".", MNT_DETACH):
        raise libc.failure()
    os.chdir("/")


def unmount(path: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    if _umount2(path, flags):
        raise libc.failure(path)
