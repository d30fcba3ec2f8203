"""Metadata that is up without its content: killed, without room, beneath long paths, the file is one or the other.

Never half of it, and never an error where there was a file.
"""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Layers, errno_of, loop_filesystem, run, wait_until
from harness.calls import opened
from harness.faults import killed_at, outcome, recorded, set_old, untouched
from harness.layered import litter

CONTENT = os.urandom(300_000)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
MIB = 1 << 20


def seen(path: Path) -> dict[str, Any]:
    """Times aside: those of a truncation come with its answer."""
    told = path.stat()
    return {
        "content": path.read_bytes(),
        "attributes": (told.st_mode, told.st_uid, told.st_gid, told.st_nlink, told.st_size),
        "xattrs": {name: os.getxattr(path, name) for name in os.listxattr(path)},
    }


def write_the_same(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, CONTENT[:1], 0)


def truncate_at_open(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def cut(path: Path) -> None:
    os.truncate(path, 100_000)


def append(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"x")


AFTER: dict[Callable[[Path], None], bytes] = {
    write_the_same: CONTENT, truncate_at_open: b"", cut: CONTENT[:100_000]
}  # fmt: skip


@pytest.mark.parametrize("change", AFTER)
def test_killed_at_any_step_of_its_content(our_layers: Layers, change: Callable[[Path], None]) -> None:
    """Of a file that has been renamed: under its new name, no layer below has anything."""

    def prepare(number: int) -> None:
        (our_layers.lower / str(number)).mkdir()
        (our_layers.lower / str(number) / "old").write_bytes(CONTENT)

    def rename(mount: Path, number: int) -> Path:
        (mount / str(number) / "old").rename(mount / str(number) / "file")
        return mount / str(number) / "file"

    prepare(0)
    with our_layers.mount("metacopy=on") as mount:
        file = rename(mount.path, 0)
        assert "trusted.overlay.metacopy" in os.listxattr(our_layers.upper / "0/file")
        before = seen(file)
        with recorded(mount.pid) as recording:
            change(file)
        after = seen(file)
        assert after["content"] == AFTER[change]
    steps = recording.steps()
    for number in range(1, len(steps) + 1):
        prepare(number)
    set_old(our_layers.lower)
    lower = untouched(our_layers.lower)
    with our_layers.mount("metacopy=on") as mount:
        for number in range(1, len(steps) + 1):
            rename(mount.path, number)
    for number, step in enumerate(steps, 1):
        with our_layers.mount("metacopy=on", foreground=True) as mount:
            (mount.path / str(number) / "file").stat()
            with killed_at(mount.pid, step):
                assert outcome(change, mount.path / str(number) / "file"), f"not killed: {step}"
    # The kernel's, unlike ours, reads content of the lower layer beyond the size that the upper one has.
    for kind in ("shiftfs", *(["kernel"] if change is write_the_same else [])):
        with our_layers.mount("metacopy=on", kind=kind) as mount:
            for number, step in enumerate(steps, 1):
                assert seen(mount.path / str(number) / "file") in (before, after), (step, kind)
    assert untouched(our_layers.lower) == lower
    assert litter(our_layers.work) == []


def test_no_room_for_the_content_leaves_the_file_as_it_was(our_layers: Layers) -> None:
    (our_layers.lower / "large").write_bytes(os.urandom(48 * MIB))
    set_old(our_layers.lower)
    with loop_filesystem("ext4", 32) as small:
        on_small = Layers(small)
        on_small.lowers = our_layers.lowers
        with on_small.mount("metacopy=on") as mount:
            path, upper = mount.path / "large", on_small.upper / "large"
            path.chmod(0o600)
            before = path.stat(), upper.stat().st_blocks, os.statvfs(small).f_bfree
            for change in (append, write_the_same):
                assert errno_of(lambda change=change: change(path)) == errno.ENOSPC  # type: ignore[misc]
                wait_until(lambda: os.statvfs(small).f_bfree == before[2], "its space to be given back")
                now = path.stat()
                for field in ("mtime_ns", "atime_ns", "size", "blocks", "mode"):
                    assert getattr(now, f"st_{field}") == getattr(before[0], f"st_{field}"), field
                assert upper.stat().st_blocks == before[1]
            assert path.read_bytes() == (our_layers.lower / "large").read_bytes()
            path.chmod(0o640)
            truncate_at_open(path)
            assert (path.stat().st_size, upper.stat().st_size) == (0, 0)


def test_capabilities_stay_until_somebody_writes(layers: Layers) -> None:
    lower = layers.lower / "file"
    lower.write_bytes(CONTENT)
    lower.chmod(0o755)
    os.setxattr(lower, "security.capability", CAPABILITY)
    with layers.mount("metacopy=on") as mount:
        path = mount.path / "file"
        path.chmod(0o751)
        os.close(os.open(path, os.O_RDWR))
        assert os.getxattr(path, "security.capability") == CAPABILITY
        assert path.read_bytes() == CONTENT
        append(path)
        assert "security.capability" not in os.listxattr(path)
    assert (layers.upper / "file").read_bytes() == CONTENT + b"x"


# --- paths that no attribute holds ---

DEPTH = 20
NAME = "n" * 250


@contextmanager
def innermost(path: Path, make: bool = False) -> Iterator[int]:
    """A descriptor of the directory at the end of a path that is longer than an attribute may be."""
    here = os.open(path, os.O_PATH)
    try:
        for _ in range(DEPTH):
            if make:
                os.mkdir(NAME, dir_fd=here)
            inner = os.open(NAME, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        yield here
    finally:
        os.close(here)


@pytest.fixture
def deep(our_layers: Layers) -> Iterator[Layers]:
    """An upper on ext4, whose attributes share one block of 4 kB."""
    with innermost(our_layers.lower, make=True) as fd:
        os.mkdir("directory", dir_fd=fd)
        os.mkdir("directory/sub", dir_fd=fd)
        for name in ("file", "directory/inside"):
            with open(name, "wb", opener=lambda path, flags: os.open(path, flags, 0o666, dir_fd=fd)) as file:
                file.write(b"content")
    with loop_filesystem("ext4", 32) as there:
        made = Layers(there)
        made.lowers = our_layers.lowers
        yield made
    run(["rm", "-rf", our_layers.lower / NAME])


@pytest.mark.parametrize("options", [(), ("metacopy=on",)], ids=["whole", "metacopy"])
def test_a_directory_whose_redirect_is_too_long_is_moved_by_copying(deep: Layers, options: tuple[str, ...]) -> None:
    with deep.mount(*options) as mount:
        with innermost(mount.path) as fd, opened(mount.path) as root:

            def move(name: str) -> None:
                os.rename(name, "moved", src_dir_fd=fd, dst_dir_fd=root)

            assert errno_of(lambda: move("directory")) == errno.EXDEV
            assert sorted(os.listdir(fd)) == ["directory", "file"]
            assert not (mount.path / "moved").exists()
            os.rename("directory", "beside", src_dir_fd=fd, dst_dir_fd=fd)  # one name is enough there
            assert os.listdir(f"/proc/self/fd/{fd}/beside/sub") == []
            move("file")
        assert (mount.path / "moved").read_bytes() == b"content"
    with deep.mount() as mount:
        with innermost(mount.path) as fd:
            assert os.listdir(fd) == ["beside"]
            assert sorted(os.listdir(f"/proc/self/fd/{fd}/beside")) == ["inside", "sub"]
        assert (mount.path / "moved").read_bytes() == b"content"
    assert litter(deep.work) == []


def test_metadata_whose_redirect_is_too_long_comes_with_its_content(deep: Layers) -> None:
    with deep.mount("metacopy=on") as mount, innermost(mount.path) as fd:
        os.chmod("file", 0o600, dir_fd=fd)
        with innermost(deep.upper) as upper:
            assert not [name for name in os.listxattr(f"/proc/self/fd/{upper}/file") if "metacopy" in name]
            with opened(Path("file"), dir_fd=upper) as file:
                assert os.read(file, 99) == b"content"
                assert stat.S_IMODE(os.fstat(file).st_mode) == 0o600
