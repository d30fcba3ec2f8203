"""Many changes at once: all are told, in order; and where some were lost on the way, nothing stays stale."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import wait_until
from harness.behind import Behind, Place, behind
from harness.calls import in_children
from harness.events import Event, Recorder
from harness.machine import CACHE, alone

BURST = 10_000
QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")


def settings_alone() -> AbstractContextManager[None]:
    """The machine's settings stay as they are."""
    return alone(CACHE / "settings.lock")


@contextmanager
def long_queues() -> Iterator[None]:
    """Inotify instances that are made now keep more events than all of a burst."""
    with settings_alone():
        before = QUEUE.read_text()
        QUEUE.write_text(str(100 * BURST))
        try:
            yield
        finally:
            QUEUE.write_text(before)


def total(status: Any, word: str) -> int:
    """The sum of all counts in a report whose names contain a word."""
    if isinstance(status, dict):
        counts = [value for key, value in status.items() if word in key and isinstance(value, int)]
        return sum(counts) + sum(total(value, word) for value in status.values())
    return 0


def test_a_burst_arrives_whole_and_in_order(some: Behind) -> None:
    place = some.new({})
    names = [f"name{number}" for number in range(BURST)]
    with place.recorder() as recorder:
        with long_queues():
            recorder.watch({"": place.shown})
        with recorder.reading():
            for name in names:
                os.close(os.open(place.layer / name, os.O_CREAT | os.O_WRONLY))
            wait_until(lambda: recorder.counted("") >= BURST, "an event for each", 30.0)
            wait_until(lambda: sorted(os.listdir(place.shown)) == sorted(names), "all of it", 30.0)
        heard = recorder.settled(0.5)[""]
    assert [event.name for event in heard if event.what == "CREATE"] == names
    assert {event.what for event in heard} <= {"CREATE", "CLOSE_WRITE"}
    place.visible(counts=False)


def test_a_burst_of_all_kinds(some: Behind) -> None:
    """In one directory names are made, moved, and go: each file's events in order."""
    place = some.new({})
    count = 1000
    with place.recorder() as recorder:
        with long_queues():
            recorder.watch({"": place.shown})
        with recorder.reading():
            for number in range(count):
                (place.layer / f"a{number}").mkdir()
            for number in range(count):
                (place.layer / f"a{number}").rename(place.layer / f"b{number}")
            for number in range(count):
                (place.layer / f"b{number}").rmdir()
            wait_until(lambda: recorder.counted("") >= 4 * count, "an event for each", 30.0)
        heard = recorder.settled(0.5)[""]
    assert [event.name for event in heard if event.what == "CREATE ISDIR"] == [f"a{one}" for one in range(count)]
    assert [event.name for event in heard if event.what == "DELETE ISDIR"] == [f"b{one}" for one in range(count)]
    moves = [event for event in heard if event.cookie]
    assert [event.name for event in moves] == [f"{side}{one}" for one in range(count) for side in "ab"]
    assert [event.cookie for event in moves] == [one for number in range(1, count + 1) for one in (number, number)]
    assert len(heard) == 4 * count
    place.visible(counts=False)


@pytest.mark.parametrize("options", [("watch=inotify",), ("watch=inotify", "open=serve")])
def test_what_the_queue_has_lost_is_found(area: Path, options: tuple[str, ...]) -> None:
    """All that is known is looked at again, and whoever watches hears of what is different."""
    with ExitStack() as stack:
        with settings_alone():
            full = int(QUEUE.read_text())
            found = stack.enter_context(behind("source", *options))
        place = found.new({"stays": b"", "goes": b"", "dir": {"in": b"", "goes": b""}})
        place.visible(counts=False)
        with place.recorder() as recorder:
            with long_queues():
                recorder.watch({"": place.shown, "dir": place.shown / "dir"})
            with stopped(found):
                for number in range(full):  # no two of one file in a row, which the kernel makes one
                    os.utime(place.layer / ("stays", "goes")[number % 2])
                for number in range(1000):
                    (place.layer / f"new{number}").mkdir()
                    (place.layer / f"dir/new{number}").write_bytes(b"%d" % number)
                (place.layer / "goes").unlink()
                (place.layer / "dir/goes").unlink()
                (place.layer / "stays").write_bytes(b"changed")
            # Whoever looks before is told; inotify does not say who made what he sees.
            wait_until(lambda: total(found.status(), "overflow") > 0, "the loss to be noticed", 30.0)
            place.visible(counts=False)
            # What is told of one directory waits for nothing that is told of another.
            heard = recorder.until(
                lambda streams: (
                    all(Event("DELETE", "goes") in streams[label] for label in ("", "dir"))
                    and Event("MODIFY", "stays") in streams[""]
                ),
                0.5,
            )
            for label, what in (("", "CREATE ISDIR"), ("dir", "CREATE")):
                created = {event.name for event in heard[label] if event.what == what}
                assert created == {f"new{number}" for number in range(1000)}
                assert Event("DELETE", "goes") in heard[label]
            assert Event("MODIFY", "stays") in heard[""]
        # And on as before.
        (place.layer / "after").mkdir()
        place.visible(counts=False)


@contextmanager
def stopped(found: Behind) -> Iterator[None]:
    assert found.mount is not None
    os.kill(found.mount.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(found.mount.pid, signal.SIGCONT)


# --- storms ---


def renames(root: Path, seed: int) -> None:
    """A few names are moved about, replaced, exchanged."""
    choose = random.Random(seed)
    for _ in range(1500):
        try:
            one, other = (root / choose.choice(("", "x", "y", "x/z")) / choose.choice("abcd") for _ in range(2))
            match choose.randrange(4):
                case 0:
                    one.write_bytes(b"%d" % seed)
                case 1:
                    one.unlink()
                case _:
                    one.rename(other)
        except OSError:
            pass


def churn(root: Path, seed: int) -> None:
    """One name comes and goes, as one thing and as another."""
    path = root / f"name{seed}"
    for number in range(200):
        path.write_bytes(b"file %d" % number)
        path.unlink()
        path.mkdir()
        (path / "in").touch()
        (path / "in").unlink()
        path.rmdir()
        path.symlink_to(f"target{number}")
        path.unlink()


def swaps(root: Path, seed: int) -> None:
    """A symlink points here and there, a file is saved again and again."""
    for number in range(200):
        (root / f"link{seed}.tmp").symlink_to("xy"[number % 2])
        (root / f"link{seed}.tmp").rename(root / f"link{seed}")
        (root / f"file{seed}.tmp").write_bytes(b"%d" % number)
        (root / f"file{seed}.tmp").rename(root / f"file{seed}")


STORMS: dict[str, Callable[[Path, int], None]] = {"renames": renames, "churn": churn, "swaps": swaps}


def look(root: Path, seed: int) -> None:
    """Whoever uses the mount meanwhile."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        for above, _, names in os.walk(root):
            for name in names:
                try:
                    Path(above, name).read_bytes()
                except OSError:
                    pass


@pytest.mark.parametrize("storm", STORMS)
def test_storms(storm: str, some: Behind) -> None:
    """What is left is what is shown, and no event feeds on another."""
    place = some.new({"x": {"z": {}}, "y": {}})
    with place.recorder() as recorder:
        with long_queues():
            recorder.watch({"": place.shown, "x": place.shown / "x"})
        with recorder.reading():
            work = [lambda seed=seed: STORMS[storm](place.layer, seed) for seed in range(2)]
            watching = [] if "namespace" in some.kind else [lambda: look(place.shown, 0)]
            in_children([*work, *watching], 60.0)
        recorder.settled(0.5, 30.0)
    place.visible(counts=False)
    if storm != "renames":
        comes_and_goes(recorder, place)


def comes_and_goes(recorder: Recorder, place: Place) -> None:
    """No name comes twice without going between, nor goes that is not there; at the end those are there that are."""
    there = {"x", "y"}
    for event in recorder.streams[""]:
        if event.what.startswith("CREATE"):
            assert event.name not in there, event
            there.add(event.name)
        elif event.what.startswith(("DELETE ", "MOVED_FROM")) or event.what == "DELETE":
            assert event.name in there, event
            there.remove(event.name)
        elif event.what.startswith("MOVED_TO"):
            there.add(event.name)
    assert there == set(os.listdir(place.layer))
