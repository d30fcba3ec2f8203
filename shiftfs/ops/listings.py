"""Listings that somebody may be in the middle of.

Owns how many names they may have together. Loop thread.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ..inodes import Inode


class Listings(OrderedDict[Inode, Sequence[Any]]):
    """Rows by directory, those that were made last at the end. The lane (shiftfs/native/packing.c) looks into it as
    into any dict."""

    __slots__ = ("_bound", "names")

    def __init__(self, bound: int) -> None:
        super().__init__()
        self._bound = bound
        self.names = 0
        """How many there are."""

    def keep(self, directory: Inode, rows: Sequence[Any]) -> None:
        """The oldest go where there are too many names."""
        self.drop(directory)
        weight = self._weight(rows)
        while self.names + weight > self._bound and self:
            self.drop(next(iter(self)))
        self[directory] = rows
        self.names += weight

    def drop(self, directory: Inode) -> None:
        rows = self.pop(directory, None)
        if rows is not None:
            self.names -= self._weight(rows)

    def _weight(self, rows: Sequence[Any]) -> int:
        """An empty listing counts as well. One too large is kept alone: made anew for each part that is read of it, it
        would never come to an end."""
        return min(len(rows) + 1, self._bound)
