"""Owns the reads and writes of one session that wait natively (shiftfs/native/waiting.c), for those who ask what waits.

Where nothing is compiled there are none: all that waits, waits for workers. Loop thread.
"""

from collections.abc import Callable
from typing import Any, Final

from . import native
from .counters import Counters
from .wire.abi import Opcode

_PATIENCE: Final = 30.0
"""Seconds."""


class Reads:
    """Of the connection behind `fd`, until they are closed."""

    def __init__(self, fd: int) -> None:
        self.native: Any = native.Reads(fd) if native.Reads is not None else None

    @property
    def waiting(self) -> int:
        """How many have not been answered."""
        return int(self.native.waiting()) if self.native is not None else 0

    @property
    def threads(self) -> int:
        """Threads for those of all sessions."""
        return int(self.native.threads()) if self.native is not None else 0

    def fold(self, counters: Counters) -> None:
        """Count those that have been answered since it was last asked."""
        of_both = self.native.counts() if self.native is not None else ()
        for opcode, (count, *rest) in zip((Opcode.READ, Opcode.WRITE), of_both, strict=False):
            if count:
                counters[opcode].add_many(count, *rest)

    def written(self, nodeid: int) -> None:
        """Wait until what is being written to an inode is. On a worker."""
        if self.native is not None:
            self.native.written(nodeid, _PATIENCE)

    def interrupt(self, unique: int) -> bool:
        """A signal has come for whoever waits for a request. Is that such a request?"""
        return self.native is not None and bool(self.native.interrupt(unique))

    def let_go_killed(self, is_being_killed: Callable[[int], bool]) -> bool:
        """Answer those whose callers have got a signal and are being killed, though they are still being read. True if
        there are any left to look at again."""
        if self.native is None:
            return False
        for unique, pid in self.native.interrupted():
            if is_being_killed(pid):
                self.native.let_go(unique)
        return bool(self.native.interrupted())

    def close(self) -> None:
        """Nothing is written to the connection any more."""
        if self.native is not None:
            self.native.close()
