"""Contents: short reads and writes, copies that are interrupted, what is found in a memfd afterwards."""

import errno
import os
import select
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from harness import wait_until
from harness.device import LIMIT, MAX_WRITE, Served, served
from harness.memory import MemoryTree, Node
from shiftfs import underway
from shiftfs.ops import files
from shiftfs.tree import Descriptor
from shiftfs.wire import requests
from shiftfs.wire.abi import Opcode, WriteFlag

REGULAR = 0o100644
CONTENT = bytes(range(256)) * 40
UNIQUE = 8


@pytest.fixture
def tree() -> Iterator[MemoryTree]:
    made = MemoryTree()
    made.add(made.root, b"file", REGULAR, CONTENT)
    made.add(made.root, b"other", REGULAR)
    made.add(made.root, b"fifo", 0o010644)
    yield made
    made.close()


@pytest.fixture(params=["loop", "worker"])
def mount(tree: MemoryTree, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Also where the layer says that it would have to wait."""
    if request.param == "worker":
        monkeypatch.setattr(tree, "may_block", lambda entry: True)
        read = os.preadv

        def would_wait(fd: int, rooms: Any, offset: int, flags: int = 0) -> int:
            if flags & os.RWF_NOWAIT:
                raise BlockingIOError(errno.EAGAIN, "not in the cache")
            return read(fd, rooms, offset, flags)

        monkeypatch.setattr(os, "preadv", would_wait)
    with served(tree) as running:
        yield running


def reading(offset: int, size: int) -> bytes:
    return struct.pack("@QqIIQII", 0, offset, size, 0, 0, 0, 0)


def writing(data: bytes, offset: int = 0, flags: int = os.O_WRONLY, write_flags: int = 0) -> bytes:
    return struct.pack("@QqIIQII", 0, offset, len(data), write_flags, 0, flags, 0) + data


def content(node: Node) -> bytes:
    return os.pread(node.content.fd, 1 << 20, 0)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 10), (5, len(CONTENT)), (len(CONTENT) - 1, 4096), (len(CONTENT), 10), (2**40, 1), (0, 0)]
)
def test_read(mount: Served, offset: int, size: int) -> None:
    answer = mount.device.ask(Opcode.READ, reading(offset, size), mount.device.look(b"file"))
    assert (answer.errno, answer.payload) == (0, CONTENT[offset : offset + size])


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_SYNC, os.O_WRONLY | os.O_DSYNC])
@pytest.mark.parametrize("size", [0, 1, MAX_WRITE])
def test_write(mount: Served, tree: MemoryTree, flags: int, size: int) -> None:
    nodeid = mount.device.look(b"other")
    data = os.urandom(size)
    answer = mount.device.ask(Opcode.WRITE, writing(data, 3, flags), nodeid)
    assert answer.payload == struct.pack("@II", size, 0)
    assert content(tree.root.children[b"other"]) == (bytes(3) + data if size else b"")


def test_appends_go_to_the_layers_end(mount: Served, tree: MemoryTree) -> None:
    nodeid = mount.device.look(b"file")
    unique = mount.device.send(Opcode.WRITE, writing(b"end", 5, os.O_WRONLY | os.O_APPEND), nodeid)
    answers = {answer.unique: answer for answer in (mount.device.receive_any(), mount.device.receive_any())}
    assert answers[unique].payload == struct.pack("@II", 3, 0)
    assert answers[0].errno == -2, "a notice: the pages and the size that the kernel has are wrong"
    assert struct.unpack_from("@Q", answers[0].payload) == (nodeid,)
    assert content(tree.root.children[b"file"]) == CONTENT + b"end"


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.WRITE, Opcode.FSYNC, Opcode.FALLOCATE, Opcode.OPEN])
def test_only_regular_files(mount: Served, opcode: Opcode) -> None:
    """Opening another kind could stop the loop, or do anything."""
    body = {Opcode.READ: reading(0, 1), Opcode.WRITE: writing(b"x"), Opcode.FSYNC: bytes(16), Opcode.OPEN: bytes(8)}
    answer = mount.device.ask(opcode, body.get(opcode, bytes(32)), mount.device.look(b"fifo"))
    assert answer.errno == errno.EINVAL


def test_truncate_and_allocate(mount: Served, tree: MemoryTree) -> None:
    nodeid, node = mount.device.look(b"file"), tree.root.children[b"file"]
    setting = struct.pack("@IIQQQqqqIIIIIIII", 1 << 3, 0, 0, 5, *(0,) * 12)
    assert mount.device.ask(Opcode.SETATTR, setting, nodeid).errno == 0
    assert content(node) == CONTENT[:5]
    assert mount.device.ask(Opcode.FALLOCATE, struct.pack("@QQQII", 0, 0, 10, 0, 0), nodeid).errno == 0
    assert content(node) == CONTENT[:5] + bytes(5)


# Pure parts


@pytest.fixture
def memfd() -> Iterator[Descriptor]:
    fd = os.memfd_create("content")
    os.write(fd, CONTENT)
    yield Descriptor(fd, lambda fd: None, writable=True)  # pytest holds it too long to let it close itself
    os.close(fd)


def test_short_reads_are_made_whole(memfd: Descriptor, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: read(fd, min(size, 1000), offset))
    assert files._read_fully(memfd, 5000, 7) == CONTENT[7:5007]
    assert files._read_fully(memfd, 2**20, 100) == CONTENT[100:]
    assert files._read_fully(memfd, 10, len(CONTENT)) == b""


def test_another_process_is_not_asked_to_poll(tree: MemoryTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take any time to answer, and the loop would wait."""
    monkeypatch.setattr(tree, "may_block", lambda entry: True)
    monkeypatch.setattr(select, "poll", lambda: pytest.fail("asked"))
    with served(tree) as mount:
        nodeid = mount.device.look(b"other")
        fh = struct.unpack_from("@Q", mount.device.ask(Opcode.OPEN, bytes(8), nodeid).payload)[0]
        assert mount.session.context.handles[fh].descriptor is not None
        answer = mount.device.ask(Opcode.POLL, struct.pack("@QQII", fh, 1, 0, select.POLLIN), nodeid)
        assert (answer.errno, answer.payload) == (0, struct.pack("@II", select.POLLIN, 0))


def test_a_handles_own_descriptor_is_read_once(tree: MemoryTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stream has given is the answer; the next read may wait for ever."""
    monkeypatch.setattr(tree, "is_pseudo", lambda fd: True)
    reads: list[int] = []
    read = os.pread

    def short(fd: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return read(fd, min(size, 100), offset)

    with served(tree) as mount:
        nodeid = mount.device.look(b"file")
        fh = struct.unpack_from("@Q", mount.device.ask(Opcode.OPEN, bytes(8), nodeid).payload)[0]
        monkeypatch.setattr(os, "pread", short)
        body = struct.pack("@QqIIQII", fh, 10, 5000, 0, 0, 0, 0)
        assert mount.device.ask(Opcode.READ, body, nodeid).payload == CONTENT[10:110]
        assert reads == [5000]


@pytest.mark.parametrize(
    ("outcomes", "count"),
    [([10], 10), ([4, 3, 3], 10), ([4, OSError(errno.ENOSPC, "full")], 4), ([4, 0], 4)],
)
def test_short_writes_are_made_whole_or_told(
    memfd: Descriptor, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any], count: int
) -> None:
    seen: list[tuple[bytes, int]] = []

    def write(fd: int, parts: Any, offset: int, flags: int) -> int:
        seen.append((bytes(parts[0]), offset))
        outcome = outcomes[len(seen) - 1]
        if isinstance(outcome, OSError):
            raise outcome
        return int(outcome)

    monkeypatch.setattr(os, "pwritev", write)
    request = requests.Write(0, 100, 0, 0, 0, memoryview(b"0123456789"))
    assert files._write_fully(memfd, request, 0) == count
    assert seen == [(b"0123456789"[offset - 100 :], offset) for _, offset in seen]
    outcomes[:] = [OSError(errno.ENOSPC, "full")]
    seen.clear()
    with pytest.raises(OSError, match="full"):
        files._write_fully(memfd, request, 0)


def test_what_the_kernel_has_collected_is_written_whole_or_not_at_all(
    memfd: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not look how much has been written (fs/fuse/file.c, fuse_writepage_end)."""
    outcomes: Iterator[int | OSError] = iter([4, OSError(errno.ENOSPC, "full")])

    def write(fd: int, parts: Any, offset: int, flags: int) -> int:
        outcome = next(outcomes)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(os, "pwritev", write)
    request = requests.Write(0, 100, int(WriteFlag.CACHE), 0, 0, memoryview(b"0123456789"))
    with pytest.raises(OSError, match="full"):
        files._write_fully(memfd, request, 0)


def copy(source: Descriptor, target: Descriptor, interrupted: set[int], length: int) -> int:
    request = requests.CopyFileRange(0, 16, 2, 0, 32, length, 0)
    return files._copy_range(interrupted, UNIQUE, source, target, request, length)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Size and offsets of each copy_file_range(2), of a thousand bytes at most."""
    seen: list[tuple[int, int, int]] = []
    real = os.copy_file_range
    monkeypatch.setattr(files, "_COPY_STEP", 1000)

    def call(source: int, target: int, count: int, off_in: int, off_out: int) -> int:
        seen.append((count, off_in, off_out))
        return real(source, target, count, off_in, off_out)

    monkeypatch.setattr(os, "copy_file_range", call)
    return seen


@pytest.mark.parametrize("length", [0, 1, 999, 1000, 2500, 10**9])
def test_copy(memfd: Descriptor, steps: list[tuple[int, int, int]], length: int) -> None:
    target = Descriptor(os.memfd_create("target"), os.close)
    expected = CONTENT[16:][:length]
    assert copy(memfd, target, set(), length) == len(expected)
    assert os.pread(target.fd, 1 << 20, 32) == expected
    assert all(size <= 1000 and off_out - off_in == 16 for size, off_in, off_out in steps)


def test_an_interrupted_copy_ends_after_its_step(memfd: Descriptor, steps: list[tuple[int, int, int]]) -> None:
    target = Descriptor(os.memfd_create("target"), os.close)
    assert copy(memfd, target, {UNIQUE}, 5000) == 1000
    assert copy(memfd, target, {UNIQUE + 2}, 5000) == 5000
    assert len(steps) == 6


@pytest.mark.parametrize("after", [0, 2])
def test_an_error_in_a_copy(memfd: Descriptor, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    done: list[int] = []
    monkeypatch.setattr(files, "_COPY_STEP", 1000)

    def call(source: int, target: int, count: int, off_in: int, off_out: int) -> int:
        if len(done) == after:
            raise OSError(errno.ENOSPC, "full")
        done.append(count)
        return count

    monkeypatch.setattr(os, "copy_file_range", call)
    if after:
        assert copy(memfd, memfd, set(), 5000) == 2000
    else:
        with pytest.raises(OSError, match="full"):
            copy(memfd, memfd, set(), 5000)


def test_interrupt_lets_a_copier_go_with_what_has_been_copied(
    tree: MemoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_COPY_STEP", 1000)
    monkeypatch.setattr(underway, "is_being_killed", lambda pid: False)
    begun, go_on = threading.Event(), threading.Event()

    def call(source: int, target: int, count: int, off_in: int, off_out: int) -> int:
        begun.set()
        assert go_on.wait(LIMIT)
        return count

    monkeypatch.setattr(os, "copy_file_range", call)
    with served(tree) as mount:
        file, other = mount.device.look(b"file"), mount.device.look(b"other")
        body = struct.pack("@QqQQqQQ", 0, 0, other, 0, 0, 5000, 0)
        unique = mount.device.send(Opcode.COPY_FILE_RANGE, body, file)
        assert begun.wait(LIMIT)
        context = mount.session.context
        assert context.at_work == {context.inodes.get(other): 1}
        mount.device.send(Opcode.INTERRUPT, struct.pack("@Q", unique))
        wait_until(lambda: unique in context.interrupted, "the interrupt to come in")
        go_on.set()
        assert mount.device.receive() == (unique, 0, struct.pack("@II", 1000, 0))
        assert not context.at_work


def test_a_file_copied_behind_itself_grows_once() -> None:
    file = Descriptor(os.memfd_create("file"), os.close)
    os.write(file.fd, bytes(30))
    assert copy(file, file, set(), 1 << 40) == 14
    assert os.fstat(file.fd).st_size == 46


def test_writes_to_a_device_that_waits_go_to_workers_for_a_while(
    tree: MemoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    writers: list[int] = []
    monkeypatch.setattr(files, "_SLOW_WRITE", -1.0)  # each counts as one that has waited
    write = os.pwritev

    def noted(fd: int, parts: Any, offset: int, flags: int = 0) -> int:
        writers.append(threading.get_ident())
        return write(fd, parts, offset, flags)

    monkeypatch.setattr(os, "pwritev", noted)
    with served(tree) as running:
        nodeid = running.device.look(b"other")
        for _ in range(2):
            running.device.ask(Opcode.WRITE, writing(b"x"), nodeid)
        running.session.context.slow_until = dict.fromkeys(running.session.context.slow_until, 0.0)
        running.device.ask(Opcode.WRITE, writing(b"x"), nodeid)
        loop = running.thread.ident
    assert [writer == loop for writer in writers] == [True, False, True]
