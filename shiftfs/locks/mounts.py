"""The locks of the mounts of a process, put together: a table for each, the real files of its tree, and how many of
them it may have.

Owns where these mounts and those of other processes meet. Loop thread.
"""

import os
import resource
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Final, Protocol

from ..inodes import Inode
from ..shares import Common, Share, alone
from ..tree import Descriptor, Tree
from .places import Places, files_of, opener
from .real import RealFile
from .table import Locks, Outcome

_PER_LOCKED: Final = 16
"""Descriptors that a file may come to with its locks, and more: others need some too."""
_PER_LOCKED_OF_MANY: Final = 32
"""Where most of them are for the mounts of a mark."""
_MOST_WAITS: Final = 256
_MOST_RANGES: Final = 10_000
"""Of a mount of a mark: the kernel goes through all that a file has, and keeps all mounts waiting meanwhile."""


class Waits(Protocol):
    """Loop.wait_aside."""

    def __call__(
        self, call: Callable[[], object], done: Outcome, group: Hashable = None, most: int = ...
    ) -> Callable[[], None]: ...


class Locking:
    """Of all mounts of a process."""

    def __init__(self, waits: Waits, note: Callable[[str], None], *, has_many: bool) -> None:
        """`has_many`: one mount's locks and waiters are to leave room for the others'. `note` is told what is less than
        it could be."""
        self._waits = waits
        self._has_many = has_many
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = max(64, descriptors // _PER_LOCKED)
        self._of_all = Common(descriptors // _PER_LOCKED_OF_MANY, 1)
        self._places = Places.find()
        if self._places is None:
            note("there is no directory for locks that mounts share: lower files are locked by themselves")

    def of(self, tree: Tree) -> Locks:
        """Held on the real files too, also on those that come to be by copy-up."""
        places = self._places

        def files(inode: Inode) -> Iterator[RealFile]:
            return files_of(tree, places, inode.entry)

        if self._has_many:
            waits = partial(self._waits, group=id(tree), most=_MOST_WAITS)
            locks = Locks(files, waits, Share(self._of_all), _MOST_RANGES)
        else:
            locks = Locks(files, self._waits, alone(self._most))
        tree.on_copy(lambda entry, made: locks.copied_up(entry, lambda: RealFile("upper", opener(_duplicate(made)))))
        return locks


def _duplicate(fd: int) -> Descriptor:
    return Descriptor(os.dup(fd), os.close)
