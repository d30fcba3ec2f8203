"""Attributes: what stat, statx and statvfs say, and what changes them; on a plain directory and on mounts alike."""

import errno
import mmap
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.calls import (
    UTIME_NOW,
    UTIME_OMIT,
    birth_time,
    drop_dentries,
    fallocate,
    opened,
    utimensat,
)
from harness.places import USER, Place, same_as_layer

GRANULARITY = 0.02
"""Seconds, more than between two of the kernel's clock ticks."""


def make_all(place: Place) -> dict[str, Path]:
    """One of each kind of thing."""
    paths = {kind: place.path / kind for kind in ("file", "large", "dir", "link", "fifo", "device")}
    paths["file"].write_bytes(b"x" * 5000)
    with opened(paths["large"], os.O_CREAT | os.O_WRONLY) as fd:
        os.pwrite(fd, b"end", 5 << 30)
    paths["dir"].mkdir()
    paths["link"].symlink_to("somewhere")
    os.mkfifo(paths["fifo"])
    os.mknod(paths["device"], stat.S_IFBLK | 0o600, os.makedev(8, 300))
    return paths


def test_stat_says_what_the_layer_says(place: Place) -> None:
    for path in make_all(place).values():
        same_as_layer(place, path)
    same_as_layer(place, place.path)
    drop_dentries()
    same_as_layer(place, place.path)
    for entry in os.scandir(place.path):
        same_as_layer(place, Path(entry.path))
        assert entry.stat(follow_symlinks=False) == Path(entry.path).lstat()


def test_all_is_one_device(place: Place) -> None:
    assert {path.lstat().st_dev for path in make_all(place).values()} == {place.path.stat().st_dev}


def test_birth_times_are_those_of_the_layer(place: Place) -> None:
    for kind, path in make_all(place).items():
        real = birth_time(place.layer / kind)
        assert real is not None
        assert birth_time(path) == real
        os.utime(path, (1, 1), follow_symlinks=False)
        assert birth_time(path) == real


def test_statvfs(place: Place) -> None:
    seen, real = os.statvfs(place.path), os.statvfs(place.layer)
    fixed = ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax")
    assert [getattr(seen, field) for field in fixed] == [getattr(real, field) for field in fixed]
    # Others write on the same filesystem meanwhile.
    assert abs(seen.f_bfree - real.f_bfree) <= real.f_blocks // 20
    assert abs(seen.f_ffree - real.f_ffree) <= real.f_files // 20
    with opened(place.path) as fd:
        assert os.fstatvfs(fd).f_blocks == real.f_blocks


# Link counts.


def test_link_counts_are_fresh(place: Place) -> None:
    one, two, three = (place.path / name for name in ("one", "two", "three"))
    one.touch()
    with opened(one) as fd:

        def counts(*paths: Path) -> set[int]:
            return {os.fstat(fd).st_nlink} | {path.stat().st_nlink for path in paths}

        os.link(one, two)
        assert counts(one, two) == {2}
        os.link(two, three)
        assert counts(one, two, three) == {3}
        one.unlink()
        assert counts(two, three) == {2}
        place.new("other").rename(two)
        assert counts(three) == {1}
        assert two.stat().st_nlink == 1
        three.rename(one)
        assert counts(one) == {1}
        two.rename(one)
        assert counts() == {0}


def test_link_counts_of_directories_are_fresh(place: Place) -> None:
    above, other = place.path / "above", place.path / "other"
    above.mkdir()
    other.mkdir()

    def counts() -> tuple[int, int]:
        for path in (above, other):
            assert path.stat().st_nlink == (place.layer / path.name).stat().st_nlink
        return above.stat().st_nlink, other.stat().st_nlink

    assert counts() == (2, 2)
    (above / "a").mkdir()
    (above / "b").mkdir()
    assert counts() == (4, 2)
    (above / "a").rename(other / "a")
    assert counts() == (3, 3)
    (above / "b").rename(other / "a")
    assert counts() == (2, 3)
    (other / "a").rmdir()
    assert counts() == (2, 2)


# Times.


def written(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def mapped(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as content:
        content[0:1] = b"m"
        content.flush()


def allocated(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        fallocate(fd, 0, 0, 20000)


def truncated_by_open(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        pass


# What each does to a file: does its modification time move? The change time moves with all of them.
CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "write": (written, True),
    "mmap": (mapped, True),
    "fallocate": (allocated, True),
    "O_TRUNC": (truncated_by_open, True),
    "truncate up": (lambda path: os.truncate(path, 9000), True),
    "truncate to the same size": (lambda path: os.truncate(path, path.stat().st_size), True),
    "chmod": (lambda path: path.chmod(0o601), False),
    "chown": (lambda path: os.chown(path, USER, USER), False),
    "link": (lambda path: os.link(path, f"{path}2"), False),
    "rename": (lambda path: path.rename(f"{path}2").rename(path), False),
    "setxattr": (lambda path: os.setxattr(path, "user.x", b"x"), False),
    "utime": (lambda path: os.utime(path, (7, 7)), True),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("held", [False, True], ids=["by name", "held open"])
def test_times_of_a_file_move_with_every_change(place: Place, what: str, held: bool) -> None:
    change, moves_mtime = CHANGES[what]
    path = place.new("file", b"content")
    os.utime(path, ns=(10**15, 10**15))
    with opened(path if held else place.path, os.O_RDONLY) as fd:
        before = path.stat()
        time.sleep(GRANULARITY)
        change(path)
        after = os.fstat(fd) if held else path.stat()
    assert after.st_ctime_ns > before.st_ctime_ns
    assert (after.st_mtime_ns != 10**15) == moves_mtime
    same_as_layer(place, path)


ENTRY_CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda path: (path / "new").touch(),
    "mkdir": lambda path: (path / "new").mkdir(),
    "symlink": lambda path: (path / "new").symlink_to("x"),
    "mkfifo": lambda path: os.mkfifo(path / "new"),
    "link": lambda path: os.link(path / "file", path / "new"),
    "unlink": lambda path: (path / "file").unlink(),
    "rmdir": lambda path: (path / "dir").rmdir(),
    "rename": lambda path: (path / "file").rename(path / "new"),
    "rename away": lambda path: (path / "file").rename(path.parent / "away"),
    "rename into": lambda path: path.with_name("outside").rename(path / "new"),
}


@pytest.mark.parametrize("what", ENTRY_CHANGES)
def test_times_of_a_directory_move_with_its_entries(place: Place, what: str) -> None:
    path = place.path / "dir"
    path.mkdir()
    (path / "file").touch()
    (path / "dir").mkdir()
    place.new("outside")
    before = path.stat()
    time.sleep(GRANULARITY)
    ENTRY_CHANGES[what](path)
    after = path.stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
    same_as_layer(place, path)


TIMES = [
    (0, 0),
    (1, 999_999_999),
    (-1, 1),  # before 1970, and nanoseconds count forward all the same
    (-(1 << 31), 0),  # 1901, the least that ext4 has
    ((1 << 31) - 1, 5),
    (1 << 31, 123_456_789),  # after 2038
    (15_032_385_535, 0),  # 2446, the most that ext4 has
]


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("kind", ["file", "dir", "link", "fifo"])
def test_times_are_set_to_the_nanosecond(place: Place, when: tuple[int, int], kind: str) -> None:
    path = make_all(place)[kind]
    other = (1_000_000_000, 1)
    utimensat(path, when, other, follow=False)
    nanoseconds = when[0] * 10**9 + when[1]
    for seen in (path.lstat(), (place.layer / kind).lstat()):
        assert (seen.st_atime_ns, seen.st_mtime_ns) == (nanoseconds, 10**18 + 1)
    utimensat(path, other, when, follow=False)
    drop_dentries()
    assert (path.lstat().st_atime_ns, path.lstat().st_mtime_ns) == (10**18 + 1, nanoseconds)


@pytest.mark.parametrize("atime", [UTIME_NOW, UTIME_OMIT, 5])
@pytest.mark.parametrize("mtime", [UTIME_NOW, UTIME_OMIT, 5])
def test_times_now_given_or_left(place: Place, atime: int, mtime: int) -> None:
    path = place.new("file")
    os.utime(path, ns=(1000, 1000))
    begin = time.time_ns() - 10**9
    utimensat(path, (0, atime), (0, mtime))
    seen = path.stat()
    for value, asked in ((seen.st_atime_ns, atime), (seen.st_mtime_ns, mtime)):
        if asked == UTIME_NOW:
            assert begin < value <= time.time_ns()
        else:
            assert value == (1000 if asked == UTIME_OMIT else 5)
    same_as_layer(place, path)


def test_times_may_be_set_by_descriptor_after_the_name_has_gone(place: Place) -> None:
    with opened(place.new("file"), os.O_RDWR) as fd:
        (place.path / "file").unlink()
        os.utime(fd, ns=(11, 12))
        assert (os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns) == (11, 12)


# Size.


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 10000, 70000, (4 << 30) + 5])
@pytest.mark.parametrize("by", ["path", "descriptor"])
def test_truncate(place: Place, size: int, by: str) -> None:
    content = bytes(range(1, 251)) * 40
    path = place.new("file", content)
    assert path.read_bytes() == content
    if by == "path":
        os.truncate(path, size)
    else:
        with opened(path, os.O_WRONLY) as fd:
            os.ftruncate(fd, size)
            assert os.fstat(fd).st_size == size
    same_as_layer(place, path)
    with opened(path) as fd:
        wanted = content[:size].ljust(min(size, 80000), b"\0")
        assert os.pread(fd, 80000, 0) == wanted
    os.truncate(path, 20000)
    assert path.read_bytes() == content[:size].ljust(20000, b"\0")[:20000]


def test_what_was_cut_off_never_returns(place: Place) -> None:
    path = place.new("file", b"secret" * 1000)
    with opened(path, os.O_RDWR) as fd:
        for size in (10, 6000):
            os.ftruncate(fd, size)
        assert os.pread(fd, 6000, 0) == b"secretsecr" + bytes(5990)


def test_truncations_that_are_refused(place: Place) -> None:
    (place.path / "dir").mkdir()
    for path, number in ((place.path / "dir", errno.EISDIR), (place.path / "absent", errno.ENOENT)):
        with pytest.raises(OSError) as caught:
            os.truncate(path, 0)
        assert caught.value.errno == number
    with opened(place.new("file", b"content")) as fd, pytest.raises(OSError) as caught:
        os.ftruncate(fd, 0)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError) as caught:
        os.truncate(place.path / "file", 1 << 62)  # beyond what ext4 has
    assert caught.value.errno == errno.EFBIG
    assert (place.path / "file").read_bytes() == b"content"


# Mode and owner.


@pytest.mark.parametrize("mode", [0, 0o777, 0o1777, 0o2755, 0o4711, 0o6000, 0o7777])
@pytest.mark.parametrize("kind", ["file", "dir", "fifo", "device"])
def test_chmod(place: Place, mode: int, kind: str) -> None:
    path = make_all(place)[kind]
    path.chmod(mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    same_as_layer(place, path)


def test_mode_and_owner_of_what_has_no_name(place: Place) -> None:
    with opened(place.new("file"), os.O_RDWR) as fd:
        (place.path / "file").unlink()
        os.fchmod(fd, 0o604)
        os.fchown(fd, USER, USER + 1)
        seen = os.fstat(fd)
        assert (stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid) == (0o604, USER, USER + 1)


def test_chown_of_a_symlink_is_of_the_symlink(place: Place) -> None:
    paths = make_all(place)
    (place.path / "to-file").symlink_to("file")
    os.lchown(place.path / "to-file", USER, USER)
    assert (place.path / "to-file").lstat().st_uid == USER
    assert paths["file"].stat().st_uid == 0
    os.chown(place.path / "to-file", USER + 1, -1)
    assert ((place.path / "to-file").lstat().st_uid, paths["file"].stat().st_uid) == (USER, USER + 1)
