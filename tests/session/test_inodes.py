"""The inode table, and what a known inode costs."""

import errno
import gc
import os
import sys
from pathlib import Path

import pytest

from shiftfs.descriptors import Descriptors, Entry
from shiftfs.inodes import ROOT_ID, Inode, InodeTable
from shiftfs.layer import Layer
from shiftfs.source import SourceTree
from shiftfs.sys import handles
from shiftfs.tree import RealKey

FILE = 0o10
KNOWN = 200_000
MOST_BYTES = 700


def key(number: int, born: int = 5) -> RealKey:
    return (1, number, born, FILE)


@pytest.fixture
def table() -> InodeTable:
    return InodeTable((1, 2, 5, 4), "root entry")


def known(table: InodeTable, number: int, nlookup: int = 1) -> Inode:
    inode = table.add(key(number), f"entry {number}")
    inode.nlookup = nlookup
    return inode


def test_both_ways(table: InodeTable) -> None:
    inode = known(table, 10)
    assert table.get(inode.nodeid) is inode is table.known(key(10))
    assert table.known(key(10, born=6)) is None, "a number used again is another inode"
    assert (inode.entry, inode.unlinked) == ("entry 10", False)
    assert len(table) == 2


@pytest.mark.parametrize("nodeid", [0, 3, 2**64 - 1])
def test_stale(table: InodeTable, nodeid: int) -> None:
    with pytest.raises(OSError) as caught:
        table.get(nodeid)
    assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("counts", [(3,), (1, 2), (1, 1, 1), (5,)])
def test_forgotten_with_the_last_reference(table: InodeTable, counts: tuple[int, ...]) -> None:
    inode = known(table, 10, nlookup=3)
    outcomes = [table.forget(inode.nodeid, count) for count in counts]
    assert outcomes == [[]] * (len(counts) - 1) + [[inode]]
    assert table.known(key(10)) is None and len(table) == 1
    assert table.forget(inode.nodeid, 1) == [], "again"


def test_the_root_is_never_forgotten(table: InodeTable) -> None:
    second = table.second_root()
    assert second is table.root and second.nodeid != ROOT_ID and second.entry == "root entry"
    assert table.known(second.key) is second
    for nodeid in (ROOT_ID, second.nodeid):
        assert table.forget(nodeid, 10**6) == []
        assert table.get(nodeid).entry == "root entry"


@pytest.mark.parametrize("count", [2, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_more_than_there_can_be_is_forgotten_as_all(table: InodeTable, count: int) -> None:
    inode = known(table, 10)
    assert table.forget(inode.nodeid, count) == [inode]
    assert table.find(inode.nodeid) is None


def test_nodeids_are_never_given_out_again(table: InodeTable) -> None:
    seen = set()
    for _ in range(10):
        inode = known(table, 10)
        seen.add(inode.nodeid)
        table.forget(inode.nodeid, 1)
    assert len(seen) == 10 and ROOT_ID not in seen


def test_a_buried_inode_lives_on_beside_its_successor(table: InodeTable) -> None:
    old = known(table, 10)
    table.bury(old)
    assert old.unlinked and table.known(key(10)) is None and table.get(old.nodeid) is old
    new = known(table, 10)  # where there are no birth times
    table.bury(old)
    assert table.known(key(10)) is new
    assert table.forget(old.nodeid, 1) == [old]
    assert table.known(key(10)) is new is table.get(new.nodeid)


def test_revived(table: InodeTable) -> None:
    inode = known(table, 10)
    table.bury(inode)
    table.revive(inode)
    assert not inode.unlinked and table.known(key(10)) is inode
    table.bury(inode)
    new = known(table, 10)
    table.revive(inode)
    assert table.known(key(10)) is new, "who has taken the place keeps it"


def size_of(roots: list[Inode], but: list[object]) -> int:
    """Bytes of all that hangs on the roots, each object once, without what hangs on `but`."""
    seen = {id(thing) for thing in but}
    waiting: list[object] = list(roots)
    total = 0
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen and not isinstance(thing, type):
            seen.add(id(thing))
            total += sys.getsizeof(thing)
            waiting.extend(gc.get_referents(thing))
    return total


def test_what_a_known_inode_costs(tmp_path: Path) -> None:
    """As Python counts bytes: with keys as statx gives them, names of 16 bytes, handles, as all have that were ever
    opened, and the names that the kernel was told, as they are remembered where the layer is watched."""
    (tmp_path / "file").touch()
    layer = Layer(os.fsencode(tmp_path))
    tree = SourceTree(layer, 64)
    directory: Entry = tree.root
    handle = handles.of(tree.path(Entry(directory, b"file", tree.lookup(directory, b"file")[0])).fd) or bytes(20)
    table = InodeTable(tree.root_attributes()[0], directory)
    for number in range(KNOWN):
        (device, inode_number, born, kind), *_ = tree.lookup(directory, b"file")
        found = (device, inode_number + number, born + number, kind)
        entry = tree.entry(directory, b"file-%011d" % number, found)
        entry.handle = bytes(bytearray(handle))
        inode = table.add(found, entry)
        inode.nlookup += 1
        # Each lookup brings a name of its own, which is the same bytes.
        table.tell(table.root, bytes(bytearray(b"file-%011d" % number)), inode)
    children = table.root.children
    assert len(table) == KNOWN + 1 and children is not None and len(children) == KNOWN
    sample = [table.get(nodeid) for nodeid in range(2, KNOWN, 500)]
    assert all(inode.parent is table.root and children[inode.name] is inode for inode in sample)
    own = size_of(sample, [directory, table.root]) / len(sample)
    tables = sum(sys.getsizeof(thing) for thing in (table, *vars(table).values(), children)) / KNOWN
    assert own > 200 and tables > 50, "measured at all"
    assert own + tables <= MOST_BYTES, f"{own:.0f} and {tables:.0f}"


def test_a_known_inode_holds_no_descriptor(tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / f"{number}").touch()
    held = Descriptors(layer := Layer(os.fsencode(tmp_path)), 64, noatime=True)
    before = len(os.listdir("/proc/self/fd"))
    entries = [
        Entry(held.root, b"%d" % number, layer.look(layer.root.fd, b"%d" % number)[0]) for number in range(500)
    ]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len({entry.key for entry in entries}) == 500


def test_what_was_told_makes_no_ring() -> None:
    """A directory that was moved below what was in it, before anybody has heard of that."""
    table = InodeTable((1, 2, 5, 4), "root")
    above, below, deepest = (table.add((1, number, 5, 4), None) for number in (3, 4, 5))
    table.tell(table.root, b"above", above)
    table.tell(above, b"below", below)
    table.tell(below, b"deepest", deepest)
    table.tell(deepest, b"above", above)
    assert above.parent is deepest and deepest.parent is below
    assert below.parent is None and not above.children and not table.root.children
    table.tell(below, b"itself", below)
    assert below.children == {b"deepest": deepest}
