"""nodeid -> inode and real key -> inode, in plain Python: the twin of shiftfs/native/inode.c and table.c.

Owns the inodes that are inserted. Knows no rule of when that is, or when they are taken out (`inodes.InodeTable`). Loop
thread.
"""

import errno
import os
from typing import Any, Final

from .tree import RealKey

_DIRECTORY: Final = 4
_FIRST: Final = 2
"""The kernel's own name of the root, FUSE_ROOT_ID, is 1."""


class Watch:
    """What tells of changes of an inode behind the mount: the `tokens` of its watched real inodes, whose `keys` are
    those that it was made of then. `steady`: all of them are watched, so nothing changes unseen."""

    __slots__ = ("keys", "steady", "tokens")

    def __init__(self, tokens: tuple[Any, ...], keys: tuple[RealKey, ...], steady: bool) -> None:
        self.tokens = tokens
        self.keys = keys
        self.steady = steady


class Inode:
    """One inode that the kernel knows. `nlookup` counts the kernel's references; `unlinked` says that the real inode
    has no name any more; `entry` is what the tree knows of it.

    Where layers are watched: `parent` and `name` are where the kernel was last told that it is, `children` the names
    that it was told of a directory. A directory has a `watch`, other inodes if they have several names.
    """

    __slots__ = ("children", "entry", "key", "name", "nlookup", "nodeid", "parent", "unlinked", "watch")

    def __init__(self, nodeid: int, key: RealKey, entry: Any) -> None:
        self.nodeid = nodeid
        self.key = key
        self.entry = entry
        self.nlookup = 0
        self.unlinked = False
        self.parent: Inode | None = None
        self.name = b""
        self.children: dict[bytes, Inode] | None = None
        self.watch: Watch | None = None

    @property
    def is_directory(self) -> bool:
        return self.key[3] & 0xF == _DIRECTORY

    @property
    def type(self) -> int:
        """S_IFMT of its mode."""
        return (self.key[3] & 0xF) << 12

    @property
    def has_no_entry_yet(self) -> bool:
        """Will the entry be made when somebody asks for it? Only the native twin waits for that."""
        return False

    def told(self, name: bytes) -> "Inode | None":
        """What the kernel was told that a name of this directory leads to."""
        return self.children.get(name) if self.children is not None else None


class Store:
    """Inodes by nodeid, and by real key: of several with one key, the one inserted last has it."""

    def __init__(self) -> None:
        self._by_nodeid: dict[int, Inode] = {}
        self._by_key: dict[RealKey, Inode] = {}
        self._next = _FIRST

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def get(self, nodeid: int) -> Inode:
        """The inode of a request. ESTALE for a nodeid that the kernel cannot know."""
        try:
            return self._by_nodeid[nodeid]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def find(self, nodeid: int) -> Inode | None:
        """The inode of a nodeid, if it is in use."""
        return self._by_nodeid.get(nodeid)

    def known(self, key: RealKey) -> Inode | None:
        """The inode of a real inode, if the kernel knows it."""
        return self._by_key.get(key)

    def new_nodeid(self) -> int:
        """One that nothing has had, and nothing else will have."""
        nodeid = self._next
        self._next = nodeid + 1
        return nodeid

    def insert(self, inode: Inode) -> None:
        self._by_nodeid[inode.nodeid] = inode
        self._by_key[inode.key] = inode

    def take(self, nodeid: int) -> Inode | None:
        """Out of both; None for one that is not there."""
        inode = self._by_nodeid.pop(nodeid, None)
        if inode is not None:
            self.unkey(inode)
        return inode

    def unkey(self, inode: Inode) -> None:
        """Its key leads to it no more."""
        if self._by_key.get(inode.key) is inode:
            del self._by_key[inode.key]

    def key_again(self, inode: Inode) -> None:
        """Its key leads to it again, unless it leads to another by now."""
        if inode.nodeid in self._by_nodeid:
            self._by_key.setdefault(inode.key, inode)

    def all(self) -> list[Inode]:
        """In the order of their nodeids, which is that in which they were inserted."""
        return list(self._by_nodeid.values())

    def forget_all(self) -> None:
        self._by_nodeid.clear()
        self._by_key.clear()
