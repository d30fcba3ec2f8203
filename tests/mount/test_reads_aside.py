"""Reads that wait natively: a session without a mount of its own, over a layer that does not answer for a while."""

import errno
import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import wait_until
from harness.bodies import pack, reading
from harness.device import LIMIT, Served
from harness.mounts import stoppable_bindfs
from harness.twins import following
from shiftfs import underway
from shiftfs.layer import Layer
from shiftfs.shift.idmap import IDENTITY
from shiftfs.source import SourceTree
from shiftfs.tree import Plain
from shiftfs.wire.abi import Opcode

STEP = 4096
CONTENT = bytes(range(256)) * (1 << 14)
"""4 MiB."""
MOST_THREADS = 64


@pytest.fixture
def server(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """bindfs in the source, which can be stopped: reads from there then wait, as on a lost server."""
    (tmp_path / "beneath").mkdir()
    (tmp_path / "beneath" / "slow").write_bytes(CONTENT)
    (tmp_path / "source" / "server").mkdir(parents=True)
    (tmp_path / "source" / "fast").write_bytes(b"fast")
    at = tmp_path / "source" / "server"
    with stoppable_bindfs(tmp_path / "beneath", at, "-o", "direct_io") as process:
        yield process


class Local(SourceTree):
    """One that takes the device of a file for a local filesystem's."""

    device = 0

    def plain(self) -> Plain | None:
        plain = super().plain()
        assert plain is not None
        return plain._replace(devices=[*plain.devices, (self.device, 0)])


@pytest.fixture
def served(server: "subprocess.Popen[bytes]", tmp_path: Path) -> Iterator[Served]:
    layer = Layer(os.fsencode(tmp_path / "source"))
    tree = Local(layer, 1000)
    tree.device = layer.look(layer.root.fd, b"server")[1].device
    with following(tree, IDENTITY) as made:
        yield made
        server.send_signal(signal.SIGCONT)
        wait_until(lambda: made.session.waiting == 0, "all reads to end", LIMIT)
    vars(made).clear()  # pytest holds it longer than it may hold descriptors
    del layer, tree
    gc.collect()


@pytest.fixture
def slow(served: Served, server: "subprocess.Popen[bytes]") -> int:
    """A file that is open, and whose layer does not answer."""
    nodeid = served.device.look(b"slow", served.device.look(b"server"))
    assert served.device.ask(Opcode.READ, reading(0, 10), nodeid).payload == CONTENT[:10]
    server.send_signal(signal.SIGSTOP)
    return nodeid


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The processes that are being killed."""
    pids: set[int] = set()
    monkeypatch.setattr(underway, "is_being_killed", pids.__contains__)
    return pids


def await_reads(served: Served, count: int) -> None:
    wait_until(lambda: served.session.waiting == count, "the reads to wait", LIMIT)


def await_counts(served: Served, count: int, errors: int) -> None:
    """A thread counts what it has answered."""

    def counted() -> tuple[int, int]:
        counter = served.session.counters[Opcode.READ]
        return counter.count, counter.errors

    wait_until(lambda: counted() == (count, errors), "reads to be counted", LIMIT)


def test_reads_wait_for_their_layer_and_delay_nobody(
    served: Served, slow: int, server: "subprocess.Popen[bytes]"
) -> None:
    device = served.device
    asked = {device.send(Opcode.READ, reading(number * STEP, STEP), slow): number for number in range(8)}
    await_reads(served, len(asked))
    assert not served.session.underway._waiting, "none is a worker's"
    fast = device.look(b"fast")
    assert device.ask(Opcode.READ, reading(), fast).payload == b"fast"
    server.send_signal(signal.SIGCONT)
    for _ in range(len(asked)):
        unique, error, payload = device.receive()
        start = asked.pop(unique) * STEP
        assert (error, payload) == (0, CONTENT[start : start + STEP])
    assert asked == {} and served.session.waiting == 0
    await_counts(served, 10, 0)
    assert served.session.counters[Opcode.READ].longest > 0


def test_a_read_ends_with_the_file(served: Served, slow: int, server: "subprocess.Popen[bytes]") -> None:
    server.send_signal(signal.SIGCONT)
    size = len(CONTENT)
    for offset, count in ((size - 10, 10), (size, 0), (size + STEP, 0)):
        assert len(served.device.ask(Opcode.READ, reading(offset, STEP), slow).payload) == count


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of closing what has failed
def test_a_read_that_fails_says_why(served: Served, slow: int, server: "subprocess.Popen[bytes]") -> None:
    unique = served.device.send(Opcode.READ, reading(), slow)
    await_reads(served, 1)
    server.kill()
    answer = served.device.receive()
    assert answer.unique == unique and answer.errno in (errno.ECONNABORTED, errno.ENOTCONN)
    await_counts(served, 2, 1)


def test_a_killed_caller_is_let_go(
    served: Served, slow: int, server: "subprocess.Popen[bytes]", killed: set[int]
) -> None:
    killed.add(4242)
    unique = served.device.send(Opcode.READ, reading(), slow, pid=4242)
    await_reads(served, 1)
    served.device.send(Opcode.INTERRUPT, pack("Q", unique))
    assert served.device.receive()[:2] == (unique, errno.EINTR)
    assert served.session.waiting == 0
    await_counts(served, 2, 1)
    server.send_signal(signal.SIGCONT)
    assert served.device.ask(Opcode.READ, reading(0, 1), slow).payload == CONTENT[:1]
    served.device.expect_nothing()
    await_counts(served, 3, 1)


def test_a_living_caller_waits_on_and_may_be_killed_later(
    served: Served, slow: int, server: "subprocess.Popen[bytes]", killed: set[int]
) -> None:
    unique = served.device.send(Opcode.READ, reading(0, 10), slow, pid=4242)
    other = served.device.send(Opcode.READ, reading(0, 10), slow, pid=4242)
    await_reads(served, 2)
    served.device.send(Opcode.INTERRUPT, pack("Q", unique))
    served.device.expect_nothing()
    assert served.session.underway.look_for_killed()
    killed.add(4242)
    assert not served.session.underway.look_for_killed()
    assert served.device.receive()[:2] == (unique, errno.EINTR)
    server.send_signal(signal.SIGCONT)
    assert served.device.receive() == (other, 0, CONTENT[:10])


def test_an_interrupt_of_what_has_been_answered(served: Served, slow: int, killed: set[int]) -> None:
    killed.add(1)
    served.device.send(Opcode.INTERRUPT, pack("Q", 2))
    served.device.expect_nothing()


def test_more_reads_than_threads_wait_for_workers(served: Served, slow: int, server: "subprocess.Popen[bytes]") -> None:
    count = MOST_THREADS + 6
    asked = {served.device.send(Opcode.READ, reading(0, 10), slow) for _ in range(count)}
    await_reads(served, count)
    assert len(served.session.underway._waiting) == 6 and served.session.reads.threads == MOST_THREADS
    assert served.device.ask(Opcode.READ, reading(), served.device.look(b"fast")).payload == b"fast"
    server.send_signal(signal.SIGCONT)
    assert {served.device.receive().unique for _ in range(count)} == asked


def test_threads_end_when_there_is_nothing_to_do(served: Served, slow: int, server: "subprocess.Popen[bytes]") -> None:
    server.send_signal(signal.SIGCONT)
    served.device.ask(Opcode.READ, reading(), slow)
    assert served.session.reads.threads > 0
    wait_until(lambda: served.session.reads.threads == 0, "the threads to end", LIMIT)
    served.device.ask(Opcode.READ, reading(), slow)
    assert served.session.reads.threads == 1


def test_a_read_outlives_the_lane_that_it_came_by(served: Served, slow: int, server: "subprocess.Popen[bytes]") -> None:
    unique = served.device.send(Opcode.READ, reading(0, 10), slow)
    await_reads(served, 1)
    before = served.session._lane
    served.session.wrap(dict)
    assert served.session._lane is not before
    del before
    server.send_signal(signal.SIGCONT)
    assert served.device.receive() == (unique, 0, CONTENT[:10])


def test_nothing_is_written_to_a_connection_that_has_ended(
    served: Served, slow: int, server: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    """Its number may be another file's by then."""
    session: Any = served.session
    number = served.device.fd
    for _ in range(3):
        served.device.send(Opcode.READ, reading(0, 10), slow)
    await_reads(served, 3)
    ended: Callable[[], None] = session.end
    session.submit(lambda: None, lambda result, error: ended())
    assert served.ended.wait(LIMIT)
    file = os.open(tmp_path / "another", os.O_RDWR | os.O_CREAT)
    try:
        os.dup2(file, number)
        server.send_signal(signal.SIGCONT)
        await_reads(served, 0)
        assert os.fstat(file).st_size == 0
    finally:
        for fd in {number, file}:
            os.close(fd)
