"""Handlers that wait for workers: answers as they come, interrupts, and what is held meanwhile."""

import errno
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness import wait_until
from harness.bodies import FILE, pack, writing
from harness.device import LIMIT, Served
from harness.memory import MemoryTree
from shiftfs import underway
from shiftfs.ops import HANDLERS
from shiftfs.ops.context import Later
from shiftfs.tree import Descriptor
from shiftfs.underway import is_being_killed
from shiftfs.wire.abi import Opcode


class Gate:
    """A call for a worker that ends when told."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._open = threading.Event()
        self.outcome: object = None

    def __call__(self) -> object:
        self.begun.set()
        assert self._open.wait(LIMIT)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def open(self, outcome: object = None) -> None:
        self.outcome = outcome
        self._open.set()


Handler = Callable[[Any, Any, Any], Any]


@pytest.fixture
def serve_readlink(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], None]:
    """Puts a handler in the place of READLINK's."""
    return lambda handler: monkeypatch.setitem(HANDLERS, Opcode.READLINK, handler)


@pytest.fixture
def gates(serve_readlink: Callable[[Handler], None]) -> Iterator[dict[int, Gate]]:
    """One per nodeid; READLINK answers with what its gate is opened with."""
    made: dict[int, Gate] = {nodeid: Gate() for nodeid in range(10)}

    def handler(ctx: Any, header: Any, request: Any) -> Later:
        answer: bytes = yield made[header.nodeid]
        return answer

    serve_readlink(handler)
    yield made
    for gate in made.values():
        gate.open(b"")


def test_answers_come_as_calls_end(at_work: Served, gates: dict[int, Gate]) -> None:
    asked = {nodeid: at_work.device.send(Opcode.READLINK, b"", nodeid) for nodeid in (1, 2, 3)}
    for nodeid in asked:
        assert gates[nodeid].begun.wait(LIMIT)
    at_work.device.expect_nothing()
    assert at_work.session.waiting == 3
    for nodeid in (2, 3, 1):
        gates[nodeid].open(b"%d" % nodeid)
        assert at_work.device.receive() == (asked[nodeid], 0, b"%d" % nodeid)
    assert at_work.session.waiting == 0


def test_results_and_errors_go_back_into_the_handler(
    at_work: Served, serve_readlink: Callable[[Handler], None]
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "full")

    def handler(ctx: Any, header: Any, request: Any) -> Later:
        result = yield lambda: 7
        try:
            yield fail
        except OSError as error:
            result += error.errno
        yield fail if header.nodeid == 2 else lambda: None
        return b"%d" % result

    serve_readlink(handler)
    assert at_work.device.ask(Opcode.READLINK).payload == b"%d" % (7 + errno.ENOSPC)
    assert at_work.device.ask(Opcode.READLINK, nodeid=2).errno == errno.ENOSPC
    assert at_work.log == []


def test_interrupt_leaves_a_living_caller_waiting(
    at_work: Served, gates: dict[int, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underway, "is_being_killed", lambda pid: False)
    unique = at_work.device.send(Opcode.READLINK)
    at_work.device.send(Opcode.INTERRUPT, pack("Q", unique))
    at_work.device.expect_nothing()
    assert at_work.session.context.interrupted == {unique}
    gates[1].open(b"answer")
    assert at_work.device.receive() == (unique, 0, b"answer")
    assert at_work.session.context.interrupted == set()


@pytest.mark.parametrize("outcome", [b"answer", OSError(errno.EIO, "late")])
def test_a_killed_caller_is_let_go_and_the_outcome_dropped(
    at_work: Served, gates: dict[int, Gate], monkeypatch: pytest.MonkeyPatch, outcome: object
) -> None:
    monkeypatch.setattr(underway, "is_being_killed", lambda pid: pid == 4242)
    unique = at_work.device.send(Opcode.READLINK, pid=4242)
    assert gates[1].begun.wait(LIMIT)
    at_work.device.send(Opcode.INTERRUPT, pack("Q", unique))
    assert at_work.device.receive()[:2] == (unique, errno.EINTR)
    gates[1].open(outcome)
    wait_until(lambda: not at_work.session.context.interrupted, "the outcome to come in")
    at_work.device.expect_nothing()
    assert at_work.log == []


@pytest.mark.parametrize("unique", [0, 2, 10**9])
def test_interrupt_of_nothing_that_waits(at_work: Served, unique: int) -> None:
    at_work.device.send(Opcode.INTERRUPT, pack("Q", unique))
    at_work.device.expect_nothing()
    assert at_work.session.context.interrupted == set()


def test_a_failed_call_holds_nothing(at_work: Served, serve_readlink: Callable[[Handler], None]) -> None:
    """Not even in a cycle, since collections are rare in a mount (interpreter.py)."""
    closed: list[int] = []

    def fail(held: Descriptor) -> None:
        raise OSError(errno.EIO, "of the layer")

    def handler(ctx: Any, header: Any, request: Any) -> Later:
        held = Descriptor(12345, closed.append)
        yield lambda: fail(held)
        return b""

    serve_readlink(handler)
    gc.disable()
    try:
        assert at_work.device.ask(Opcode.READLINK).errno == errno.EIO
        wait_until(lambda: closed == [12345], "the descriptor to be let go")
    finally:
        gc.enable()


def test_a_write_that_waits_keeps_its_buffer(
    at_work: Served, memory: MemoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    write = os.pwritev

    def slow(*arguments: Any) -> int:
        gate()
        return write(*arguments)

    monkeypatch.setattr(os, "pwritev", slow)
    unique = at_work.device.send(Opcode.WRITE, writing(b"the data", os.O_WRONLY | os.O_SYNC), FILE)
    assert gate.begun.wait(LIMIT)
    at_work.device.ask(Opcode.LOOKUP, b"something else\0")
    gate.open()
    assert at_work.device.receive()[:2] == (unique, 0)
    assert os.pread(memory.root.children[b"file"].content.fd, 100, 0) == b"the data"


def test_an_outcome_after_the_end_is_dropped(
    at_work: Served, gates: dict[int, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work.session.on_end = at_work.ended.set  # the loop goes on
    at_work.device.send(Opcode.READLINK)
    assert gates[1].begun.wait(LIMIT)
    at_work.device.unplug(monkeypatch)
    assert at_work.ended.wait(LIMIT)
    gates[1].open(b"late")
    wait_until(lambda: at_work.session.waiting == 0, "the outcome to come in")
    assert at_work.thread.is_alive() and at_work.log == []


def test_is_being_killed() -> None:
    assert not is_being_killed(os.getpid())
    assert not is_being_killed(threading.get_native_id())
    assert not is_being_killed(0), "outside our pid namespace: nothing is known"
    assert is_being_killed(2**22 + 1), "gone"
