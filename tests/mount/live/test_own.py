"""What is done through the mount is told once: by the kernel, when it is done, and not again when the layer says so."""

import os
import time
from collections.abc import Iterator

import pytest

from harness import run
from harness.behind import Behind, Place
from harness.calls import drop_dentries
from harness.changes import CHANGES, EVERYWHERE, FULLY, OUTSIDE, THOROUGH, TREE
from harness.events import Event, differences
from harness.recorded import append, natively, watched

QUIET = 0.2  # seconds; what is told twice is told at once
LATER = 2.0  # and what comes of a descriptor that is closed a second after the last write, by then

# Nothing comes from another filesystem, or goes to one, by link(2) or rename(2); devices are not for all to make.
THROUGH_MOUNTS = [
    name for name in CHANGES if name != "device" and not name.endswith(("outside", "-in", "-out", "in-over"))
]

PAIRS = [
    (kind, change)
    for kind in ("native", "source", "passed", "inotify", "namespace", "lower", "upper merged")
    for change in THROUGH_MOUNTS
    if (THOROUGH and kind in FULLY) or change in EVERYWHERE
]


@pytest.fixture
def place(writable: Behind) -> Iterator[Place]:
    place = writable.new(TREE, OUTSIDE)
    yield place
    run(["rm", "-rf", place.layer])


@pytest.mark.parametrize(("writable", "change"), PAIRS, indirect=["writable"])
def test_told_once(change: str, place: Place) -> None:
    with place.recorder() as recorder:
        recorder.watch(watched(place.layer, place.shown, True))
        place.see(CHANGES[change], place.shown, place.outside, 0)
        time.sleep(QUIET)
        assert differences(natively(change, True, 0), recorder.settled(0)) == {}


def test_between_changes_of_others(place: Place) -> None:
    """Own changes and those behind the mount in turn, each told once and in order."""
    expected: list[Event] = []
    with place.recorder() as recorder:
        recorder.watch({"": place.shown})
        for number in range(20):
            (place.layer / f"behind{number}").mkdir()
            recorder.until(lambda streams: len(streams[""]) >= len(expected) + 1, 0)  # noqa: B023
            place.see(os.mkdir, place.shown / f"own{number}")
            expected += [Event("CREATE ISDIR", f"behind{number}"), Event("CREATE ISDIR", f"own{number}")]
        assert recorder.settled(QUIET)[""] == expected


# inotify does not tell whose a change is, and once there is a copy in the upper, the lower's file is not seen.
@pytest.mark.parametrize("writable", ["native", "source", "namespace", "upper merged"], indirect=True)
def test_writing_for_long(place: Place) -> None:
    """A file that is open for writing here, and written by others in the layer: each write is told, and no more."""
    with place.recorder() as recorder:
        recorder.watch({"log": place.shown / "log"})
        for number in range(5):
            place.see(append, place.shown / "log", b"own\n")
            own = recorder.settled(QUIET)["log"]
            assert own[-2:] == [Event("MODIFY"), Event("CLOSE_WRITE")]
            assert len(own) == 4 * number + 2
            append(place.layer / "log", b"behind\n")
            both = recorder.until(lambda streams: len(streams["log"]) >= 4 * number + 4, QUIET)["log"]  # noqa: B023
            assert both[-2:] == [Event("MODIFY"), Event("CLOSE_WRITE")]
            assert len(both) == 4 * number + 4
        assert place.see((place.shown / "log").read_bytes) == b"one\n" + b"own\nbehind\n" * 5


@pytest.mark.parametrize("writable", ["inotify"], indirect=True)
def test_a_file_that_the_kernel_has_forgotten_meanwhile(place: Place) -> None:
    """It is closed in the layer a second after the last write, and the watcher does not tell by whom."""
    with place.recorder() as recorder:
        recorder.watch({"": place.shown})
        append(place.shown / "log", b"more")
        drop_dentries()
        assert recorder.settled(LATER)[""] == [Event("MODIFY", "log"), Event("CLOSE_WRITE", "log")]
