"""What goes wrong, in a handler, in the tree and on the device; and who is refused."""

import errno
import os
import threading
from typing import Any

import pytest

from harness import wait_until
from harness.bodies import ROOT, pack
from harness.device import LIMIT, Served, served
from harness.memory import MemoryTree
from shiftfs.wire.abi import Opcode


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError, StopIteration])
@pytest.mark.parametrize("later", [False, True])
def test_a_bug_is_eio_and_a_line_in_the_log(
    at_work: Served, memory: MemoryTree, kind: type[Exception], later: bool
) -> None:
    memory.failing["sync" if later else "attributes"] = kind("said so")
    opcode, body = (Opcode.SYNCFS, bytes(8)) if later else (Opcode.GETATTR, bytes(16))
    assert at_work.device.ask(opcode, body, ROOT).errno == errno.EIO
    wait_until(lambda: at_work.log, "a line in the log")
    assert opcode.name in at_work.log[0] and kind.__name__ in at_work.log[0]
    del memory.failing["sync" if later else "attributes"]
    assert at_work.device.ask(opcode, body, ROOT).errno == 0


@pytest.mark.parametrize(("raised", "told"), [(errno.ENOSPC, errno.ENOSPC), (524, errno.EIO), (0, errno.EIO)])
@pytest.mark.parametrize("later", [False, True])
def test_an_error_of_the_tree_is_the_callers(
    at_work: Served, memory: MemoryTree, raised: int, told: int, later: bool
) -> None:
    memory.failing["sync" if later else "attributes"] = OSError(raised, "said so")
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


def test_allow_root_admits_root_and_the_owner_alone(memory: MemoryTree) -> None:
    with served(memory, only_uids=frozenset({0, 500, os.geteuid()})) as running:
        tried = [running.device.ask(Opcode.STATFS, uid=uid).errno for uid in (0, 500, 1000, 2**32 - 1)]
        assert tried == [0, 0, errno.EACCES, errno.EACCES]
        nodeid = running.device.look(b"file")
        running.device.send(Opcode.FORGET, pack("Q", 1), nodeid, uid=1000)
        running.device.expect_nothing()
        assert len(memory.released) == 1, "what has no answer is never refused"


# The device


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED])
def test_disconnect_ends_it(at_work: Served, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    at_work.device.unplug(monkeypatch, number)
    assert at_work.ended.wait(LIMIT)
    at_work.thread.join(LIMIT)
    assert at_work.failure is None


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
