"""Contents of files: on a plain directory and on mounts alike, by whatever way they are read and written."""

import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import mounted, wait_until
from harness.calls import (
    drop_dentries,
    in_children,
    opened,
    refuses,
    syncfs,
)
from harness.commands import open_directory
from harness.places import Place

PAGE = mmap.PAGESIZE
BLOCK = 4096


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def read_afresh(path: Path) -> bytes:
    """The content as the layer has it, without what the mount's page cache holds."""
    with opened(path) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, 1 << 24, 0)


# Reading and writing.


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, PAGE + 1, 131072, 1 << 20, (3 << 20) + 17])
def test_what_is_written_is_read(place: Place, size: int) -> None:
    content = pattern(size)
    path = place.new("file", content)
    assert path.read_bytes() == (place.layer / "file").read_bytes() == content
    assert read_afresh(path) == content
    assert path.stat().st_size == size


def test_reads_and_writes_anywhere(place: Place) -> None:
    """The same pieces are written to the file and to a bytearray."""
    numbers = random.Random(5)
    content = bytearray()
    with opened(place.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        for _ in range(200):
            offset, piece = numbers.randrange(300_000), numbers.randbytes(numbers.choice([1, 100, 5000, 70_000]))
            assert os.pwrite(fd, piece, offset) == len(piece)
            content.extend(bytes(max(0, offset + len(piece) - len(content))))
            content[offset : offset + len(piece)] = piece
            at = numbers.randrange(300_000)
            assert os.pread(fd, 9000, at) == content[at : at + 9000]
        assert os.fstat(fd).st_size == len(content)
        assert os.pread(fd, 100, len(content)) == b""
        assert os.pread(fd, 100, len(content) - 3) == content[-3:]
    assert (place.layer / "file").read_bytes() == content


def test_vectors(place: Place) -> None:
    with opened(place.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        assert os.writev(fd, [b"one", b"", b"two" * 5000]) == 15003
        room = [bytearray(2), bytearray(15001)]
        assert os.preadv(fd, room, 0) == 15003
        assert b"".join(room) == b"one" + b"two" * 5000


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_an_open_file_permits_what_it_was_opened_for(place: Place, flags: int) -> None:
    with opened(place.new("file", b"content"), flags) as fd:
        if flags == os.O_WRONLY:
            refuses(errno.EBADF, os.read, fd, 1)
        else:
            assert os.read(fd, 7) == b"content"
        if flags == os.O_RDONLY:
            refuses(errno.EBADF, os.write, fd, b"x")
        else:
            assert os.pwrite(fd, b"C", 0) == 1


def test_open_flags(place: Place) -> None:
    path = place.path / "file"
    refuses(errno.ENOENT, os.open, path, os.O_RDWR)
    with opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o400) as fd:
        os.write(fd, b"though its mode is 0400")
    refuses(errno.EEXIST, os.open, path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    with opened(path, os.O_CREAT | os.O_RDONLY) as fd:
        assert os.read(fd, 6) == b"though"
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        assert path.stat().st_size == 0
    refuses(errno.EISDIR, os.open, place.path, os.O_RDWR)
    refuses(errno.ENOTDIR, os.open, path, os.O_RDONLY | os.O_DIRECTORY)
    refuses(errno.EEXIST, os.open, place.path, os.O_CREAT | os.O_EXCL)
    (place.path / "link").symlink_to("absent")
    refuses(errno.EEXIST, os.open, place.path / "link", os.O_CREAT | os.O_EXCL)
    with opened(place.path / "link", os.O_CREAT | os.O_WRONLY):
        assert (place.layer / "absent").exists()


def test_truncating_open_of_what_another_reads(place: Place) -> None:
    path = place.new("file", b"old content")
    with opened(path) as fd:
        assert os.read(fd, 3) == b"old"
        with opened(path, os.O_WRONLY | os.O_TRUNC) as writing:
            assert os.pread(fd, 100, 0) == b""
            os.write(writing, b"new")
        assert os.pread(fd, 100, 0) == b"new"


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC, os.O_DIRECT, os.O_APPEND | os.O_SYNC])
def test_other_ways_of_writing(place: Place, flag: int) -> None:
    room = mmap.mmap(-1, 3 * BLOCK)  # aligned, as O_DIRECT wants it
    room.write(pattern(3 * BLOCK))
    path = place.path / "file"
    with opened(path, os.O_CREAT | os.O_RDWR | flag) as fd:
        assert os.write(fd, room) == 3 * BLOCK
        assert (place.layer / "file").read_bytes() == room[:]
        back = mmap.mmap(-1, BLOCK)
        assert os.preadv(fd, [back], BLOCK) == BLOCK
        assert back[:] == room[BLOCK : 2 * BLOCK]
        assert os.preadv(fd, [back], 3 * BLOCK) == 0
    assert path.read_bytes() == room[:]


def test_direct_and_cached_access_agree(place: Place) -> None:
    room = mmap.mmap(-1, BLOCK)
    path = place.new("file", b"a" * 2 * BLOCK)
    with opened(path, os.O_RDWR | os.O_DIRECT) as direct, opened(path, os.O_RDWR) as cached:
        assert os.pread(cached, 1, BLOCK) == b"a"
        room.write(b"b" * BLOCK)
        os.pwrite(direct, room, BLOCK)
        assert os.pread(cached, 2, BLOCK - 1) == b"ab"
        os.pwrite(cached, b"c", 0)
        os.preadv(direct, [room], 0)
        assert room[:2] == b"ca"


def test_append(place: Place) -> None:
    path = place.new("file", b"start")
    with opened(path, os.O_RDWR | os.O_APPEND) as one, opened(path, os.O_RDWR | os.O_APPEND) as two:
        for fd, piece in ((one, b", one"), (two, b", two"), (one, b", and one")):
            os.write(fd, piece)
        assert os.lseek(one, 0, os.SEEK_CUR) == path.stat().st_size
        os.pwrite(two, b"!", 0)  # pwrite(2), BUGS: the offset does not count
    assert path.read_bytes() == b"start, one, two, and one!"


# Mappings.


def test_a_shared_mapping_is_the_file(place: Place) -> None:
    path = place.new("file", pattern(3 * PAGE + 100))
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        assert view[:] == pattern(3 * PAGE + 100)
        view[PAGE : PAGE + 5] = b"mmap!"
        assert os.pread(fd, 5, PAGE) == b"mmap!"
        view.flush()
        assert (place.layer / "file").read_bytes()[PAGE : PAGE + 5] == b"mmap!"
        os.pwrite(fd, b"write", 2 * PAGE)
        assert view[2 * PAGE : 2 * PAGE + 5] == b"write"
        view[0:1] = b"L"
    # Closing writes back without msync.
    wait_until(lambda: (place.layer / "file").read_bytes()[:1] == b"L", "the mapping written back")


def test_mappings_of_two_processes_are_one(place: Place) -> None:
    path = place.new("file", bytes(PAGE))

    def add() -> None:
        with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, PAGE) as view:
            for _ in range(100):
                view[0] += 1

    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, PAGE) as view:
        in_children([add])
        in_children([add])
        assert view[0] == 200


def test_a_private_mapping_is_ones_own(place: Place) -> None:
    path = place.new("file", b"a" * 2 * PAGE)
    with opened(path) as fd, mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
        view[0:1] = b"b"
        assert view[:2] == b"ba"
        assert path.read_bytes() == b"a" * 2 * PAGE


def test_a_mapping_outlives_its_descriptor_and_its_name(place: Place) -> None:
    path = place.new("file", pattern(50 * PAGE))
    with opened(path, os.O_RDWR) as fd:
        view = mmap.mmap(fd, 0)
    with view:
        path.unlink()
        drop_dentries()
        assert view[:] == pattern(50 * PAGE)
        view[0:1] = b"x"
        view.flush()


def test_programs_are_executed_from_it(place: Place) -> None:
    program = place.new("program", Path("/bin/true").read_bytes())
    program.chmod(0o755)
    assert os.spawnv(os.P_WAIT, program, ["program"]) == 0
    with opened(program, os.O_RDWR) as fd:
        refuses(errno.ETXTBSY, os.execv, program, ["program"])
        os.pwrite(fd, b"\x7f", 0)
    assert os.spawnv(os.P_WAIT, program, ["program"]) == 0


# Files without a name.


@pytest.mark.parametrize("how", ["unlink", "rename over it", "O_TMPFILE"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["", "dentries dropped"])
def test_a_file_without_a_name_goes_on(place: Place, how: str, forgotten: bool) -> None:
    path = place.path / "file"
    flags = os.O_TMPFILE | os.O_RDWR if how == "O_TMPFILE" else os.O_CREAT | os.O_RDWR
    with opened(place.path if how == "O_TMPFILE" else path, flags) as fd:
        os.write(fd, pattern(10_000))
        if how == "unlink":
            path.unlink()
        elif how == "rename over it":
            place.new("other", b"other").rename(path)
        if forgotten:
            drop_dentries()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 20_000, 0) == pattern(10_000)
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"more", 10_000)
        assert os.fstat(fd).st_size == 10_004
        os.ftruncate(fd, 4)
        os.fchmod(fd, 0o640)
        os.fsync(fd)
        assert os.pread(fd, 100, 0) == pattern(10_000)[:4]
        with opened(Path(f"/proc/self/fd/{fd}")) as again:
            assert os.pread(again, 100, 0) == pattern(10_000)[:4]
            assert os.fstat(again).st_ino == os.fstat(fd).st_ino
    assert os.listdir(place.layer) == (["file"] if how == "rename over it" else [])


def test_files_unlinked_together_stay_apart(place: Place) -> None:
    fds = [os.open(place.path / f"file{i}", os.O_CREAT | os.O_RDWR) for i in range(100)]
    try:
        for i, fd in enumerate(fds):
            os.write(fd, b"%d" % i)
            (place.path / f"file{i}").unlink()
        drop_dentries()
        for i in range(100):
            place.new(f"file{i}", b"another")  # the numbers of the old inodes are taken as long as they are open
        assert [os.pread(fd, 100, 0) for fd in fds] == [b"%d" % i for i in range(100)]
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("how", ["unlink", "rename over it", "both in turn"])
def test_what_was_opened_and_not_read_is_read_without_a_name(place: Place, how: str) -> None:
    """Opening may be no request, and nothing is cached: all that is known is that there is such a file."""
    (place.layer / "dir").mkdir()
    count = 100
    for i in range(count):
        (place.layer / f"dir/file{i}").write_bytes(b"%d" % i)
    fds = [os.open(place.path / f"dir/file{i}", os.O_RDWR) for i in range(count)]
    try:
        for i in range(count):
            path = place.path / f"dir/file{i}"
            if how == "unlink" or (how == "both in turn" and i % 2):
                path.unlink()
            else:
                place.new("new", b"new").rename(path)
        drop_dentries()
        for i in range(count):
            place.new(f"dir/another{i}", b"another")  # the numbers of the old ones are taken
        assert [os.pread(fd, 100, 0) for fd in fds] == [b"%d" % i for i in range(count)]
        for fd in fds:
            os.pwrite(fd, b"written", 0)
        assert {os.fstat(fd).st_nlink for fd in fds} == {0}
        assert {path.read_bytes() for path in (place.path / "dir").iterdir()} <= {b"another", b"new"}
        assert {path.read_bytes() for path in (place.layer / "dir").iterdir()} <= {b"another", b"new"}
    finally:
        for fd in fds:
            os.close(fd)


def test_names_and_numbers_are_used_again(place: Place) -> None:
    """Made, some left open, removed: each is its own file, whatever was there before."""
    kept: dict[int, int] = {}
    try:
        for i in range(300):
            path = place.new("file", b"%d" % i)
            if i % 3 == 0:
                kept[i] = os.open(path, os.O_RDONLY)
            elif i % 3 == 1:
                drop_dentries()
            assert path.read_bytes() == b"%d" % i
            path.unlink()
        assert {i: os.pread(fd, 100, 0) for i, fd in kept.items()} == {i: b"%d" % i for i in kept}
    finally:
        for fd in kept.values():
            os.close(fd)


def test_all_that_is_removed_is_let_go(shown: Place) -> None:
    """More of them than may be without a name at any time."""
    mount = shown.mount
    assert mount is not None
    before = mount.stats()["inodes"]
    for number in range(1500):
        shown.new(f"file{number}", b"content")
    for number in range(1500):
        if number % 2:
            (shown.path / f"file{number}").unlink()
        else:
            shown.new("new", b"new").rename(shown.path / f"file{number}")
    wait_until(lambda: mount.status()["descriptors"]["unlinked"] == 0, "no unlinked file held")
    for path in shown.path.iterdir():
        path.unlink()
    wait_until(lambda: mount.status()["descriptors"]["unlinked"] == 0, "no unlinked file held")
    wait_until(lambda: mount.stats()["inodes"] <= before + 1, "none of them known")


def test_an_unlinked_file_is_let_go_when_it_is_closed(shown: Place) -> None:
    mount = shown.mount
    assert mount is not None
    for number in range(5):
        with opened(shown.path / "file", os.O_CREAT | os.O_RDWR) as fd:
            os.write(fd, b"content")
            (shown.path / "file").unlink()
            assert mount.status()["descriptors"]["unlinked"] == 1, number
        wait_until(lambda: mount.status()["descriptors"]["unlinked"] == 0, "no unlinked file held")


# To disk.


def test_syncing(place: Place) -> None:
    (place.path / "dir").mkdir()
    with (
        opened(place.path / "file", os.O_CREAT | os.O_RDWR) as fd,
        opened(place.path / "dir", os.O_RDONLY | os.O_DIRECTORY) as directory,
    ):
        os.write(fd, b"content")
        for call in (os.fsync, os.fdatasync, syncfs):
            call(fd)
            call(directory)
        (place.path / "file").unlink()
        (place.path / "dir").rmdir()
        for call in (os.fsync, os.fdatasync, syncfs):
            call(fd)
            call(directory)
    with opened(place.new("other")) as reading:
        os.fsync(reading)


# Appenders.


@pytest.mark.parametrize("hosts", [0, 2])
def test_appenders_lose_nothing(place: Place, hosts: int) -> None:
    """Several on the mount, and several at the same time on the layer. The kernel may send a write that crosses a page
    as two, so where OPEN is refused an appender on the layer may get between them."""
    lines = 1000
    place.new("log")

    def appender(path: Path, who: bytes) -> Callable[[], None]:
        def append() -> None:
            with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
                for number in range(lines):
                    os.write(fd, who * (1 + number % 300) + b"\n")

        return append

    writers = {b"a": place.path, b"b": place.path, b"c": place.layer, b"d": place.layer}
    active = dict(list(writers.items())[: 2 + hosts])
    in_children([appender(at / "log", who) for who, at in active.items()])
    content = (place.layer / "log").read_bytes()
    assert content.count(b"\n") == lines * len(active)
    for who in active:
        assert content.count(who) == sum(1 + number % 300 for number in range(lines))
        if place.kind != "refuse" or not hosts:
            wanted = [1 + number % 300 for number in range(lines)]
            assert [len(line) for line in content.splitlines() if line[:1] == who] == wanted
    wait_until(lambda: (place.path / "log").read_bytes() == content, "the mount shows what the layer has")


# Many files.


@pytest.mark.parametrize("option", ["open=refuse", "open=serve"])
@pytest.mark.parametrize(("count", "limit", "unlinked"), [(1500, 256, False), (300, 700, True)])
def test_open_files_never_meet_the_daemons_limit(
    tmp_path: Path, option: str, count: int, limit: int, unlinked: bool
) -> None:
    """Only a file that is in use without a name costs the daemon a descriptor."""
    fds: list[int] = []
    with mounted(tmp_path, None, option, descriptors=limit) as mount:
        try:
            for i in range(count):
                path = mount.path / f"file{i}"
                fds.append(os.open(path, os.O_CREAT | os.O_RDWR))
                os.write(fds[-1], b"%d" % i)
                if unlinked:
                    path.unlink()
            for i, fd in enumerate(fds):
                os.pwrite(fd, b"!", 10)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(fd, 20, 0) == (b"%d" % i).ljust(10, b"\0") + b"!"
            assert mount.status()["descriptors"]["open"] < limit
        finally:
            for fd in fds:
                os.close(fd)


def test_hard_links_may_go_in_any_number(tmp_path: Path) -> None:
    """An inode that has names left, though none that the daemon has seen last, costs no descriptor."""
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
    with mounted(tmp_path, None, descriptors=256) as mount:
        for i in range(1000):
            (mount.path / f"one/file{i}").write_bytes(b"%d" % i)
            os.link(mount.path / f"one/file{i}", mount.path / f"two/file{i}")
        for i in range(1000):
            (mount.path / f"two/file{i}").unlink()
        assert [(mount.path / f"one/file{i}").read_bytes() for i in range(1000)] == [b"%d" % i for i in range(1000)]
        assert mount.status()["descriptors"]["open"] < 256


def _unnamed(directory: Path) -> bool:
    """Room for one: what was closed before is let go of a moment later."""
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError as error:
        if error.errno != errno.ENFILE:
            raise
        return False
    return True


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_any_number_of_files_without_a_name_may_come_and_go(passthrough: str) -> None:
    with mounted(open_directory("source-"), None, "open=serve", f"passthrough={passthrough}", descriptors=256) as mount:
        for _ in range(300):
            wait_until(lambda: _unnamed(mount.path), "room for one", 5)
