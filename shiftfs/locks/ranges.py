"""Owns who has locked which bytes of one file: what fcntl(F_SETLK) leaves behind, and what F_GETLK finds of it.

Locks of processes (POSIX) and of open file descriptions are one kind here: an owner is a number. Ranges include both of
their ends. Never touches a file, and never makes anybody wait. Compiled in native/ranges.c. Loop thread.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final, NamedTuple

from .. import native
from ..sys.locks import NONE, READ, WRITE

MANY: Final = 500
"""Locks of one file."""
_EXCLUDED: Final[tuple[tuple[int, ...], ...]] = ((WRITE,), (READ, WRITE), ())
"""By kind: what others must not hold."""


class Held(NamedTuple):
    """A lock; `pid` and `fh` are of the last call that took a part of it."""

    owner: int
    start: int
    end: int
    kind: int
    pid: int
    fh: int


Row = tuple[int, int, int, int]
"""start, end, pid, fh"""


class _Ranges:
    """What one owner holds of one kind: ranges that neither meet nor touch, ascending."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def meeting(self, start: int, end: int) -> list[Row]:
        """Those that have a byte in the range."""
        return self.rows[self._first(start) : self._stop(end)]

    def nearest(self, start: int, end: int) -> Row | None:
        """The first of those."""
        first = self._first(start)
        return self.rows[first] if first < len(self.rows) and self.rows[first][0] <= end else None

    def _first(self, start: int) -> int:
        """The index of the first that has this byte or a later one."""
        at = bisect_left(self.rows, (start,))
        return at - 1 if at and self.rows[at - 1][1] >= start else at

    def _stop(self, end: int) -> int:
        """The index of the first that begins behind this byte."""
        return bisect_left(self.rows, (end + 1,))

    def add(self, start: int, end: int, pid: int, fh: int) -> None:
        first, stop = self._first(start - 1), self._stop(end + 1)
        if first < stop:
            start, end = min(start, self.rows[first][0]), max(end, self.rows[stop - 1][1])
        self.rows[first:stop] = [(start, end, pid, fh)]

    def remove(self, start: int, end: int) -> None:
        first, stop = self._first(start), self._stop(end)
        if first == stop:
            return
        low, high = self.rows[first], self.rows[stop - 1]
        left = [(low[0], start - 1, low[2], low[3])] if low[0] < start else []
        if high[1] > end:
            left.append((end + 1, high[1], high[2], high[3]))
        self.rows[first:stop] = left

    def remove_handle(self, fh: int) -> list[tuple[int, int]]:
        gone = [row[:2] for row in self.rows if row[3] == fh]
        if gone:
            self.rows = [row for row in self.rows if row[3] != fh]
        return gone


class FileLocks:
    """The locks on one file."""

    __slots__ = ("_count", "_held")

    def __init__(self) -> None:
        self._held: tuple[dict[int, _Ranges], dict[int, _Ranges]] = ({}, {})
        """By kind and owner; nobody is kept who holds nothing."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Held]:
        """All of them as they are now, by their starts."""
        found = [
            Held(owner, start, end, kind, pid, fh)
            for kind in (READ, WRITE)
            for owner, ranges in self._held[kind].items()
            for start, end, pid, fh in ranges.rows
        ]
        return iter(sorted(found, key=lambda held: (held.start, held.owner)))

    def conflict(self, owner: int, start: int, end: int, kind: int) -> Held | None:
        """What keeps an owner from a lock: the first in the range that another holds and does not share."""
        nearest: Held | None = None
        for theirs in _EXCLUDED[kind]:
            for other, ranges in self._held[theirs].items():
                row = ranges.nearest(start, end) if other != owner else None
                if row is not None and (nearest is None or (row[0], other) < (nearest.start, nearest.owner)):
                    nearest = Held(other, row[0], row[1], theirs, row[2], row[3])
        return nearest

    def set(self, owner: int, start: int, end: int, kind: int, pid: int, fh: int) -> None:
        """From here on the owner has this in the range, and nothing else (NONE: nothing). Whoever calls knows that
        there is no conflict."""
        for theirs in (READ, WRITE):
            owners = self._held[theirs]
            ranges = owners.get(owner)
            if theirs == kind:
                if ranges is None:
                    ranges = owners[owner] = _Ranges()
                self._count -= len(ranges.rows)
                ranges.add(start, end, pid, fh)
                self._count += len(ranges.rows)
            elif ranges is not None:
                self._count -= len(ranges.rows)
                ranges.remove(start, end)
                self._count += len(ranges.rows)
                if not ranges.rows:
                    del owners[owner]

    def drop(self, owner: int) -> list[tuple[int, int]]:
        """All that an owner held (close(2)), ascending."""
        dropped = [owners.pop(owner) for owners in self._held if owner in owners]
        self._count -= sum(len(ranges.rows) for ranges in dropped)
        return sorted(row[:2] for ranges in dropped for row in ranges.rows)

    def drop_handle(self, fh: int) -> list[tuple[int, int]]:
        """All that was last locked through a handle, whoever held it, ascending."""
        dropped = []
        for owners in self._held:
            for owner, ranges in list(owners.items()):
                dropped += ranges.remove_handle(fh)
                if not ranges.rows:
                    del owners[owner]
        self._count -= len(dropped)
        return sorted(dropped)

    def needed(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """The strongest kind that anybody holds, for each part of the range."""
        edges = []
        for kind in (READ, WRITE):
            for ranges in self._held[kind].values():
                for first, last, _, _ in ranges.meeting(start, end):
                    edges.append((max(first, start), kind, 1))
                    edges.append((min(last, end) + 1, kind, -1))
        if not edges:
            return [(start, end, NONE)]
        edges.sort()
        parts: list[tuple[int, int, int]] = []
        holders = [0, 0]
        at = start
        for offset, kind, change in [*edges, (end + 1, NONE, 0)]:
            if offset > at:
                strongest = WRITE if holders[WRITE] else READ if holders[READ] else NONE
                if parts and parts[-1][2] == strongest:
                    at = parts.pop()[0]
                parts.append((at, offset - 1, strongest))
                at = offset
            if change:
                holders[kind] += change
        return parts


def new_file_locks() -> FileLocks:
    """Nothing is locked yet."""
    return native.FileLocks(Held) if native.FileLocks is not None else FileLocks()


def suited(locks: FileLocks) -> FileLocks:
    """The same locks: compiled, each call goes through all of them, which is faster while they are few."""
    if isinstance(locks, FileLocks) or len(locks) < MANY:
        return locks
    plain = FileLocks()
    for owner, start, end, kind, pid, fh in locks:
        plain.set(owner, start, end, kind, pid, fh)
    return plain
