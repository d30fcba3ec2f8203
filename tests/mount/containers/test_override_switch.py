"""An upper whose owners live in an attribute goes from fuse-overlayfs to shiftfs and back."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Layers, run
from harness.mounts import newest_mount, unmount
from harness.overrides import shown

pytestmark = pytest.mark.skipif(shutil.which("fuse-overlayfs") is None, reason="there is no fuse-overlayfs")
ASKED = "xattr_permissions=2"


@contextmanager
def theirs(layers: Layers) -> Iterator[Path]:
    """The layers as fuse-overlayfs shows them."""
    at = layers.base / "theirs"
    at.mkdir(exist_ok=True)
    options = f"lowerdir={layers.lower},upperdir={layers.upper},workdir={layers.work},{ASKED}"
    run(["fuse-overlayfs", "-o", options, at])
    entry = newest_mount(at)
    try:
        yield at
    finally:
        unmount(entry)


def test_owners_and_modes_are_the_same_on_both(our_layers: Layers) -> None:
    (our_layers.lower / "lower").write_bytes(b"content")
    os.chown(our_layers.lower / "lower", 11, 12)
    with theirs(our_layers) as at:
        (at / "file").write_bytes(b"")
        (at / "file").chmod(0o4750)
        os.chown(at / "file", 5, 6)
        (at / "file").chmod(0o4750)
        (at / "dir").mkdir()
        os.chown(at / "dir", 7, 8)
        names = ["file", "dir", "lower", "."]
        before = {name: shown(at / name) for name in names}
    with our_layers.mount(ASKED) as mount:
        assert {name: shown(mount.path / name) for name in names} == before
        (mount.path / "lower").chmod(0o2711)
        os.chown(mount.path / "dir", 9, 10)
        (mount.path / "dir/new").write_bytes(b"new")
        os.chown(mount.path / "dir/new", 3, 4)
        names.append("dir/new")
        after = {name: shown(mount.path / name) for name in names}
    assert after["lower"] == (11, 12, "-rwx--s--x")
    with theirs(our_layers) as at:
        assert {name: shown(at / name) for name in names} == after
        assert stat.S_IMODE((at / "file").stat().st_mode) == 0o4750
        assert ((at / "dir/new").read_bytes(), (at / "lower").read_bytes()) == (b"new", b"content")
