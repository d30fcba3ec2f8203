"""Owns what the kernel knows us by: nodeids and their lookup counts, over a table hashed by the real inode.

A nodeid stands for one real inode from the first lookup to the last forget, through any number of names, and is never
given out again. Where layers are watched, the table also remembers which names the kernel was told (`tell`): changes
of the layers are compared with that. Knows nothing of descriptors (those are the entry's). Loop thread.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from . import native
from .store import Inode, Store, Watch
from .tree import RealKey

if not TYPE_CHECKING and native.Store is not None:
    from .native import Inode, Store

__all__ = ["ROOT_ID", "Inode", "InodeTable", "Place", "Watch"]

ROOT_ID: Final = 1
Place = tuple["Inode", bytes]
"""A known directory and a name in it."""


class InodeTable(Store):
    """nodeid <-> Inode, real key -> Inode."""

    def __init__(self, root_key: RealKey, root_entry: Any) -> None:
        super().__init__()
        self.root = Inode(ROOT_ID, root_key, root_entry)
        self.root.nlookup = 1
        self.insert(self.root)
        self.written: Counter[Inode] = Counter()
        """Files that are open for writing and passed on to the layer's: they change, and no request tells of it."""
        self.outsiders: set[int] = set()
        """The nodeids of what belongs to somebody who is not in the user namespace of the mount, if that is another's:
        few are, so nothing of it is kept for each inode."""
        self._other_places: dict[Inode, set[Place]] = {}
        """The names, besides the first, under which the kernel was told of an inode that has several."""
        self._idle: list[Inode] = []
        """Those that the kernel may have forgotten, and nothing told of them any more: `forget` looks."""

    def adopted(self, key: RealKey) -> Inode:
        """The inode of a real inode that the kernel knows for sure."""
        inode = self.known(key)
        assert inode is not None
        return inode

    def add(self, key: RealKey, entry: Any) -> Inode:
        """A new inode, of a real inode not known so far; its lookup count starts at 0."""
        inode = Inode(self.new_nodeid(), key, entry)
        self.insert(inode)
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
        self.unkey(inode)

    def revive(self, inode: Inode) -> None:
        """An inode without a name (O_TMPFILE) has got one."""
        inode.unlinked = False
        self.key_again(inode)

    def forget(self, nodeid: int, count: int) -> list[Inode]:
        """The kernel drops `count` references; all that is not needed any more then. The root is never forgotten, and a
        directory stays as long as something told of it is known: what watches it watches that."""
        inode = self.find(nodeid)
        if inode is None or inode is self.root or nodeid == ROOT_ID:
            return []
        inode.nlookup -= count
        if inode.nlookup > 0:
            return []
        self._idle.append(inode)
        dropped: list[Inode] = []
        while self._idle:
            inode = self._idle.pop()
            if inode.nlookup <= 0 and not inode.children and self.take(inode.nodeid) is not None:
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
        dropped = self.all()
        self.forget_all()
        self._other_places.clear()
        return dropped

    def watched(self) -> list[Inode]:
        """All known inodes that have a watch."""
        return [inode for inode in self.all() if inode.watch is not None]
