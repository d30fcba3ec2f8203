"""Holes, allocation and copies within the layer; on a plain directory and on mounts alike."""

import errno
import os
import random
from pathlib import Path

import pytest

from harness.calls import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH_HOLE,
    UNSHARE_RANGE,
    ZERO_RANGE,
    fallocate,
    opened,
    refuses,
)
from harness.places import Place

BLOCK = 4096


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# Holes and allocation.


def seeks(path: Path) -> list[tuple[int, int]]:
    """Where data and holes begin, from every place of interest."""
    found = []
    with opened(path) as fd:
        end = os.fstat(fd).st_size
        for offset in sorted({0, 1, BLOCK - 1, BLOCK, 100_000, 1 << 20, (1 << 20) + 5, 5 << 30, end - 1, end, end + 1}):
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                try:
                    found.append((offset, os.lseek(fd, offset, whence)))
                except OSError as error:
                    found.append((offset, -(error.errno or 0)))
    return found


def test_sparse_files(place: Place) -> None:
    path = place.path / "sparse"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        for offset in (100_000, 1 << 20, 5 << 30, 6 << 30):
            os.pwrite(fd, b"data", offset)
        os.ftruncate(fd, 7 << 30)
        os.fsync(fd)
        assert os.pread(fd, 6, (5 << 30) - 1) == b"\0data\0"
        assert os.pread(fd, 10, (7 << 30) - 4) == bytes(4)
    assert path.stat().st_size == 7 << 30
    assert path.stat().st_blocks == (place.layer / "sparse").stat().st_blocks < 1000
    assert seeks(path) == seeks(place.layer / "sparse")
    with opened(path) as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 98304  # of the block that 100,000 lies in
    for empty in (place.new("empty"), place.new("full", bytes(10))):
        assert seeks(empty) == seeks(place.layer / empty.name)


MODES = {
    "allocate": 0,
    "keep size": KEEP_SIZE,
    "punch hole": PUNCH_HOLE | KEEP_SIZE,
    "zero": ZERO_RANGE,
    "zero, keep size": ZERO_RANGE | KEEP_SIZE,
    "collapse": COLLAPSE_RANGE,
    "insert": INSERT_RANGE,
    "unshare": UNSHARE_RANGE,
}
RANGES = [(0, 4 * BLOCK), (BLOCK, 2 * BLOCK), (5 * BLOCK, 10 * BLOCK), (20 * BLOCK, BLOCK), (100, 5000), (0, 0)]
NOT_FOR_FUSE = COLLAPSE_RANGE | INSERT_RANGE | UNSHARE_RANGE
"""What the kernel itself refuses on FUSE (fs/fuse/file.c, fuse_file_fallocate)."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("offset", "length"), RANGES)
def test_fallocate(place: Place, mode: str, offset: int, length: int) -> None:
    """As on the layer, asked for the same on a copy there."""
    path, other = place.new("file", pattern(12 * BLOCK)), place.layer / "native"
    other.write_bytes(pattern(12 * BLOCK))
    assert path.read_bytes() == pattern(12 * BLOCK)
    outcomes = []
    for each in (path, other):
        with opened(each, os.O_RDWR) as fd:
            try:
                fallocate(fd, MODES[mode], offset, length)
                outcomes.append(0)
            except OSError as error:
                outcomes.append(error.errno or 0)
            os.fsync(fd)
    if place.mount and MODES[mode] & NOT_FOR_FUSE and length:
        assert outcomes[0] == errno.EOPNOTSUPP
        assert path.read_bytes() == pattern(12 * BLOCK)
        return
    assert outcomes[0] == outcomes[1]
    assert path.read_bytes() == other.read_bytes()
    assert (path.stat().st_size, path.stat().st_blocks) == (other.stat().st_size, other.stat().st_blocks)


# Copying.


@pytest.mark.parametrize("size", [0, 100, 5 * BLOCK, (2 << 20) + 7])
def test_copy_file_range(place: Place, size: int) -> None:
    source, target = place.new("source", pattern(size)), place.new("target", b"t" * 10)
    assert target.read_bytes() == b"t" * 10
    with opened(source) as reading, opened(target, os.O_RDWR) as writing:
        done = 0
        while count := os.copy_file_range(reading, writing, size + 1000 - done, done, 5 + done):
            done += count
        assert done == size
    wanted = (b"ttttt" + pattern(size)).ljust(10, b"t")
    assert target.read_bytes() == (place.layer / "target").read_bytes() == wanted
    assert target.stat().st_size == len(wanted)


def test_copy_file_range_within_and_without_a_name(place: Place) -> None:
    with opened(place.new("file", pattern(2 * BLOCK)), os.O_RDWR) as fd:
        (place.path / "file").unlink()
        assert os.copy_file_range(fd, fd, BLOCK, 0, 4 * BLOCK) == BLOCK
        wanted = pattern(2 * BLOCK) + bytes(2 * BLOCK) + pattern(2 * BLOCK)[:BLOCK]
        assert os.pread(fd, 1 << 20, 0) == wanted
        refuses(errno.EINVAL, os.copy_file_range, fd, fd, BLOCK, 0, 100)


def test_copy_between_mount_and_layer(place: Place) -> None:
    place.new("source", pattern(300_000))
    with opened(place.path / "source") as fd, opened(place.layer / "target", os.O_CREAT | os.O_WRONLY) as out:
        done = 0
        while done < 300_000:
            done += os.sendfile(out, fd, done, 300_000 - done)
    assert (place.path / "target").read_bytes() == pattern(300_000)
