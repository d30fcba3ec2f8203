"""Mounted as containerd's fuse-overlayfs snapshotter has it done: by mount.fuse3, under fuse-overlayfs's name.

containerd gives each option to the helper by itself, and `overlay` as what is mounted.
"""

import os
from pathlib import Path

import pytest

from harness import Completed, Layers, newest_mount, run, unmount, write_tree
from harness.kinds import owner
from harness.podman import executable


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A directory in which the program is called fuse-overlayfs."""
    path = tmp_path / "programs"
    path.mkdir()
    (path / "fuse-overlayfs").symlink_to(executable(tmp_path))
    return path


def mount(named: Path, place: Path, *options: str) -> Completed:
    given = [word for option in options for word in ("-o", option)]
    path = f"{named}:{os.environ['PATH']}"
    return run(["mount.fuse3", "overlay", place, *given, "-t", "fuse-overlayfs"], env={**os.environ, "PATH": path})


@pytest.mark.parametrize("maps", [(), ("uidmapping=0:1000:60000", "gidmapping=0:2000:60000")], ids=["plain", "maps"])
def test_a_snapshot_that_is_written(our_layers: Layers, named: Path, maps: tuple[str, ...]) -> None:
    write_tree(our_layers.lower, {"file": b"content"})
    (place := our_layers.base / "merged").mkdir()
    directories = (f"workdir={our_layers.work}", f"upperdir={our_layers.upper}", f"lowerdir={our_layers.lower}")
    mount(named, place, *directories, *maps)
    entry = newest_mount(place)
    try:
        assert (entry.kind, entry.source) == ("fuse.shiftfs", "overlay")
        assert owner(place / "file") == ((1000, 2000) if maps else (0, 0))
        (place / "file").write_bytes(b"changed")
        assert (our_layers.upper / "file").read_bytes() == b"changed"
    finally:
        unmount(entry)


def test_a_view_of_snapshots(our_layers: Layers, named: Path) -> None:
    write_tree(our_layers.lower, {"file": b"content"})
    our_layers.add_lower({"other": b""})
    (place := our_layers.base / "merged").mkdir()
    mount(named, place, "ro", f"lowerdir={':'.join(map(str, our_layers.lowers))}")
    entry = newest_mount(place)
    try:
        assert sorted(os.listdir(place)) == ["file", "other"]
    finally:
        unmount(entry)
