"""Looks again at what was told, where news of changes have been lost, or a directory is made of other layers' now.

Owns since when news are missing. What has changed is told as if it had been heard of. Loop thread.
"""

import math
import stat
import time
from collections.abc import Callable
from typing import Final

from ..inodes import Inode
from ..ops.context import Context
from ..tree import RealKey, Steps
from .changes import Changes

_SLICE: Final = 64
"""How many inodes are looked at again before requests have their turn."""


_SLACK: Final = 2.0
"""Seconds by which file times may lag behind the clock, and more."""


class Revalidation:
    """Of one mount."""

    def __init__(
        self, ctx: Context, changes: Changes, seen_again: Callable[[Inode], None], run: Callable[[Steps], None],
        on_loss: Callable[[bool], None],
    ) -> None:  # fmt: skip
        """`seen_again` is called for each inode that has a watch, `on_loss` for each loss of news, with True if it is
        the first since all was looked at. `run` goes through steps that nobody waits for."""
        self._inodes = ctx.inodes
        self._tree = ctx.tree
        self._changes = changes
        self._seen_again = seen_again
        self._run = run
        self._on_loss = on_loss
        self._heard = time.time()
        self._lost_since: float | None = None
        self._is_looking = False
        self.losses = 0

    def heard(self) -> None:
        """All that has happened so far has been heard of."""
        if self._lost_since is None:
            self._heard = time.time()

    def lost(self) -> None:
        """Something has happened that was not heard of."""
        self.losses += 1
        if self._lost_since is None:
            self._lost_since = self._heard - _SLACK
        self._on_loss(not self._is_looking)
        if not self._is_looking:
            self._is_looking = True
            self._run(self._all())

    def _all(self) -> Steps:
        """Everything that is known; once for all that has been lost by then, and again for what is lost meanwhile."""
        try:
            while self._lost_since is not None:
                since, self._lost_since = self._lost_since, None
                for inode in self._inodes.watched():
                    if inode.is_directory:
                        yield from self._directory(inode, since, ())
        finally:
            self._is_looking = False

    def made_of_others(self, directory: Inode, before: tuple[RealKey, ...]) -> None:
        """A directory is not made of the real ones from `before` any more."""
        self._run(self._directory(directory, math.inf, before))

    def _directory(self, directory: Inode, since: float, before: tuple[RealKey, ...]) -> Steps:
        """Compare all that was told of a directory with what is there. What changed `since` (of the epoch) is told as
        changed; so are names of real directories that it was not made of `before`, where that is given."""
        self._changes.listing(directory)
        told = dict(directory.children or {})
        for count, (name, inode) in enumerate(told.items()):
            if count % _SLICE == _SLICE - 1:
                yield _nothing
            self._compare(directory, name, inode, since, before)
        try:
            held = self._tree.held(directory.entry)
            listed = yield lambda: self._tree.listing(held)
        except OSError:
            return
        for count, one in enumerate(listed):
            if count % _SLICE == _SLICE - 1:
                yield _nothing
            if one.name not in told:
                self._new(directory, one.name, since, before)

    def _compare(
        self, directory: Inode, name: bytes, told: Inode, since: float, before: tuple[RealKey, ...]
    ) -> None:  # fmt: skip
        found = self._changes.found(directory, name)
        if directory.told(name) is not told:
            return  # told anew meanwhile
        if found is None or found[0] != told.key:
            self._changes.deleted(directory, name, told.is_directory)
            if found is not None:
                self._changes.created(directory, name, stat.S_ISDIR(found[1].mode))
            return
        if before and self._tree.came_from(directory.entry, found[2]) not in before:
            self._changes.found_new(directory, name)  # it has been looked up in the meantime
        self._tree.found_at(told.entry, directory.entry, name, found[2])
        if told.watch is not None:
            self._seen_again(told)
        if found[1].ctime >= since:
            if not told.is_directory:
                self._changes.modified(directory, name)
            self._changes.attributes(directory, name, told.is_directory)

    def _new(self, directory: Inode, name: bytes, since: float, before: tuple[RealKey, ...]) -> None:
        """A name that the kernel was not told of. It may have been there, but for what has changed since."""
        found = self._changes.found(directory, name)
        if found is None:
            return
        if found[1].ctime >= since or (before and self._tree.came_from(directory.entry, found[2]) not in before):
            self._changes.found_new(directory, name)


def _nothing() -> None:
    """Done by a worker, so that requests have their turn."""
