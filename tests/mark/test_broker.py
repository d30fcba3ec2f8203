"""Whoever comes to a mark's socket: judged by what the kernel says of him, bounded in number, shown out in time."""

import errno
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from mark.doors import HELLO, LIMIT, OTHER, USER, door, held, mounts, say, somebody

from harness import user_namespace, wait_until
from shiftfs.mark import broker
from shiftfs.mark.protocol import LONGEST

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("uid", "namespace", "users", "told"),
    [
        (USER, (), None, b"of your own"),
        (0, (), None, b"of your own"),
        (USER, ("unshare", "-Ur"), {USER}, b"ok"),
        (USER, ("unshare", "-Ur"), {OTHER, USER}, b"ok"),
        (USER, ("unshare", "-Ur"), {OTHER}, b"not for you"),
        (0, ("unshare", "-Ur"), {OTHER}, b"ok"),
        (USER, ("unshare", "-Ur", "unshare", "-Ur"), {USER}, b"ok"),
        (USER, ("unshare", "--user", "--map-user=5"), {USER}, b"CAP_SYS_ADMIN"),
    ],
)  # fmt: skip
def test_who_may(
    path: Path, uid: int, namespace: Sequence[str], users: set[int] | None, told: bytes
) -> None:
    """Whoever has made the namespace is asked for, and it is one who might mount in it."""
    allowed = frozenset(users) if users is not None else None
    with door(path, allowed), somebody(path, uid, namespace) as user, user.comes() as asking:
        assert told in say(asking, HELLO)


@pytest.mark.parametrize(
    ("owner", "uid", "prefix", "told"),
    [
        (USER, 0, [], b"ok"),
        (USER, 5, [], b"CAP_SYS_ADMIN"),
        (USER, 0, ["unshare", "-Ur"], b"not for you"),
        (USER, 5, ["unshare", "-Ur"], b"not for you"),
        (OTHER, 0, [], b"not for you"),
        (0, 0, [], b"ok"),
        (0, 5, [], b"CAP_SYS_ADMIN"),
        (0, 5, ["unshare", "-Ur"], b"not for you"),
    ],
)
def test_who_may_of_those_in_a_container(path: Path, owner: int, uid: int, prefix: list[str], told: bytes) -> None:
    """Its root alone: others in it may not, and what they make in it is theirs, not its owner's."""
    with user_namespace(owner=owner) as inside, door(path, frozenset([USER])):
        enter = [str(word) for word in inside.command(prefix, uid, uid)]
        with somebody(path, 0, enter) as one, one.comes() as asking:
            assert told in say(asking, HELLO)


def test_one_who_has_ended_may_not(path: Path) -> None:
    """Though somebody else has his connection: nothing is known of him any more."""
    with door(path) as at, somebody(path) as user:
        with user.comes() as before, user.comes() as later:
            assert say(later, HELLO) == b"ok\0"
            user.process.kill()
            user.process.wait()
            assert say(before, HELLO) == b""
            later.close()
            before.close()
            wait_until(lambda: at.is_empty, "they are gone", LIMIT)
        assert not at.served


def test_what_fails_is_his_alone(path: Path, connection: int) -> None:
    with door(path) as at, somebody(path) as user:
        before = held()
        for failure in (OSError(errno.EMFILE, "no more"), RuntimeError("anything"), UnicodeError()):
            at.failure = failure
            assert mounts(user, connection) == b""
        at.failure = None
        wait_until(lambda: at.is_empty and held() <= before, "all is closed", LIMIT)
        assert mounts(user, connection) == b"serving"


def test_one_who_goes_before_he_is_served(path: Path, connection: int) -> None:
    with door(path) as at, somebody(path) as user:
        at.is_slow = True
        asking = user.comes()
        say(asking, HELLO)
        socket.send_fds(asking, [b"connection"], [connection])
        wait_until(lambda: at.served, "he hands over", LIMIT)
        asking.close()
        wait_until(lambda: at.is_empty, "he is gone", LIMIT)
        at.do(lambda: at.served[0].tell(None, ()))
        assert len(at.broker.mounts) == 1


def test_one_whose_mount_ends_before_it_is_served(path: Path, connection: int) -> None:
    with door(path) as at, somebody(path) as user:
        at.is_slow = True
        with user.comes() as asking:
            say(asking, HELLO)
            socket.send_fds(asking, [b"connection"], [connection])
            wait_until(lambda: at.served, "he hands over", LIMIT)
            at.do(lambda: at.broker.ended(at.served[0]))
            assert asking.recv(1) == b""


def test_the_silent_are_shown_out(path: Path, connection: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_PATIENCE", 0.5)
    with door(path) as at, somebody(path) as user, user.comes() as silent, user.comes() as half:
        assert say(half, HELLO) == b"ok\0"
        assert silent.recv(1) == b"" and half.recv(1) == b""
        wait_until(lambda: at.is_empty, "they are gone", LIMIT)
        assert mounts(user, connection) == b"serving"


def test_hundreds_of_one_do_not_keep_out_another(path: Path, connection: int) -> None:
    """Nor do those of namespaces within his."""
    within = ("unshare", "-Ur", "unshare", "-Ur")
    with (
        door(path) as at, somebody(path) as user, somebody(path, namespace=within) as inner,
        somebody(path, OTHER) as other, ExitStack() as stack,
    ):  # fmt: skip
        came = [stack.enter_context((user, inner)[number % 2].comes()) for number in range(300)]
        assert mounts(other, connection) == b"serving"
        wait_until(lambda: len(at.broker._visitors) <= 16, "most are shown out", LIMIT)
        assert mounts(user, connection) == b""
        del came
        stack.close()
        wait_until(lambda: at.is_empty, "all are gone", LIMIT)
        assert mounts(user, connection) == b"serving"


def test_those_who_find_no_room_wait_outside(path: Path, connection: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_MOST_VISITORS", 4)
    with door(path) as at, somebody(path) as user, somebody(path, OTHER) as other, ExitStack() as stack:
        came = [stack.enter_context(user.comes()) for _ in range(4)]
        wait_until(lambda: len(at.broker._visitors) == 4, "all are in", LIMIT)
        asking = stack.enter_context(other.comes())
        asking.send(HELLO)
        asking.settimeout(0.2)
        with pytest.raises(TimeoutError):
            asking.recv(1)
        came[0].close()
        asking.settimeout(LIMIT)
        assert asking.recv(LONGEST) == b"ok\0"


def test_one_who_never_reads(path: Path, connection: int) -> None:
    with door(path) as at, somebody(path) as user, user.comes() as asking:
        asking.send(HELLO)
        socket.send_fds(asking, [b"connection"], [connection])
        wait_until(lambda: at.served and at.is_empty, "he is served", LIMIT)


def test_mounts_are_bounded(path: Path, connection: int) -> None:
    """One who is not root may have half. Those who were let in together do not come to more."""
    with door(path, most=4) as at, somebody(path) as user, somebody(path, OTHER) as other, ExitStack() as stack:
        together = [stack.enter_context(user.comes()) for _ in range(5)]
        assert {say(asking, HELLO) for asking in together} == {b"ok\0"}
        told = [say(asking, b"connection", [connection]) for asking in together]
        assert told[:2] == [b"serving"] * 2 and all(b"as many" in one for one in told[2:])
        assert [mounts(other, connection) for _ in range(2)] == [b"serving"] * 2
        with somebody(path, 0) as root:
            assert b"as many" in mounts(root, connection)
            at.do(lambda: at.broker.ended(at.served[0]))
            assert mounts(root, connection) == b"serving"


def test_a_storm_fills_no_log(path: Path) -> None:
    with door(path) as at, somebody(path) as user:
        began = time.monotonic()
        for _ in range(100):
            with user.comes() as asking:
                assert say(asking, b"x") == b""
        assert len(at.log) <= time.monotonic() - began + 2
