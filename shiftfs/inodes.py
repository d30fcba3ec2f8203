"""Owns what the kernel knows us by: nodeids and their lookup counts, over a table hashed by the real inode.

A nodeid stands for one real inode from the first lookup to the last forget, through any number of names, and is never
given out again. Knows nothing of paths or descriptors (those are the entry's). Loop thread.
"""

import errno
import os
from typing import Any

from .tree import RealKey

ROOT_ID = 1


class Inode:
    """One inode that the kernel knows. `nlookup` counts the kernel's references; `unlinked` says that the real inode
    has no name any more, `at_work` how many workers are changing its content."""

    __slots__ = ("at_work", "entry", "key", "nlookup", "nodeid", "unlinked")

    def __init__(self, nodeid: int, key: RealKey, entry: Any) -> None:
        self.nodeid = nodeid
        self.key = key
        self.entry = entry
        self.nlookup = 0
        self.unlinked = False
        self.at_work = 0


class InodeTable:
    """nodeid <-> Inode, real key -> Inode."""

    def __init__(self, root_key: RealKey, root_entry: Any) -> None:
        self.root = Inode(ROOT_ID, root_key, root_entry)
        self.root.nlookup = 1
        self._by_nodeid: dict[int, Inode] = {ROOT_ID: self.root}
        self._by_key: dict[RealKey, Inode] = {root_key: self.root}
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

    def add(self, key: RealKey, entry: Any) -> Inode:
        """A new inode, of a real inode not known so far; its lookup count starts at 0."""
        nodeid = self._next
        self._next = nodeid + 1
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

    def forget(self, nodeid: int, count: int) -> Inode | None:
        """The kernel drops `count` references; the inode when those were the last. The root is never forgotten."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None or inode is self.root or nodeid == ROOT_ID:
            return None
        inode.nlookup -= count
        if inode.nlookup > 0:
            return None
        del self._by_nodeid[nodeid]
        if self._by_key.get(inode.key) is inode:
            del self._by_key[inode.key]
        return inode
