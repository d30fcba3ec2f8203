"""What is locked on real files for an inode: all of them or none, and no more than can be expressed."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftfs.locks.places import Places
from shiftfs.locks.ranges import FileLocks
from shiftfs.locks.real import RealFile, RealFiles
from shiftfs.sys import locks
from shiftfs.sys.locks import END, NONE, READ, WRITE, Range


def nothing(start: int, end: int) -> list[Range]:
    return [(start, end, NONE)]


class Other:
    """Somebody else who locks a file."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR)

    def may(self, start: int, end: int, kind: int) -> bool:
        return locks.in_the_way(self.fd, start, end, kind) is None

    def takes(self, start: int, end: int, kind: int) -> bool:
        return locks.set_range(self.fd, start, end, kind)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        path.touch()
    return paths


@pytest.fixture
def others(paths: list[Path]) -> Iterator[list[Other]]:
    found = [Other(path) for path in paths]
    yield found
    for other in found:
        os.close(other.fd)


def opening(path: Path, opened: list[int], refused: int = 0) -> RealFile:
    """Notes the flags of each open; `refused`: the error of opening for writing."""

    def open(flags: int) -> int:
        opened.append(flags)
        if refused and flags == os.O_RDWR:
            raise OSError(refused, os.strerror(refused))
        return os.open(path, flags)

    return RealFile("source", open)


def test_a_file_is_open_for_reading_until_it_is_locked_for_writing(paths: list[Path], others: list[Other]) -> None:
    opened: list[int] = []
    held = FileLocks()
    file = opening(paths[0], opened)
    assert opened == []
    assert file.set_range(0, 9, READ, held.needed)
    held.set(1, 0, 9, READ, 1, 1)
    assert opened == [os.O_RDONLY]
    assert file.set_range(20, 29, WRITE, held.needed)
    assert opened == [os.O_RDONLY, os.O_RDWR]
    assert [others[0].may(at, at, WRITE) for at in (5, 15, 25)] == [False, True, False], "what was held is held"
    file.close()
    assert others[0].may(0, END, WRITE)


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ETXTBSY])
def test_what_cannot_be_written_is_locked_for_reading(paths: list[Path], others: list[Other], error: int) -> None:
    file = opening(paths[0], [], error)
    assert file.set_range(0, 9, WRITE, nothing)
    assert others[0].may(5, 5, READ) and not others[0].may(5, 5, WRITE)
    file.close()


def test_what_cannot_be_opened_is_an_error(paths: list[Path]) -> None:
    file = opening(paths[0], [], errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        file.set_range(0, 9, WRITE, nothing)
    file.close()


def test_all_files_are_locked_or_none(paths: list[Path], others: list[Other]) -> None:
    held = FileLocks()
    files = RealFiles([opening(path, []) for path in paths], held.needed)
    assert others[1].takes(5, 5, READ)
    blocked = files.lock(0, 9, WRITE)
    assert blocked is not None and others[0].may(0, 9, WRITE)
    assert files.lock(0, 9, READ) is None
    held.set(1, 0, 9, READ, 1, 1)
    assert not others[0].may(0, 9, WRITE)
    assert files.lock(0, 9, WRITE) is blocked
    assert others[0].may(0, 9, READ) and not others[0].may(0, 9, WRITE), "held for reading, as before"
    held.set(1, 0, 9, NONE, 1, 1)
    files.unlock(0, 9)
    assert others[0].may(0, 9, WRITE)
    files.close()


def test_flock_likewise(paths: list[Path]) -> None:
    files = RealFiles([opening(path, []) for path in paths], nothing)
    with open(paths[1]) as other, open(paths[0]) as first:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert files.lock_whole(WRITE, NONE) is not None
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        assert files.lock_whole(READ, NONE) is None
        with pytest.raises(BlockingIOError):
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        files.unlock_whole(NONE)
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    files.close()


def test_a_file_that_comes_is_locked_as_the_others_are(paths: list[Path], others: list[Other]) -> None:
    held = FileLocks()
    files = RealFiles([opening(paths[0], [])], held.needed)
    assert files.lock(0, 9, WRITE) is None
    held.set(1, 0, 9, WRITE, 1, 1)
    assert files.lock(20, END, READ) is None
    held.set(2, 20, END, READ, 2, 2)
    files.add(opening(paths[1], []), READ)
    assert [others[1].may(at, at, READ) for at in (5, 15, 25)] == [False, True, True]
    assert not others[1].may(25, 25, WRITE)
    with open(paths[1]) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    files.close()


def test_who_is_in_the_way(paths: list[Path], others: list[Other]) -> None:
    """By what kind of lock, and -1 for an open file description."""
    files = RealFiles([opening(path, []) for path in paths], nothing)
    assert files.in_the_way(0, END, WRITE) is None
    assert others[1].takes(5, END, READ)
    assert files.in_the_way(0, END, WRITE) == ((5, END, READ), -1)
    assert files.in_the_way(0, END, READ) is None
    files.close()


def test_a_place_is_there_as_long_as_somebody_has_it(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    places = Places(directory)
    key = (0x800001, 17, 5, 8)
    one, two = places.open(key), places.open(key)
    assert [path.name for path in tmp_path.iterdir()] == ["800001-11-5"]
    assert one.set_range(0, 9, WRITE, nothing)
    assert not two.set_range(5, 5, READ, nothing)
    one.close()
    assert len(list(tmp_path.iterdir())) == 1
    assert two.set_range(5, 5, WRITE, nothing)
    two.close()
    assert list(tmp_path.iterdir()) == []
    os.close(directory)
