"""The table of inodes in memory of its own, against its twin: two dictionaries."""

import errno
import random
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftfs import native, store
from shiftfs.tree import RealKey

KEYS = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1)
)
FEW = [(1, number, 5, 8) for number in range(20)]


@given(KEYS)
def test_a_key_is_what_it_was(key: RealKey) -> None:
    assert native.Inode(7, key, None).key == key


@pytest.mark.parametrize(
    "key", [(1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, -1), (2**32, 2, 3, 4), (1, 2, 2**127, 4), (1, 2, 3, 2**32), None]
)
def test_what_is_no_key(key: object) -> None:
    with pytest.raises((TypeError, OverflowError)):
        native.Inode(7, key, None)


def compare(seed: int, steps: int, keys: list[RealKey]) -> None:
    """The same steps on both, and the same answers."""
    chance = random.Random(seed)
    ours, twin = native.Store(), store.Store()
    live: list[int] = []
    for _ in range(steps):
        key = chance.choice(keys)
        step = chance.random()
        if step < 0.45 or not live:
            nodeid = twin.new_nodeid()
            assert ours.new_nodeid() == nodeid
            twin.insert(store.Inode(nodeid, key, None))
            ours.insert(native.Inode(nodeid, key, None))
            live.append(nodeid)
        elif step < 0.85:
            nodeid = live.pop(chance.randrange(len(live)))
            gone, expected = ours.take(nodeid), twin.take(nodeid)
            assert expected is not None and (gone.nodeid, gone.key) == (expected.nodeid, expected.key)
        else:
            nodeid = chance.choice(live)
            again = chance.random() < 0.5
            for table in (ours, twin):
                (table.key_again if again else table.unkey)(table.get(nodeid))
        found, other = ours.known(key), twin.known(key)
        assert (found and found.nodeid) == (other and other.nodeid)
        assert len(ours) == len(twin)
    assert [inode.nodeid for inode in ours.all()] == [inode.nodeid for inode in twin.all()] == sorted(live)
    for key in keys:
        found, other = ours.known(key), twin.known(key)
        assert (found and found.nodeid) == (other and other.nodeid)
    for nodeid in range(1, twin.new_nodeid()):
        found, other = ours.find(nodeid), twin.find(nodeid)
        assert (found and found.key) == (other and other.key)


@given(st.integers(0, 2**32), st.integers(1, 200))
def test_few_keys(seed: int, steps: int) -> None:
    compare(seed, steps, FEW)


@pytest.mark.parametrize("seed", range(3))
def test_many_keys(seed: int) -> None:
    """Grows and shrinks."""
    chance = random.Random(seed)
    compare(seed, 30_000, [(64769, chance.randrange(1 << 20), chance.randrange(1 << 60), 8) for _ in range(5000)])


def test_it_shrinks_and_is_emptied() -> None:
    table = native.Store()
    for _ in range(100_000):
        nodeid = table.new_nodeid()
        table.insert(native.Inode(nodeid, (1, nodeid, 2, 8), None))
    large = sys.getsizeof(table)
    for nodeid in range(2, 100_000):
        table.take(nodeid)
    assert sys.getsizeof(table) < large / 20 and len(table) == 2
    table.forget_all()
    assert len(table) == 0 and table.all() == [] and table.known((1, 100_000, 2, 8)) is None


def test_wrong_use_is_an_error() -> None:
    """And no crash."""
    table = native.Store()
    inode = native.Inode(2, (1, 2, 3, 4), None)
    table.insert(inode)
    for method, argument in ((table.insert, inode), (table.insert, "text"), (table.get, "text"), (table.known, "text")):
        with pytest.raises((SystemError, TypeError)):
            method(argument)
    with pytest.raises(OSError) as failed:
        table.get(77)
    assert failed.value.errno == errno.ESTALE
    with pytest.raises(TypeError):
        inode.parent = "text"
    with pytest.raises(TypeError):
        inode.children = "text"
    table.key_again(native.Inode(2, (5, 6, 7, 8), None))
    assert table.known((5, 6, 7, 8)) is None, "it is not the one that was inserted"
    assert table.take(77) is None and table.find(77) is None


def test_an_inode_is_what_its_twin_is() -> None:
    for kind in (native.Inode, store.Inode):
        one: Any = kind(5, (1, 2, 3, 0x104), "entry")
        child = kind(6, (1, 3, 3, 8), None)
        child.parent, child.name = one, b"name"
        one.children = {b"name": child}
        one.nlookup += 2
        assert (one.nodeid, one.key, one.entry, one.nlookup) == (5, (1, 2, 3, 0x104), "entry", 2)
        assert (one.is_directory, one.type, one.unlinked, one.parent, one.name, one.watch) == (
            True, 0o040000, False, None, b"", None,
        )  # fmt: skip
        assert one.told(b"name") is child and one.told(b"other") is None and child.told(b"name") is None
        one.children = None
        one.entry = None
        assert one.entry is None and not one.has_no_entry_yet
