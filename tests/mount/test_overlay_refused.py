"""What is refused, or needs nothing of a file's content, brings nothing into the upper."""

import errno
import os
from pathlib import Path

import pytest

from harness import Layers, read_tree, run, write_tree
from harness.calls import opened, refuses

UNMAPPED = 70000
MAP = ("uidmapping=0:0:65536", "gidmapping=0:0:65536")


@pytest.mark.parametrize("kind", ["shiftfs", "kernel"])
def test_removing_an_attribute_that_is_not_there_copies_nothing(layers: Layers, kind: str) -> None:
    write_tree(layers.lower, {"file": b"content"})
    with layers.mount(kind=kind) as mount:
        refuses(errno.ENODATA, os.removexattr, mount.path / "file", "user.absent")
    assert read_tree(layers.upper) == {}


def test_what_nobody_may_change_is_not_copied(our_layers: Layers) -> None:
    write_tree(our_layers.lower, {"file": b"content"})
    os.chown(our_layers.lower / "file", UNMAPPED, 0)
    with our_layers.mount(*MAP) as mount:
        refuses(errno.EPERM, os.chown, mount.path / "file", 0, 0)
        refuses(errno.EOVERFLOW, os.chmod, mount.path / "file", 0o600)  # the kernel's own answer
    assert read_tree(our_layers.upper) == {}


@pytest.mark.parametrize("opening", ["refuse", "serve"])
def test_a_truncation_copies_no_content(our_layers: Layers, opening: str) -> None:
    """The lower file is larger than all that the filesystem of the upper has room for."""
    lower = our_layers.lower / "file"
    with lower.open("wb") as file:
        file.truncate(1 << 42)
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
    with our_layers.mount(f"open={opening}") as mount:
        fd = os.open(mount.path / "file", os.O_WRONLY | os.O_TRUNC)
        assert os.fstat(fd).st_size == 0 and os.fstat(fd).st_blocks == 0
        os.write(fd, b"new")
        os.close(fd)
        assert (our_layers.upper / "file").read_bytes() == b"new"
    assert lower.stat().st_size == 1 << 42


@pytest.mark.parametrize("kind", ["shiftfs", "kernel"])
@pytest.mark.parametrize("flag", ["i", "a"])
def test_what_is_immutable_below_stays(layers: Layers, kind: str, flag: str) -> None:
    write_tree(layers.lower, {"file": b"content", "other": b""})
    path = layers.lower / "file"
    run(["chattr", f"+{flag}", path])
    try:
        with layers.mount(kind=kind) as mount:
            seen: Path = mount.path / "file"
            refuses(errno.EPERM, os.unlink, seen)
            refuses(errno.EPERM, os.rename, seen, mount.path / "new")
            refuses(errno.EPERM, os.rename, mount.path / "other", seen)
            refuses(errno.EPERM, os.chmod, seen, 0o600)
            assert seen.read_bytes() == b"content"
    finally:
        run(["chattr", f"-{flag}", path])
    assert "file" not in read_tree(layers.upper)


@pytest.mark.parametrize("opening", ["refuse", "serve"])
@pytest.mark.parametrize("flag", ["i", "a"])
def test_nor_is_it_written_to(our_layers: Layers, flag: str, opening: str) -> None:
    """Not to its end either, which is all that append-only files let anybody do."""
    lower = our_layers.lower / "file"
    lower.write_bytes(b"content")
    run(["chattr", f"+{flag}", lower])
    try:
        with our_layers.mount(f"open={opening}") as mount:

            def append() -> None:
                with opened(mount.path / "file", os.O_WRONLY | os.O_APPEND) as fd:
                    os.write(fd, b"more")

            refuses(errno.EPERM, append)
            assert (mount.path / "file").read_bytes() == lower.read_bytes() == b"content"
    finally:
        run(["chattr", f"-{flag}", lower])
    assert read_tree(our_layers.upper) == {}
