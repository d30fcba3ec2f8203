"""A mount's part of the workers, which all mounts of one process share: what may wait for long in one of them shall not
hold up the others.

Owns the calls that wait for their turn. Beyond some of them the mount's requests are left with the kernel: what a call
is about stays open as long as it waits, and what it is to write stays in memory. Loop thread.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..loop import MAX_WORKERS, Call, Done, Loop
from ..shares import Common, Share

_FEWEST: Final = 2
"""Workers that each mount may have."""
MOST_PENDING: Final = 64


def workers() -> Common:
    """All but some for the mark's own."""
    return Common(MAX_WORKERS * 3 // 4, _FEWEST)


class Turns:
    """Of one mount. `pause` stops the reading of its requests, and `resume` lets it go on."""

    def __init__(
        self, loop: Loop, workers: Common, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._running = Share(workers)
        self._pause = pause
        self._resume = resume
        self._waiting: deque[tuple[Call, Done]] = deque()
        self._is_paused = False
        loop.more_workers(_FEWEST)

    @property
    def pending(self) -> int:
        return self._running.taken + len(self._waiting)

    def submit(self, call: Call, done: Done) -> None:
        """As Loop.submit."""
        self._waiting.append((call, done))
        self._start()
        if not self._is_paused and self.pending >= MOST_PENDING:
            self._is_paused = True
            self._pause()

    def _start(self) -> None:
        while self._waiting and self._running.has_room:
            call, done = self._waiting.popleft()
            self._running.take()
            self._loop.submit(call, self._ended(done))

    def _ended(self, done: Done) -> Done:
        def ended(result: Any, error: BaseException | None) -> None:
            self._running.give_back()
            self._start()
            if self._is_paused and self.pending < MOST_PENDING:
                self._is_paused = False
                self._resume()
            done(result, error)

        return ended

    def leave(self) -> None:
        """The mount is gone. What waits is done all the same."""
        self._loop.more_workers(-_FEWEST)
