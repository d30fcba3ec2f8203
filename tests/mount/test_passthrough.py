"""Files that the kernel reads, writes and maps by itself, past us: of one directory, and in an overlay's upper.

What is on the mount then is the layer's own page cache, so all that holds among processes in the layer holds here too.
"""

import mmap
import os
import resource
import signal
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import Layers, Mount, mounted, requests_during, wait_until
from harness.calls import KEEP_SIZE, PUNCH_HOLE, fallocate, in_child, opened

USER = 1000
SIZE = 64 * 1024
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)


@dataclass(frozen=True)
class Both:
    """A mount, and the layer that takes what is written there."""

    mount: Mount
    layer: Path

    @property
    def shown(self) -> Path:
        return self.mount.path

    def new(self, name: str, content: bytes = b"") -> tuple[Path, Path]:
        """A file of the layer: on the mount, and there."""
        (self.layer / name).write_bytes(content)
        (self.layer / name).chmod(0o666)
        self.mount.settled()
        return self.shown / name, self.layer / name

    def open_files(self) -> int:
        return int(self.mount.stats()["passthrough"]["files"])


@contextmanager
def single(tmp_path: Path, *options: str) -> Iterator[Both]:
    source = tmp_path / "source"
    source.mkdir()
    source.chmod(0o777)
    with mounted(source, None, "passthrough=on", *options) as mount:
        yield Both(mount, source)


@contextmanager
def overlaid(tmp_path: Path, *options: str) -> Iterator[Both]:
    layers = Layers(tmp_path)
    layers.upper.chmod(0o777)
    with layers.mount("passthrough=on", *options) as mount:
        yield Both(mount, layers.upper)


@pytest.fixture(params=[single, overlaid])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    with request.param(tmp_path) as found:
        yield found


def test_nothing_that_is_read_or_written_comes_to_the_process(both: Both) -> None:
    shown, _ = both.new("file", bytes(SIZE))
    with opened(shown, os.O_RDWR) as fd, requests_during(both.mount) as requests:
        assert both.open_files() == 1
        for number in range(100):
            os.pwrite(fd, b"x" * 100, number * 100)
            assert os.pread(fd, 3, number * 100) == b"xxx"
    assert not requests["READ"] + requests["WRITE"]


def test_what_is_created_is_written_past_the_process(both: Both) -> None:
    with requests_during(both.mount) as requests:
        (both.shown / "new").write_bytes(bytes(SIZE))
        fd = os.open(both.shown, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, bytes(SIZE))
        assert os.pread(fd, SIZE, 0) == bytes(SIZE)
        os.close(fd)
    assert requests["CREATE"] == requests["TMPFILE"] == 1
    assert not requests["READ"] + requests["WRITE"]
    assert (both.layer / "new").read_bytes() == bytes(SIZE)


def test_one_mapping_on_both_sides(both: Both) -> None:
    """What is stored on one side is on the other at once."""
    shown, layer = both.new("file", bytes(SIZE))
    with (
        opened(shown, os.O_RDWR) as outer,
        opened(layer, os.O_RDWR) as inner,
        closing(mmap.mmap(outer, SIZE)) as here,
        closing(mmap.mmap(inner, SIZE)) as there,
    ):
        for number in range(0, SIZE, 4096):
            here[number : number + 4] = struct.pack("=I", number)
            assert there[number : number + 4] == struct.pack("=I", number)
            there[number + 8 : number + 12] = struct.pack("=I", number + 1)
            assert here[number + 8 : number + 12] == struct.pack("=I", number + 1)
        assert os.pread(outer, 12, 4096) == os.pread(inner, 12, 4096) == there[4096 : 4096 + 12]


def test_all_who_have_it_open_see_one_file(both: Both) -> None:
    """Whatever they have opened it for, in whatever order, and whoever has written."""
    shown, layer = both.new("file", b"old")
    with (
        opened(shown, os.O_RDONLY) as reader,
        opened(shown, os.O_WRONLY | os.O_APPEND) as appender,
        opened(shown, os.O_RDWR) as writer,
    ):
        os.write(appender, b" and more")
        assert os.pread(reader, 100, 0) == os.pread(writer, 100, 0) == b"old and more"
        layer.write_bytes(b"from the layer")
        assert os.pread(reader, 100, 0) == os.pread(writer, 100, 0) == b"from the layer"
        with opened(shown, os.O_WRONLY | os.O_TRUNC) as truncating:
            assert os.pread(reader, 100, 0) == b""
            os.write(truncating, b"new")
        assert os.fstat(reader).st_size == os.fstat(writer).st_size == 3
        assert layer.read_bytes() == b"new"
        assert both.open_files() == 1
    wait_until(lambda: both.open_files() == 0, "the last release")


def test_attributes_follow_what_either_side_writes(both: Both) -> None:
    shown, layer = both.new("file", b"1")
    with opened(shown, os.O_RDWR) as fd:
        os.write(fd, b"12345")
        assert os.fstat(fd).st_size == shown.stat().st_size == 5
        assert shown.stat().st_mtime_ns == layer.stat().st_mtime_ns
        with open(layer, "ab") as file:
            file.write(b"678")
        wait_until(lambda: shown.stat().st_size == 8, "the new size")
        assert shown.stat().st_mtime_ns == layer.stat().st_mtime_ns


def test_times_follow_what_is_stored_in_a_mapping(both: Both) -> None:
    """As long as somebody has the file open: nobody tells of it."""
    shown, layer = both.new("file", bytes(SIZE))
    os.utime(shown, (1, 1))
    with opened(shown, os.O_RDWR) as fd, closing(mmap.mmap(fd, SIZE)) as mapping:
        assert shown.stat().st_mtime == 1
        mapping[:4] = b"text"
        assert shown.stat().st_mtime_ns == layer.stat().st_mtime_ns != 10**9


APPENDS = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(500):
    os.write(fd, b"%s %d\\n" % (sys.argv[2].encode(), number))
"""


def test_appenders_on_both_sides_lose_nothing(both: Both) -> None:
    shown, layer = both.new("log")
    paths = [shown, layer, shown, layer]
    started = [
        subprocess.Popen(["python3", "-c", APPENDS, str(path), str(number)]) for number, path in enumerate(paths)
    ]
    try:
        assert [process.wait(60) for process in started] == [0] * len(paths)
    finally:
        for process in started:
            process.kill()
            process.wait()
    lines = shown.read_text().splitlines()
    assert sorted(lines) == sorted(f"{who} {number}" for who in range(len(paths)) for number in range(500))
    for who in range(len(paths)):
        own = [line for line in lines if line.startswith(f"{who} ")]
        assert own == [f"{who} {number}" for number in range(500)]


def _write_within(path: Path) -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with opened(path, os.O_WRONLY) as fd:
        done = os.write(fd, bytes(2000))
        try:
            os.write(fd, b"more")
        except OSError as error:
            assert error.strerror == "File too large"
            return done
    return -1


def test_the_writers_limit_of_sizes_holds(both: Both) -> None:
    shown, layer = both.new("file")
    assert in_child(lambda: _write_within(shown)) == 1000
    assert layer.stat().st_size == 1000


def test_ranges_are_allocated_punched_sought_and_copied(both: Both) -> None:
    shown, layer = both.new("file", b"x" * SIZE)
    target, _ = both.new("target")
    with opened(shown, os.O_RDWR) as fd, opened(target, os.O_RDWR) as other:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4096, 8192)
        assert os.pread(fd, 2, 4095) == b"x\0"
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
        assert os.lseek(fd, 4096, os.SEEK_DATA) == 3 * 4096
        fallocate(fd, 0, SIZE, SIZE)
        assert os.fstat(fd).st_size == layer.stat().st_size == 2 * SIZE
        assert os.copy_file_range(fd, other, 5000, 0, 0) == 5000
        assert os.fstat(other).st_size == 5000
        assert os.pread(other, 5000, 0) == os.pread(fd, 5000, 0)
        os.ftruncate(fd, 10)
        assert layer.read_bytes() == b"x" * 10


def test_pipes_and_sockets_are_filled_and_emptied(both: Both) -> None:
    shown, layer = both.new("file", b"content")
    reading, writing = os.pipe()
    with opened(shown, os.O_RDWR) as fd:
        assert os.splice(fd, writing, 100, offset_src=0) == 7
        assert os.read(reading, 100) == b"content"
        os.write(writing, b"changed and longer")
        assert os.splice(reading, fd, 18, offset_dst=0) == 18
        assert os.fstat(fd).st_size == 18
        assert os.sendfile(writing, fd, 0, 100) == 18
    os.close(reading)
    os.close(writing)
    assert layer.read_bytes() == b"changed and longer"


# Set-id bits and capabilities.


def _written_when_told(path: Path, go: int, told: int) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(told, b".")
        os.read(go, 1)
        os.write(fd, b"by somebody else")


def _written_by_a_user_after(path: Path, change: Path, mode: int) -> None:
    """A user has the file open; then its mode is changed at a path, and then he writes."""
    told, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        try:
            _written_when_told(path, go[0], told[1])
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.read(told[0], 1)
    os.chmod(change, mode)
    os.write(go[1], b".")
    assert os.waitpid(child, 0)[1] == 0
    for fd in (*told, *go):
        os.close(fd)


@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777], ids=oct)
@pytest.mark.parametrize("behind", [False, True], ids=["on the mount", "in the layer"])
def test_set_id_bits_that_come_while_it_is_open_fall_at_a_write(both: Both, mode: int, behind: bool) -> None:
    """Nobody may make another's set-id program his own."""
    shown, layer = both.new("file", b"another's")
    shown.stat()
    _written_by_a_user_after(shown, layer if behind else shown, mode)
    assert layer.read_bytes() == b"by somebody else"
    assert stat.S_IMODE(layer.stat().st_mode) == 0o777
    wait_until(lambda: stat.S_IMODE(shown.stat().st_mode) == 0o777, "the mode on the mount")


def test_set_id_bits_stay_when_root_writes(both: Both) -> None:
    """As on a local disk; such files are not passed on."""
    shown, layer = both.new("file")
    shown.write_bytes(b"first")
    shown.chmod(0o6755)
    with opened(shown, os.O_WRONLY) as fd:
        os.write(fd, b"second")
        assert both.open_files() == 0
    assert stat.S_IMODE(layer.stat().st_mode) == stat.S_IMODE(shown.stat().st_mode) == 0o6755


def test_capabilities_fall_at_a_write(both: Both) -> None:
    shown, layer = both.new("file")
    with opened(shown, os.O_WRONLY) as fd:
        os.setxattr(shown, "security.capability", CAPABILITY)
        os.write(fd, b"content")
    assert "security.capability" not in os.listxattr(layer)
    assert "security.capability" not in os.listxattr(shown)


# Files that go, or come.


@pytest.mark.parametrize("behind", [False, True], ids=["on the mount", "in the layer"])
def test_what_is_removed_goes_on_for_those_who_have_it_open(both: Both, behind: bool) -> None:
    shown, layer = both.new("file", b"content")
    with opened(shown, os.O_RDWR) as fd:
        (layer if behind else shown).unlink()
        both.mount.settled()
        os.pwrite(fd, b"C", 0)
        assert os.pread(fd, 100, 0) == b"Content"
        assert os.fstat(fd).st_nlink == 0
        with opened(Path(f"/proc/self/fd/{fd}"), os.O_RDONLY) as again:
            assert os.read(again, 100) == b"Content"


def test_what_is_replaced_behind_the_mount_is_another_file(both: Both) -> None:
    shown, layer = both.new("file", b"old")
    with opened(shown, os.O_RDWR) as fd:
        (both.layer / "new").write_bytes(b"new")
        (both.layer / "new").rename(layer)
        wait_until(lambda: shown.read_bytes() == b"new", "the new file")
        os.pwrite(fd, b"O", 0)
        assert os.pread(fd, 100, 0) == b"Old"
        assert shown.read_bytes() == layer.read_bytes() == b"new"


def test_renamed_and_linked_it_stays_one_file(both: Both) -> None:
    shown, layer = both.new("file", b"content")
    with opened(shown, os.O_RDWR) as fd:
        os.link(shown, both.shown / "second")
        shown.rename(both.shown / "third")
        with opened(both.shown / "second", os.O_RDWR) as other:
            os.pwrite(other, b"C", 0)
            assert os.pread(fd, 100, 0) == b"Content"
            assert both.open_files() == 1
    assert not layer.exists()


def test_a_program_runs(both: Both) -> None:
    program = both.shown / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    assert subprocess.run([program], timeout=20).returncode == 0
    with opened(program, os.O_RDONLY) as fd, closing(mmap.mmap(fd, 4096, prot=mmap.PROT_READ)) as mapping:
        assert mapping[:4] == b"\x7fELF"
        assert subprocess.run([program], timeout=20).returncode == 0
        maps = Path("/proc/self/maps").read_text()
        (line,) = [line for line in maps.splitlines() if line.endswith(str(program))]
        assert int(line.split()[4]) == program.stat().st_ino
