"""Overlays of overlays and of several filesystems: what they show is one tree."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Layers, layered, loop_filesystem, mounted, read_tree, wait_until, write_tree
from harness.calls import all_dirents, opened
from harness.layered import Tree, litter


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Path]]:
    """New filesystems alike, so that what is made in them in the same order has the same numbers."""
    with ExitStack() as stack:
        found = [stack.enter_context(loop_filesystem("ext4", 16)) for _ in range(3)]
        for number, path in enumerate(found):
            write_tree(path, {f"f{number}": b"", f"d{number}": {"in": b""}, f"l{number}": Path("x")})
        assert len({(path / f"f{number}").stat().st_ino for number, path in enumerate(found)}) == 1
        yield found


def numbers(path: Path) -> list[int]:
    return [each.lstat().st_ino for each in sorted(path.rglob("*")) if each.name != "lost+found"]


@pytest.mark.parametrize("first", [True, False], ids=["above", "below"])
def test_numbers_are_unique_where_a_layer_has_several_devices_itself(
    three: list[Path], our_layers: Layers, first: bool
) -> None:
    write_tree(our_layers.lower, {"own": b""})
    with layered(three[:2]) as inner:
        our_layers.lowers = [inner.path, three[2]] if first else [three[2], inner.path]
        with our_layers.mount() as mount:
            before = numbers(mount.path)
            assert len(before) == 12
            assert len(set(before)) == len(before)
            for path in sorted(mount.path.glob("*[012]")):
                os.chown(path, 1, 1, follow_symlinks=False)
            assert numbers(mount.path) == before
            with opened(mount.path) as fd:
                for entry in all_dirents(fd):
                    if entry.name not in (b".", b".."):
                        assert entry.number == (mount.path / os.fsdecode(entry.name)).lstat().st_ino
        with our_layers.mount() as mount:
            assert len(set(numbers(mount.path))) == len(before)


def test_an_overlay_of_overlays_shows_all(our_layers: Layers) -> None:
    first: Tree = {"d": {"a": b"1", "c": None}, "e": b""}
    below: Tree = {"d": {"a": b"0", "b": b"b", "c": b"hidden"}, "f": b"f"}
    lowest: Tree = {"d": {"lowest": b""}, "e": b"hidden"}
    write_tree(our_layers.lower, first)
    write_tree(our_layers.add_lower(), below)
    beneath = our_layers.add_lower(lowest)
    with layered(our_layers.lowers[:2]) as inner:
        our_layers.lowers = [inner.path, beneath]
        with our_layers.mount() as mount:
            whole = {"d": {"a": b"1", "b": b"b", "lowest": b""}, "e": b"", "f": b"f"}
            assert read_tree(mount.path) == whole
            (mount.path / "d").rename(mount.path / "g")
            (mount.path / "g/b").write_bytes(b"B")
            whole["g"] = {"a": b"1", "b": b"B", "lowest": b""}
            del whole["d"]
            assert read_tree(mount.path) == whole
        with our_layers.mount() as mount:
            assert read_tree(mount.path) == whole


def test_a_directory_of_many_whiteouts_is_removed_without_a_trace(layers: Layers) -> None:
    names = [f"a-rather-long-name-{number}" for number in range(5000)]
    write_tree(layers.lower, {"d": dict.fromkeys(names, b"")})
    write_tree(layers.upper, {"d": dict.fromkeys(names)})
    with layers.mount() as mount:
        (mount.path / "d").rmdir()
        assert os.listdir(mount.path) == []
        (mount.path / "d").mkdir()
        assert os.listdir(mount.path / "d") == []
        wait_until(lambda: litter(layers.work) == [], "all whiteouts to be removed")
    with layers.mount() as mount:
        assert os.listdir(mount.path / "d") == []


def with_a_second_name(path: Path) -> None:
    path.write_bytes(path.name.encode())
    os.link(path, path.with_name(path.name + "2"))


def test_no_file_has_anothers_content_after_a_remount_of_a_fuse_lower(our_layers: Layers) -> None:
    source = our_layers.lower
    write_tree(source, {"a": with_a_second_name, "b": with_a_second_name, "f": b"f", "g": b"g"})
    with mounted(source) as inner:
        our_layers.lowers = [inner.path]
        with our_layers.mount() as mount:
            (mount.path / "a").write_bytes(b"written to a")
            (mount.path / "f").write_bytes(b"written to f")
    with mounted(source) as inner:
        our_layers.lowers = [inner.path]
        for name in ("b", "g", "a", "f"):
            (inner.path / name).stat()
        with our_layers.mount() as mount:
            seen = {name: (mount.path / name).read_bytes() for name in ("a", "b", "b2", "f", "g")}
            assert seen == {"a": b"written to a", "b": b"b", "b2": b"b", "f": b"written to f", "g": b"g"}
            assert len({(mount.path / name).stat().st_ino for name in "abfg"}) == 4
