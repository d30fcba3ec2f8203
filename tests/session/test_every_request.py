"""Each opcode as the session takes it: well formed, malformed, about nothing known, not served, without an answer."""

import errno

import pytest

from harness.bodies import ABSENT, CALLS, DIRECTORY, FILE, LINK, LOCKS, ROOT, pack
from harness.device import HEADER, Served
from harness.memory import MemoryTree
from shiftfs.ops import HANDLERS
from shiftfs.wire.abi import Opcode

NO_ANSWER = {Opcode.FORGET, Opcode.BATCH_FORGET}
WITHOUT_NODE = {Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.FLUSH, Opcode.POLL, Opcode.SYNCFS, *LOCKS}


def test_calls_cover_the_table() -> None:
    assert set(CALLS) == set(HANDLERS)


@pytest.mark.parametrize("opcode", CALLS, ids=lambda opcode: opcode.name)
def test_is_answered(at_work: Served, opcode: Opcode) -> None:
    nodeid, body, number = CALLS[opcode]
    if opcode in NO_ANSWER:
        at_work.device.send(opcode, body, nodeid)
        at_work.device.expect_nothing()
    else:
        assert at_work.device.ask(opcode, body, nodeid).errno == number
        at_work.device.expect_nothing()
    assert at_work.log == []
    assert at_work.session.waiting == 0
    assert opcode in at_work.session.counters


@pytest.mark.parametrize("opcode", sorted(set(CALLS) - NO_ANSWER - WITHOUT_NODE), ids=lambda opcode: opcode.name)
def test_unknown_nodeid(at_work: Served, opcode: Opcode) -> None:
    assert at_work.device.ask(opcode, CALLS[opcode][1], ABSENT).errno == errno.ESTALE
    assert at_work.log == []


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.LINK, pack("Q", ABSENT) + b"new\0"),
        (Opcode.RENAME, pack("Q", ABSENT) + b"file\0new\0"),
        (Opcode.COPY_FILE_RANGE, pack("QqQQqQQ", 0, 0, ABSENT, 0, 0, 4, 0)),
    ],
)
def test_unknown_second_nodeid(at_work: Served, opcode: Opcode, body: bytes) -> None:
    nodeid = FILE if opcode == Opcode.COPY_FILE_RANGE else ROOT
    assert at_work.device.ask(opcode, body, nodeid).errno == errno.ESTALE


@pytest.mark.parametrize("opcode", sorted(set(CALLS) - NO_ANSWER), ids=lambda opcode: opcode.name)
def test_malformed(at_work: Served, opcode: Opcode) -> None:
    """A body one byte too short, or that is not empty where it should be."""
    body = CALLS[opcode][1]
    assert at_work.device.ask(opcode, body[:-1] if body else b"x").errno == errno.EINVAL


@pytest.mark.parametrize("opcode", [7, 19, 48, 49, 54, 4096, 2**32 - 1, Opcode.ACCESS, Opcode.SETLK, Opcode.BMAP])
def test_not_served(at_work: Served, opcode: int) -> None:
    sizes: dict[int, int] = {Opcode.ACCESS: 8, Opcode.SETLK: 48, Opcode.BMAP: 16}
    assert at_work.device.ask(opcode, bytes(sizes.get(opcode, 0))).errno == errno.ENOSYS


@pytest.mark.parametrize("opcode", [Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY])
@pytest.mark.parametrize("body", [b"", b"x", bytes(8), bytes(16)])
def test_gets_no_answer_not_even_an_error(at_work: Served, opcode: Opcode, body: bytes) -> None:
    at_work.device.send(opcode, body)
    at_work.device.expect_nothing()


@pytest.mark.parametrize("length", [0, 39, 41, 2**32 - 1])
def test_length_that_is_not_the_messages(at_work: Served, length: int) -> None:
    at_work.device.put(HEADER.pack(length, Opcode.STATFS, 77, ROOT, 0, 0, 0, 0, 0))
    answer = at_work.device.receive()
    assert (answer.unique, answer.errno) == (77, errno.EINVAL)
    assert "not understood" in at_work.log[0]


def test_message_shorter_than_a_header_is_logged(at_work: Served) -> None:
    at_work.device.put(b"short")
    at_work.device.expect_nothing()
    assert "not understood" in at_work.log[0]


def test_extensions_are_cut_off(at_work: Served) -> None:
    at_work.device.put(HEADER.pack(61, Opcode.LOOKUP, 78, ROOT, 0, 0, 0, 2, 0) + b"file\0" + bytes(16))
    assert at_work.device.receive()[:2] == (78, 0)


def test_destroy_is_answered(at_work: Served) -> None:
    assert at_work.device.ask(Opcode.DESTROY).errno == 0


def test_forget_lets_go_once_the_count_is_used_up(at_work: Served, memory: MemoryTree) -> None:
    device = at_work.device
    device.look(b"file")  # the second of two
    device.send(Opcode.FORGET, pack("Q", 1), FILE)
    assert device.ask(Opcode.GETATTR, pack("IIQ", 0, 0, 0), FILE).errno == 0
    device.send(Opcode.FORGET, pack("Q", 1), FILE)
    assert device.ask(Opcode.GETATTR, pack("IIQ", 0, 0, 0), FILE).errno == errno.ESTALE
    assert memory.released == [memory.root.children[b"file"]]
    assert device.look(b"file") > LINK, "a nodeid is never given out again"


def test_one_bad_forget_of_a_batch_spares_the_others(at_work: Served, memory: MemoryTree) -> None:
    at_work.device.ask(Opcode.UNLINK, b"file\0")
    memory.failing["attributes"] = OSError(errno.EIO, "the layer is ill")
    at_work.device.send(Opcode.BATCH_FORGET, pack("IIQQQQ", 2, 0, FILE, 1, DIRECTORY, 1))
    at_work.device.expect_nothing()
    assert len(memory.released) == 2
