"""`writeback`: the kernel collects what is written. All is as in a plain directory, and in the layers once a file is
closed or synced; what cannot be stored is told there. With OPEN refused and served."""

import errno
import mmap
import os
import resource
import signal
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Layers,
    Mount,
    errno_of,
    fewest_requests,
    mounted,
    requests_during,
    run,
    shiftfs,
    wait_until,
)
from harness.calls import (
    FS_APPEND,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    fallocate,
    get_flags,
    in_child,
    opened,
    set_flags,
    sync_range,
    syncfs,
    utimensat,
)
from harness.listening import small_filesystem

pytestmark = pytest.mark.root

USER = 1000
PAGE = mmap.PAGESIZE
LOWER = bytes(range(256)) * 64
"""Four pages."""
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
LATER = 0.02
"""Seconds: times of two things are told apart."""


@dataclass(frozen=True)
class Both:
    """A mount, the layer that takes what is written there, and the one that `lower` is in at first."""

    mount: Mount
    layer: Path
    below: Path

    @property
    def shown(self) -> Path:
        return self.mount.path

    def stored(self, name: str) -> bytes:
        return (self.layer / name).read_bytes()


def fill(path: Path) -> None:
    path.chmod(0o777)
    (path / "lower").write_bytes(LOWER)
    (path / "lower").chmod(0o666)


@contextmanager
def single(tmp_path: Path, *options: str) -> Iterator[Both]:
    source = tmp_path / "source"
    source.mkdir()
    fill(source)
    with mounted(source, None, "writeback", *options) as mount:
        yield Both(mount, source, source)


@contextmanager
def overlaid(tmp_path: Path, *options: str) -> Iterator[Both]:
    layers = Layers(tmp_path)
    layers.upper.chmod(0o777)
    fill(layers.lower)
    with layers.mount("writeback", *options) as mount:
        yield Both(mount, layers.upper, layers.lower)


WAYS = {
    "single": (single, "open=refuse"),
    "single, OPEN served": (single, "open=serve"),
    "overlay": (overlaid, "open=refuse"),
    "overlay, OPEN served": (overlaid, "open=serve"),
    "overlay, metacopy": (overlaid, "metacopy=on"),
}


@pytest.fixture(params=WAYS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    way, option = WAYS[request.param]
    with way(tmp_path, option) as found:
        yield found


def mtime(path: Path) -> int:
    return path.stat().st_mtime_ns


# --- what is collected, and when it comes ---


def test_writes_come_when_a_file_is_closed_or_synced(both: Both) -> None:
    with requests_during(both.mount) as requests, opened(both.shown / "new", os.O_RDWR | os.O_CREAT) as fd:
        for number in range(100):
            os.pwrite(fd, b"%03d" % number, 3 * number)
        assert os.pread(fd, 3, 297) == b"099" and os.fstat(fd).st_size == 300
        assert not requests_so_far(both, requests)
        os.fsync(fd)
        assert both.stored("new") == b"".join(b"%03d" % number for number in range(100))
        os.pwrite(fd, b"xyz", 0)
    assert requests["WRITE"] == 2
    assert both.stored("new")[:6] == b"xyz001"


def requests_so_far(both: Both, before: Any) -> int:
    """WRITEs: few enough may be the kernel's own idea, not one for each."""
    found = both.mount.stats()["requests"].get("WRITE", {"count": 0})["count"]
    return int(found) if found > 10 else 0


def test_a_part_of_a_page_is_read_before_it_is_written(both: Both) -> None:
    """By a descriptor that is open for writing alone."""
    with opened(both.shown / "lower", os.O_WRONLY) as fd:
        os.pwrite(fd, b"new", PAGE + 10)
    expected = LOWER[: PAGE + 10] + b"new" + LOWER[PAGE + 13 :]
    assert (both.shown / "lower").read_bytes() == both.stored("lower") == expected


def test_a_part_of_a_page_of_what_its_owner_may_not_read(both: Both) -> None:
    (both.shown / "lower").chmod(0o200)
    os.chown(both.shown / "lower", USER, USER)

    def write() -> None:
        with opened(both.shown / "lower", os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"end")
        with opened(both.shown / "lower", os.O_WRONLY) as fd:
            os.pwrite(fd, b"begin", 0)

    in_child(write, USER)
    assert both.stored("lower") == b"begin" + LOWER[5:] + b"end"


def test_appending(both: Both) -> None:
    with (
        opened(both.shown / "lower", os.O_WRONLY | os.O_APPEND) as one,
        opened(both.shown / "lower", os.O_RDWR | os.O_APPEND) as other,
    ):
        for number in range(50):
            os.write(one, b"1" * (number * 7))
            os.write(other, b"2" * (number * 5))
        assert os.pread(other, 5, len(LOWER)) == b"11111"
    expected = LOWER + b"".join(b"1" * (number * 7) + b"2" * (number * 5) for number in range(50))
    assert both.stored("lower") == (both.shown / "lower").read_bytes() == expected


def test_a_mapping(both: Both) -> None:
    with opened(both.shown / "lower", os.O_RDWR) as fd, closing(mmap.mmap(fd, len(LOWER))) as mapped:
        mapped[5:8] = b"map"
        mapped[2 * PAGE : 2 * PAGE + 3] = b"two"
        os.pwrite(fd, b"write", PAGE)
        assert mapped[PAGE : PAGE + 5] == b"write" and os.pread(fd, 3, 5) == b"map"
        mapped.flush()
        assert both.stored("lower")[5:8] == b"map" and both.stored("lower")[2 * PAGE :][:3] == b"two"
    assert both.stored("lower")[PAGE : PAGE + 5] == b"write"


def test_past_the_page_cache(both: Both) -> None:
    with opened(both.shown / "lower", os.O_RDWR) as fd, opened(both.shown / "lower", os.O_RDWR | os.O_DIRECT) as direct:
        buffer = mmap.mmap(-1, PAGE)
        with closing(buffer):
            os.pwrite(fd, b"cached", PAGE)
            os.preadv(direct, [buffer], PAGE)
            assert buffer[:6] == b"cached"
            buffer[:6] = b"direct"
            os.pwritev(direct, [buffer], 2 * PAGE)
            assert os.pread(fd, 6, 2 * PAGE) == b"direct"
            assert both.stored("lower")[2 * PAGE :][:6] == b"direct"


def test_sizes(both: Both) -> None:
    shown = both.shown / "lower"
    with opened(shown, os.O_RDWR) as fd:
        os.pwrite(fd, b"x" * PAGE, 8 * PAGE)
        os.ftruncate(fd, 8 * PAGE + 5)
        assert shown.stat().st_size == 8 * PAGE + 5
        os.ftruncate(fd, 3)
        os.pwrite(fd, b"end", 10)
        assert os.pread(fd, 100, 0) == LOWER[:3] + bytes(7) + b"end"
    assert both.stored("lower") == LOWER[:3] + bytes(7) + b"end"
    with opened(shown, os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"again")
        assert shown.stat().st_size == 5
    assert both.stored("lower") == shown.read_bytes() == b"again"


def test_ranges(both: Both) -> None:
    with opened(both.shown / "lower", os.O_RDWR) as fd:
        os.pwrite(fd, b"x" * 4 * PAGE, 0)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, PAGE, PAGE)
        fallocate(fd, ZERO_RANGE, 2 * PAGE, 10)
        os.pwrite(fd, b"y", PAGE + 1)
        fallocate(fd, 0, 4 * PAGE, PAGE)
        with opened(both.shown / "copy", os.O_RDWR | os.O_CREAT) as other:
            os.pwrite(other, b"z" * 3 * PAGE, 0)
            assert os.copy_file_range(fd, other, 2 * PAGE, 0, PAGE) == 2 * PAGE
            os.pwrite(other, b"w", 0)
    expected = b"x" * PAGE + b"\0y" + bytes(PAGE - 2) + bytes(10) + b"x" * (2 * PAGE - 10) + bytes(PAGE)
    assert both.stored("lower") == (both.shown / "lower").read_bytes() == expected
    assert both.stored("copy") == b"w" + b"z" * (PAGE - 1) + expected[: 2 * PAGE]


def test_what_the_layer_has_not_yet_is_no_hole(both: Both) -> None:
    """A copy of a file that somebody is writing has all of it."""
    with opened(both.shown / "new", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * PAGE, 4 * PAGE)
        assert os.lseek(fd, 4 * PAGE, os.SEEK_DATA) == 4 * PAGE
        assert os.lseek(fd, 4 * PAGE, os.SEEK_HOLE) == 5 * PAGE
        run(["cp", both.shown / "new", both.shown / "copy"])
    assert both.stored("copy") == both.stored("new") == bytes(4 * PAGE) + b"x" * PAGE


# --- what is done to a file in the meantime ---


def test_names_come_and_go(both: Both) -> None:
    """While what was written is still in the kernel: renamed over, removed, given another name."""
    shown = both.shown
    with (
        opened(shown / "lower", os.O_RDWR) as replaced,
        opened(shown / "new", os.O_RDWR | os.O_CREAT) as moved,
        opened(shown / "gone", os.O_RDWR | os.O_CREAT) as removed,
    ):
        for fd in (replaced, moved, removed):
            os.pwrite(fd, b"dirty", 0)
        os.link(shown / "new", shown / "other")
        os.rename(shown / "new", shown / "lower")
        os.unlink(shown / "gone")
        os.pwrite(moved, b" and more", 5)
        for fd in (replaced, removed):
            os.fsync(fd)
            assert os.pread(fd, 5, 0) == b"dirty"
        assert (shown / "other").read_bytes() == (shown / "lower").read_bytes() == b"dirty and more"
    assert both.stored("lower") == both.stored("other") == b"dirty and more"
    assert sorted(path.name for path in shown.iterdir()) == ["lower", "other"]


def test_names_of_one_lower_inode(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    fill(layers.lower)
    os.link(layers.lower / "lower", layers.lower / "other")
    with layers.mount("writeback") as mount:
        with opened(mount.path / "lower", os.O_RDWR) as fd:
            os.pwrite(fd, b"dirty", 0)
            assert (mount.path / "other").read_bytes()[:5] == b"dirty"
        (mount.path / "lower").unlink()
        assert (mount.path / "other").read_bytes() == b"dirty" + LOWER[5:]
    assert (layers.lower / "other").read_bytes() == LOWER


def test_what_is_copied_up_for_its_mode_has_what_was_written(both: Both) -> None:
    shown = both.shown / "lower"
    with opened(shown, os.O_RDWR) as fd:
        os.pwrite(fd, b"dirty", 2 * PAGE)
        shown.chmod(0o640)
        os.chown(shown, USER, USER)
        os.setxattr(shown, "user.x", b"y")
        os.pwrite(fd, b"more", 3 * PAGE)
    expected = LOWER[: 2 * PAGE] + b"dirty" + LOWER[2 * PAGE + 5 : 3 * PAGE] + b"more" + LOWER[3 * PAGE + 4 :]
    assert both.stored("lower") == expected
    found = (both.layer / "lower").stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o640, USER)


# --- times ---


def test_times_are_those_of_the_writes(both: Both) -> None:
    """Not of when they reach the layer; and they stay when the file is known to the kernel no more."""
    shown, layer = both.shown / "new", both.layer / "new"
    with opened(shown, os.O_RDWR | os.O_CREAT) as fd:
        before = time.time_ns()
        os.write(fd, b"x" * PAGE)
        written = os.fstat(fd).st_mtime_ns
        time.sleep(LATER)
        assert before - 10_000_000 < written < time.time_ns() - LATER * 1e9 / 2  # the kernel's clock has ticks
        assert mtime(shown) == written
        os.fsync(fd)
        assert mtime(layer) == written
    assert mtime(shown) == mtime(layer) == written


def test_times_that_are_set_stay(both: Both) -> None:
    shown = both.shown / "lower"
    with opened(shown, os.O_RDWR) as fd:
        os.pwrite(fd, b"x", 0)
        utimensat(shown, (1, 2), (3, 4))
        time.sleep(LATER)
        os.fsync(fd)
        assert mtime(shown) == mtime(both.layer / "lower") == 3_000_000_004
        os.pwrite(fd, b"x", 0)
    assert mtime(shown) == mtime(both.layer / "lower") > 3_000_000_004


def test_a_time_that_is_told_before_all_is_written_stays(tmp_path: Path) -> None:
    """The kernel tells it without waiting for what it has sent, or is about to send, unless somebody waits."""
    with single(tmp_path) as both, opened(both.shown / "new", os.O_RDWR | os.O_CREAT) as fd:
        for number in range(200):
            os.pwrite(fd, bytes([number]) * (1 << 20), number << 20)
        syncfs(fd)
        size = 200 << 20
        wait_until(lambda: (both.layer / "new").stat().st_size == size, "all is written")
        shown = os.fstat(fd).st_mtime_ns
        wait_until(lambda: mtime(both.layer / "new") == shown, "the layer has the time of the last write")
        time.sleep(1.5)
        assert mtime(both.layer / "new") == shown == os.fstat(fd).st_mtime_ns


# --- rights ---


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777])
def test_set_id_bits_fall_at_once_when_somebody_else_writes(both: Both, mode: int) -> None:
    shown = both.shown / "lower"
    os.chown(shown, USER, USER)
    shown.chmod(mode | 0o002)

    def write() -> int:
        with opened(shown, os.O_WRONLY) as fd:
            os.pwrite(fd, b"x", 0)
            return os.fstat(fd).st_mode

    assert not in_child(write, USER + 1) & (stat.S_ISUID | stat.S_ISGID)
    assert not (both.layer / "lower").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


def test_capabilities_fall(both: Both) -> None:
    shown = both.shown / "lower"
    os.setxattr(shown, "security.capability", CAPABILITY)
    with opened(shown, os.O_WRONLY) as fd:
        os.pwrite(fd, b"x", 0)
    assert errno_of(lambda: os.getxattr(shown, "security.capability")) == errno.ENODATA
    assert errno_of(lambda: os.getxattr(both.layer / "lower", "security.capability")) == errno.ENODATA


def test_how_large_a_file_may_be(both: Both) -> None:
    def write() -> int | None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 * PAGE, 5 * PAGE))
        with opened(both.shown / "new", os.O_WRONLY | os.O_CREAT) as fd:
            assert os.write(fd, bytes(6 * PAGE)) == 5 * PAGE
            return errno_of(lambda: os.write(fd, b"x"))

    assert in_child(write) == errno.EFBIG
    assert both.stored("new") == bytes(5 * PAGE)


@pytest.fixture
def append_only(both: Both) -> Iterator[Path]:
    """A file of the layer that takes writes at its end alone (chattr +a)."""
    path = both.shown / "log"
    path.write_bytes(b"begin ")
    set_flags(path, get_flags(path) | FS_APPEND)
    yield path
    set_flags(both.layer / "log", get_flags(both.layer / "log") & ~FS_APPEND)


def test_what_can_only_be_appended_to(both: Both, append_only: Path) -> None:
    """Though the kernel sends whole pages, and many of them at once."""
    lines = b"".join(b"line %d\n" % number for number in range(100_000))
    with opened(append_only, os.O_WRONLY | os.O_APPEND) as fd:
        for start in range(0, len(lines), 1000):
            os.write(fd, lines[start : start + 1000])
        os.fsync(fd)
        assert both.stored("log") == b"begin " + lines
        os.write(fd, b"end")
    assert both.stored("log") == append_only.read_bytes() == b"begin " + lines + b"end"


def test_what_can_only_be_appended_to_may_come_from_its_end(both: Both, append_only: Path) -> None:
    """The kernel sends pages as they are wanted, and again those that have been added to meanwhile. What has been
    answered is there for whoever reads it, and in the layer as soon as all before it is."""
    content = b"begin " + bytes(range(256)) * (4 * PAGE // 256)
    began = time.monotonic()
    with opened(append_only, os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, content[6:])
        for page in (4, 2, 3):
            sync_range(fd, page * PAGE, PAGE)
        assert both.stored("log") == b"begin "
        os.posix_fadvise(fd, 2 * PAGE, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, len(content), 0) == content
        sync_range(fd, 0, PAGE)
        assert both.stored("log") == content[:PAGE]
        os.fsync(fd)
        assert both.stored("log") == content
    assert time.monotonic() - began < 3, "nobody has waited"


@pytest.mark.parametrize("way", [single, overlaid])
def test_a_hole_in_what_can_only_be_appended_to(tmp_path: Path, way: Any) -> None:
    """Nobody could make one, were it not for OPEN, which is refused: so it is told, and in the end a hole."""
    with way(tmp_path, "open=refuse") as both:
        stored = both.layer / "log"
        stored.write_bytes(b"begin ")
        set_flags(stored, get_flags(stored) | FS_APPEND)
        with opened(both.shown / "log", os.O_WRONLY) as fd:
            os.pwrite(fd, b"end", 2 * PAGE)
            assert errno_of(lambda: os.fsync(fd)) == errno.EIO
    content = stored.read_bytes()
    set_flags(stored, get_flags(stored) & ~FS_APPEND)
    assert content == b"begin " + bytes(2 * PAGE - 6) + b"end"


def test_the_rest_of_what_can_only_be_appended_to_stays(both: Both, append_only: Path) -> None:
    def write() -> None:
        with opened(append_only, os.O_WRONLY) as fd:
            os.pwrite(fd, b"other", 0)
            os.fsync(fd)

    assert errno_of(write) == errno.EPERM
    assert both.stored("log") == b"begin "


# --- what cannot be stored ---


@pytest.fixture
def small() -> Iterator[Path]:
    """A filesystem with room for 64 pages."""
    with small_filesystem(64 * PAGE) as path:
        yield path


def close_of(fd: int) -> int | None:
    return errno_of(lambda: os.close(fd))


@pytest.mark.parametrize("option", ["open=refuse", "open=serve"])
@pytest.mark.parametrize("told", ["fsync", "close"])
def test_no_room_is_told_at_fsync_or_close(small: Path, option: str, told: str) -> None:
    with mounted(small, None, "writeback", option) as mount:
        (mount.path / "before").write_bytes(b"b" * PAGE)
        fd = os.open(mount.path / "new", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x" * 100 * PAGE)
        if told == "fsync":
            assert errno_of(lambda: os.fsync(fd)) == errno.ENOSPC
            close_of(fd)
        else:
            assert close_of(fd) == errno.ENOSPC
        assert (mount.path / "before").read_bytes() == b"b" * PAGE
        (mount.path / "new").unlink()
        wait_until(lambda: os.statvfs(small).f_bfree > 50, "what was removed has been let go of")
        (mount.path / "after").write_bytes(b"a" * 10 * PAGE)
    assert (small / "after").read_bytes() == b"a" * 10 * PAGE


@pytest.mark.parametrize("option", ["open=refuse", "open=serve"])
def test_what_cannot_be_copied_up_is_told_and_stays_as_it_was(small: Path, tmp_path: Path, option: str) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    content = b"l" * 100 * PAGE
    (lower / "large").write_bytes(content)
    for name in ("upper", "work"):
        (small / name).mkdir()
    options = (f"lowerdir={lower}", f"upperdir={small}/upper", f"workdir={small}/work", "writeback", option)
    with mounted(lower, None, *options) as mount:
        if option == "open=serve":
            assert errno_of(lambda: os.open(mount.path / "large", os.O_RDWR)) == errno.ENOSPC
        else:
            fd = os.open(mount.path / "large", os.O_RDWR)
            os.pwrite(fd, b"dirty", 0)
            assert errno_of(lambda: os.fsync(fd)) == close_of(fd) == errno.ENOSPC
        assert not list((small / "upper").iterdir())
    assert (lower / "large").read_bytes() == content


# --- durability ---


def test_unmounting_leaves_nothing_behind(tmp_path: Path) -> None:
    """What a mapping has changed after the file was closed is written, too."""
    with single(tmp_path) as both:
        with opened(both.shown / "lower", os.O_RDWR) as fd:
            mapped = mmap.mmap(fd, len(LOWER))
        mapped[:3] = b"map"
        mapped.close()
        (both.shown / "new").write_bytes(b"x" * 1_000_000)
        layer = both.layer
    assert (layer / "lower").read_bytes() == b"map" + LOWER[3:]
    assert (layer / "new").read_bytes() == b"x" * 1_000_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_end_has_all_written_first(tmp_path: Path, number: int) -> None:
    with single(tmp_path) as both:
        fd = os.open(both.shown / "new", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"not closed" * 1000)
        pid = both.mount.pid
        os.kill(pid, number)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the process has ended")
        close_of(fd)
        assert both.stored("new") == b"not closed" * 1000


def test_what_is_synced_outlives_the_process_and_all_else_ends_with_it(tmp_path: Path) -> None:
    with single(tmp_path) as both:
        fd = os.open(both.shown / "new", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"synced")
        os.fsync(fd)
        os.write(fd, b" and lost")
        os.kill(both.mount.pid, signal.SIGKILL)
        wait_until(lambda: errno_of(lambda: os.stat(both.shown)) == errno.ENOTCONN, "the process has ended")
        assert close_of(fd) is not None
        assert both.stored("new") == b"synced"


# --- when it is on ---


@pytest.mark.parametrize("source", ["of another process", "made up by the kernel"])
def test_what_others_change_whatever_is_said(tmp_path: Path, source: str) -> None:
    with single(tmp_path) as both:
        layer = {"of another process": both.shown, "made up by the kernel": Path("/proc/sys")}[source]
        (tmp_path / "at").mkdir()
        failed = shiftfs("-o", "writeback", layer, tmp_path / "at", check=False)
        assert failed.returncode == 1 and not failed.stdout
        assert failed.stderr.startswith("shiftfs: writeback: ") and len(failed.stderr.splitlines()) == 1
        assert "omit writeback" in failed.stderr


def test_nothing_is_collected_where_nothing_is_written(tmp_path: Path) -> None:
    with single(tmp_path, "ro") as both:
        assert both.mount.status()["writeback"]["on"] is False
        assert (both.shown / "lower").read_bytes() == LOWER


def test_status(both: Both) -> None:
    status = both.mount.status()
    assert status["writeback"] == {"on": True, "why": None}
    assert status["options"]["writeback"] is True and status["options"]["watch"] == "off"
    assert "WRITEBACK_CACHE" in status["protocol"]["flags"]
    assert status["passthrough"] == {"on": False, "why": "writeback"} and status["live"] is None


def test_nothing_is_asked_twice(both: Both) -> None:
    """Nobody changes the layers: what the kernel has been told stays."""

    def look() -> None:
        (both.shown / "lower").stat()
        errno_of(lambda: (both.shown / "absent").stat())
        os.listdir(both.shown)
        (both.shown / "lower").read_bytes()

    look()
    time.sleep(1.5)  # longer than timeout=
    requests = fewest_requests(both.mount, look)
    assert not requests["LOOKUP"] + requests["READ"] + requests["READDIR"] + requests["READDIRPLUS"]
