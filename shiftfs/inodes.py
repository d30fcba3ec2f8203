"""Owns what the kernel knows us by: nodeids and their lookup counts, over a table hashed by the real inode.

A nodeid stands for one real inode from the first lookup to the last forget, through any number of names, and is never
given out again. Where layers are watched, the table also remembers which names the kernel was told (`tell`): changes
of the layers are compared with that. Knows nothing of descriptors (those are the entry's). Loop thread.
"""

import errno
import os
from typing import Any, Final

from .tree import RealKey

ROOT_ID = 1
_DIRECTORY: Final = 4
Place = tuple["Inode", bytes]
"""A known directory and a name in it."""


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
    has no name any more.

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

    def told(self, name: bytes) -> "Inode | None":
        """What the kernel was told that a name of this directory leads to."""
        return self.children.get(name) if self.children is not None else None


class InodeTable:
    """nodeid <-> Inode, real key -> Inode."""

    def __init__(self, root_key: RealKey, root_entry: Any) -> None:
        self.root = Inode(ROOT_ID, root_key, root_entry)
        self.root.nlookup = 1
        self.outsiders: set[int] = set()
        """The nodeids of what belongs to somebody who is not in the user namespace of the mount, if that is another's:
        few are, so nothing of it is kept for each inode."""
        self._by_nodeid: dict[int, Inode] = {ROOT_ID: self.root}
        self._by_key: dict[RealKey, Inode] = {root_key: self.root}
        self._other_places: dict[Inode, set[Place]] = {}
        """The names, besides the first, under which the kernel was told of an inode that has several."""
        self._idle: list[Inode] = []
        """Those that the kernel may have forgotten, and nothing told of them any more: `forget` looks."""
        self._next = ROOT_ID + 1

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def get(self, nodeid: int) -> Inode:
        """The inode of a request. ESTALE for a nodeid that the kernel cannot know."""
        try:
            return self._by_nodeid[nodeid]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def known(self, key: RealKey) -> Inode | None:
        """The inode of a real inode, if the kernel knows it."""
        return self._by_key.get(key)

    def adopted(self, key: RealKey) -> Inode:
        """The same of one that the kernel knows for sure."""
        return self._by_key[key]

    def new_nodeid(self) -> int:
        """One that nothing has had, and nothing else will have."""
        nodeid = self._next
        self._next = nodeid + 1
        return nodeid

    def add(self, key: RealKey, entry: Any) -> Inode:
        """A new inode, of a real inode not known so far; its lookup count starts at 0."""
        nodeid = self.new_nodeid()
        inode = Inode(nodeid, key, entry)
        self._by_nodeid[nodeid] = inode
        self._by_key[key] = inode
        return inode

    def second_root(self) -> Inode:
        """The root directory under one more nodeid, which is its inode from here on (mount.show_inner_root)."""
        self.root = self.add(self.root.key, self.root.entry)
        self.root.nlookup = 1
        return self.root

    def bury(self, inode: Inode) -> None:
        """The real inode has lost its last name. It goes on under its nodeid, but whatever gets its number next is
        another inode."""
        inode.unlinked = True
        if self._by_key.get(inode.key) is inode:
            del self._by_key[inode.key]

    def revive(self, inode: Inode) -> None:
        """An inode without a name (O_TMPFILE) has got one."""
        inode.unlinked = False
        self._by_key.setdefault(inode.key, inode)

    def forget(self, nodeid: int, count: int) -> list[Inode]:
        """The kernel drops `count` references; all that is not needed any more then. The root is never forgotten, and a
        directory stays as long as something told of it is known: what watches it watches that."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None or inode is self.root or nodeid == ROOT_ID:
            return []
        inode.nlookup -= count
        if inode.nlookup > 0:
            return []
        self._idle.append(inode)
        dropped: list[Inode] = []
        while self._idle:
            inode = self._idle.pop()
            if inode.nlookup <= 0 and not inode.children and self._by_nodeid.pop(inode.nodeid, None) is not None:
                if self._by_key.get(inode.key) is inode:
                    del self._by_key[inode.key]
                while inode.parent is not None:
                    self.untell(inode.parent, inode.name)
                self.outsiders.discard(inode.nodeid)
                dropped.append(inode)
        return dropped

    # What the kernel was told of names.

    def tell(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """The kernel is told that `name` leads to `inode`. A directory is where it was last told to be."""
        if inode is parent:
            return  # the kernel takes no such answer
        children = parent.children
        if children is None:
            children = parent.children = {}
        else:
            told = children.get(name)
            if told is inode:
                return
            if told is not None:
                self.untell(parent, name)
        if inode.children:
            self._part(inode, parent)
        if inode.parent is None:
            inode.parent, inode.name = parent, name
        elif inode.is_directory:
            self.untell(inode.parent, inode.name)
            inode.parent, inode.name = parent, name
        else:
            self._other_places.setdefault(inode, set()).add((parent, name))
        children[name] = inode

    def _part(self, directory: Inode, parent: Inode) -> None:
        """No directory is below itself: where that is what was told of the way to `parent`, it is so no longer."""
        below = parent
        while below.parent is not None and below.parent is not directory:
            below = below.parent
        if below.parent is directory:
            self.untell(directory, below.name)

    def untell(self, parent: Inode, name: bytes) -> Inode | None:
        """The name leads nowhere any more, as far as the kernel is told; the inode that it led to."""
        inode = parent.children.pop(name, None) if parent.children is not None else None
        if inode is None:
            return None
        others = self._other_places.get(inode)
        if inode.parent is parent and inode.name == name:
            inode.parent, inode.name = others.pop() if others else (None, b"")
        elif others:
            others.discard((parent, name))
        if others is not None and not others:
            del self._other_places[inode]
        if parent.nlookup <= 0:
            self._idle.append(parent)
        return inode

    def places(self, inode: Inode) -> list[Place]:
        """All names that the kernel was told of an inode."""
        first = [(inode.parent, inode.name)] if inode.parent is not None else []
        return [*first, *self._other_places.get(inode, ())]

    def renamed(self, parent: Inode, name: bytes, to: Inode, new_name: bytes, exchanged: bool = False) -> None:
        """What was told of one name is told of another from now on."""
        moved = self.untell(parent, name)
        replaced = self.untell(to, new_name)
        if moved is not None:
            self.tell(to, new_name, moved)
        if exchanged and replaced is not None:
            self.tell(parent, name, replaced)

    def drop_all(self) -> list[Inode]:
        """All that was known; nothing is any more."""
        dropped = list(self._by_nodeid.values())
        self._by_nodeid.clear()
        self._by_key.clear()
        self._other_places.clear()
        return dropped

    def watched(self) -> list[Inode]:
        """All known inodes that have a watch."""
        return [inode for inode in self._by_nodeid.values() if inode.watch is not None]
