"""What changed in the layers, the last of it: a bounded ring for `shiftfsctl events`.

Owns the order of changes and how many there were; never looks at a layer, and makes no text before it is asked to,
since a burst of changes comes through here. Loop thread.
"""

import os
import time
from collections import deque
from itertools import islice
from typing import Any, Final, NamedTuple

SIZE: Final = 10_000
"""Changes that are kept."""

REPORT_BYTES: Final = 12_000
"""Of names in one report, if more than one change is in it: it then goes through one ioctl, and the loop is held up no
longer than by a listing."""

_OF_AN_ENTRY: Final = 110
"""Bytes of an entry as JSON, without its names."""


class Entry(NamedTuple):
    """One change. Names are on the mount, from its root."""

    number: int  # from 1, without gaps
    time: float  # seconds since the epoch
    layer: int  # from the top; -1 where it is not known
    path: bytes
    kind: str
    to: bytes  # of a move; else empty
    shown: bool  # on the mount


class Journal:
    """Of one mount."""

    def __init__(self, size: int = SIZE) -> None:
        self._ring: deque[tuple[float, int, bytes, str, bytes, bool]] = deque(maxlen=size)
        self._append = self._ring.append
        self.total = 0
        """Changes so far, which is the number of the last one."""
        self.started = time.time()

    @property
    def dropped(self) -> int:
        """Changes that are no longer kept: the first ones."""
        return self.total - len(self._ring)

    def add(self, layer: int, path: bytes, kind: str, to: bytes = b"", shown: bool = True) -> None:
        """A change that has just been found."""
        self.total += 1
        self._append((time.time(), layer, path, kind, to, shown))

    def since(self, number: int, when: float = 0.0, most: int | None = None) -> list[Entry]:
        """The changes after `number` that are kept and were made at `when` (seconds since the epoch) or later; as many
        as make about `most` bytes, and at least one."""
        return self._from(number, when, most)[0]

    def report(self, number: int, when: float) -> dict[str, Any]:
        """A part of `since(number, when)`, as `shiftfsctl` gets it. More follows after `next` while that is less than
        `total`; those up to `dropped` are gone, the last of them before `oldest`."""
        entries, reached = self._from(number, when, REPORT_BYTES)
        return {
            "started": self.started,
            "total": self.total,
            "dropped": self.dropped,
            "size": self._ring.maxlen,
            "oldest": self._ring[0][0] if self._ring else None,
            "next": reached,
            "entries": [_told(entry) for entry in entries],
        }

    def _from(self, number: int, when: float, most: int | None) -> tuple[list[Entry], int]:
        """And the number up to which that is all. The clock may have been set back: each time is looked at."""
        skipped = min(max(number - self.dropped, 0), len(self._ring))
        reached = self.dropped + skipped
        entries: list[Entry] = []
        size = 0
        for at, layer, path, kind, to, shown in islice(self._ring, skipped, None):
            if at >= when:
                size += len(path) + len(to) + _OF_AN_ENTRY
                if most is not None and entries and size > most:
                    break
                entries.append(Entry(reached + 1, at, layer, path, kind, to, shown))
            reached += 1
        return entries, reached


def _told(entry: Entry) -> dict[str, object]:
    told: dict[str, object] = {
        "number": entry.number,
        "time": round(entry.time, 6),
        "layer": entry.layer if entry.layer >= 0 else None,
        "kind": entry.kind,
        "path": os.fsdecode(entry.path),
    }
    if entry.to:
        told["to"] = os.fsdecode(entry.to)
    told["shown"] = entry.shown
    return told
