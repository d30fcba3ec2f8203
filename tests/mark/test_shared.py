"""One tree for several mounts: what each of them uses, and what is left when it goes."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shiftfs.layer import Layer
from shiftfs.mark.shared import SharedTree
from shiftfs.source import SourceTree
from shiftfs.tree import Tree


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[SharedTree]:
    for name in ("one", "other"):
        (tmp_path / name).write_text(name)
    layer = Layer(bytes(tmp_path))
    tree = SourceTree(layer, 64)
    made = SharedTree(tree)
    yield made
    is_unused = len(made) == 0
    for held in (made, tree._held, tree, layer):
        vars(held).clear()  # pytest holds them longer than they may hold descriptors
    assert is_unused, "whatever is released is used no more"


def found(tree: Tree, name: bytes) -> Any:
    key, _, place = tree.lookup(tree.root, name)
    return tree.entry(tree.root, name, key, place)


def test_an_inode_has_one_entry_for_all(shared: SharedTree) -> None:
    one, other = shared.use()[0], shared.use()[0]
    entry = found(one, b"one")
    assert found(other, b"one") is entry and found(other, b"other") is not entry
    for tree, name in ((one, b"one"), (other, b"one"), (other, b"other")):
        tree.release(shared.known(tree.lookup(tree.root, name)[0]))


def test_what_one_forgets_stays_for_the_other(shared: SharedTree) -> None:
    one, other = shared.use()[0], shared.use()[0]
    entry = found(one, b"one")
    found(other, b"one")
    other.path(entry)
    one.release(entry)
    assert other.attributes(entry).size == 3 and shared.known(other.lookup(other.root, b"one")[0]) is entry
    other.release(entry)
    assert shared.known(one.lookup(one.root, b"one")[0]) is None


def test_the_root_is_everybodys_and_nobody_releases_it(shared: SharedTree) -> None:
    one, other = shared.use()[0], shared.use()[0]
    assert one.root is other.root
    one.release(one.root)
    assert other.listing(other.held(other.root))


def test_what_was_removed_is_another_when_its_number_comes_again(shared: SharedTree) -> None:
    one, other = shared.use()[0], shared.use()[0]
    entry, key = found(other, b"one"), other.lookup(other.root, b"one")[0]
    assert one.unlink(one.root, b"one", None), "its last name, as only the other knows"
    assert shared.known(key) is None
    assert other.attributes(entry).nlink == 0
    other.release(entry)


def test_whoever_has_left_hears_of_no_copies(shared: SharedTree) -> None:
    heard: list[str] = []
    one, leave_one = shared.use()
    other, leave_other = shared.use()
    one.on_copy(lambda entry, made: heard.append("one"))
    other.on_copy(lambda entry, made: heard.append("other"))
    shared._has_copied(None, -1)
    leave_one()
    shared._has_copied(None, -1)
    leave_other()
    shared._has_copied(None, -1)
    assert heard == ["one", "other", "other"]


# Files that have no name any more


def removed(tree: Tree, name: bytes) -> Any:
    """What was just made and removed, and is in use."""
    tree.create(tree.root, name, 0o600)
    entry = found(tree, name)
    try:
        tree.unlink(tree.root, name, entry)
    except OSError:
        tree.release(entry)
        raise
    return entry


def hoard(tree: Tree, number: int) -> list[Any]:
    """As many of them as it may have."""
    hoarded = []
    with pytest.raises(OSError) as refusal:
        for count in range(1000):
            hoarded.append(removed(tree, b"%d-%d" % (number, count)))
    assert refusal.value.errno == errno.ENFILE
    return hoarded


def test_nobody_keeps_more_removed_files_than_are_left_to_others(shared: SharedTree) -> None:
    trees = [shared.use()[0] for _ in range(5)]
    hoarded = [hoard(tree, number) for number, tree in enumerate(trees)]
    counts = [len(one) for one in hoarded]
    assert sum(counts) <= shared.bound and counts[0] <= shared.bound // 2
    assert min(counts) >= 1
    # Who has too many may do all else, and lets them go.
    for tree, one in zip(trees, hoarded, strict=True):
        for entry in one:
            tree.release(entry)
    again = hoard(trees[4], 5)
    assert len(again) == counts[0]
    for entry in again:
        trees[4].release(entry)


def test_who_removes_what_another_hoards_is_not_hindered(shared: SharedTree) -> None:
    """The other pays for it, and loses what he has no room for."""
    hoarder, other = shared.use()[0], shared.use()[0]
    kept = []
    for number in range(200):
        name = b"of-both-%d" % number
        other.create(other.root, name, 0o600)
        kept.append(found(hoarder, name))
        entry = found(other, name)
        other.unlink(other.root, name, entry)
        other.release(entry)
    assert hoarder.attributes(kept[0]).nlink == 0
    with pytest.raises(OSError) as lost:
        hoarder.attributes(kept[-1])
    assert lost.value.errno == errno.ESTALE
    other.release(removed(other, b"own"))
    for entry in kept:
        hoarder.release(entry)
    assert shared._removed.taken == 0


def test_an_unnamed_file_that_gets_a_name_counts_no_more(shared: SharedTree) -> None:
    tree = shared.use()[0]
    for number in range(shared.bound):
        _, _, entry = tree.tmpfile(tree.root, 0o600)
        tree.link(entry, tree.root, b"linked-%d" % number)
        tree.release(entry)
    hoarded = [tree.tmpfile(tree.root, 0o600)[2] for _ in range(8)]
    for entry in hoarded:
        tree.release(entry)
