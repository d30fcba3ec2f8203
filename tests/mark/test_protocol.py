"""Packets as they are said and heard: bounded in length, in words and in descriptors, of which none is ever lost."""

import array
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from shiftfs.mark import protocol
from shiftfs.mark.protocol import LONGEST, Malformed, packed, receive

MOST_OF_THE_KERNEL = 253
"""SCM_MAX_FD"""


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        other.setblocking(False)
        yield one, other


def send(connection: socket.socket, text: bytes, descriptors: int = 0) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    rights = array.array("i", [null] * descriptors)
    connection.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])
    os.close(null)


def held() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((protocol.HELLO, protocol.VERSION, b"ro,noatime"), b"hello\x001\x00ro,noatime"),
        ((protocol.OK, b""), b"ok\x00"),
        ((protocol.CONNECTION,), b"connection"),
        ((protocol.SERVING,), b"serving"),
        ((protocol.NO, b"why"), b"no\x00why"),
    ],
)
def test_each_packet(pair: Pair, words: tuple[bytes, ...], text: bytes) -> None:
    one, other = pair
    assert packed(*words) == text
    protocol.send(one, text)
    assert receive(other) == (list(words), [])


@pytest.mark.parametrize("text", [b"\0", b"\0\0\0", b"\xff\xfe", b"x" * LONGEST])
def test_any_bytes_are_words(pair: Pair, text: bytes) -> None:
    one, other = pair
    send(one, text)
    words, rights = receive(other)
    assert (b"\0".join(words), rights) == (text, [])


def test_packets_are_heard_one_by_one(pair: Pair) -> None:
    one, other = pair
    for text in (b"a", b"b\0c"):
        send(one, text)
    assert [receive(other)[0] for _ in range(2)] == [[b"a"], [b"b", b"c"]]
    with pytest.raises(BlockingIOError):
        receive(other)
    one.close()
    assert receive(other) == ([], [])


def test_an_empty_packet_is_the_end_and_its_descriptors_are_told(pair: Pair) -> None:
    one, other = pair
    send(one, b"", 1)
    words, rights = receive(other)
    assert words == [] and len(rights) == 1
    os.close(rights[0])


@pytest.mark.parametrize("descriptors", [0, 1, MOST_OF_THE_KERNEL])
def test_what_is_too_long_is_dropped_with_its_descriptors(pair: Pair, descriptors: int) -> None:
    one, other = pair
    before = held()
    send(one, b"x" * (LONGEST + 1), descriptors)
    with pytest.raises(Malformed):
        receive(other)
    assert held() == before


@pytest.mark.parametrize("descriptors", [1, 4, 8, 9, 10, 11, 64, MOST_OF_THE_KERNEL])
def test_descriptors_are_all_told_or_all_closed(pair: Pair, descriptors: int) -> None:
    """However many fit: none is open that nobody knows."""
    one, other = pair
    before = held()
    send(one, b"x", descriptors)
    try:
        _, rights = receive(other)
    except Malformed:
        rights = []
        assert descriptors > 4
    assert len(rights) in (0, descriptors)
    assert held() == before + len(rights)
    assert not any(map(os.get_inheritable, rights))
    for fd in rights:
        os.close(fd)


def test_where_no_descriptors_are_left_none_is_half_taken(pair: Pair) -> None:
    one, other = pair
    send(one, b"x", 4)
    taken: list[int] = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = held()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 40, limits[1]))
    try:
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            os.close(taken.pop())
            os.close(taken.pop())
        with pytest.raises(Malformed):
            receive(other)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)
    assert held() == before
