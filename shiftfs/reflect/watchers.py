"""Hears of what other processes change in real directories: by fanotify for a whole filesystem where the process may,
else by fanotify for single inodes, else by inotify.

Owns the sources, and knows which one is for which device. Never looks at what has changed. Loop thread.
"""

import errno
import select
from collections.abc import Callable, Container
from typing import Final

from ..sys import fanotify
from .happening import Happening, Token, What
from .sources import Fanotify, Inotify, Source

__all__ = ["MODES", "Happening", "Token", "Watchers", "What"]

FILESYSTEM: Final = "fanotify filesystem"
INODES: Final = "fanotify"
INOTIFY: Final = "inotify"
NOTHING: Final = "timeout"
MODES: Final = {
    "auto": (FILESYSTEM, INODES, INOTIFY),
    "fanotify": (FILESYSTEM, INODES),
    "inotify": (INOTIFY,),
    "inodes": (INODES,),  # for tests
}

_LIMITS: Final = frozenset({errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_IMPOSSIBLE: Final = frozenset(
    {
        errno.EPERM,  # CAP_SYS_ADMIN, in the namespace that owns the filesystem
        errno.EXDEV,  # a btrfs subvolume
        errno.ENODEV,  # no id
        errno.EOPNOTSUPP,  # no handles
        errno.EINVAL,  # an older kernel
        errno.ENOSYS,
    }
)
"""Not this way, for any inode of the filesystem."""


class Watchers:
    """All that a mount's layers need. `mode` is of MODES; each device uses the first way of it that serves, found out
    at its first inode."""

    def __init__(
        self, mode: str, *, on_descriptor: Callable[[int], None], new: Callable[[str], Source] | None = None
    ) -> None:
        """`on_descriptor` is called with what is to be polled, once it is needed; `new` makes a source of a way."""
        self._new = new or new_source
        self._order = MODES[mode]
        self._on_descriptor = on_descriptor
        self._sources: dict[str, Source] = {}
        self._poll = select.poll()
        self.readers: list[fanotify.Reader] = []
        self._ways: dict[int, str] = {}
        self._refused = 0
        self._limited = 0

    def add(self, device: int, fd: int, name: bytes, is_directory: bool) -> Token | None:
        """Watch a name beneath `fd`, or `fd` (O_PATH too) itself for an empty one, which is on `device` (of layer.py).
        Of a file, its content and attributes. None where that cannot be. Again, it is the same token."""
        try:
            way = self._ways.get(device)
            if way is None:
                way = self._find_way(device, fd, name)
            if way != NOTHING:
                return self._sources[way].add(device, fd, name, is_directory)
            self._refused += 1
        except OSError as error:
            if error.errno in _LIMITS:
                self._limited += 1
            else:
                self._refused += 1
        return None

    def _find_way(self, device: int, fd: int, name: bytes) -> str:
        """Try one after the other. Where a limit is in the way of the last, it is tried again next time."""
        limit: OSError | None = None
        for kind in self._order:
            try:
                self._begin(kind, device, fd, name)
            except OSError as error:
                if error.errno in _LIMITS:
                    limit = error
                elif error.errno not in _IMPOSSIBLE:
                    raise
                continue
            self._ways[device] = kind
            return kind
        if limit is not None:
            try:
                raise limit
            finally:
                del limit  # else it and this frame would refer to each other
        self._ways[device] = NOTHING
        return NOTHING

    def _begin(self, kind: str, device: int, fd: int, name: bytes) -> None:
        source = self._sources.get(kind)
        if source is not None:
            source.prepare(device, fd, name)
            return
        source = self._new(kind)
        try:
            source.prepare(device, fd, name)
        except OSError:
            source.close()
            raise
        self._sources[kind] = source
        if source.reader is not None:
            self.readers.append(source.reader)
        self._poll.register(source.fd, select.POLLIN)
        self._on_descriptor(source.fd)

    def needs_way(self, token: Token) -> bool:
        """Does `remove` need one?"""
        return any(source.removes_by_way and token in source.known for source in self._sources.values())

    def remove(self, token: Token, fd: int, name: bytes) -> bool:
        """Watch it no more. Marks of inodes are removed by a way to the inode, which `fd` and `name` are or have been;
        False if they were not (`fd` may be -1): the mark stays until the inode goes, and nothing is told of it."""
        return all(source.remove(token, fd, name) for source in self._sources.values() if token in source.known)

    def read(self, fd: int, own: Container[int] = ()) -> list[Happening]:
        """What has happened since, or the first of it, in order: not what this process or those of `own` have done,
        where that is told. Raises OSError if the watcher has failed."""
        for source in self._sources.values():
            if source.fd == fd:
                return source.read(own)
        return []

    @property
    def descriptors(self) -> list[int]:
        return [source.fd for source in self._sources.values()]

    def has_news(self) -> bool:
        """Is there something to read?"""
        return any(reader.holds for reader in self.readers) or bool(self._poll.poll(0))

    def tells_who(self, fd: int) -> bool:
        """Does the watcher leave out what this process has done?"""
        return INOTIFY not in self._sources or self._sources[INOTIFY].fd != fd

    def identify(self, device: int, fd: int, name: bytes) -> Token | None:
        """What a watcher calls the inode at a name, watched or not; None where it has no such name for it."""
        source = self._sources.get(self._ways.get(device, NOTHING))
        try:
            return source.identify(device, fd, name) if source is not None else None
        except OSError:
            return None

    def disregard(self, device: int, fd: int) -> bool:
        """Leave out what is done from now on to the content of files through the mount that a file on `device` is
        reached by. False where a watcher that tells whose a change is cannot; others tell of it."""
        source = self._sources.get(self._ways.get(device, NOTHING))
        try:
            return source is None or source.disregard(fd)
        except OSError:
            return False

    def kind(self, device: int) -> str:
        """How a device is watched, in words."""
        return self._ways.get(device, NOTHING)

    def counts(self) -> dict[str, int]:
        """Inodes that are watched; requests refused for good, and because of a limit."""
        watched = sum(len(source.known) for source in self._sources.values())
        return {"watched": watched, "refused": self._refused, "limited": self._limited}

    def reopen(self, fd: int) -> bool:
        """Close a descriptor that has failed, and forget what it watched: whatever is added from now on is watched by a
        new one. False if it was none of ours."""
        for kind, source in list(self._sources.items()):
            if source.fd == fd:
                del self._sources[kind]
                self._close(source)
                self._ways = {device: way for device, way in self._ways.items() if way != kind}
                return True
        return False

    def close(self) -> None:
        for source in self._sources.values():
            self._close(source)
        self._sources.clear()
        self._ways.clear()

    def _close(self, source: Source) -> None:
        self._poll.unregister(source.fd)
        if source.reader is not None:
            self.readers.remove(source.reader)
        source.close()


def new_source(kind: str, inodes: object = None) -> Source:
    """Of a kind of watching; `inodes` as for Fanotify."""
    return Inotify() if kind == INOTIFY else Fanotify(kind == FILESYSTEM, inodes)
