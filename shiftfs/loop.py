"""Owns the one thread that all state belongs to, and the threads that may block in its stead.

Knows nothing of FUSE. A worker gets a call, runs it, and hands the outcome back to the loop; it owns no state. Calls
that wait for what the loop and the workers do have threads of their own: they take no worker from what they wait for.
"""

import collections
import contextlib
import errno
import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Final

Call = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]

MAX_WORKERS: Final = 64
"""Threads start one by one, as calls would otherwise wait; blocked ones cost memory only."""
_MAX_LOST: Final = 448
"""How many more may stand in for those that are blocked for callers who have been killed."""

_MAX_MESSENGERS: Final = 64
_MAX_WAITS: Final = 2048
_LINGER: Final = 2.0
"""Seconds for which those calls that are under way are waited for at the end."""
_LINGER_STEP: Final = 0.02

_TICK: Final = 0.5
INTERRUPTING: Final = signal.SIGUSR2
"""Sent to threads of ours to end a call that waits. Whoever runs the loop has to have a handler for it."""
_INTERRUPT_AGAIN: Final = 0.02


class _Messengers:
    """Threads that run the calls which wait for the loop: those of one key one after the other, so that what is stuck
    holds up nothing but its own key."""

    def __init__(self, ended: Callable[[Done, Any, BaseException | None], None]) -> None:
        self._ended = ended
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, collections.deque[tuple[Call, Done]]] = {}
        """The calls of each key, without the one that is being run."""
        self._due: queue.SimpleQueue[Hashable | None] = queue.SimpleQueue()
        self.threads = 0
        self.most = _MAX_MESSENGERS
        self.pending = 0
        self.ending = False
        """Nothing is begun any more."""

    @property
    def are_busy(self) -> bool:
        return bool(self._waiting)

    def has(self, key: Hashable) -> bool:
        return key in self._waiting

    def put(self, key: Hashable, call: Call, done: Done) -> None:
        """From the loop thread."""
        with self._lock:
            self.pending += 1
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.append((call, done))
                return
            self._waiting[key] = collections.deque([(call, done)])
            wanted = len(self._waiting)
        self._due.put(key)
        if self.threads < min(wanted, self.most) and _started(self._work, "messenger"):
            self.threads += 1

    def _work(self) -> None:
        while True:
            key = self._due.get()
            if key is None:
                return
            self._run_next(key)
            with self._lock:
                if self._waiting[key]:
                    self._due.put(key)
                else:
                    del self._waiting[key]

    def _run_next(self, key: Hashable) -> None:
        call, done = self._waiting[key].popleft()
        with self._lock:
            self.pending -= 1
        if self.ending:
            return
        try:
            result = call()
        except BaseException as error:
            self._ended(done, None, error)
        else:
            self._ended(done, result, None)

    def close(self) -> None:
        for _ in range(self.threads):
            self._due.put(None)


class _Waits:
    """Threads, one for each call that waits for somebody outside, until a signal calls it off."""

    def __init__(self, ended: Callable[[Done, Any, BaseException | None], None]) -> None:
        self._ended = ended
        self.called_off: set[threading.Thread] = set()
        self.threads = 0

    def start(self, call: Call, done: Done) -> Callable[[], None]:
        """From the loop; also what is returned, which calls it off: then it may end in any way."""
        is_off, is_over = threading.Event(), threading.Event()

        def work() -> None:
            result, failure = None, None
            try:
                result = call() if not is_off.is_set() else None
            except BaseException as error:
                failure = error
            self._ended(over, result, failure)
            is_over.wait()  # a signal to a thread that has ended would go anywhere

        def over(result: Any, error: BaseException | None) -> None:
            self.threads -= 1
            self.called_off.discard(thread)
            is_over.set()
            done(result, error)

        def call_off() -> None:
            is_off.set()
            self.called_off.add(thread)
            self._interrupt(thread)

        thread = threading.Thread(target=work, name="waits", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads are to be had
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        self.threads += 1
        return call_off

    def interrupt(self) -> None:
        """Again and again: a signal that comes before the call ends nothing."""
        for thread in self.called_off:
            self._interrupt(thread)

    def _interrupt(self, thread: threading.Thread) -> None:
        if thread.ident is not None:
            signal.pthread_kill(thread.ident, INTERRUPTING)


def _started(work: Callable[[], None], name: str) -> bool:
    """A thread; none where there are too many (pids.max): then those there are have to do."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True


def _raise(error: Exception) -> None:
    raise error


class Loop:
    """Waits for descriptors and for workers. `on_tick` is called at most twice a second, after any activity and
    for as long as it returns True; `on_failure` with what any of these raises, or a callback: it ends `run` unless that
    returns."""

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
        self._more_workers = 0
        self._stopping = False
        self._linger_until = 0.0
        self._messengers: dict[Hashable, _Messengers] = {}
        self._waits = _Waits(self._end)
        self._waiting_of: collections.Counter[Hashable] = collections.Counter()
        self.on_tick: Callable[[float], bool] = lambda now: False
        self.on_failure: Callable[[Exception], None] = _raise

    @property
    def poll_fd(self) -> int:
        """The epoll(7) descriptor: whoever has something to do for long can see whether others are ready."""
        return self._poll.fileno()

    def add(self, fd: int, ready: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call `ready` whenever `fd` is."""
        self._poll.register(fd, events)
        self._ready[fd] = ready

    def is_ready(self, fd: int) -> None:
        """A descriptor has been found ready, by `run` or by somebody else who has polled."""
        call = self._ready.get(fd)
        if call is not None:
            call()
        elif fd == self._wake:
            self._take_outcomes()

    def remove(self, fd: int) -> None:
        """Forget a descriptor; before it is closed."""
        if self._ready.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def stop(self) -> None:
        """Let `run` return after what it is at, and what waits for that."""
        self._stopping = True
        for messengers in self._messengers.values():
            messengers.ending = True

    @property
    def workers(self) -> int:
        """Threads alive, for `status`."""
        return self._workers + sum(one.threads for one in self._messengers.values()) + self._waits.threads

    def run(self) -> None:
        """Serve until stopped. The calling thread is the loop's."""
        poll, is_ready, monotonic = self._poll.poll, self.is_ready, time.monotonic
        timeout: float | None = None
        due = interrupt_at = 0.0
        while not self._stopping or self._lingers():
            events = poll(timeout if not self._stopping else _LINGER_STEP)
            for fd, _ in events:
                try:
                    is_ready(fd)
                except Exception as error:
                    self.on_failure(error)
            now = monotonic()
            if self._waits.called_off and now >= interrupt_at:
                self._waits.interrupt()
                interrupt_at = now + _INTERRUPT_AGAIN
            if now >= due:
                # A tick follows every activity, and ticks go on while they are wanted: an idle mount never wakes.
                wanted = self._tick(now)
                due = now + _TICK
                timeout = _TICK if wanted or events else None
            else:
                timeout = due - now
            if self._waits.called_off:
                timeout = _INTERRUPT_AGAIN

    def _tick(self, now: float) -> bool:
        try:
            return self.on_tick(now)
        except Exception as error:
            self.on_failure(error)
            return True

    def _lingers(self) -> bool:
        """A call that waits for us would hold the descriptor that it is at, and with that all who wait for us, for
        good."""
        now = time.monotonic()
        self._linger_until = self._linger_until or now + _LINGER
        return any(one.are_busy for one in self._messengers.values()) and now < self._linger_until

    def wake(self) -> None:
        """Make `run` look up, from a signal handler or another thread."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def submit(self, call: Call, done: Done) -> None:
        """Run `call` on a worker, then `done(result, error)` on the loop. From the loop thread."""
        def ended(result: Any, error: BaseException | None) -> None:
            self._running_calls -= 1
            done(result, error)

        self._running_calls += 1
        self._grow()
        self._calls.put((call, ended))

    def submit_waiting(self, key: Hashable, call: Call, done: Done, group: Hashable = None) -> None:
        """Like `submit`, for a call that may wait for the loop or for workers: after all others of the key, in their
        order. What is stuck takes no thread from other groups."""
        messengers = self._messengers.get(group)
        if messengers is None:
            messengers = self._messengers[group] = _Messengers(self._end)
            messengers.ending = self._stopping
        messengers.put(key, call, done)

    def is_waiting(self, key: Hashable, group: Hashable = None) -> bool:
        """Has a call of the key not ended yet?"""
        return group in self._messengers and self._messengers[group].has(key)

    def confine(self, group: Hashable, most: int) -> None:
        """Let the waiting calls of a group have no more threads than these."""
        self._messengers.setdefault(group, _Messengers(self._end)).most = most

    def backlog(self, group: Hashable) -> int:
        """How many calls of a group have not begun yet."""
        return self._messengers[group].pending if group in self._messengers else 0

    def is_busy(self, group: Hashable) -> bool:
        """Has any call of a group not ended yet?"""
        return group in self._messengers and self._messengers[group].are_busy

    def disband(self, group: Hashable) -> None:
        """There will be no more calls of a group; its threads end."""
        messengers = self._messengers.pop(group, None)
        if messengers is not None:
            messengers.ending = True
            messengers.close()

    def wait_aside(self, call: Call, done: Done, group: Hashable = None, most: int = _MAX_WAITS) -> Callable[[], None]:
        """Like `submit`, for a call that waits for something outside for as long as that takes: it takes no worker from
        others. What is returned calls it off. Too many are EAGAIN; of one group also `most`, and more than are left for
        others."""
        left = _MAX_WAITS - self._waits.threads
        if left <= 0 or (group is not None and self._waiting_of[group] >= min(most, left)):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        def ended(result: Any, error: BaseException | None) -> None:
            self._waiting_of[group] -= 1
            if not self._waiting_of[group]:
                del self._waiting_of[group]
            done(result, error)

        self._waiting_of[group] += 1
        return self._waits.start(call, ended)

    def more_workers(self, count: int) -> None:
        """There may be so many more of them, or less."""
        self._more_workers += count

    def lost(self) -> None:
        """Nobody waits any more for one of the calls under way, which may be blocked for good."""
        self._lost += 1
        self._grow()

    def regained(self) -> None:
        """Such a call has ended after all."""
        self._lost -= 1

    def _grow(self) -> None:
        most = MAX_WORKERS + self._more_workers + min(self._lost, _MAX_LOST)
        if self._running_calls > self._workers and self._workers < most:
            self._workers += _started(self._work, "worker")

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
            self._end(*outcome)
            del outcome

    def _end(self, done: Done, result: Any, error: BaseException | None) -> None:
        self._outcomes.append((done, result, error))
        self.wake()

    def _take_outcomes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        outcomes = self._outcomes
        while outcomes:
            done, result, error = outcomes.popleft()
            try:
                done(result, error)
            except Exception as failure:
                self.on_failure(failure)

    def close(self) -> None:
        """End the idle threads. Those that are blocked end with the process."""
        for group in list(self._messengers):
            self.disband(group)
        for _ in range(self._workers):
            self._calls.put(None)
        self._poll.close()
        os.close(self._wake)
