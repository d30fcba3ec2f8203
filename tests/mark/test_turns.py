"""A mount's part of the workers: what waits in one leaves some for the others, and its requests with the kernel."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shiftfs.loop import Loop
from shiftfs.mark.turns import MOST_PENDING, Turns, workers
from shiftfs.shares import Common

LIMIT = 10.0


class Mount:
    """One whose calls wait until they are let go."""

    def __init__(self, loop: Loop, common: Common) -> None:
        self.is_paused = False
        self.has_been_paused = False
        self.ended: list[Any] = []
        self.let_go = threading.Event()
        self.turns = Turns(loop, common, self._pause, self._resume)

    def _pause(self) -> None:
        assert not self.is_paused
        self.is_paused = self.has_been_paused = True

    def _resume(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def wait(self, count: int) -> None:
        for number in range(count):
            self.turns.submit(lambda number=number: self.let_go.wait(LIMIT) and number, self._end)  # type: ignore[misc]

    def quick(self) -> None:
        self.turns.submit(lambda: "quick", self._end)

    def _end(self, result: Any, error: BaseException | None) -> None:
        self.ended.append(result if error is None else error)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def run_until(loop: Loop, mounts: list[Mount], count: int) -> None:
    """So many of their calls have ended."""
    end = time.monotonic() + LIMIT

    def look(now: float) -> bool:
        if sum(len(mount.ended) for mount in mounts) >= count or now > end:
            loop.stop()
        return True

    loop.on_tick = look
    loop._stopping = False  # as it is after the last time
    loop.run()


def test_each_mount_has_workers_however_many_wait_in_others(loop: Loop) -> None:
    common = workers()
    hoarders = [Mount(loop, common) for _ in range(30)]
    for one in hoarders:
        one.wait(200)
    other = Mount(loop, common)
    for _ in range(10):
        other.quick()
    run_until(loop, [other], 10)
    assert other.ended == ["quick"] * 10
    assert not any(one.ended for one in hoarders)
    for one in hoarders:
        one.let_go.set()
    run_until(loop, hoarders, 30 * 200)
    assert all(sorted(one.ended) == list(range(200)) for one in hoarders), "all is done in the end"
    assert common.taken == 0


def test_requests_wait_with_the_kernel_where_too_many_calls_do(loop: Loop) -> None:
    mount = Mount(loop, workers())
    mount.wait(MOST_PENDING - 1)
    assert not mount.has_been_paused
    mount.wait(1)
    assert mount.is_paused
    mount.let_go.set()
    run_until(loop, [mount], MOST_PENDING)
    assert len(mount.ended) == MOST_PENDING and not mount.is_paused


def test_errors_come_back_as_they_are(loop: Loop) -> None:
    mount = Mount(loop, workers())
    mount.turns.submit(lambda: 1 // 0, mount._end)
    run_until(loop, [mount], 1)
    assert isinstance(mount.ended[0], ZeroDivisionError)
