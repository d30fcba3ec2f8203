"""Owns the one thread that all state belongs to, and the workers that may block in its stead.

Knows nothing of FUSE. A worker gets a call, runs it, and hands the outcome back to the loop; it owns no state.
"""

import collections
import contextlib
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Final

Call = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]

MAX_WORKERS: Final = 64
"""Threads start one by one, as calls would otherwise wait; blocked ones cost memory only."""
_MAX_LOST: Final = 448
"""How many more may stand in for those that are blocked for callers who have been killed."""

_TICK: Final = 0.5


class Loop:
    """Waits for descriptors and for workers. `on_tick` is called at most twice a second, after any activity and
    for as long as it returns True."""

    URGENT: Final = select.EPOLLPRI
    """What to `add` a descriptor for whose readers wait for a change (procfs, kernfs), not for data."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._calls: queue.SimpleQueue[tuple[Call, Done] | None] = queue.SimpleQueue()
        self._outcomes: collections.deque[tuple[Done, Any, BaseException | None]] = collections.deque()
        self._workers = 0
        self._running_calls = 0
        self._lost = 0
        self._stopping = False
        self.on_tick: Callable[[float], bool] = lambda now: False

    def add(self, fd: int, ready: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call `ready` whenever `fd` is."""
        self._poll.register(fd, events)
        self._ready[fd] = ready

    def remove(self, fd: int) -> None:
        """Forget a descriptor; before it is closed."""
        if self._ready.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def stop(self) -> None:
        """Let `run` return after what it is at."""
        self._stopping = True

    @property
    def workers(self) -> int:
        """Threads alive, for `status`."""
        return self._workers

    def run(self) -> None:
        """Serve until stopped. The calling thread is the loop's."""
        poll, ready, monotonic = self._poll.poll, self._ready, time.monotonic
        timeout: float | None = None
        due = 0.0
        while not self._stopping:
            events = poll(timeout)
            for fd, _ in events:
                call = ready.get(fd)
                if call is not None:
                    call()
                elif fd == self._wake:
                    self._take_outcomes()
            now = monotonic()
            if now >= due:
                # A tick follows every activity, and ticks go on while they are wanted: an idle mount never wakes.
                wanted = self.on_tick(now)
                due = now + _TICK
                timeout = _TICK if wanted or events else None
            else:
                timeout = due - now

    def wake(self) -> None:
        """Make `run` look up, from a signal handler or another thread."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def submit(self, call: Call, done: Done) -> None:
        """Run `call` on a worker, then `done(result, error)` on the loop. From the loop thread."""
        self._running_calls += 1
        self._grow()
        self._calls.put((call, done))

    def lost(self) -> None:
        """Nobody waits any more for one of the calls under way, which may be blocked for good."""
        self._lost += 1
        self._grow()

    def regained(self) -> None:
        """Such a call has ended after all."""
        self._lost -= 1

    def _grow(self) -> None:
        if self._running_calls > self._workers and self._workers < MAX_WORKERS + min(self._lost, _MAX_LOST):
            self._workers += 1
            threading.Thread(target=self._work, name="worker", daemon=True).start()

    def _work(self) -> None:
        while True:
            item = self._calls.get()
            if item is None:
                return
            call, done = item
            outcome: tuple[Done, Any, BaseException | None]
            try:
                outcome = (done, call(), None)
            except BaseException as error:
                outcome = (done, None, error)
            del item, call, done  # nothing that a call held may live on while this thread waits
            self._outcomes.append(outcome)
            del outcome
            self.wake()

    def _take_outcomes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        outcomes = self._outcomes
        while outcomes:
            done, result, error = outcomes.popleft()
            self._running_calls -= 1
            done(result, error)

    def close(self) -> None:
        """End the idle workers. Those that are blocked end with the process."""
        for _ in range(self._workers):
            self._calls.put(None)
        self._poll.close()
        os.close(self._wake)
