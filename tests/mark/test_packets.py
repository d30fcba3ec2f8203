"""What is said at a mark's socket, step by step, and what comes with it: nobody is waited for, and nothing kept."""

import fcntl
import os
import socket
import struct
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mark.doors import HELLO, LIMIT, OTHER, USER, door, has_closed_all, held, mounts, say, somebody

from harness import wait_until
from shiftfs.mark import broker
from shiftfs.mark.protocol import LONGEST, OPTIONS

pytestmark = pytest.mark.root

_SYNC_INIT = 0xE503


def test_the_steps(path: Path, connection: int) -> None:
    with door(path) as at, somebody(path) as user, user.comes() as asking:
        assert say(asking, b"hello\x001\x00ro") == b"ok\x00ro"
        assert say(asking, b"connection", [connection]) == b"serving"
        assert asking.recv(1) == b""
        served = at.served[0]
        assert served.options == {b"ro"} and served.owner.uid == USER
        assert (served.owner.uids.real[0], served.owner.gids.real[0]) == (USER, USER)
        assert not os.get_inheritable(served.fd)


def test_what_the_mark_insists_on_is_not_asked_for(path: Path, connection: int) -> None:
    with door(path, options=[b"ro"]) as at, somebody(path) as user, user.comes() as asking:
        assert say(asking, HELLO) == b"ok\x00ro"
        assert say(asking, b"connection", [connection]) == b"serving"
        assert at.served[0].options == {b"ro"}


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\0", b"hello", b"hello\0", b"hello\x001", b"hello\x001\0\0", b"hello\x001\0ro\0", b"hello\x001\0rw",
        b"hello\x001\0ro ro", b"HELLO\x001\0", b"hello \x001\0", b"connection", b"serving", b"ok\0", b"no\0why",
        b"hello\x001\0" + b"ro," * 1400, b"x" * LONGEST, b"\xff" * 9, b"hello\n1\n",
    ],
)  # fmt: skip
def test_what_is_no_first_packet(path: Path, text: bytes) -> None:
    with door(path) as at, somebody(path) as user, user.comes() as asking:
        assert say(asking, text) == b""
        wait_until(lambda: at.is_empty, "he is shown out", LIMIT)
        assert not at.served


@pytest.mark.parametrize("version", [b"", b"0", b"2", b"1 ", b"99999999999999999999", b"\xff"])
def test_other_versions_are_told_so(path: Path, version: bytes) -> None:
    with door(path), somebody(path) as user, user.comes() as asking:
        assert b"version" in say(asking, b"hello\0" + version + b"\0")
        assert asking.recv(1) == b""


@pytest.mark.parametrize("text", [b"connection\0", b"connection\0x", b"hello\x001\0", b"", b"Connection", b"x" * 5000])
@pytest.mark.parametrize("descriptors", [0, 1])
def test_what_is_no_second_packet(path: Path, connection: int, text: bytes, descriptors: int) -> None:
    with door(path) as at, somebody(path) as user, user.comes() as asking:
        before = held()
        assert say(asking, HELLO) == b"ok\0"
        assert say(asking, text, [connection] * descriptors) == b""
        wait_until(lambda: at.is_empty and held() <= before, "all is closed", LIMIT)
        assert not at.served


@pytest.mark.parametrize(("first", "second"), [(1, 1), (4, 1), (253, 1), (0, 0), (0, 2), (0, 4), (0, 5), (0, 253)])
def test_descriptors_of_the_wrong_number_or_at_the_wrong_step(
    path: Path, connection: int, first: int, second: int
) -> None:
    with door(path) as at, somebody(path) as user, user.comes() as asking:
        before = held()
        assert say(asking, HELLO, [connection] * first) == (b"" if first else b"ok\0")
        assert first or say(asking, b"connection", [connection] * second) == b""
        wait_until(lambda: at.is_empty and held() <= before, "all is closed", LIMIT)
        assert not at.served


def kinds(directory: Path) -> dict[str, tuple[int, ...]]:
    mute = os.open("/dev/fuse", os.O_RDWR)
    fcntl.ioctl(mute, _SYNC_INIT)
    return {
        "a file": (os.open(directory / "file", os.O_RDWR | os.O_CREAT),),
        "a directory": (os.open(directory, os.O_RDONLY),),
        "a place": (os.open(directory, os.O_PATH),),
        "a pipe": os.pipe(),
        "no device": (os.open("/dev/null", os.O_RDWR),),
        "never mounted": (os.open("/dev/fuse", os.O_RDWR),),
        "to be mounted some time": (mute,),
    }


def test_what_is_no_connection(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would be waited for until it is mounted among them."""
    monkeypatch.setattr(broker, "_PATIENCE", 1.0)
    for kind, fds in kinds(tmp_path).items():
        with door(path) as at, somebody(path) as user, user.comes() as asking:
            before = held()
            assert say(asking, HELLO) == b"ok\0", kind
            assert say(asking, b"connection", [fds[0]]) == b"", kind
            wait_until(partial(has_closed_all, at, before), f"{kind} is closed", LIMIT)
            assert not at.served
        for fd in fds:
            os.close(fd)


def lingering(stack: ExitStack) -> socket.socket:
    """Closing it waits, as what it has sent is never read."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    made = socket.create_connection(listener.getsockname())
    stack.enter_context(listener.accept()[0])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
    made.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            made.send(b"x" * 65536)
    return made


def test_nobody_waits_for_a_socket_that_lingers(path: Path, connection: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent where none is wanted, handed over, and left unread."""
    monkeypatch.setattr(broker, "_PATIENCE", 1.0)
    with door(path) as at, somebody(path) as user, somebody(path, OTHER) as other, ExitStack() as stack:
        early, late, unread = (stack.enter_context(user.comes()) for _ in range(3))
        assert say(late, HELLO) == b"ok\0"
        with at.held():
            for asking, texts in ((early, [HELLO]), (late, [b"connection"]), (unread, [b"x", b"y"])):
                for text in texts:
                    with lingering(stack) as one:
                        socket.send_fds(asking, [text], [one.fileno()])
        assert mounts(other, connection) == b"serving"
        wait_until(lambda: at.is_empty, "their closing is interrupted", LIMIT)


TEXTS = st.sampled_from([HELLO, b"hello\x001\x00ro", b"connection", b"hello\x002\x00", b"no\0", b"x" * (LONGEST + 1)])
PACKETS = st.tuples(TEXTS | st.binary(max_size=40), st.lists(st.sampled_from(["connection", "null"]), max_size=6))


def expected(step: int, text: bytes, rights: list[str]) -> bytes | None:
    """The model: what is answered, or None for anything that ends it."""
    words = text.split(b"\0")
    if step == 0 and not rights and len(words) == 3 and words[0] == b"hello":
        options = {word for word in words[2].split(b",") if word}
        if words[1] == b"1" and options <= OPTIONS and len(text) <= LONGEST:
            return b"ok\0" + b",".join(sorted(options))
    return b"serving" if step == 1 and text == b"connection" and rights == ["connection"] else None


def test_any_sequence_of_packets(path: Path, connection: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    kinds = {"connection": connection, "null": null}
    with door(path, most=10**6) as at, somebody(path) as user:
        assert mounts(user, connection) == b"serving"

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(PACKETS, min_size=1, max_size=4), st.booleans())
        def check(packets: list[tuple[bytes, list[str]]], at_once: bool) -> None:
            wait_until(lambda: at.is_empty, "the last are gone", LIMIT)
            before, served, step = held(), len(at.served), 0
            with user.comes() as asking:
                for text, rights in packets:
                    if at_once:
                        try:
                            socket.send_fds(asking, [text], [kinds[one] for one in rights])
                        except OSError:
                            break
                        continue
                    answer = say(asking, text, [kinds[one] for one in rights])
                    wanted = expected(step, text, rights)
                    assert answer == wanted if wanted is not None else answer == b"" or answer.startswith(b"no\0")
                    if wanted is None:
                        break
                    step += 1
            wait_until(lambda: at.is_empty, "he is gone", LIMIT)
            more = len(at.served) - served
            assert at_once or more == (step == 2)
            wait_until(lambda: held() <= before + more, "all is closed", LIMIT)
            assert at.failure is None

        check()
        assert mounts(user, connection) == b"serving"
    os.close(null)
