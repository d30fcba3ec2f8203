"""inotify(7) instances, and what their records say. Any thread. An instance is its descriptor's: close that."""

import os
import struct
from typing import Final

from . import libc

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
Q_OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
ISDIR: Final = 0x4000_0000
_DONT_FOLLOW: Final = 0x0200_0000

_init = libc.function("inotify_init1", [libc.INT])
_add = libc.function("inotify_add_watch", [libc.INT, libc.PATH, libc.UINT])
_remove = libc.function("inotify_rm_watch", [libc.INT, libc.INT])

_EVENT = struct.Struct("=iIII")

Event = tuple[int, int, int, bytes]
"""Watch descriptor, mask, cookie, name; the name is empty where the event is about what is watched itself."""


def new() -> int:
    """An instance's descriptor, which never blocks."""
    fd = _init(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise libc.failure()
    return fd


def add(instance: int, fd: int, name: bytes, mask: int) -> int:
    """inotify_add_watch(2) of a name beneath `fd`, never following it, or of what `fd` (O_PATH too) names itself."""
    if name:
        wd = _add(instance, b"/proc/self/fd/%d/%s" % (fd, name), mask | _DONT_FOLLOW)
    else:
        wd = _add(instance, b"/proc/self/fd/%d" % fd, mask)
    if wd < 0:
        raise libc.failure(name)
    return wd


def remove(instance: int, wd: int) -> None:
    """inotify_rm_watch(2). EINVAL if it is gone already."""
    if _remove(instance, wd):
        raise libc.failure()


def events(data: bytes) -> list[Event]:
    """What was read from an instance."""
    found: list[Event] = []
    unpack, at = _EVENT.unpack_from, 0
    while at < len(data):
        wd, mask, cookie, length = unpack(data, at)
        at += 16
        found.append((wd, mask, cookie, data[at : at + length].rstrip(b"\0")))
        at += length
    return found
