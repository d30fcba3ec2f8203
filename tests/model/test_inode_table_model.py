"""The inode table against two plain dictionaries, over so few real inodes that their numbers are reused often."""

import errno
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shiftfs.inodes import ROOT_ID, Inode, InodeTable
from shiftfs.tree import RealKey

ROOT_KEY: RealKey = (1, 2, 0, 4)
KEYS = st.sampled_from([(1, number, 0, 8) for number in range(10, 16)])
ANY = st.integers(0, 1000)


@dataclass
class Known:
    key: RealKey
    lookups: int
    unlinked: bool = False


class Table(RuleBasedStateMachine):
    """`nodes` is what the kernel knows, by nodeid; `named` says which of them a real inode leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.table = InodeTable(ROOT_KEY, "root")
        self.nodes = {ROOT_ID: Known(ROOT_KEY, 1)}
        self.named = {ROOT_KEY: ROOT_ID}
        self.roots = {ROOT_ID}
        self.given = {ROOT_ID}

    def _new(self, inode: Inode, key: RealKey) -> None:
        assert inode.nodeid not in self.given, "a nodeid was given out twice"
        self.given.add(inode.nodeid)
        self.nodes[inode.nodeid] = Known(key, 0)
        self.named[key] = inode.nodeid

    def _one_of(self, nodeids: list[int], choice: int) -> int:
        return sorted(nodeids)[choice % len(nodeids)]

    def _files(self, unlinked: bool) -> list[int]:
        files = ((nodeid, known) for nodeid, known in self.nodes.items() if nodeid not in self.roots)
        return [nodeid for nodeid, known in files if known.unlinked == unlinked]

    @rule(key=st.one_of(KEYS, st.just(ROOT_KEY)))
    def look_up(self, key: RealKey) -> None:
        inode = self.table.known(key)
        assert (inode.nodeid if inode else None) == self.named.get(key)
        if inode is None:
            inode = self.table.add(key, f"entry of {key}")
            self._new(inode, key)
        inode.nlookup += 1
        self.nodes[inode.nodeid].lookups += 1

    @precondition(lambda self: self._files(unlinked=False))
    @rule(choice=ANY)
    def lose_the_last_name(self, choice: int) -> None:
        nodeid = self._one_of(self._files(unlinked=False), choice)
        self.table.bury(self.table.get(nodeid))
        self.nodes[nodeid].unlinked = True
        if self.named.get(self.nodes[nodeid].key) == nodeid:
            del self.named[self.nodes[nodeid].key]

    @precondition(lambda self: self._files(unlinked=True))
    @rule(choice=ANY)
    def get_a_name(self, choice: int) -> None:
        nodeid = self._one_of(self._files(unlinked=True), choice)
        self.table.revive(self.table.get(nodeid))
        self.nodes[nodeid].unlinked = False
        self.named.setdefault(self.nodes[nodeid].key, nodeid)

    @rule(choice=ANY, count=st.integers(1, 4))
    def forget(self, choice: int, count: int) -> None:
        nodeid = self._one_of(list(self.nodes), choice)
        known = self.nodes[nodeid]
        if nodeid in self.roots:
            assert self.table.forget(nodeid, count) == []
            return
        count = min(count, known.lookups)
        known.lookups -= count
        gone = self.table.forget(nodeid, count)
        assert (gone == []) == (known.lookups > 0)
        for inode in gone:
            assert (inode.nodeid, inode.key, inode.unlinked) == (nodeid, known.key, known.unlinked)
            del self.nodes[nodeid]
            if self.named.get(known.key) == nodeid:
                del self.named[known.key]

    @rule(choice=ANY)
    def ask_for_one_that_is_forgotten(self, choice: int) -> None:
        nodeid = self._one_of([*self.given, max(self.given) + 1, 0], choice)
        if nodeid not in self.nodes:
            assert self.table.forget(nodeid, 1) == []
            with pytest.raises(OSError) as refused:
                self.table.get(nodeid)
            assert refused.value.errno == errno.ESTALE

    @precondition(lambda self: len(self.roots) == 1)
    @rule()
    def give_the_root_one_more(self) -> None:
        inode = self.table.second_root()
        self._new(inode, ROOT_KEY)
        self.nodes[inode.nodeid].lookups = 1
        self.roots.add(inode.nodeid)
        assert self.table.root is inode

    @invariant()
    def knows_the_same(self) -> None:
        assert len(self.table) == len(self.nodes)
        for nodeid, known in self.nodes.items():
            inode = self.table.get(nodeid)
            assert (inode.nodeid, inode.key, inode.unlinked) == (nodeid, known.key, known.unlinked)
            if nodeid not in self.roots:
                assert inode.nlookup == known.lookups
        for key in {known.key for known in self.nodes.values()}:
            found = self.table.known(key)
            assert (found.nodeid if found else None) == self.named.get(key)


TestTable = Table.TestCase
