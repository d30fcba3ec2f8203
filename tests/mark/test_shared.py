"""One tree for several mounts: what each of them uses, and what is left when it goes."""

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
