"""When a lower file comes up: by default at the first write to it, with `open=serve` when it is opened for writing."""

import errno
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Layers, Mount, fewest_requests, loop_filesystem, read_tree, requests_during, run
from harness.calls import KEEP_SIZE, fallocate, opened, refuses

MB = 1 << 20
CONTENT = b"content " * 2000
WRITING = {
    "for writing": os.O_WRONLY,
    "for both": os.O_RDWR,
    "to append": os.O_WRONLY | os.O_APPEND,
    "past the caches": os.O_RDWR | os.O_DIRECT,
    "to create it": os.O_RDWR | os.O_CREAT,
}


@pytest.fixture
def lower(our_layers: Layers) -> Layers:
    """A file in the lower."""
    (our_layers.lower / "file").write_bytes(CONTENT)
    return our_layers


def test_each_mount_says_which_it_does(lower: Layers) -> None:
    for options, wanted in (((), "refuse"), (("open=serve",), "serve"), (("locks=layers",), "serve")):
        with lower.mount(*options) as mount:
            assert mount.status()["options"]["open"] == wanted
    with lower.mount_lowers() as mount:
        assert mount.status()["options"]["open"] == "refuse"


@pytest.mark.parametrize("flags", WRITING.values(), ids=WRITING)
def test_opening_alone_copies_nothing(lower: Layers, flags: int) -> None:
    """Nor does it ask anybody, from the second time on."""
    with lower.mount() as mount:

        def open_and_close() -> None:
            with opened(mount.path / "file", flags) as fd:
                os.fsync(fd)

        open_and_close()
        assert set(fewest_requests(mount, open_and_close)) == {"FSYNC"}
        assert read_tree(lower.upper) == {}


@pytest.mark.parametrize("flags", WRITING.values(), ids=WRITING)
def test_the_first_write_does(lower: Layers, flags: int) -> None:
    size = len(CONTENT)
    with lower.mount() as mount, opened(mount.path / "file") as reading, opened(mount.path / "file", flags) as fd:
        assert os.pread(reading, size, 0) == CONTENT
        before = os.fstat(fd)
        with mmap.mmap(-1, 4096) as page:  # as O_DIRECT has it
            page[:] = b"x" * 4096
            assert os.pwrite(fd, page, 0) == 4096
        expected = CONTENT + b"x" * 4096 if flags & os.O_APPEND else b"x" * 4096 + CONTENT[4096:]
        assert os.pread(reading, 2 * size, 0) == (lower.upper / "file").read_bytes() == expected
        assert (os.fstat(fd).st_ino, os.fstat(fd).st_dev) == (before.st_ino, before.st_dev)
    assert (lower.lower / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("flags", WRITING.values(), ids=WRITING)
def test_with_open_served_opening_copies(lower: Layers, flags: int) -> None:
    with lower.mount("open=serve") as mount:
        os.close(os.open(mount.path / "file", os.O_RDONLY))
        assert read_tree(lower.upper) == {}
        with opened(mount.path / "file", flags):
            assert read_tree(lower.upper) == {"file": CONTENT}


@pytest.mark.parametrize("option", ["open=auto", "open=serve"])
def test_truncating_it_is_a_change_at_once(lower: Layers, option: str) -> None:
    with lower.mount(option) as mount, opened(mount.path / "file", os.O_WRONLY | os.O_TRUNC):
        assert read_tree(lower.upper) == {"file": b""}


def test_a_new_file_is_made_and_written_without_being_opened(lower: Layers) -> None:
    with lower.mount() as mount:
        (mount.path / "first").write_bytes(b"")
        with requests_during(mount) as asked:
            (mount.path / "new").write_bytes(CONTENT)
        assert not {"OPEN", "CREATE", "FLUSH", "RELEASE"} & set(asked)
        assert (asked["MKNOD"], asked["WRITE"]) == (1, 1)
        assert read_tree(lower.upper) == {"first": b"", "new": CONTENT}


# A program.


@pytest.mark.parametrize("option", ["open=auto", "open=serve"])
def test_what_has_been_written_runs_at_once(our_layers: Layers, option: str) -> None:
    """From the mount: on the layer it is still open for writing, for a moment."""
    (our_layers.lower / "program").write_bytes(b"#!/bin/sh\nexit 1\n")
    (our_layers.lower / "program").chmod(0o755)
    with our_layers.mount(option) as mount:
        for number in range(2, 20):
            with opened(mount.path / "program", os.O_WRONLY) as fd:
                os.pwrite(fd, b"#!/bin/sh\nexit %02d\n" % number, 0)
            assert run([mount.path / "program"], check=False).returncode == number


@pytest.mark.parametrize("option", ["open=auto", "open=serve"])
def test_what_runs_cannot_be_opened_for_writing(our_layers: Layers, option: str) -> None:
    run(["cp", "/bin/sleep", our_layers.lower / "program"])
    with our_layers.mount(option) as mount:
        running = subprocess.Popen([mount.path / "program", "60"])
        try:
            refuses(errno.ETXTBSY, os.open, mount.path / "program", os.O_WRONLY)
        finally:
            running.kill()
            running.wait()
        assert read_tree(our_layers.upper) == {}


# No room.


@contextmanager
def crowded(layers: Layers, *options: str) -> Iterator[tuple[Mount, Path, bytes]]:
    """A mount whose upper has less room than its lower file needs; what takes that room up, and the file's content."""
    content = os.urandom(12 * MB)
    (layers.lower / "file").write_bytes(content)
    with loop_filesystem("ext4", 32) as path:
        layers.upper, layers.work = path / "upper", path / "work"
        layers.upper.mkdir()
        layers.work.mkdir()
        filling = path / "filling"
        with opened(filling, os.O_CREAT | os.O_WRONLY) as fd:
            fallocate(fd, KEEP_SIZE, 0, 16 * MB)
        with layers.mount(*options) as mount:
            yield mount, filling, content


CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda fd: os.pwrite(fd, b"new", MB),
    "fallocate": lambda fd: fallocate(fd, 0, 0, 4096),
    "truncate": lambda fd: os.ftruncate(fd, 11 * MB),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_room_fails_the_write(our_layers: Layers, change: Callable[[int], object]) -> None:
    """Whoever has it open goes on with what it had, nothing is left of the attempt, and with room it is done."""
    with crowded(our_layers) as (mount, filling, content), opened(mount.path / "file", os.O_RDWR) as fd:
        for _ in range(2):
            refuses(errno.ENOSPC, change, fd)
            assert os.pread(fd, len(content) + 1, 0) == content
            assert read_tree(our_layers.upper) == read_tree(our_layers.work / "work") == {}
        (mount.path / "small").write_bytes(b"fits")
        filling.unlink()
        os.pwrite(fd, b"new", MB)
        expected = content[:MB] + b"new" + content[MB + 3 :]
        assert os.pread(fd, len(content) + 1, 0) == expected
        assert read_tree(our_layers.upper) == {"file": expected, "small": b"fits"}
    assert (our_layers.lower / "file").read_bytes() == content


def test_no_room_fails_what_stores_a_mapping(our_layers: Layers) -> None:
    """close, msync, fsync. With room it can be stored again."""
    with crowded(our_layers) as (mount, filling, content), opened(mount.path / "file", os.O_RDWR) as fd:
        with mmap.mmap(fd, 0) as view:
            for storing in (lambda: os.close(os.dup(fd)), view.flush, lambda: os.fsync(fd)):
                view[MB : MB + 3] = b"new"
                refuses(errno.ENOSPC, storing)
            assert read_tree(our_layers.upper) == {}
            filling.unlink()
            view[MB : MB + 3] = b"new"
            view.flush()
        assert read_tree(our_layers.upper) == {"file": content[:MB] + b"new" + content[MB + 3 :]}
    assert (our_layers.lower / "file").read_bytes() == content


def test_with_open_served_no_room_fails_the_open(our_layers: Layers) -> None:
    with crowded(our_layers, "open=serve") as (mount, filling, content):
        refuses(errno.ENOSPC, os.open, mount.path / "file", os.O_RDWR)
        assert (mount.path / "file").read_bytes() == content
        assert read_tree(our_layers.upper) == read_tree(our_layers.work / "work") == {}
        filling.unlink()
        with opened(mount.path / "file", os.O_RDWR):
            assert read_tree(our_layers.upper) == {"file": content}
