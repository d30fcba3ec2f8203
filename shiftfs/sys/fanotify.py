"""fanotify(7) groups that report what happens by file handles and names, and what their records say. Any thread.

An inode is named by a token: the eight bytes of its filesystem's id, then its handle (struct file_handle), as records
have them. A group belongs to whoever closes its descriptor.
"""

import ctypes
import os
import struct
from collections.abc import Container
from typing import Any, Final, Protocol

from .. import native
from . import handles, libc

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
CREATE: Final = 0x100
DELETE: Final = 0x200
Q_OVERFLOW: Final = 0x4000
ON_CHILD: Final = 0x0800_0000
RENAME: Final = 0x1000_0000
ONDIR: Final = 0x4000_0000

ADD: Final = 0x1
REMOVE: Final = 0x2
_DONT_FOLLOW: Final = 0x4
MOUNT: Final = 0x10
FILESYSTEM: Final = 0x100
IGNORE_SURV: Final = 0x440  # FAN_MARK_IGNORE and FAN_MARK_IGNORED_SURV_MODIFY (Linux 6.0)

# FAN_CLASS_NOTIF, with FAN_REPORT_FID, _DIR_FID, _NAME and _TARGET_FID (Linux 5.17)
_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_UNLIMITED: Final = 0x30
_REPORTS: Final = 0x200 | 0x400 | 0x800 | 0x1000

_FID: Final = 1
_DFID_NAME: Final = 2
_OLD: Final = 10
_NEW: Final = 12

_init = libc.function("fanotify_init", [libc.UINT, libc.UINT])
_mark = libc.function("fanotify_mark", [libc.INT, libc.UINT, ctypes.c_uint64, libc.INT, libc.PATH])
_fstatfs = libc.function("fstatfs", [libc.INT, libc.POINTER])

_READ: Final = 4096
"""Bytes. Requests have their turn after as many events as that is, some forty."""
_VERSION: Final = 3
# struct fanotify_event_metadata: length, mask, pid; then the first record's type, length and length of its handle.
_HEAD = struct.Struct("=I4xQ4xiBxH8xI")
_RECORD = struct.Struct("=BxH8xI")
_METADATA: Final = 24
_TO_TOKEN: Final = 4
_TO_HANDLE: Final = 20
_PADDING: Final = bytes(_HEAD.size)

Event = tuple[int, bytes | None, bytes, bytes | None, bytes, bytes | None]
"""Mask, directory, name, the directory and name it went to, and the inode itself. A directory that is not known is
None; a name is empty where the event is about the directory itself."""


def new(unlimited: bool) -> int:
    """A group's descriptor, which never blocks. Without limits of queue and marks only with CAP_SYS_ADMIN."""
    fd = _init(_CLOEXEC | _NONBLOCK | _REPORTS | (_UNLIMITED if unlimited else 0), os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        raise libc.failure()
    return fd


def mark(group: int, flags: int, mask: int, fd: int) -> None:
    """fanotify_mark(2) of the inode behind any descriptor, O_PATH too, or of its filesystem or mount."""
    if _mark(group, flags, mask, -1, b"/proc/self/fd/%d" % fd):
        raise libc.failure()


def filesystem(fd: int) -> bytes:
    """f_fsid of statfs(2), with which the tokens of a filesystem begin. os.fstatvfs has half of it in some libcs."""
    room = (ctypes.c_long * 32)()
    if _fstatfs(fd, ctypes.addressof(room)):
        raise libc.failure()
    return bytes(room)[56:64]


def token(fsid: bytes, fd: int, name: bytes) -> bytes:
    """What events will call a name beneath `fd`, or `fd` itself for an empty one."""
    handle = handles.identity(fd, name)
    if handle is None:
        raise libc.failure(name)
    return fsid + handle


def handle(token: bytes) -> bytes:
    """The handle in a token."""
    return token[8:]


class Reader(Protocol):
    """What reads a group. `holds`: something has been read that nobody has been given yet."""

    @property
    def holds(self) -> bool: ...

    def read(self) -> bytes:
        """The next events, or some of those that may be of inodes that are known, and are not this process's; nothing
        where there are none. Raises OSError."""

    def numbers(self, token: bytes, number: int) -> None:
        """An inode's token and number: where handles tell the number, what happens to inodes of which none is known
        by its number can be left out."""


class _Plain:
    """In plain Python: the twin of shiftfs/native/events.c."""

    holds = False

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> bytes:
        try:
            return os.read(self._fd, _READ)
        except BlockingIOError:
            return b""

    def numbers(self, token: bytes, number: int) -> None:
        pass


def reader(fd: int, known: set[Any], links: bool, inodes: object = None) -> Reader:
    """Of a group; `known` and `links` as for `events`, `inodes` the table of all whose link counts matter."""
    if native.Reader is None:
        return _Plain(fd)
    made: Reader = native.Reader(fd=fd, known=known, links=links, store=inodes)
    return made


def events(data: bytes, me: int, own: Container[int], known: Container[object], links: bool) -> list[Event]:
    """What was read from a group: the events about inodes that are `known`, unless a process made them that is `me` or
    `own`. With `links`, also changes of the link count of any inode, which come without a directory.

    Most of what a filesystem's mark tells concerns nobody here: that is found out before anything else is looked at.
    """
    if data and data[4] != _VERSION:
        raise OSError(71, os.strerror(71), "fanotify")
    found: list[Event] = []
    unpack, record = _HEAD.unpack_from, _RECORD.unpack_from
    end, at = len(data), 0
    data += _PADDING  # the last event may have no record
    while at < end:
        length, mask, pid, kind, room, size = unpack(data, at)
        start = at + _METADATA
        at += length
        if pid == me or pid in own:
            continue
        if kind == _DFID_NAME and start < at:
            directory: bytes | None = data[start + _TO_TOKEN : start + _TO_HANDLE + size]
            second = start + room
            target: bytes | None = None
            if second < at:
                _, _, more = record(data, second)
                target = data[second + _TO_TOKEN : second + _TO_HANDLE + more]
            if directory not in known:
                if target not in known:
                    continue
                directory = None
            name = data[start + _TO_HANDLE + size : second].rstrip(b"\0")
            found.append((mask, directory, b"" if name == b"." else name, None, b"", target))
        elif mask & RENAME:
            renamed = _rename(data, start, at, mask, known)
            if renamed is not None:
                found.append(renamed)
        elif start == at:
            found.append((mask, None, b"", None, b"", None))
        elif kind == _FID:
            target = data[start + _TO_TOKEN : start + _TO_HANDLE + size]
            if target in known or (links and mask & ATTRIB):
                found.append((mask, None, b"", None, b"", target))
    return found


def _rename(data: bytes, at: int, end: int, mask: int, known: Container[object]) -> Event | None:
    """Either place may have no record: marks of inodes tell of their own directories only."""
    source = to = target = None
    old = new = b""
    while at < end:
        kind, room, size = _RECORD.unpack_from(data, at)
        named = data[at + _TO_TOKEN : at + _TO_HANDLE + size]
        name = data[at + _TO_HANDLE + size : at + room]
        at += room
        if kind == _FID:
            target = named
        elif named not in known:
            continue
        elif kind == _OLD:
            source, old = named, name.rstrip(b"\0")
        elif kind == _NEW:
            to, new = named, name.rstrip(b"\0")
    if source is None and to is None and target not in known:
        return None
    return mask, source, old, to, new, target
