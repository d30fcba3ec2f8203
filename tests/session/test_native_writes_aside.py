"""Writes that would hold up the loop are done by threads, without the handlers: the same answers, in their order."""

import errno
import gc
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.bodies import reading
from harness.device import LIMIT, MAX_WRITE, Served
from harness.twins import following
from shiftfs import native
from shiftfs.layer import Layer
from shiftfs.shift.idmap import IDENTITY
from shiftfs.source import SourceTree
from shiftfs.wire.abi import Opcode

pytestmark = pytest.mark.skipif(native.Lane is None, reason="nothing is compiled: workers write")


def writing(data: bytes, offset: int = 0) -> bytes:
    return struct.pack("=QqIIQII", 0, offset, len(data), 0, 0, os.O_WRONLY, 0) + data


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "layer" / "file"
    path.parent.mkdir()
    path.write_bytes(b"before")
    return path


@pytest.fixture
def served(file: Path) -> Iterator[Served]:
    with following(SourceTree(Layer(os.fsencode(file.parent)), 100), IDENTITY) as made:
        yield made
    vars(made).clear()  # pytest holds it longer than it may hold descriptors
    gc.collect()


@pytest.fixture
def nodeid(served: Served) -> int:
    """The file, which is open for reading and writing. Its device is busy from here on."""
    found = served.device.look(b"file")
    assert served.device.ask(Opcode.WRITE, writing(b"B"), found).errno == 0
    context = served.session.context
    context.slow_until[context.inodes.get(found).key[0]] = time.monotonic() + 1000
    return found


@pytest.fixture
def handled(served: Served, nodeid: int) -> Iterator[list[int]]:
    """The writes that the handlers get: none, at the end."""
    got: list[int] = []
    handlers = served.session._handlers
    write = handlers[Opcode.WRITE]

    def handler(ctx: Any, header: Any, request: Any) -> Any:
        got.append(header.unique)
        return write(ctx, header, request)

    served.session._handlers = {**handlers, Opcode.WRITE: handler}
    yield got
    assert got == []


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("size", [1, 4096, MAX_WRITE])
def test_what_is_written_to_a_busy_disk(served: Served, nodeid: int, handled: list[int], file: Path, size: int) -> None:
    for number in range(8):
        data = bytes([65 + number]) * size
        answer = served.device.ask(Opcode.WRITE, writing(data, number * size), nodeid)
        assert (answer.errno, answer.payload) == (0, struct.pack("=II", size, 0))
    assert file.read_bytes()[: 8 * size] == b"".join(bytes([65 + number]) * size for number in range(8))
    assert served.device.ask(Opcode.READ, reading(7 * size, size), nodeid).payload == b"H" * size
    wait_for(lambda: served.session.counters[Opcode.WRITE].count == 9)  # counted once it has been answered
    assert served.session.counters[Opcode.WRITE].errors == 0


def test_writes_to_one_file_are_done_one_after_another(
    served: Served, nodeid: int, handled: list[int], file: Path
) -> None:
    """Each overwrites the one before, though none waits for its answer."""
    uniques = [served.device.send(Opcode.WRITE, writing(bytes([number]) * 4096), nodeid) for number in range(60)]
    assert [served.device.receive().unique for _ in uniques] == uniques
    assert file.read_bytes() == bytes([59]) * 4096


def test_errors_are_answered(served: Served, nodeid: int, handled: list[int]) -> None:
    assert served.device.ask(Opcode.WRITE, writing(b"x", 1 << 62), nodeid).errno == errno.EFBIG
    wait_for(lambda: served.session.counters[Opcode.WRITE].errors == 1)


def test_others_are_served_while_the_inode_is_held(served: Served, nodeid: int, handled: list[int], file: Path) -> None:
    """By somebody who writes much to it on the layer. What its write has held is taken back with a later request."""
    context: Any = served.session.context
    much, size = bytes(1 << 28), file.stat().st_size
    other = os.open(file, os.O_WRONLY)
    thread = threading.Thread(target=lambda: os.pwrite(other, much, 4096))
    thread.start()
    try:
        wait_for(lambda: file.stat().st_size > max(size, 4096))  # it is at it, and holds the inode
        unique = served.device.send(Opcode.WRITE, writing(b"after"), nodeid)
        assert served.device.ask(Opcode.GETATTR, bytes(16)).errno == 0
        assert served.device.receive().unique == unique
    finally:
        thread.join(LIMIT)
        os.close(other)
    assert file.read_bytes()[:5] == b"after"
    wait_for(lambda: served.device.ask(Opcode.GETATTR, bytes(16)).errno == 0 and not context.at_work)
