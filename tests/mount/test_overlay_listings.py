"""Walks over an overlay see the same with its native part and without it: names, numbers, types, attributes."""

import os
import stat

import pytest

from harness import Layers, Mount, wait_until
from harness.calls import all_dirents, drop_dentries, opened

FIELDS = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_mtime_ns", "st_ctime_ns")
PATTERNS = ("names, then attributes", "attributes as they are listed", "names alone")


def fill(made: Layers) -> None:
    """Directories that one layer has, or several; empty ones, deep ones, and what is special in them."""
    for layer in (made.upper, *made.lowers):
        own = layer / f"of-{layer.name}"
        for name in ("many", "deep/er/and/deeper", "empty", "special", "hiding"):
            (own / name).mkdir(parents=True)
            (layer / "all" / name / layer.name).mkdir(parents=True)
        for number in range(300):
            (own / "many" / f"{number}{'-' * (number % 60)}").write_bytes(b"x" * number)
        (own / "deep/er/and/deeper/file").touch()
        (own / "deep/er/link").symlink_to("nowhere")
        os.mkfifo(own / "special/fifo")
        os.mknod(own / "special/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (own / "special/one").touch()
        os.link(own / "special/one", own / "special/two")
        (own / "hiding/.wh.nothing").touch()
        (layer / "all" / f"only-{layer.name}").touch()
    (made.lowers[0] / "all/.wh.only-lower1").touch()


def seen(mount: Mount, pattern: str) -> dict[str, object]:
    """Of all that is there."""
    found: dict[str, object] = {}
    waiting = [mount.path]
    while waiting:
        directory = waiting.pop()
        with opened(directory) as fd:
            dirents = all_dirents(fd)
        inside = str(directory.relative_to(mount.path))
        found[inside] = sorted((one.name, one.number, one.kind) for one in dirents)
        for name in sorted(os.fsdecode(one.name) for one in dirents):
            if name in (".", ".."):
                continue
            if pattern == "attributes as they are listed":
                with os.scandir(directory) as listed:
                    next(iter(listed), None)
            status = os.lstat(directory / name)
            if pattern != "names alone":
                found[f"{inside}/{name}"] = [getattr(status, field) for field in FIELDS]
            if stat.S_ISDIR(status.st_mode):
                waiting.append(directory / name)
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_walk_sees_the_same_without_the_native_part(
    our_layers: Layers, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    our_layers.add_lower({})
    fill(our_layers)

    def walks() -> list[dict[str, object]]:
        with our_layers.mount() as mount:
            first = seen(mount, pattern)
            again = seen(mount, pattern)
            drop_dentries()
            return [first, again, seen(mount, pattern)]

    found = walks()
    monkeypatch.setenv("SHIFTFS_PURE", "1")
    expected = walks()
    for walk in (*found, *expected):
        assert walk == found[0]


def test_what_changes_in_the_layers_shows_in_listings(our_layers: Layers) -> None:
    """Directories that were listed natively are followed as all are."""
    fill(our_layers)
    with our_layers.mount() as mount:
        seen(mount, PATTERNS[0])
        below = our_layers.lowers[0] / f"of-{our_layers.lowers[0].name}"
        shown = mount.path / below.name
        (below / "deep/er/new").mkdir()
        (below / "deep/er/new/file").touch()
        (below / "many/0").unlink()
        (below / "empty").rename(below / "deep/was-empty")
        for directory in ("many", "deep", "deep/er", "deep/er/new", "."):
            wait_until(
                lambda at=directory: sorted(os.listdir(shown / at)) == sorted(os.listdir(below / at)),  # type: ignore[misc]
                f"{directory} shows what is there",
            )
