"""System calls that Python has no function for, as the tests make them on a mount and on a plain directory.

Owns nothing but an inotify descriptor, between the ends of its `with`. Shares no code with the program, so that one
mistake cannot hide in both.
"""

import ctypes
import errno
import fcntl
import os
import pickle
import select
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

_libc = ctypes.CDLL(None, use_errno=True)
_HERE = -100  # AT_FDCWD

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = 1, 2, 8, 16, 32, 64

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_IOC_GETVERSION = 0x80087601
FS_IMMUTABLE, FS_APPEND, FS_NODUMP, FS_NOATIME = 0x10, 0x20, 0x40, 0x80

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE = 2, 4, 8, 0x100, 0x200
IN_DELETE_SELF, IN_IGNORED = 0x400, 0x8000

Found = TypeVar("Found")


def refuses(number: int, call: Callable[..., object], *args: object) -> None:
    """A call must fail with this errno."""
    try:
        call(*args)
    except OSError as error:
        assert errno.errorcode[error.errno or 0] == errno.errorcode[number]
    else:
        raise AssertionError(f"no {errno.errorcode[number]}")


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: Path, new: Path, flags: int) -> None:
    _checked(_libc.renameat2(_HERE, os.fsencode(old), _HERE, os.fsencode(new), ctypes.c_uint(flags)))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def unshare_mounts() -> None:
    """A mount namespace of its own for this process; what it mounts goes with it. For a child."""
    _checked(_libc.unshare(0x20000))
    _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(0x40000 | 0x4000), None))  # private, recursively


def syncfs(fd: int) -> None:
    _checked(_libc.syncfs(fd))


def sync_range(fd: int, offset: int, size: int) -> None:
    """sync_file_range(2): have these bytes sent, and wait for that."""
    before, write, after = 1, 2, 4
    span = (ctypes.c_int64(offset), ctypes.c_int64(size))
    _checked(_libc.sync_file_range(fd, *span, ctypes.c_uint(before | write | after)))


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int], follow: bool = True) -> None:
    """Times as (seconds, nanoseconds)."""
    times = struct.pack("=qqqq", *atime, *mtime)
    _checked(_libc.utimensat(_HERE, os.fsencode(path), times, 0 if follow else 0x100))


def birth_time(path: Path) -> int | None:
    """stx_btime of statx(2) in nanoseconds, None where there is none. Never follows."""
    buffer = ctypes.create_string_buffer(256)
    _checked(_libc.statx(_HERE, os.fsencode(path), 0x100, ctypes.c_uint(0x800), buffer))
    (mask,) = struct.unpack_from("=I", buffer, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    return int(seconds * 1_000_000_000 + nanoseconds) if mask & 0x800 else None


class Dirent(NamedTuple):
    """One entry of getdents64(2); `cookie` is where to go on behind it."""

    number: int
    cookie: int
    kind: int
    name: bytes


def getdents(fd: int, size: int = 4096) -> list[Dirent]:
    """One getdents64(2) call with a buffer of `size` bytes; nothing at the end."""
    buffer = ctypes.create_string_buffer(size)
    count = _checked(_libc.syscall(ctypes.c_long(217), fd, buffer, ctypes.c_size_t(size)))
    found = []
    position = 0
    while position < count:
        number, cookie, length, kind = struct.unpack_from("=QqHB", buffer, position)
        name = buffer.raw[position + 19 : position + length].split(b"\0", 1)[0]
        found.append(Dirent(number, cookie, kind, name))
        position += length
    return found


def all_dirents(fd: int, size: int = 4096) -> list[Dirent]:
    """What is left of a listing."""
    found = []
    while part := getdents(fd, size):
        found += part
    return found


def get_flags(path: Path) -> int:
    """FS_IOC_GETFLAGS: what lsattr shows."""
    return _ioctl_int(path, FS_IOC_GETFLAGS)


def set_flags(path: Path, flags: int) -> None:
    """FS_IOC_SETFLAGS: what chattr does."""
    with opened(path) as fd:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I", flags))


def get_version(path: Path) -> int:
    """FS_IOC_GETVERSION: the generation of an inode number."""
    return _ioctl_int(path, FS_IOC_GETVERSION)


def _ioctl_int(path: Path, request: int) -> int:
    with opened(path) as fd:
        return int(struct.unpack_from("=I", fcntl.ioctl(fd, request, bytes(8)))[0])


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666, dir_fd: int | None = None) -> Iterator[int]:
    """os.open, closed at the end."""
    fd = os.open(path, flags, mode, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def drop_dentries() -> None:
    """Let the kernel forget all names and inodes that nobody uses."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


class Watch:
    """An inotify watch (inotify(7))."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def events(self, limit: float = 5.0) -> list[int]:
        """The masks of all events so far; waits for the first one, up to `limit` seconds."""
        if not select.select([self._fd], [], [], limit)[0]:
            return []
        content = os.read(self._fd, 65536)
        masks = []
        position = 0
        while position < len(content):
            _, mask, _, length = struct.unpack_from("=iIII", content, position)
            masks.append(mask)
            position += 16 + length
        return masks


@contextmanager
def watching(path: Path, mask: int) -> Iterator[Watch]:
    fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        _checked(_libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)))
        yield Watch(fd)
    finally:
        os.close(fd)


def in_child(call: Callable[[], Found], uid: int | None = None, limit: float = 60.0) -> Found:
    """What `call` returns or raises in a process of its own, as the user `uid` without groups or capabilities."""
    found: Found = _Child(call, uid).result(limit)
    return found


def in_children(calls: list[Callable[[], Found]], limit: float = 60.0) -> list[Found]:
    """What the calls return, each in a process of its own, all at once."""
    children = [_Child(call, None) for call in calls]
    return [child.result(limit) for child in children]


class _Child:
    def __init__(self, call: Callable[[], Any], uid: int | None) -> None:
        self._answer, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _run_and_exit(call, uid, writing)
        os.close(writing)

    def result(self, limit: float) -> Any:
        parts = []
        try:
            while select.select([self._answer], [], [], limit)[0] and (part := os.read(self._answer, 65536)):
                parts.append(part)
        finally:
            os.close(self._answer)
            os.kill(self._pid, signal.SIGKILL)  # it has ended already, unless the limit has passed
            os.waitpid(self._pid, 0)
        if not parts:
            raise AssertionError(f"a child process gave no answer within {limit:g} s")
        value, error = pickle.loads(b"".join(parts))
        if error is not None:
            raise error
        return value


def _run_and_exit(call: Callable[[], Any], uid: int | None, writing: int) -> None:
    answer: tuple[Any, BaseException | None]
    try:
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        answer = (call(), None)
    except OSError as error:
        answer = (None, error)
    except BaseException:
        answer = (None, AssertionError(traceback.format_exc()))
    try:
        content = pickle.dumps(answer)
        while content:
            content = content[os.write(writing, content) :]
    finally:
        os._exit(0)
