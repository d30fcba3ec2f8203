"""The channel over a pair of sockets."""

import errno
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from shiftfs.channel import HEADER_ROOM, Buffers, Channel, Disconnected

MAX_WRITE = 8192
GONE = (errno.ENODEV, errno.ECONNABORTED)


class Ends(NamedTuple):
    kernel: socket.socket
    channel: Channel


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    with ours:
        channel = Channel(theirs.detach(), Buffers(MAX_WRITE))
        yield Ends(ours, channel)
        channel.close()


def failing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("readv", "write", "writev"):
        monkeypatch.setattr(os, name, fail)


def test_requests_come_one_by_one(ends: Ends) -> None:
    assert ends.channel.receive() == 0, "none, and no waiting for one"
    largest = bytes(range(256)) * ((MAX_WRITE + HEADER_ROOM) // 256)
    for message in (b"one", b"another", largest):
        ends.kernel.send(message)
    for message in (b"one", b"another", largest):
        assert ends.channel.receive() == len(message)
        assert ends.channel.buffers.present[: len(message)] == message


def test_a_detached_buffer_is_not_read_into(ends: Ends) -> None:
    ends.kernel.send(b"kept")
    ends.channel.receive()
    kept = ends.channel.buffers.detach()
    ends.kernel.send(b"next")
    ends.channel.receive()
    assert kept[:4] == b"kept"
    assert ends.channel.buffers.present[:4] == b"next"
    assert len(ends.channel.buffers.present) == MAX_WRITE + HEADER_ROOM
    ends.channel.buffers.recycle(kept)
    present = ends.channel.buffers.detach()
    assert ends.channel.buffers.present is kept and present is not kept


def test_few_free_buffers_are_kept(ends: Ends) -> None:
    detached = [ends.channel.buffers.detach() for _ in range(10)]
    assert len({id(buffer) for buffer in detached}) == 10
    for buffer in detached:
        ends.channel.buffers.recycle(buffer)
    again = [ends.channel.buffers.detach() for _ in range(10)]
    assert 1 <= sum(any(new is old for old in detached) for new in again) <= 5


@pytest.mark.parametrize("payload", [b"payload", bytearray(b"payload"), memoryview(b"payload"), b""])
def test_send(ends: Ends, payload: bytes) -> None:
    ends.channel.send(b"header", payload)
    assert ends.kernel.recv(100) == b"header" + payload


def test_notify(ends: Ends) -> None:
    ends.channel.notify(b"notice")
    assert ends.kernel.recv(100) == b"notice"


@pytest.mark.parametrize("number", GONE)
def test_disconnected(ends: Ends, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failing(monkeypatch, number)
    with pytest.raises(Disconnected):
        ends.channel.receive()
    ends.channel.send(b"header", b"payload")
    ends.channel.send(b"header", b"")
    ends.channel.notify(b"notice")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINTR, errno.EIO])
def test_requests_that_went_before_they_were_read(ends: Ends, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failing(monkeypatch, number)
    assert ends.channel.receive() == 0


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY])
def test_notices_of_what_the_kernel_does_not_know(ends: Ends, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failing(monkeypatch, number)
    ends.channel.notify(b"notice")


def test_answers_to_interrupted_requests_are_dropped(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, errno.ENOENT)
    ends.channel.send(b"header", b"payload")


def test_other_errors_are_raised(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, errno.EINVAL)
    for call in (ends.channel.receive, lambda: ends.channel.send(b"h", b"p"), lambda: ends.channel.notify(b"n")):
        with pytest.raises(OSError, match="Invalid"):
            call()


def test_after_close_nothing_is_sent_and_nobody_is_hurt(ends: Ends) -> None:
    ends.channel.close()
    ends.channel.close()
    ends.channel.send(b"header", b"payload")
    ends.channel.send(b"header", b"")
    ends.channel.notify(b"notice")
    assert ends.kernel.recv(100) == b"", "the end, and nothing before it"
