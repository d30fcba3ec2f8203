"""What the plainest files need to come up without Python (shiftfs/native/copies.c), and what is noted of them then.

Owns nothing; decides only whether any do. Loop thread.
"""

import time
from collections.abc import Callable

from shiftfs.tree import PlainCopies, RealKey

from . import xattrs
from .entry import Entry
from .lookup import Lookup
from .metadata import Ids
from .workdir import WorkDirectory

CameUp = Callable[[Entry, RealKey, int], None]


def of(
    work: WorkDirectory, lookup: Lookup, ids: Ids, on_copy: Callable[[Entry, int], None], came_up: CameUp
) -> PlainCopies | None:
    """None where files are given a name before they are whole, or their origins cannot be written down."""
    if not work.has_tmpfile or not work.prefix:
        return None
    return PlainCopies(
        work.work, work.prefix + xattrs.ORIGIN, lookup.origins.uuids(), ids.nobody, not work.volatile, on_copy, came_up
    )  # fmt: skip


def told(let_go: Callable[[Entry], None]) -> CameUp:
    """A file of this key has been published; unless it is -1, the entry keeps the descriptor."""

    def came_up(entry: Entry, key: RealKey, made: int) -> None:
        assert entry.parent is not None and entry.parent.upper is not None
        entry.upper = real = entry.parent.upper.child(entry.name, key)
        let_go(entry)
        if made >= 0:
            real.held.opened(real, made, True)
            real.held.writers[real] = time.monotonic()

    return came_up
