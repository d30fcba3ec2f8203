"""Owns every descriptor that is held for an entry, and bounds how many there are.

An entry is found again by its last known name beneath its parent and checked against its real key; where a rename
behind the mount has moved it, by its file handle, or among its siblings. Never opens by a longer path. Loop thread.
"""

import collections
import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol
from weakref import ref

from . import layer as real
from .layer import Layer
from .sys import handles
from .tree import Attributes, Descriptor, RealKey

_WRITER_IDLE: Final = 1.0
"""Seconds after the last write until a descriptor open for writing is closed: while it is open, nobody can execute
the file on the layer (ETXTBSY) and no watcher of the layer sees IN_CLOSE_WRITE."""


class Entry:
    """Where an inode of a source tree was last seen, and what is open of it."""

    __slots__ = ("__weakref__", "data", "handle", "key", "name", "parent", "path")

    def __init__(self, parent: "Entry | None", name: bytes, key: RealKey) -> None:
        self.parent = parent
        self.name = name
        self.key = key
        self.path: Descriptor | None = None
        self.data: Descriptor | None = None
        self.handle: bytes | None = None

    def entry_of(self, directory: Any, name: bytes, key: RealKey) -> Any:
        """The entry of what was found in `directory`, of which this is the part it was found in."""
        return Entry(self, name, key)


class _Bounded(collections.OrderedDict["ref[Entry]", bool]):
    """Entries in the order in which they were opened, and whether a file handle leads to each; the oldest loses its
    descriptor.

    First in, first out, so that a hit costs nothing: whatever is in use again is opened again. None is kept alive by
    that: what leads to an inode, and nobody else knows, goes with it.
    """

    def __init__(self, maxsize: int, slot: str) -> None:
        super().__init__()
        self.maxsize = maxsize
        self._slot = slot
        self._gone: collections.deque[ref[Entry]] = collections.deque()

    def hold(self, entry: Entry, by_handle: bool) -> None:
        key = ref(entry, self._gone.append)
        self.pop(key, None)
        while len(self) >= self.maxsize:
            self.close_oldest()
        self[key] = by_handle

    def drop(self, entry: Entry) -> None:
        self.pop(ref(entry), None)

    def close_oldest(self) -> None:
        oldest, by_handle = self.popitem(last=False)
        entry = oldest()
        if entry is not None:
            if by_handle:
                _note_handle(entry)
            setattr(entry, self._slot, None)

    def tidy(self) -> None:
        """Take out what has gone, on whichever thread that was."""
        while self._gone:
            self.pop(self._gone.popleft(), None)


def _note_handle(entry: Entry) -> None:
    """It may be moved, behind the mount, before it is opened again."""
    if entry.handle is None and entry.data is not None:
        entry.handle = handles.of(entry.data.fd)


class Descriptors:
    """The descriptors of one layer's entries. `bound` counts those that may be closed at will; besides them only
    inodes that no name leads to any more keep one."""

    def __init__(
        self, layer: Layer, bound: int, unlinked: int = 1024, noatime: bool = True, beside: "Descriptors | None" = None
    ) -> None:
        """Those of a layer `beside` another are bounded together with the other's."""
        self._layer = layer
        self._paths: _Bounded = beside._paths if beside else _Bounded(max(bound // 2, 8), "path")
        self._data: _Bounded = beside._data if beside else _Bounded(max(bound // 2, 8), "data")
        self.pinned: set[Entry] = beside.pinned if beside else set()
        """Those that no name leads to any more, `most_pinned` of them."""
        self.most_pinned = unlinked
        self.writers: dict[Entry, float] = beside.writers if beside else {}
        """When each was written to last, or opened for that (time.monotonic()), of what may be open for it."""
        self.noatime = os.O_NOATIME if noatime else 0
        """What files are opened with to be read, where that is allowed."""
        self.tells_kinds = layer.override is None
        """Is a regular file of the layer meant to be one?"""
        root_key, _ = layer.look(layer.root.fd, b"")
        self.root = Entry(None, b"", root_key)
        self.root.path = layer.root

    def path(self, entry: Entry) -> Descriptor:
        """An O_PATH descriptor of the very inode. ESTALE if it is not to be found any more."""
        held = entry.path
        if held is not None:
            return held
        if entry.data is not None and entry.key[0] not in self._layer.remote:
            return self._path_of_data(entry, entry.data)
        try:
            return self._walk(entry)
        except OSError as error:
            if error.errno != errno.ESTALE or entry.handle is None:
                raise
        # The way to it is gone; the inode itself need not be.
        found = self._by_handle(entry)
        if found is None:
            raise _stale()
        return self._keep_path(entry, found)

    def path_opened(self, entry: Entry, fd: int) -> Descriptor:
        """The same, where it may have been opened natively; -1 if not."""
        return self._keep_path(entry, Descriptor(fd, os.close)) if fd >= 0 else self.path(entry)

    def _path_of_data(self, entry: Entry, data: Descriptor) -> Descriptor:
        """What is open for its content need not be found."""
        return self._keep_path(entry, self._take(lambda: real.reopen(data.fd, os.O_PATH)))

    def attributes(self, entry: Entry) -> Attributes:
        """What the layer says of the very inode. ESTALE if it is not to be found any more."""
        held = entry.path or entry.data
        if held is None and entry.parent is not None:
            try:
                key, attributes = self._layer.look(self.path(entry.parent).fd, entry.name)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
            else:
                if key == entry.key:
                    return attributes
        return self._layer.look((held or self.path(entry)).fd, b"")[1]

    def _walk(self, entry: Entry) -> Descriptor:
        """From the nearest directory above that is open, name by name."""
        chain = [entry]
        while (parent := chain[-1].parent) is not None and parent.path is None:
            chain.append(parent)
        above = chain[-1].parent
        if above is None or above.path is None:
            raise _stale()
        held: Descriptor = above.path
        for missing in reversed(chain):
            held = self._open_path(held, missing)
        return held

    def _open_path(self, parent: Descriptor, entry: Entry) -> Descriptor:
        try:
            found = self._take(lambda: self._layer.open_path(parent.fd, entry.name))
            if self._layer.look(found.fd, b"")[0] != entry.key:
                found = self._recover(parent, entry)
        except FileNotFoundError:
            found = self._recover(parent, entry)
        return self._keep_path(entry, found)

    def _keep_path(self, entry: Entry, found: Descriptor) -> Descriptor:
        if entry.handle is None and self._layer.opens_by_handle:
            entry.handle = handles.of(found.fd)
        entry.path = found
        self._paths.hold(entry, self._layer.opens_by_handle)
        return found

    def _by_handle(self, entry: Entry) -> Descriptor | None:
        """What the entry's file handle leads to, if that is still the very inode."""
        handle = entry.handle
        if handle is None:
            return None
        try:
            found = self._take(lambda: handles.open_handle(self._layer.root.fd, handle, os.O_PATH | os.O_NOFOLLOW))
            return found if self._layer.look(found.fd, b"")[0] == entry.key else None
        except OSError:
            return None

    def note_handle(self, entry: Entry, handle: bytes) -> None:
        """As tree.Tree.note_handle. Whether it leads to the very inode is seen when it is used."""
        if entry.handle is None and self._layer.opens_by_handle:
            entry.handle = handle

    def found_by(self, entry: Entry, handle: bytes) -> bool:
        """As tree.Tree.found_by."""
        before, entry.handle = entry.handle, handle
        found = self._by_handle(entry)
        if found is None:
            entry.handle = before
            return False
        if entry.path is None:
            self._keep_path(entry, found)
        return True

    def _recover(self, parent: Descriptor, entry: Entry) -> Descriptor:
        """The inode is not where it was: by its handle, else among the names beside its old one."""
        by_handle = self._by_handle(entry)
        if by_handle is not None:
            return by_handle
        with contextlib.suppress(FileNotFoundError):  # the parent is itself removed, or the name just now
            for name, number, _ in real.list_names(parent.fd):
                if number == entry.key[1]:
                    found = self._take(lambda name=name: self._layer.open_path(parent.fd, name))  # type: ignore[misc]
                    if self._layer.look(found.fd, b"")[0] == entry.key:
                        entry.name = name
                        return found
        raise _stale()

    def data(self, entry: Entry, writable: bool) -> Descriptor:
        """The descriptor through which a regular file is read and, if `writable`, written.

        BlockingIOError where opening it may take long: a lease, or a layer beyond the network. EACCES on procfs and
        the like.
        """
        if writable:
            self.writers[entry] = time.monotonic()
        held = entry.data
        if held is not None and (held.writable or not writable):
            return held
        if entry.key[0] in self._layer.pseudo:
            # What such a file says depends on who opened it: only a handle with a descriptor of its own may.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if entry.key[0] in self._layer.remote:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        path = self.path(entry)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | self.noatime
        # Without O_NONBLOCK a lease on the layer would stop the loop (open(2), EWOULDBLOCK).
        opened = self.open(path, flags | os.O_NONBLOCK)
        self.keep_data(entry, opened)
        return opened

    def open(self, path: Descriptor, flags: int) -> Descriptor:
        """Open what `path` holds; O_NOATIME only as far as it is allowed."""
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        try:
            return self._take(lambda: real.reopen(path.fd, flags), writable)
        except PermissionError:
            if not flags & os.O_NOATIME:
                raise
            return self._take(lambda: real.reopen(path.fd, flags & ~os.O_NOATIME), writable)

    def keep_data(self, entry: Entry, data: Descriptor) -> None:
        """Make this the entry's data descriptor; all who use the inode see the same file."""
        if data.writable:
            self.writers.setdefault(entry, time.monotonic())
        entry.data = data
        self._data.drop(entry)
        self._data.hold(entry, self._layer.opens_by_handle)

    def opened(self, entry: Entry, fd: int, writable: bool) -> Descriptor:
        """The same of one that has been opened natively. Whoever writes notes when (`writers`)."""
        if entry.data is not None:
            self._data.drop(entry)
        data = entry.data = Descriptor(fd, os.close, writable)
        self._data.hold(entry, self._layer.opens_by_handle)
        return data

    def _take(self, opening: "real.Opening", writable: bool = False) -> Descriptor:
        """Run an open; when the table is full, give back half of what may be closed and try once more."""
        try:
            return Descriptor(opening(), os.close, writable)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        for cache in (self._paths, self._data):
            for _ in range(len(cache) // 2):
                cache.close_oldest()
        return Descriptor(opening(), os.close, writable)

    def pin(self, entry: Entry) -> None:
        """Its name is about to go: keep its descriptor until it is found under another or forgotten. ENFILE when
        that would be one too many: whoever keeps that many removed files open shall not take the mount from others."""
        self._check_pins()
        self.path(entry)
        self._paths.drop(entry)
        self.pinned.add(entry)

    def pin_opened(self, entry: Entry, fd: int, is_last: bool) -> None:
        """The same of one that has been opened natively, where there was room for it. Where that was not its last name,
        it can be found again."""
        if not is_last and entry.handle is None and self._layer.opens_by_handle:
            entry.handle = handles.of(fd)
        if entry.path is not None:
            self._paths.drop(entry)
        entry.path = Descriptor(fd, os.close)
        self.pinned.add(entry)

    def unpin(self, entry: Entry) -> None:
        """It has a name again."""
        if entry in self.pinned:
            self.pinned.discard(entry)
            self._paths.hold(entry, self._layer.opens_by_handle)

    def unpin_if_found_again(self, entry: Entry) -> None:
        """It has names left, none that we know: without this, removing many of many hard links would hold as many
        descriptors. Where there are no handles, only as many as there may be paths are kept."""
        if entry.handle is not None or len(self.pinned) > self._paths.maxsize:
            self.unpin(entry)

    @contextlib.contextmanager
    def removing(self, known: Entry | None, directory: Entry, name: bytes) -> Iterator[None]:
        """Keep hold of an inode before a name of it goes; it may be the last, whatever name we saw last, as others may
        have gone behind the mount. Let go if it stays after all."""
        if known is None or (known.parent is not directory and is_directory(known.key)):
            yield  # a directory has one name; one moved behind the mount might be above `directory` by what we know
            return
        last_seen = known.parent, known.name
        known.parent, known.name = directory, name
        self.pin(known)
        try:
            yield
        except OSError:
            self.unpin(known)
            raise
        finally:
            known.parent, known.name = last_seen

    def has_gone(self, known: Entry | None) -> bool:
        """Has the inode, whose name has been removed, no name any more?"""
        if known is None or known.path is None:
            return False
        if self.attributes(known).nlink == 0:
            return True
        self.unpin_if_found_again(known)
        return False

    def _check_pins(self) -> None:
        if len(self.pinned) >= self.most_pinned:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def adopt_unnamed(self, entry: Entry, path: Descriptor) -> None:
        """An inode that never had a name (O_TMPFILE). ENFILE as for `pin`."""
        self._check_pins()
        entry.path = path
        self.pinned.add(entry)

    def release(self, entry: Entry) -> None:
        """Close all that is held for the entry."""
        if entry.path is not None:
            if entry in self.pinned:
                self.pinned.discard(entry)
            else:
                self._paths.drop(entry)
            entry.path = None
        if entry.data is not None:
            self.drop_data(entry)

    def drop_data(self, entry: Entry) -> None:
        self._data.drop(entry)
        self.writers.pop(entry, None)
        entry.data = None

    def tidy(self, now: float) -> bool:
        """Close writers idle for a second; True if some are left."""
        self._paths.tidy()
        self._data.tidy()
        for entry in [e for e, used in self.writers.items() if now - used >= _WRITER_IDLE]:
            if entry.data is not None and entry.data.writable:
                if self._layer.opens_by_handle:
                    _note_handle(entry)
                self.drop_data(entry)
            self.writers.pop(entry, None)
        return bool(self.writers)

    def count(self) -> dict[str, int]:
        """Held now, for `status`."""
        return {
            "paths": len(self._paths),
            "data": len(self._data),
            "unlinked": len(self.pinned),
            "bound": self._paths.maxsize + self._data.maxsize,
        }


def _stale() -> OSError:
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def is_directory(key: RealKey) -> bool:
    """Does the key belong to a directory?"""
    return key[3] & 0xF == stat.S_IFDIR >> 12


class Placed(Protocol):
    """What knows the directory that it was last seen in, and its name there."""

    @property
    def parent(self) -> "Placed | None": ...

    @property
    def name(self) -> bytes: ...


def seen_at(entry: Any, directory: Any, name: bytes) -> None:
    """Note where an entry (as Placed) was seen. If by what we know the way to `directory` leads through it, that is out
    of date: there have been renames behind the mount that we do not know yet. A circle would have no end, so what was
    in it on that way is taken to be where it was itself, until it is seen again."""
    if directory is entry:
        return
    if entry.parent is not directory and is_directory(entry.key):
        below = directory
        while below is not None and below.parent is not entry:
            below = below.parent
        if below is not None:
            below.parent = entry.parent
    entry.parent, entry.name = directory, name


def path_of(entry: Placed) -> bytes:
    """The path from the root by which it was last seen, for messages."""
    names = []
    above: Placed | None = entry
    while above is not None and above.parent is not None:
        names.append(above.name)
        above = above.parent
    return b"/" + b"/".join(reversed(names))
