"""The system calls of locks, and that a signal ends those that wait."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from harness import wait_until
from shiftfs.loop import INTERRUPTING, Loop
from shiftfs.sys import locks
from shiftfs.sys.locks import END, NONE, READ, WRITE

LIMIT = 10.0


def test_ranges_include_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    one, two = (os.open(path, os.O_RDWR) for _ in range(2))
    assert locks.set_range(one, 5, 9, WRITE)
    assert locks.in_the_way(two, 0, 4, WRITE) is None
    assert locks.in_the_way(two, 10, END, WRITE) is None
    assert locks.in_the_way(two, 9, END, READ) == ((5, 9, WRITE), -1)
    assert not locks.set_range(two, 0, END, READ)
    assert locks.set_range(one, 0, END, NONE)
    assert locks.set_range(two, 3, END, READ)
    assert locks.in_the_way(one, 0, 3, WRITE) == ((3, END, READ), -1)
    os.close(one)
    os.close(two)


def test_what_a_descriptor_is_not_open_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError) as raised:
        locks.set_range(fd, 0, 1, WRITE)
    assert raised.value.errno == errno.EBADF
    os.close(fd)


@pytest.mark.parametrize("whole", [False, True], ids=["range", "flock"])
def test_who_waits_is_called_off(tmp_path: Path, whole: bool) -> None:
    """And leaves nothing: as often as that is tried."""
    before = signal.signal(INTERRUPTING, lambda number, frame: None)
    path = tmp_path / "file"
    path.touch()
    holder, waiter = (os.open(path, os.O_RDWR) for _ in range(2))
    loop = Loop()
    ended: list[int | None] = []
    try:
        assert locks.set_whole(holder, WRITE) and locks.set_range(holder, 0, 9, WRITE)

        def call() -> object:
            return locks.set_whole(waiter, READ, wait=True) if whole else locks.set_range(waiter, 5, 5, READ, wait=True)

        def done(result: object, error: BaseException | None) -> None:
            ended.append(error.errno if isinstance(error, OSError) else None)
            if len(ended) == 20:
                loop.stop()

        def slept(off: Callable[[], None], result: object, error: BaseException | None) -> None:
            off()

        for number in range(20):
            off = loop.wait_aside(call, done)
            loop.submit(partial(time.sleep, number / 1000), partial(slept, off))
        stopper = threading.Timer(LIMIT, loop.stop)
        stopper.start()
        loop.run()
        stopper.cancel()
        assert len(ended) == 20 and set(ended) <= {errno.EINTR, None}
        wait_until(lambda: not any(one.name == "waits" for one in threading.enumerate()), "the threads end", LIMIT)
    finally:
        loop.close()
        os.close(holder)
        os.close(waiter)
        signal.signal(INTERRUPTING, before)
