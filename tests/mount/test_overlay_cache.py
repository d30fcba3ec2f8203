"""What is hot on an overlay with an upper is asked of nobody: names, attributes, listings, contents."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Layers, Mount, fewest_requests, write_tree


def read(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    assert os.read(fd, 100)
    os.close(fd)


def absent(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        os.lstat(path)


HOT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "stat in a lower": ("dir/low", os.stat),
    "stat in the lowest": ("dir/lowest", os.stat),
    "stat in the upper": ("dir/up", os.stat),
    "stat of what has been copied up": ("dir/copied", os.stat),
    "an absent name": ("dir/absent", absent),
    "a removed name": ("dir/removed", absent),
    "a merged directory": ("dir", os.listdir),
    "readlink": ("dir/link", os.readlink),
    "open, read, close in a lower": ("dir/low", read),
    "open, read, close in the upper": ("dir/up", read),
    "open, read, close of what has been copied up": ("dir/copied", read),
}


@pytest.fixture
def overlay(our_layers: Layers) -> Iterator[Mount]:
    write_tree(our_layers.lower, {"dir": {"low": b"1", "copied": b"2", "removed": b"", "link": Path("low")}})
    our_layers.add_lower({"dir": {"lowest": b"3"}})
    with our_layers.mount() as mount:
        (mount.path / "dir/up").write_bytes(b"4")
        with (mount.path / "dir/copied").open("ab") as file:
            file.write(b"more")
        (mount.path / "dir/removed").unlink()
        yield mount


def test_hot_is_without_a_request(overlay: Mount) -> None:
    for what, (name, call) in HOT.items():
        path = overlay.path / name
        assert not fewest_requests(overlay, lambda call=call, path=path: call(path)), what  # type: ignore[misc]
