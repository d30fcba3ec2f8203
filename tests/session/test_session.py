"""The session, driven through a device of our own over a tree in memory."""

import errno
import gc
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import wait_until
from harness.device import HEADER, LIMIT, Served, served
from harness.memory import MemoryTree
from shiftfs import session as session_module
from shiftfs.ops import HANDLERS, control
from shiftfs.ops.context import Later
from shiftfs.session import is_being_killed
from shiftfs.tree import Descriptor
from shiftfs.wire import requests
from shiftfs.wire.abi import InitFlag, Opcode

ROOT, ABSENT = 1, 999_999
NO_ANSWER = {Opcode.FORGET, Opcode.BATCH_FORGET}
WITHOUT_NODE = {Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.FLUSH, Opcode.POLL, Opcode.SYNCFS}


def pack(fields: str, *values: int) -> bytes:
    return struct.pack("@" + fields, *values)


def reading(offset: int = 0, size: int = 4096) -> bytes:
    return pack("QqIIQII", 0, offset, size, 0, 0, 0, 0)


def writing(data: bytes, flags: int = os.O_WRONLY) -> bytes:
    return pack("QqIIQII", 0, 0, len(data), 0, 0, flags, 0) + data


def setting(valid: int, *, size: int = 0, mode: int = 0, uid: int = 0, gid: int = 0) -> bytes:
    return pack("IIQQQqqqIIIIIIII", valid, 0, 0, size, 0, 1, 2, 0, 3, 4, 0, mode, 0, uid, gid, 0)


COPYING = pack("QqQQqQQ", 0, 0, 2, 0, 100, 4, 0)
GETFLAGS = pack("QIIQII", 0, 0, 0x80086601, 0, 0, 8)

# For each opcode: whose nodeid, the body, the errno. Nodeids 2 to 4 are those of file, directory and link.
FILE, DIRECTORY, LINK = 2, 3, 4
CALLS: dict[Opcode, tuple[int, bytes, int]] = {
    Opcode.LOOKUP: (ROOT, b"file\0", 0),
    Opcode.FORGET: (FILE, pack("Q", 1), 0),
    Opcode.BATCH_FORGET: (0, pack("IIQQQQ", 2, 0, FILE, 1, ABSENT, 1), 0),
    Opcode.GETATTR: (FILE, pack("IIQ", 0, 0, 0), 0),
    Opcode.STATX: (FILE, pack("IIQII", 0, 0, 0, 0, 0xFFF), 0),
    Opcode.SETATTR: (FILE, setting(1 << 3, size=2), 0),
    Opcode.READLINK: (LINK, b"", 0),
    Opcode.SYMLINK: (ROOT, b"new\0target\0", 0),
    Opcode.MKNOD: (ROOT, pack("IIII", stat.S_IFIFO | 0o644, 0, 0o22, 0) + b"new\0", 0),
    Opcode.MKDIR: (ROOT, pack("II", 0o755, 0o22) + b"new\0", 0),
    Opcode.UNLINK: (ROOT, b"file\0", 0),
    Opcode.RMDIR: (ROOT, b"directory\0", 0),
    Opcode.RENAME: (ROOT, pack("Q", DIRECTORY) + b"file\0new\0", 0),
    Opcode.RENAME2: (ROOT, pack("QII", ROOT, 1, 0) + b"file\0link\0", errno.EEXIST),
    Opcode.LINK: (ROOT, pack("Q", FILE) + b"new\0", 0),
    Opcode.TMPFILE: (ROOT, pack("IIII", os.O_RDWR, 0o600, 0o22, 0) + b"/\0", 0),
    Opcode.OPEN: (FILE, pack("II", os.O_RDWR, 0), 0),
    Opcode.CREATE: (ROOT, pack("IIII", os.O_RDWR, stat.S_IFREG | 0o600, 0o22, 0) + b"new\0", 0),
    Opcode.RELEASE: (FILE, pack("QIIQ", 1, 0, 0, 0), 0),
    Opcode.FLUSH: (FILE, pack("QIIQ", 1, 0, 0, 0), 0),
    Opcode.OPENDIR: (ROOT, pack("II", 0, 0), 0),
    Opcode.RELEASEDIR: (ROOT, pack("QIIQ", 0, 0, 0, 0), 0),
    Opcode.POLL: (FILE, pack("QQII", 1, 7, 0, 5), 0),
    Opcode.READ: (FILE, reading(), 0),
    Opcode.WRITE: (FILE, writing(b"new"), 0),
    Opcode.FSYNC: (FILE, pack("QII", 0, 0, 0), 0),
    Opcode.FALLOCATE: (FILE, pack("QQQII", 0, 0, 100, 0, 0), 0),
    Opcode.LSEEK: (FILE, pack("QQII", 0, 0, os.SEEK_HOLE, 0), 0),
    Opcode.COPY_FILE_RANGE: (FILE, COPYING, 0),
    Opcode.COPY_FILE_RANGE_64: (FILE, COPYING, 0),
    Opcode.READDIR: (ROOT, reading(), 0),
    Opcode.READDIRPLUS: (ROOT, reading(), 0),
    Opcode.FSYNCDIR: (ROOT, pack("QII", 0, 0, 0), 0),
    Opcode.STATFS: (ROOT, b"", 0),
    Opcode.SYNCFS: (ROOT, pack("Q", 0), 0),
    Opcode.SETXATTR: (FILE, pack("II", 3, 0) + b"user.a\0new", 0),
    Opcode.GETXATTR: (FILE, pack("II", 64, 0) + b"user.old\0", 0),
    Opcode.LISTXATTR: (FILE, pack("II", 0, 0), 0),
    Opcode.REMOVEXATTR: (FILE, b"user.a\0", errno.ENODATA),
    Opcode.IOCTL: (LINK, GETFLAGS, errno.ENOTTY),
}  # fmt: skip


@pytest.fixture
def tree() -> Iterator[MemoryTree]:
    made = MemoryTree()
    made.add(made.root, b"file", stat.S_IFREG | 0o644, b"content").xattrs[b"user.old"] = b"value"
    made.add(made.root, b"directory", stat.S_IFDIR | 0o755)
    made.add(made.root, b"link", stat.S_IFLNK | 0o777).target = b"anywhere"
    yield made
    made.close()


@pytest.fixture
def at_work(tree: MemoryTree) -> Iterator[Served]:
    """A session that knows the three by their nodeids."""
    with served(tree) as running:
        assert [running.device.look(name) for name in (b"file", b"directory", b"link")] == [FILE, DIRECTORY, LINK]
        yield running


# INIT

OFFER = 131072


def init(major: int, minor: int, flags: int, size: int = 64) -> bytes:
    low, high = flags & 0xFFFFFFFF, flags >> 32
    return pack("IIIII", major, minor, OFFER, low, high).ljust(64, b"\0")[:size]


def init_answer(payload: bytes) -> tuple[int, int, InitFlag]:
    """Major, minor and flags of the answer."""
    major, minor, _, low = struct.unpack_from("@IIII", payload)
    (high,) = struct.unpack_from("@I", payload, 32)
    return major, minor, InitFlag(low | high << 32)


ALL_OF_7_34 = int(InitFlag.SETXATTR_EXT) * 2 - 1
ALL = 2**63 - 1


@pytest.mark.parametrize(
    ("minor", "size", "flags", "taken"),
    [
        (31, 16, ALL_OF_7_34, InitFlag.SETXATTR_EXT),
        (34, 16, ALL_OF_7_34, InitFlag.SETXATTR_EXT | InitFlag.DO_READDIRPLUS),
        (34, 16, int(InitFlag.ASYNC_READ), InitFlag.ASYNC_READ),
        (45, 64, ALL, InitFlag.HAS_EXPIRE_ONLY | InitFlag.INIT_EXT | InitFlag.SETXATTR_EXT),
        (99, 64, ALL, InitFlag.HAS_EXPIRE_ONLY),
    ],
)
def test_init(tree: MemoryTree, minor: int, size: int, flags: int, taken: InitFlag) -> None:
    with served(tree) as running:
        ready = []
        running.session.on_ready = lambda: ready.append(1)
        answer = running.device.ask(Opcode.INIT, init(7, minor, flags, size), 0)
        assert (answer.errno, len(answer.payload)) == (0, 64)
        major, told, agreed = init_answer(answer.payload)
        assert (major, told) == (7, min(minor, 45))
        assert taken in agreed and int(agreed) & ~flags == 0
        assert InitFlag.WRITEBACK_CACHE not in agreed and InitFlag.ATOMIC_O_TRUNC not in agreed
        running.device.expect_nothing()
        assert ready == [1]
        assert running.session.negotiated is not None


@pytest.mark.parametrize("extended", [True, False])
def test_setxattr_has_the_form_that_was_negotiated(tree: MemoryTree, extended: bool) -> None:
    with served(tree) as running:
        running.device.ask(Opcode.INIT, init(7, 45, int(InitFlag.SETXATTR_EXT) if extended else 0), 0)
        nodeid = running.device.look(b"file")
        body = pack("IIII" if extended else "II", *(1, 0, 0, 0)[: 4 if extended else 2]) + b"user.a\0v"
        assert running.device.ask(Opcode.SETXATTR, body, nodeid).errno == 0
        assert tree.root.children[b"file"].xattrs[b"user.a"] == b"v"


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99)])
def test_init_of_too_old_a_kernel_ends_the_session_and_says_why(tree: MemoryTree, major: int, minor: int) -> None:
    with served(tree) as running:
        assert running.device.ask(Opcode.INIT, init(major, minor, 0), 0).errno == errno.EPROTO
        running.thread.join(LIMIT)
        assert not running.thread.is_alive()
        assert running.session.failure is not None and f"{major}.{minor}" in running.session.failure


def test_init_of_a_later_major_is_told_ours_and_comes_again(tree: MemoryTree) -> None:
    with served(tree) as running:
        answer = running.device.ask(Opcode.INIT, init(8, 1, ALL) + b"more", 0)
        assert init_answer(answer.payload) == (7, 45, InitFlag(0))
        assert running.session.negotiated is None
        assert init_answer(running.device.ask(Opcode.INIT, init(7, 45, 0), 0).payload)[:2] == (7, 45)


def test_a_second_init_is_refused(tree: MemoryTree) -> None:
    with served(tree) as running:
        running.device.ask(Opcode.INIT, init(7, 45, 0), 0)
        assert running.device.ask(Opcode.INIT, init(7, 5, 0), 0).errno == errno.EINVAL
        running.device.expect_nothing()


# Every request


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


def test_forget_lets_go_once_the_count_is_used_up(at_work: Served, tree: MemoryTree) -> None:
    device = at_work.device
    device.look(b"file")  # the second of two
    device.send(Opcode.FORGET, pack("Q", 1), FILE)
    assert device.ask(Opcode.GETATTR, pack("IIQ", 0, 0, 0), FILE).errno == 0
    device.send(Opcode.FORGET, pack("Q", 1), FILE)
    assert device.ask(Opcode.GETATTR, pack("IIQ", 0, 0, 0), FILE).errno == errno.ESTALE
    assert tree.released == [tree.root.children[b"file"]]
    assert device.look(b"file") > LINK, "a nodeid is never given out again"


def test_one_bad_forget_of_a_batch_spares_the_others(at_work: Served, tree: MemoryTree) -> None:
    at_work.device.ask(Opcode.UNLINK, b"file\0")
    tree.failing["attributes"] = OSError(errno.EIO, "the layer is ill")
    at_work.device.send(Opcode.BATCH_FORGET, pack("IIQQQQ", 2, 0, FILE, 1, DIRECTORY, 1))
    at_work.device.expect_nothing()
    assert len(tree.released) == 2


# Errors


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError, StopIteration])
@pytest.mark.parametrize("later", [False, True])
def test_a_bug_is_eio_and_a_line_in_the_log(
    at_work: Served, tree: MemoryTree, kind: type[Exception], later: bool
) -> None:
    tree.failing["sync" if later else "attributes"] = kind("said so")
    opcode, body = (Opcode.SYNCFS, bytes(8)) if later else (Opcode.GETATTR, bytes(16))
    assert at_work.device.ask(opcode, body, ROOT).errno == errno.EIO
    wait_until(lambda: at_work.log, "a line in the log")
    assert opcode.name in at_work.log[0] and kind.__name__ in at_work.log[0]
    del tree.failing["sync" if later else "attributes"]
    assert at_work.device.ask(opcode, body, ROOT).errno == 0


@pytest.mark.parametrize(("raised", "told"), [(errno.ENOSPC, errno.ENOSPC), (524, errno.EIO), (0, errno.EIO)])
@pytest.mark.parametrize("later", [False, True])
def test_an_error_of_the_tree_is_the_callers(
    at_work: Served, tree: MemoryTree, raised: int, told: int, later: bool
) -> None:
    tree.failing["sync" if later else "attributes"] = OSError(raised, "said so")
    opcode, body = (Opcode.SYNCFS, bytes(8)) if later else (Opcode.GETATTR, bytes(16))
    assert at_work.device.ask(opcode, body, ROOT).errno == told
    at_work.device.expect_nothing()
    assert at_work.log == []
    assert at_work.session.counters[opcode].errors == 1


def test_an_answer_that_the_kernel_does_not_take_is_logged(
    at_work: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, parts: Any) -> int:
        raise OSError(errno.EINVAL, "too long for the request")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", refuse)
        at_work.device.send(Opcode.STATFS)
        wait_until(lambda: at_work.log, "a line in the log")
    at_work.device.expect_nothing()


def test_each_request_is_traced(at_work: Served) -> None:
    at_work.device.ask(Opcode.LOOKUP, b"absent\0")
    at_work.device.ask(Opcode.LOOKUP, b"x" * 256 + b"\0", uid=1000, pid=4)
    at_work.device.expect_nothing()
    assert at_work.trace[3].endswith("-> 128 bytes")
    assert "LOOKUP node 1 uid 1000 pid 4 -> ENAMETOOLONG" in at_work.trace[4]


def test_allow_root_admits_root_and_the_owner_alone(tree: MemoryTree) -> None:
    with served(tree, only_uids=frozenset({0, 500, os.geteuid()})) as running:
        tried = [running.device.ask(Opcode.STATFS, uid=uid).errno for uid in (0, 500, 1000, 2**32 - 1)]
        assert tried == [0, 0, errno.EACCES, errno.EACCES]
        nodeid = running.device.look(b"file")
        running.device.send(Opcode.FORGET, pack("Q", 1), nodeid, uid=1000)
        running.device.expect_nothing()
        assert len(tree.released) == 1, "what has no answer is never refused"


# Handlers that wait


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
    monkeypatch.setattr(session_module, "is_being_killed", lambda pid: False)
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
    monkeypatch.setattr(session_module, "is_being_killed", lambda pid: pid == 4242)
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
    """Not even in a cycle, since collections are rare in a mount (cli._tune_interpreter)."""
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
    at_work: Served, tree: MemoryTree, monkeypatch: pytest.MonkeyPatch
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
    assert os.pread(tree.root.children[b"file"].content.fd, 100, 0) == b"the data"


def test_is_being_killed() -> None:
    assert not is_being_killed(os.getpid())
    assert not is_being_killed(threading.get_native_id())
    assert not is_being_killed(0), "outside our pid namespace: nothing is known"
    assert is_being_killed(2**22 + 1), "gone"


# The end


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED])
def test_disconnect_ends_it(at_work: Served, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    at_work.device.unplug(monkeypatch, number)
    assert at_work.ended.wait(LIMIT)
    at_work.thread.join(LIMIT)
    assert at_work.failure is None


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


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINTR, errno.EIO, errno.EAGAIN])
def test_a_request_that_could_not_be_read_is_none(
    at_work: Served, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tried = threading.Event()
    read = os.readv

    def fail_once(fd: int, room: Any) -> int:
        if tried.is_set():
            return read(fd, room)
        tried.set()
        raise OSError(number, "not now")

    monkeypatch.setattr(os, "readv", fail_once)
    at_work.device.expect_nothing()
    assert tried.is_set()


# Any bytes

HEADERS = st.builds(
    lambda opcode, nodeid, uid, gid, body: (
        HEADER.pack(40 + len(body), opcode, 7, nodeid, uid, gid, 1, 0, 0) + body
    ),
    st.one_of(st.sampled_from(sorted(requests.DECODERS)), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 6), st.integers(0, 2**64 - 1)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=200),
)
NUMBERS = st.one_of(st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))


@st.composite
def plausible(draw: st.DrawFn) -> bytes:
    """A body of the right length for its opcode, with any numbers in it."""
    opcode = draw(st.sampled_from(sorted(CALLS)))
    _, body, _ = CALLS[opcode]
    words = len(body) // 8
    changed = bytearray(body)
    for _ in range(draw(st.integers(0, 3)) if words else 0):
        struct.pack_into("@Q", changed, 8 * draw(st.integers(0, words - 1)), draw(NUMBERS))
    nodeid = draw(st.integers(1, 5))
    return HEADER.pack(40 + len(changed), opcode, 9, nodeid, *draw(st.tuples(IDS, IDS)), 0, 0, 0) + bytes(changed)


IDS = st.sampled_from([0, 1000, 2**32 - 1])
QUIET = settings(
    max_examples=1500, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@QUIET
@given(message=st.one_of(st.binary(min_size=1, max_size=200), HEADERS, plausible()))
def test_no_bytes_end_it(at_work: Served, message: bytes) -> None:
    device = at_work.device
    if at_work.session.negotiated is None:
        device.ask(Opcode.INIT, init(7, 45, ALL), 0)
    device.put(message)
    unique = device.send(Opcode.LOOKUP, b"nowhere\0")
    end = time.monotonic() + LIMIT
    while (answer := device.receive_any()).unique != unique:
        # An append may be followed by a notice, which has its code in the errno's place.
        assert answer.unique == 0 or 0 <= answer.errno < 512
        assert time.monotonic() < end
    assert at_work.thread.is_alive()


def test_report_is_asked_for_in_parts(tree: MemoryTree) -> None:
    """control.py through the session; the rest of it is in test_control.py."""
    text = os.urandom(2 * control.REPORT_SIZE)
    with served(tree, report=lambda name: text) as running:
        found = b""
        while len(found) < len(text):
            argument = control.REPORT_IN.pack(0, len(found)).ljust(control.REPORT_SIZE, b"\0")
            body = pack("QIIQII", 0, 0, control.REPORT, 0, len(argument), control.REPORT_SIZE) + argument
            answer = running.device.ask(Opcode.IOCTL, body)
            assert answer.errno == 0
            assert len(answer.payload) <= 16 + control.REPORT_SIZE
            assert control.REPORT_OUT.unpack_from(answer.payload, 16) == (len(text),)
            found += answer.payload[16 + control.REPORT_OUT.size :]
        assert found == text
