"""INIT: which versions and which flags a session agrees to."""

import errno
import os
import struct

import pytest

from harness.bodies import init, pack
from harness.device import LIMIT, served
from harness.memory import MemoryTree
from shiftfs.wire.abi import InitFlag, Opcode

ALL_OF_7_34 = int(InitFlag.SETXATTR_EXT) * 2 - 1
ALL = 2**63 - 1


def init_answer(payload: bytes) -> tuple[int, int, InitFlag]:
    """Major, minor and flags of the answer."""
    major, minor, _, low = struct.unpack_from("@IIII", payload)
    (high,) = struct.unpack_from("@I", payload, 32)
    return major, minor, InitFlag(low | high << 32)


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
def test_init(memory: MemoryTree, minor: int, size: int, flags: int, taken: InitFlag) -> None:
    with served(memory) as running:
        ready = []
        running.session.on_ready = lambda: ready.append(1)
        answer = running.device.ask(Opcode.INIT, init(7, minor, flags, size), 0)
        assert (answer.errno, len(answer.payload)) == (0, 64)
        major, told, agreed = init_answer(answer.payload)
        assert (major, told) == (7, min(minor, 45))
        assert taken in agreed and int(agreed) & ~flags == 0
        assert InitFlag.WRITEBACK_CACHE not in agreed and InitFlag.POSIX_LOCKS not in agreed
        running.device.expect_nothing()
        assert ready == [1]
        assert running.session.negotiated is not None


def test_owners_may_be_shifted_again_where_all_may_use_the_mount(memory: MemoryTree) -> None:
    """With FUSE_ALLOW_IDMAP the kernel would not tell who asks."""
    for only in (None, frozenset({os.geteuid()})):
        with served(memory, only_uids=only) as running:
            answer = running.device.ask(Opcode.INIT, init(7, 45, int(InitFlag.ALLOW_IDMAP | InitFlag.INIT_EXT)), 0)
            assert (InitFlag.ALLOW_IDMAP in init_answer(answer.payload)[2]) is (only is None)


@pytest.mark.parametrize("extended", [True, False])
def test_setxattr_has_the_form_that_was_negotiated(memory: MemoryTree, extended: bool) -> None:
    with served(memory) as running:
        running.device.ask(Opcode.INIT, init(7, 45, int(InitFlag.SETXATTR_EXT) if extended else 0), 0)
        nodeid = running.device.look(b"file")
        body = pack("IIII" if extended else "II", *(1, 0, 0, 0)[: 4 if extended else 2]) + b"user.a\0v"
        assert running.device.ask(Opcode.SETXATTR, body, nodeid).errno == 0
        assert memory.root.children[b"file"].xattrs[b"user.a"] == b"v"


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99)])
def test_init_of_too_old_a_kernel_ends_the_session_and_says_why(memory: MemoryTree, major: int, minor: int) -> None:
    with served(memory) as running:
        assert running.device.ask(Opcode.INIT, init(major, minor, 0), 0).errno == errno.EPROTO
        running.thread.join(LIMIT)
        assert not running.thread.is_alive()
        assert running.session.failure is not None and f"{major}.{minor}" in running.session.failure


def test_init_of_a_later_major_is_told_ours_and_comes_again(memory: MemoryTree) -> None:
    with served(memory) as running:
        answer = running.device.ask(Opcode.INIT, init(8, 1, ALL) + b"more", 0)
        assert init_answer(answer.payload) == (7, 45, InitFlag(0))
        assert running.session.negotiated is None
        assert init_answer(running.device.ask(Opcode.INIT, init(7, 45, 0), 0).payload)[:2] == (7, 45)


def test_a_second_init_is_refused(memory: MemoryTree) -> None:
    with served(memory) as running:
        running.device.ask(Opcode.INIT, init(7, 45, 0), 0)
        assert running.device.ask(Opcode.INIT, init(7, 5, 0), 0).errno == errno.EINVAL
        running.device.expect_nothing()
