"""Renames and links of large lower files, for which the kernel holds their directories: content follows later."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Layers, loop_filesystem, read_tree, wait_until, write_tree

SIZE = 24 << 20
METACOPY = "trusted.overlay.metacopy"
CONTENT = b"0123456789abcdef" * (SIZE // 16)

CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "rename": (lambda mnt: os.rename(mnt / "large", mnt / "other"), "other"),
    "rename away": (lambda mnt: os.rename(mnt / "large", mnt / "dir/other"), "dir/other"),
    "link": (lambda mnt: os.link(mnt / "large", mnt / "other"), "other"),
}


def has_metadata_only(path: Path) -> bool:
    return METACOPY in os.listxattr(path)


@pytest.fixture
def large(our_layers: Layers) -> Layers:
    write_tree(our_layers.lower, {"large": CONTENT, "dir": {}})
    return our_layers


@pytest.mark.parametrize("change", CHANGES)
def test_content_follows(large: Layers, change: str) -> None:
    call, name = CHANGES[change]
    with large.mount() as mount:
        call(mount.path)
        upper = large.upper / name
        assert has_metadata_only(upper) or upper.read_bytes() == CONTENT
        wait_until(lambda: not has_metadata_only(upper), "content in the upper")
        assert upper.read_bytes() == (mount.path / name).read_bytes() == CONTENT
        assert upper.stat().st_mtime_ns == (large.lower / "large").stat().st_mtime_ns
    with large.mount() as mount:
        assert (mount.path / name).read_bytes() == CONTENT
    assert os.listdir(large.base / "work/work") == []


def test_a_write_waits_for_the_content_and_loses_nothing(large: Layers) -> None:
    with large.mount() as mount:
        os.rename(mount.path / "large", mount.path / "other")
        with (mount.path / "other").open("r+b") as file:
            file.write(b"changed")
        assert (mount.path / "other").read_bytes() == b"changed" + CONTENT[7:]
        assert (large.upper / "other").read_bytes() == b"changed" + CONTENT[7:]


def test_what_is_removed_meanwhile_is_not_waited_for(large: Layers) -> None:
    with large.mount() as mount:
        os.rename(mount.path / "large", mount.path / "other")
        os.unlink(mount.path / "other")
        assert os.listdir(mount.path) == ["dir"]
    assert "other" not in read_tree(large.upper)


def test_where_extents_are_shared_the_content_comes_at_once() -> None:
    with loop_filesystem("xfs", 400) as path:
        layers = Layers(path, kind="shiftfs")
        write_tree(layers.lower, {"large": CONTENT})
        with layers.mount() as mount:
            os.rename(mount.path / "large", mount.path / "other")
            assert not has_metadata_only(layers.upper / "other")
            assert (layers.upper / "other").read_bytes() == CONTENT
