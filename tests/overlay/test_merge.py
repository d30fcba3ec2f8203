"""Merged listings: every name once, from the topmost layer that has it, less what is hidden."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import errno_of, make_whiteout, write_tree
from overlay import merge
from overlay.merge import Part
from shiftfs.tree import Descriptor

pytestmark = pytest.mark.root


def part(path: Path, marked: bool = False, tells: int = 2) -> Part:
    return Part(Descriptor(os.open(path, os.O_PATH), os.close), path.stat().st_dev, marked, tells)


def names(*paths: Path) -> list[bytes]:
    return sorted(one.name for one in merge.merged(tuple(part(path) for path in paths), os.O_NOATIME))


def by_xattr(path: Path) -> None:
    path.touch()
    os.setxattr(path, "trusted.overlay.whiteout", b"y")


# --- against the plainest model there is ---

NAMES = ["a", "b", "c", ".hidden"]
KINDS = ["nothing", "file", "directory", "device whiteout", "marked whiteout", "whiteout by name", "and file"]
ONE_LAYER = st.fixed_dictionaries({name: st.sampled_from(KINDS) for name in NAMES})
SHOWS = {"file", "directory", "and file"}


def build(path: Path, layer: dict[str, str]) -> Path:
    path.mkdir()
    for name, kind in layer.items():
        if kind in ("file", "and file"):
            (path / name).touch()
        elif kind == "directory":
            (path / name).mkdir()
        elif kind == "device whiteout":
            make_whiteout(path / name)
        elif kind == "marked whiteout":
            by_xattr(path / name)
        if kind in ("whiteout by name", "and file"):
            (path / f".wh.{name}").touch()
    return path


def model(layers: list[dict[str, str]]) -> list[tuple[str, int]]:
    """Which names show, and of which layer."""
    shown = []
    for name in NAMES:
        for depth, layer in enumerate(layers):
            if layer[name] in SHOWS:
                shown.append((name, depth))
            if layer[name] != "nothing":
                break
    return sorted(shown)


@given(st.lists(ONE_LAYER, min_size=1, max_size=4))
def test_a_listing_is_that_of_the_model(layers: list[dict[str, str]]) -> None:
    base = Path(tempfile.mkdtemp())
    try:
        paths = [build(base / str(depth), layer) for depth, layer in enumerate(layers)]
        listed = merge.merged(tuple(part(path, marked=True) for path in paths), os.O_NOATIME)
        numbers = [(os.fsdecode(one.name), one.number) for one in listed]
        assert sorted(numbers) == [(name, (paths[depth] / name).stat().st_ino) for name, depth in model(layers)]
    finally:
        shutil.rmtree(base)


# --- one by one ---


def test_each_name_has_the_kind_and_the_device_of_its_layer(tmp_path: Path) -> None:
    top, bottom = tmp_path / "top", tmp_path / "bottom"
    for path in (top, bottom):
        path.mkdir()
    write_tree(top, {"both": b""})
    write_tree(bottom, {"both": {}, "below": Path("x")})
    parts = (part(top)._replace(device=1), part(bottom)._replace(device=2))
    listed = {one.name: (one.device, one.kind) for one in merge.merged(parts, os.O_NOATIME)}
    assert listed == {b"both": (1, 8), b"below": (2, 10)}


def test_devices_that_are_none_of_ours_are_shown(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", 0o020666, os.makedev(1, 3))
    make_whiteout(tmp_path / "gone")
    assert names(tmp_path) == [b"null"]


def test_marked_files_count_only_in_marked_directories_and_when_empty(tmp_path: Path) -> None:
    by_xattr(tmp_path / "marked")
    by_xattr(tmp_path / "full")
    (tmp_path / "full").write_bytes(b"x")
    (tmp_path / "plain").touch()
    assert names(tmp_path) == [b"full", b"marked", b"plain"]
    listed = merge.merged((part(tmp_path, marked=True),), os.O_NOATIME)
    assert sorted(one.name for one in listed) == [b"full", b"plain"]


def test_numbers_that_are_not_the_mounts_are_left_to_be_looked_up(tmp_path: Path) -> None:
    write_tree(tmp_path, {"file": b"", "directory": {}})

    def told(tells: int) -> list[bytes]:
        listed = merge.merged((part(tmp_path, tells=tells),), os.O_NOATIME)
        return sorted(one.name for one in listed if one.number != merge.UNKNOWN_NUMBER)

    assert [told(tells) for tells in (2, 1, 0)] == [[b"directory", b"file"], [b"file"], []]


def test_a_lower_directory_that_has_gone_takes_no_part(tmp_path: Path) -> None:
    for name in ("top", "middle", "bottom"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in-{name}").touch()
    parts = tuple(part(tmp_path / name) for name in ("top", "middle", "bottom"))
    shutil.rmtree(tmp_path / "middle")
    assert sorted(one.name for one in merge.merged(parts, os.O_NOATIME)) == [b"in-bottom", b"in-top"]


def test_a_removed_directory_has_no_names_to_ask_for(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    parts = (part(tmp_path / "gone"),)
    (tmp_path / "gone").rmdir()
    assert errno_of(lambda: merge.merged(parts, os.O_NOATIME)) == errno.ENOENT


def test_what_an_empty_looking_directory_hides_can_be_listed(tmp_path: Path) -> None:
    make_whiteout(tmp_path / "gone")
    (tmp_path / ".wh.other").touch()
    held = Descriptor(os.open(tmp_path, os.O_PATH), os.close)
    assert names(tmp_path) == []
    assert sorted(merge.hidden_names(held.fd)) == [b".wh.other", b"gone"]
