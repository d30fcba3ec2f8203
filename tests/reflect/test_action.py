"""What an action shows the agent."""

import stat

import pytest

from shiftfs.inodes import Inode
from shiftfs.reflect.action import FILE, Subject


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_an_inode_is_shown_with_its_own_type_whatever_a_watcher_said(kind: int) -> None:
    """Watchers tell directories from all else, no more."""
    subject = Subject(9, FILE)
    assert subject.type == stat.S_IFREG
    subject.inode = Inode(5, (1, 2, 3, kind >> 12), None)
    assert subject.type == kind
