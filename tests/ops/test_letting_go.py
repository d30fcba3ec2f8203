"""What an inode that is known no more leaves to be closed: freeing a large file takes long, and is a worker's."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shiftfs.inodes import Inode
from shiftfs.layer import Layer
from shiftfs.ops.collected import Collected
from shiftfs.ops.context import Context
from shiftfs.ops.namespace import let_go
from shiftfs.source import SourceTree
from shiftfs.tree import Work


def removed_and_open() -> list[str]:
    """By this process."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # of this listing itself
            continue
        if link.endswith("removed (deleted)"):
            found.append(link)
    return found


@pytest.mark.parametrize(("size", "is_workers"), [(5 << 20, True), (1 << 20, False)])
def test_the_last_descriptor_of_a_large_removed_file_is_closed_by_a_worker(
    tmp_path: Path, size: int, is_workers: bool
) -> None:
    (tmp_path / "removed").write_bytes(bytes(size))
    tree: Any = SourceTree(Layer(bytes(tmp_path)), 64)
    key, _, place = tree.lookup(tree.root, b"removed")
    inode = Inode(2, key, tree.entry(tree.root, b"removed", key, place))
    tree.data(inode.entry, True)
    inode.unlinked = tree.unlink(tree.root, b"removed", inode.entry)
    aside: list[Work] = []
    context = SimpleNamespace(tree=tree, aside=aside.append, backings=None, times=None, collected=Collected())
    let_go(cast(Context, context), inode)
    assert len(removed_and_open()) == len(aside) == int(is_workers)
    for call in aside:
        call()
    assert removed_and_open() == []
