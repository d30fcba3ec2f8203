"""When nobody has the mount any more: on a tmpfs in its place, in this process's own mount namespace."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import newest_mount, run
from harness.mounts import MountEntry
from shiftfs.loop import Loop
from shiftfs.reflect.ending import Ending

LIMIT = 10.0
pytestmark = [pytest.mark.root, pytest.mark.timeout(30)]


@pytest.fixture
def entry(tmp_path: Path) -> Iterator[MountEntry]:
    place, around = tmp_path / "place", tmp_path / "around"
    place.mkdir()
    around.mkdir()
    run(["mount", "-t", "tmpfs", "none", place])
    entry = newest_mount(place)
    yield entry
    run(["umount", place], check=False)


def device(entry: MountEntry) -> str:
    return f"{entry.device >> 20}:{entry.device & 0xFFFFF}"


class Watched:
    """A loop that runs until the mount is gone, or for some seconds."""

    def __init__(self, entry: MountEntry) -> None:
        self.loop = Loop()
        self.gone = 0
        self.looks = 0
        self.ending = Ending(self.loop, device(entry), self._gone)
        self.loop.on_tick = self._tick

    def _gone(self) -> None:
        self.gone += 1
        self.loop.stop()

    def _tick(self, now: float) -> bool:
        self.looks += 1
        if now > self.end:
            self.loop.stop()
        self.ending.look(now)
        return True

    def run(self, seconds: float) -> float:
        began = time.monotonic()
        self.end = began + seconds
        self.loop._stopping = False
        self.loop.wake()
        self.loop.run()
        return time.monotonic() - began

    def close(self) -> None:
        self.ending.close()
        self.loop.close()


@pytest.fixture
def watched(entry: MountEntry) -> Iterator[Watched]:
    watched = Watched(entry)
    yield watched
    watched.close()


def test_it_is_told_at_once(entry: MountEntry, watched: Watched) -> None:
    run(["umount", entry.path])
    assert watched.run(LIMIT) < LIMIT
    assert watched.gone == 1


def test_it_is_told_once(entry: MountEntry, watched: Watched) -> None:
    run(["umount", entry.path])
    watched.run(LIMIT)
    run(["mount", "-t", "tmpfs", "none", entry.path])
    watched.ending.look(time.monotonic())
    assert watched.gone == 1


def test_it_is_told_of_what_was_gone_before(entry: MountEntry) -> None:
    run(["umount", entry.path])
    watched = Watched(entry)
    assert watched.gone == 1
    watched.close()


def test_others_do_not_matter(entry: MountEntry, tmp_path: Path, watched: Watched) -> None:
    other = tmp_path / "around"
    for _ in range(5):
        run(["mount", "-t", "tmpfs", "none", other])
        run(["umount", other])
    run(["mount", "--bind", entry.path, other])
    run(["umount", entry.path])
    watched.run(0.8)
    assert watched.gone == 0
    run(["umount", other])
    watched.run(LIMIT)
    assert watched.gone == 1


def test_looking_takes_its_share_of_the_time(
    entry: MountEntry, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def is_there(ending: Ending) -> bool:
        looks.append(time.monotonic())
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        return True

    monkeypatch.setattr(Ending, "_is_there", is_there)
    run(["mount", "-t", "tmpfs", "none", entry.path])
    run(["umount", entry.path])
    for _ in range(4):
        run(["mount", "-t", "tmpfs", "none", entry.path])
        run(["umount", entry.path])
        watched.run(0)
    assert len(looks) == 1
    watched.run(3)
    assert 2 <= len(looks) <= 4  # it is not forgotten; others mount something too, and wake it


def test_waiting_for_others_is_not_looking(
    entry: MountEntry, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is busy, a look that was held up once would hold up the end twenty times as long."""

    def is_there(ending: Ending) -> bool:
        time.sleep(1)
        return str(entry.path) in Path("/proc/self/mountinfo").read_text()

    monkeypatch.setattr(Ending, "_is_there", is_there)
    run(["mount", "-t", "tmpfs", "none", entry.path])
    run(["umount", entry.path])
    watched.run(0)
    run(["umount", entry.path])
    watched.run(LIMIT)
    assert watched.gone == 1


def test_the_table_is_read_in_pieces(entry: MountEntry, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Path("/proc/self/mountinfo").read_bytes()
    wanted = f" {device(entry)} ".encode()
    assert table.count(wanted) == 1
    for size in (7, 50, 1000):
        rests = [table[at : at + size] for at in range(0, len(table), size)]
        monkeypatch.setattr("shiftfs.reflect.ending._CHUNK", size)
        monkeypatch.setattr(os, "read", lambda fd, count, rests=rests: rests.pop(0) if rests else b"")
        assert watched.ending._is_there()
        rests[:] = [table.replace(wanted, b" 999:9 ")[at : at + size] for at in range(0, len(table), size)]
        assert not watched.ending._is_there()
        monkeypatch.undo()
