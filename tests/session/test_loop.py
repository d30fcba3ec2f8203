"""The loop and its workers."""

import contextlib
import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness import wait_until
from harness.device import LIMIT
from shiftfs import loop as loop_module
from shiftfs.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Workers are gone when it ends, so that none writes to a descriptor that another has taken over."""
    before = set(threading.enumerate())
    made = Loop()
    yield made
    made.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(LIMIT)
        assert not thread.is_alive(), "close ends the workers"


@contextlib.contextmanager
def running(loop: Loop) -> Iterator[threading.Thread]:
    """The loop on a thread of its own, within the `with`."""
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield thread
    finally:
        loop.stop()
        loop.wake()
        thread.join(LIMIT)
        assert not thread.is_alive()


def outcomes_of(loop: Loop, calls: list[Callable[[], Any]]) -> list[tuple[Any, BaseException | None]]:
    """Run calls to their end, with the loop on this thread; outcomes as they came in."""
    found: list[tuple[Any, BaseException | None]] = []

    def done(result: Any, error: BaseException | None) -> None:
        found.append((result, error))
        if len(found) == len(calls):
            loop.stop()

    for call in calls:
        loop.submit(call, done)
    loop.run()
    return found


def test_calls_run_elsewhere_and_outcomes_come_here(loop: Loop) -> None:
    here = threading.get_ident()
    seen: list[int] = []

    def done(result: int, error: BaseException | None) -> None:
        seen.extend((result, threading.get_ident()))
        loop.stop()

    loop.submit(threading.get_ident, done)
    loop.run()
    assert seen[0] != here and seen[1] == here


@pytest.mark.parametrize("kind", [OSError, StopIteration, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_a_call_raises_is_its_outcome(loop: Loop, kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("why")

    [(result, error)] = outcomes_of(loop, [fail])
    assert result is None and type(error) is kind
    assert outcomes_of(_again(loop), [lambda: 1]) == [(1, None)], "the worker goes on"
    assert loop.workers == 1


def _again(loop: Loop) -> Loop:
    loop._stopping = False
    return loop


@pytest.mark.parametrize("count", [1, 2, 9])
def test_workers_start_when_all_are_busy(loop: Loop, count: int) -> None:
    together = threading.Barrier(count)  # passed only by as many threads
    calls = [lambda: together.wait(LIMIT)] * count
    assert sorted(result for result, _ in outcomes_of(loop, calls)) == list(range(count))
    assert loop.workers == count
    for _ in range(3):
        outcomes_of(_again(loop), [int])
    assert loop.workers == count, "none start while some are idle"


def test_workers_are_bounded_and_calls_wait_their_turn(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MAX_WORKERS", 3)
    gate, order = threading.Event(), list[int]()
    blocked: list[Callable[[], Any]] = [lambda: gate.wait(LIMIT)] * 3
    queued: list[Callable[[], Any]] = [lambda number=number: order.append(number) for number in range(20)]  # type: ignore[misc]

    def let_go(now: float) -> bool:  # in the loop's first round
        gate.set()
        return False

    loop.on_tick = let_go
    loop.wake()
    assert len(outcomes_of(loop, blocked + queued)) == 23
    assert loop.workers == 3
    assert sorted(order) == list(range(20))


def test_workers_that_are_lost_are_replaced(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MAX_WORKERS", 3)
    gate, ended, answers = threading.Event(), list[bool](), list[bool]()

    def regained(result: Any, error: BaseException | None) -> None:
        loop.regained()
        ended.append(True)
        if len(ended) == 3:
            loop.stop()

    def answered(result: bool, error: BaseException | None) -> None:
        answers.append(result)
        if len(answers) == 2:
            gate.set()

    for _ in range(3):
        loop.submit(lambda: gate.wait(LIMIT), regained)
        loop.lost()  # its caller was killed
    for _ in range(2):
        loop.submit(gate.is_set, answered)
    loop.run()
    assert answers == [False, False], "answered while the three are blocked"
    assert loop.workers <= 5


def test_one_worker_keeps_the_order(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MAX_WORKERS", 1)
    calls: list[Callable[[], Any]] = [lambda number=number: number for number in range(200)]  # type: ignore[misc]
    assert outcomes_of(loop, calls) == [(number, None) for number in range(200)]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_that_a_call_held_lives_on(loop: Loop, fails: bool) -> None:
    class Held:
        pass

    def start() -> tuple[weakref.ref[Held], ...]:
        held, result = Held(), Held()

        def call(held: Held = held) -> Held:
            if fails:
                raise OSError(5, "why", str(held))
            return result

        loop.submit(call, lambda result, error: delivered.set())
        return weakref.ref(held), weakref.ref(result)

    delivered = threading.Event()
    gc.collect()
    gc.disable()
    try:
        held, result = start()
        with running(loop):
            assert delivered.wait(LIMIT)
            wait_until(lambda: held() is None, "what the call held to go")
            wait_until(lambda: result() is None, "its result to go")
    finally:
        gc.enable()


def test_ready_descriptors_are_called_until_removed(loop: Loop) -> None:
    first, second = os.eventfd(1), os.eventfd(1)
    called: list[int] = []

    def ready(fd: int) -> None:
        called.append(fd)
        loop.remove(first)
        loop.remove(second)  # ready in the same round: whoever is removed is not called any more
        loop.stop()

    try:
        for fd in (first, second):
            loop.add(fd, lambda fd=fd: ready(fd))  # type: ignore[misc]
        loop.remove(-1)  # was never added
        loop.run()
        assert len(called) == 1
    finally:
        os.close(first)
        os.close(second)


class Watched:
    """An epoll that tells with which limits it was waited on."""

    def __init__(self, poll: Any) -> None:
        self._poll = poll
        self.limits: list[float | None] = []

    def poll(self, timeout: float | None = None) -> Any:
        self.limits.append(timeout)
        return self._poll.poll(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poll, name)


@pytest.fixture
def limits(loop: Loop) -> list[float | None]:
    watched: Any = Watched(loop._poll)
    loop._poll = watched
    found: list[float | None] = watched.limits
    return found


@pytest.mark.parametrize("wanted", [0, 3])
def test_ticks_follow_activity_while_wanted_then_it_idles(
    loop: Loop, limits: list[float | None], monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    monkeypatch.setattr(loop_module, "_TICK", 0.01)
    ticks: list[float] = []

    def tick(now: float) -> bool:
        ticks.append(now)
        return len(ticks) % (wanted + 2) != 0

    loop.on_tick = tick
    with running(loop):
        for round_ in (1, 2):
            loop.wake()
            wait_until(lambda round_=round_: len(ticks) >= round_ * (wanted + 2), "ticks")  # type: ignore[misc]
            wait_until(lambda: limits[-1] is None, "the loop to wait without a limit")
            assert all(limit is None or 0 <= limit <= 0.01 for limit in limits)
    assert ticks == sorted(ticks)


def test_ticks_are_no_more_frequent_than_set(
    loop: Loop, limits: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TICK", 1000.0)
    ticks: list[float] = []
    loop.on_tick = lambda now: bool(ticks.append(now))  # type: ignore[func-returns-value]
    with running(loop):
        for number in range(2, 20):
            loop.wake()
            wait_until(lambda number=number: len(limits) >= number, "a round")  # type: ignore[misc]
    assert len(ticks) == 1


class Broken(Exception):
    pass


def breaks(*args: object) -> None:
    raise Broken


@pytest.mark.parametrize("what", ["descriptor", "outcome", "tick"])
def test_what_a_callback_raises_ends_it_unless_somebody_takes_it(loop: Loop, what: str) -> None:
    """Then all others are called as before."""
    reading, writing = os.pipe()
    taken: list[Exception] = []
    outcomes: list[object] = []

    def ticks(now: float) -> bool:
        if taken and outcomes:
            loop.stop()
        if what == "tick" and not taken:
            raise Broken
        return True

    loop.on_tick = ticks
    try:
        os.write(writing, b"x")
        if what == "descriptor":
            loop.add(reading, lambda: breaks(os.read(reading, 1)))
        loop.submit(lambda: None, breaks if what == "outcome" else lambda result, error: None)
        with pytest.raises(Broken):
            loop.run()
        loop.on_failure = taken.append
        os.write(writing, b"x")
        loop.submit(lambda: None, breaks if what == "outcome" else lambda result, error: None)
        loop.submit(lambda: None, lambda result, error: outcomes.append(error))
        loop.run()
    finally:
        loop.remove(reading)
        os.close(reading)
        os.close(writing)
    assert [type(error) for error in taken] == [Broken] and outcomes == [None]


def test_stop_and_wake_from_a_signal_handler(loop: Loop) -> None:
    def handler(number: int, frame: object) -> None:
        loop.stop()
        loop.wake()

    before = signal.signal(signal.SIGUSR2, handler)
    sender = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    sender.start()
    try:
        loop.run()
    finally:
        sender.join(LIMIT)
        signal.signal(signal.SIGUSR2, before)


def test_wake_never_blocks(loop: Loop) -> None:
    os.eventfd_write(loop._wake, 2**64 - 2)  # full
    loop.wake()


def test_waiting_aside_leaves_room_for_others(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many groups wait for as much as they can."""
    monkeypatch.setattr(loop_module, "_MAX_WAITS", 32)
    gate, ended = threading.Event(), list[object]()

    def wait_for_all(group: str | None) -> int:
        begun = 0
        with contextlib.suppress(BlockingIOError):
            while begun < 100:
                loop.wait_aside(lambda: gate.wait(LIMIT), lambda result, error: ended.append(result), group, most=20)
                begun += 1
        return begun

    counts = [wait_for_all(f"group {number}") for number in range(3)]
    assert counts == [16, 8, 4]
    assert wait_for_all(None) == 4, "who is of no group has all the rest"
    gate.set()
    with running(loop):
        wait_until(lambda: len(ended) == 32, "all have ended", LIMIT)
