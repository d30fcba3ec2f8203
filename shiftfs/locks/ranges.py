"""Owns who has locked which bytes of one file: what fcntl(F_SETLK) leaves behind, and what F_GETLK finds of it.

Locks of processes (POSIX) and of open file descriptions are one kind here: an owner is a number. Ranges include both of
their ends. Never touches a file, and never makes anybody wait. Loop thread.
"""

import fcntl
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

END: Final = (1 << 63) - 1
"""The last byte of a lock that reaches to the end of the file, wherever that is."""


class Kind(IntEnum):
    """As fcntl(2) numbers them."""

    READ = fcntl.F_RDLCK
    WRITE = fcntl.F_WRLCK
    NONE = fcntl.F_UNLCK


_EXCLUDED: Final[tuple[tuple[Kind, ...], ...]] = ((Kind.WRITE,), (Kind.READ, Kind.WRITE), ())
"""By kind: what others must not hold."""


class Held(NamedTuple):
    """A lock; `pid` and `fh` are of the last call that took a part of it."""

    owner: int
    start: int
    end: int
    kind: Kind
    pid: int
    fh: int


Row = tuple[int, int, int, int]
"""start, end, pid, fh"""
Block = tuple["array[int]", "array[int]", "array[int]", "array[int]"]
"""Some rows, in columns."""
_LIMIT: Final = 1024
"""Rows in a block, about: what has to be moved where one comes or goes."""


class _Ranges:
    """What one owner holds of one kind: ranges that neither meet nor touch, ascending, in blocks."""

    __slots__ = ("blocks", "lasts")

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        """None of them is empty."""
        self.lasts: array[int] = array("q")
        """Where each block ends."""

    def meeting(self, start: int, end: int) -> Iterator[Row]:
        """Those that have a byte in the range."""
        for number in range(bisect_left(self.lasts, start), len(self.blocks)):
            starts, ends, pids, fhs = self.blocks[number]
            stop = bisect_right(starts, end)
            for index in range(bisect_left(ends, start), stop):
                yield starts[index], ends[index], pids[index], fhs[index]
            if stop < len(starts):
                return

    def add(self, start: int, end: int, pid: int, fh: int) -> None:
        for first, last, _, _ in [*self.meeting(start - 1, start), *self.meeting(end, end + 1)]:
            start, end = min(start, first), max(end, last)
        self._replace(start, end, [(start, end, pid, fh)])

    def remove(self, start: int, end: int) -> None:
        before = [(first, start - 1, pid, fh) for first, _, pid, fh in self.meeting(start, start) if first < start]
        after = [(end + 1, last, pid, fh) for _, last, pid, fh in self.meeting(end, end) if last > end]
        self._replace(start, end, before + after)

    def remove_handle(self, fh: int) -> list[tuple[int, int]]:
        blocks = [block for block in self.blocks if fh in block[3]]
        gone = [(start, end) for block in blocks for start, end, _, by in zip(*block, strict=True) if by == fh]
        for start, end in gone:
            self.remove(start, end)
        return gone

    def _replace(self, start: int, end: int, rows: list[Row]) -> None:
        """These rows take the place of all that have a byte in the range."""
        if not self.blocks:
            self.blocks.append((array("q"), array("q"), array("q"), array("Q")))
        low = min(bisect_left(self.lasts, start), len(self.blocks) - 1)
        high = low + 1
        block = self.blocks[low]
        while high < len(self.blocks) and self.blocks[high][0][0] <= end:
            for column, more in zip(block, self.blocks[high], strict=True):
                column += more
            high += 1
        starts, ends, pids, fhs = block
        first, stop = bisect_left(ends, start), bisect_right(starts, end)
        for number, column in enumerate(block):
            column[first:stop] = array(column.typecode, [row[number] for row in rows])
        parts = [block] if starts else []
        half = len(starts) // 2
        if half > _LIMIT // 2:
            parts = [(starts[at], ends[at], pids[at], fhs[at]) for at in (slice(half), slice(half, None))]
        self.blocks[low:high] = parts
        self.lasts[low:high] = array("q", [part[1][-1] for part in parts])


class FileLocks:
    """The locks on one file."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: tuple[dict[int, _Ranges], dict[int, _Ranges]] = ({}, {})
        """By kind and owner; nobody is kept who holds nothing."""

    def __len__(self) -> int:
        return sum(len(block[0]) for owners in self._held for ranges in owners.values() for block in ranges.blocks)

    def __iter__(self) -> Iterator[Held]:
        """All of them as they are now, by their starts."""
        found = [
            Held(owner, start, end, kind, pid, fh)
            for kind in (Kind.READ, Kind.WRITE)
            for owner, ranges in self._held[kind].items()
            for start, end, pid, fh in ranges.meeting(0, END)
        ]
        return iter(sorted(found, key=lambda held: held.start))

    @property
    def owners(self) -> Collection[int]:
        """Those who hold anything."""
        return self._held[Kind.READ].keys() | self._held[Kind.WRITE].keys()

    def conflict(self, owner: int, start: int, end: int, kind: Kind) -> Held | None:
        """What keeps an owner from a lock: the first in the range that another holds and does not share."""
        nearest: Held | None = None
        for theirs in _EXCLUDED[kind]:
            for other, ranges in self._held[theirs].items():
                row = next(ranges.meeting(start, end), None) if other != owner else None
                if row is not None and (nearest is None or row[0] < nearest.start):
                    nearest = Held(other, row[0], row[1], theirs, row[2], row[3])
        return nearest

    def set(self, owner: int, start: int, end: int, kind: Kind, pid: int, fh: int) -> None:
        """From here on the owner has this in the range, and nothing else (Kind.NONE: nothing). Whoever calls knows that
        there is no conflict."""
        for theirs in (Kind.READ, Kind.WRITE):
            owners = self._held[theirs]
            ranges = owners.get(owner)
            if theirs == kind:
                if ranges is None:
                    ranges = owners[owner] = _Ranges()
                ranges.add(start, end, pid, fh)
            elif ranges is not None:
                ranges.remove(start, end)
                if not ranges.blocks:
                    del owners[owner]

    def drop(self, owner: int) -> list[tuple[int, int]]:
        """All that an owner held (close(2)), ascending."""
        dropped = [owners.pop(owner) for owners in self._held if owner in owners]
        return sorted(row[:2] for ranges in dropped for row in ranges.meeting(0, END))

    def drop_handle(self, fh: int) -> list[tuple[int, int]]:
        """All that was last locked through a handle, whoever held it, ascending."""
        dropped = []
        for owners in self._held:
            for owner, ranges in list(owners.items()):
                dropped += ranges.remove_handle(fh)
                if not ranges.blocks:
                    del owners[owner]
        return sorted(dropped)

    def needed(self, start: int, end: int) -> list[tuple[int, int, Kind]]:
        """The strongest kind that anybody holds, for each part of the range."""
        edges = []
        for kind in (Kind.READ, Kind.WRITE):
            for ranges in self._held[kind].values():
                for first, last, _, _ in ranges.meeting(start, end):
                    edges.append((max(first, start), kind, 1))
                    edges.append((min(last, end) + 1, kind, -1))
        edges.sort()
        parts: list[tuple[int, int, Kind]] = []
        holders = [0, 0]
        at = start
        for offset, kind, change in [*edges, (end + 1, Kind.NONE, 0)]:
            if offset > at:
                strongest = Kind.WRITE if holders[Kind.WRITE] else Kind.READ if holders[Kind.READ] else Kind.NONE
                if parts and parts[-1][2] == strongest:
                    at = parts.pop()[0]
                parts.append((at, offset - 1, strongest))
                at = offset
            if change:
                holders[kind] += change
        return parts
