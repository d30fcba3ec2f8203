"""What a removed file had is given back by its layer's filesystem, while the next requests are served."""

import os
import re
from pathlib import Path

from harness import Layers, loop_filesystem, wait_until
from harness.traced import traced
from shiftfs import native
from shiftfs.sys import groups

MANY = 300
"""More than there is room for (native/closing.c)."""


def removed(pid: int) -> list[str]:
    """Removed files that the process has open."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except FileNotFoundError:  # closed just now
            continue
    return [path for path in found if path.endswith(" (deleted)")]


def write_out(path: Path) -> None:
    """A file that is on the disk: to free it takes longer than to remove its name."""
    with open(path, "wb") as file:
        file.write(b"content")
        os.fsync(file.fileno())


def test_the_last_descriptor_is_closed_by_a_thread_of_its_own(our_layers: Layers, tmp_path: Path) -> None:
    """Natively, where there is more than one processor; else by who serves the requests."""
    with our_layers.mount() as mount:
        for number in range(3):
            (mount.path / f"f{number}").write_bytes(b"content")
        with traced(mount.pid, "close", tmp_path / "log", "-y"):
            for number in range(3):
                (mount.path / f"f{number}").unlink()
            wait_until(lambda: not removed(mount.pid), "all to be closed")
        closed = re.findall(r"(?m)^(\d+) +close\(\d+<.*/f(\d)>\(deleted\)", (tmp_path / "log").read_text())
        last = {number: int(thread) for thread, number in closed}
        assert sorted(last) == ["0", "1", "2"]
        is_native = native.Lane is not None and groups.processors() >= 2
        assert {thread != mount.pid for thread in last.values()} == {is_native}


def test_more_than_the_thread_has_room_for(our_layers: Layers) -> None:
    with our_layers.mount() as mount:
        paths = [mount.path / f"f{number}" for number in range(MANY)]
        for path in paths:
            write_out(path)
        for path in paths:
            path.unlink()
        wait_until(lambda: not removed(mount.pid), "all to be closed")
        assert os.listdir(mount.path) == []


def test_one_that_is_open_stays(our_layers: Layers) -> None:
    with our_layers.mount() as mount:
        path = mount.path / "file"
        path.write_bytes(b"content")
        with open(path, "rb") as file:
            path.unlink()
            (mount.path / "other").write_bytes(b"other")
            (mount.path / "other").unlink()
            wait_until(lambda: len(removed(mount.pid)) == 1, "the other to be closed")
            assert file.read() == b"content"
        wait_until(lambda: not removed(mount.pid), "all to be closed")


def test_the_thread_ends_and_another_begins(our_layers: Layers) -> None:
    def threads() -> int:
        return len(os.listdir(f"/proc/{mount.pid}/task"))

    with our_layers.mount() as mount:
        first = threads()
        for _ in range(2):
            (mount.path / "file").write_bytes(b"content")
            (mount.path / "file").unlink()
            wait_until(lambda: not removed(mount.pid), "it to be closed")
            wait_until(lambda: threads() <= first, "the thread's end")


def test_who_has_removed_something_has_space(tmp_path: Path) -> None:
    """As soon as it is removed."""
    with loop_filesystem("ext4", 24) as place:
        layers = Layers(tmp_path)
        layers.upper, layers.work = place / "upper", place / "work"
        for path in (layers.upper, layers.work):
            path.mkdir()
        with layers.mount() as mount:
            room = os.statvfs(mount.path)
            content = bytes(room.f_bavail * room.f_bsize * 2 // 3)
            for number in range(20):
                path = mount.path / f"f{number}"
                path.write_bytes(content)
                path.unlink()
