"""Copying content: what is allocated and nothing else, whole or until nobody waits any more."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import errno_of, loop_filesystem, run
from harness.overlaid import never
from overlay import content
from overlay.content import Copy
from shiftfs.tree import Descriptor

MIB = 1024 * 1024
STEP = 64 * 1024


@pytest.fixture
def no_reflink(monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small file takes several."""
    monkeypatch.setattr(content, "_STEP", STEP)


def copy(source: Path, target: Path, size: int | None = None, stopped: Callable[[], bool] = never) -> Copy:
    held = Descriptor(os.open(source, os.O_PATH), os.close)
    made = Descriptor(os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC), os.close)
    copied = Copy(source.stat().st_size if size is None else size, stopped)
    copied.run(held, made.fd, sync=True)
    return copied


def sparse(path: Path, size: int, *written: tuple[int, bytes]) -> Path:
    with open(path, "wb") as file:
        for offset, data in written:
            os.pwrite(file.fileno(), data, offset)
        os.ftruncate(file.fileno(), size)
        os.fsync(file.fileno())  # what is not written out yet has no blocks for its extents
    return path


SHAPES: dict[str, tuple[int, list[tuple[int, bytes]]]] = {
    "empty": (0, []),
    "one byte": (1, [(0, b"x")]),
    "no data at all": (5 * MIB, []),
    "hole first": (2 * MIB + 3, [(2 * MIB, b"end")]),
    "hole last": (3 * MIB + 1, [(0, b"begin")]),
    "hole between": (4 * MIB, [(0, b"a" * 5000), (3 * MIB, b"b" * MIB)]),
    "many": (8 * MIB, [(number * MIB, b"%d" % number) for number in range(8)]),
    "zeros written": (MIB, [(0, bytes(MIB))]),
}


@pytest.fixture(params=SHAPES)
def source(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    size, written = SHAPES[request.param]
    return sparse(tmp_path / "source", size, *written)


def test_a_copy_has_the_same_bytes_and_the_same_holes(source: Path, tmp_path: Path) -> None:
    copied = copy(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert (tmp_path / "target").stat().st_blocks == source.stat().st_blocks
    assert copied.done <= copied.size == source.stat().st_size


@pytest.mark.root
def test_a_copy_to_another_filesystem_has_them_too(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    run(["mount", "-t", "tmpfs", "none", there])
    try:
        copy(source, there / "middle")
        assert (there / "middle").read_bytes() == source.read_bytes()
        assert (there / "middle").stat().st_blocks <= source.stat().st_blocks
        copy(there / "middle", tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == source.read_bytes()
        assert (tmp_path / "target").stat().st_blocks == source.stat().st_blocks
    finally:
        run(["umount", there])


@pytest.mark.root
def test_where_it_can_the_filesystem_shares_what_is_there(tmp_path: Path) -> None:
    with loop_filesystem("xfs", 300) as there:
        (there / "source").write_bytes(os.urandom(8 * MIB))
        before = os.statvfs(there).f_bfree
        copied = copy(there / "source", there / "target")
        assert before - os.statvfs(there).f_bfree < MIB // 4096
        assert (there / "target").read_bytes() == (there / "source").read_bytes()
        assert copied.done == 8 * MIB


# --- only a part ---


@pytest.mark.parametrize("size", [0, 1, 4999, 5000, MIB, 3 * MIB, 3 * MIB + 7])
def test_no_more_is_copied_than_is_wanted(tmp_path: Path, size: int) -> None:
    written = SHAPES["hole between"]
    source = sparse(tmp_path / "source", written[0], *written[1])
    copy(source, tmp_path / "target", size)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()[:size]


def test_no_more_is_copied_than_there_is(tmp_path: Path) -> None:
    source = sparse(tmp_path / "source", 3, (0, b"abc"))
    copy(source, tmp_path / "target", 10)
    assert (tmp_path / "target").read_bytes() == b"abc"


# --- stopped ---


def test_a_copy_that_nobody_waits_for_ends(tmp_path: Path, no_reflink: None, short_steps: None) -> None:
    source = sparse(tmp_path / "source", MIB, (0, bytes(MIB)))
    looks = iter([False, False])
    assert errno_of(lambda: copy(source, tmp_path / "target", None, lambda: next(looks, True))) == errno.EINTR
    assert (tmp_path / "target").stat().st_size == 2 * STEP


def test_one_that_is_over_is_not_stopped(tmp_path: Path, no_reflink: None) -> None:
    source = sparse(tmp_path / "source", MIB, (0, b"x"))
    looks = iter([False])
    copy(source, tmp_path / "target", None, lambda: next(looks, True))
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


# --- what may be in the way ---


@pytest.fixture(params=[errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM])
def no_range(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    def copy_file_range(*args: int) -> int:
        raise OSError(request.param, os.strerror(request.param))

    with monkeypatch.context() as patched:
        patched.setattr(os, "copy_file_range", copy_file_range)
        yield


def test_what_cannot_be_copied_in_the_kernel_is_read_and_written(
    tmp_path: Path, no_reflink: None, no_range: None
) -> None:
    size, written = SHAPES["hole between"]
    source = sparse(tmp_path / "source", size, *written)
    copy(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert (tmp_path / "target").stat().st_blocks == source.stat().st_blocks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_other_errors_are_told(
    tmp_path: Path, no_reflink: None, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def copy_file_range(*args: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    source = sparse(tmp_path / "source", 1, (0, b"x"))
    assert errno_of(lambda: copy(source, tmp_path / "target")) == number


@pytest.mark.parametrize("left", [0, 5000, STEP, STEP + 1])
def test_a_file_that_shrinks_meanwhile_is_copied_as_far_as_it_is_there(
    tmp_path: Path, no_reflink: None, short_steps: None, left: int
) -> None:
    source = sparse(tmp_path / "source", 3 * STEP, (0, b"x" * 3 * STEP))

    def shrinks() -> bool:
        os.truncate(source, left)
        return False

    copy(source, tmp_path / "target", None, shrinks)
    assert (tmp_path / "target").read_bytes() == b"x" * left + bytes(3 * STEP - left)


def test_a_file_that_is_emptied_while_its_holes_are_looked_for_is_copied_as_empty(
    tmp_path: Path, no_reflink: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sparse(tmp_path / "source", 5000, (0, b"x" * 5000))
    seek = os.lseek

    def lseek(fd: int, position: int, whence: int) -> int:
        if whence == os.SEEK_HOLE:
            os.truncate(source, 0)
        return seek(fd, position, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    copy(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == bytes(5000)


def test_reading_leaves_no_access_time_behind(tmp_path: Path) -> None:
    source = sparse(tmp_path / "source", 3, (0, b"abc"))
    os.utime(source, ns=(1, 10**18))
    copy(source, tmp_path / "target")
    assert source.stat().st_atime_ns == 1
