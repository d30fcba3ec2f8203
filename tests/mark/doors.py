"""A mark's door with a loop of its own, and those who come to it: other users' processes, in their namespaces.

Owns all of them until the end. Mounts are not made: what is served is noted down.
"""

import array
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import environment, user_prefix, wait_until
from harness.commands import EXIT_LIMIT
from shiftfs.loop import INTERRUPTING, Loop
from shiftfs.mark.broker import Broker, Owner, Tell, Terms, listen
from shiftfs.mark.protocol import LONGEST

USER, OTHER = 65533, 65532
HELLO = b"hello\x001\x00"
LIMIT = 10.0
_CONNECT = """
import socket, sys
with socket.socket(fileno=0) as back:
    while back.recv(1):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
            made.connect(sys.argv[1])
            socket.send_fds(back, [b"."], [made.fileno()])
"""


class Served:
    """A mount that is none."""

    def __init__(self, fd: int, owner: Owner, options: frozenset[bytes], tell: Tell) -> None:
        self.fd, self.owner, self.options, self.tell = fd, owner, options, tell
        self.has_ended = False

    def end(self) -> None:
        self.has_ended = True


class Door:
    """A broker whose loop runs in a thread. `is_slow`: mounts are not served at once."""

    def __init__(self, path: Path, terms: Terms) -> None:
        self.path = path
        self.served: list[Served] = []
        self.log: list[str] = []
        self.is_slow = False
        self.failure: BaseException | None = None
        self.loop = Loop()
        self.broker = Broker(self.loop, listen(str(path)), terms, self._serve, self.log.append)
        self.loop.on_tick = self.broker.tick
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self.failure = error

    def _serve(self, fd: int, owner: Owner, options: frozenset[bytes], tell: Tell) -> Served:
        if self.failure is not None:
            raise self.failure
        served = Served(fd, owner, options, tell)
        self.served.append(served)
        if not self.is_slow:
            tell(None, ())
        return served

    def do(self, call: Callable[[], object]) -> None:
        """On the loop."""
        is_done = threading.Event()

        def then(result: object, error: BaseException | None) -> None:
            call()
            is_done.set()

        self.loop.submit(lambda: None, then)
        assert is_done.wait(LIMIT)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The loop does nothing meanwhile."""
        is_held, release = threading.Event(), threading.Event()

        def hold(result: object, error: BaseException | None) -> None:
            is_held.set()
            release.wait(LIMIT)

        self.loop.submit(lambda: None, hold)
        assert is_held.wait(LIMIT)
        try:
            yield
        finally:
            release.set()

    @property
    def is_empty(self) -> bool:
        return not self.broker._visitors

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        mounts = list(self.broker.mounts)
        self.do(self.broker.close)
        assert all(isinstance(one, Served) and one.has_ended for one in mounts)
        wait_until(lambda: self.is_empty, "the last is gone", LIMIT)
        wait_until(lambda: not any(one.name == "waits" for one in threading.enumerate()), "and his thread", LIMIT)
        self.loop.submit(self.loop.stop, lambda result, error: None)
        self._thread.join(LIMIT)
        assert not self._thread.is_alive() and self.failure is None
        self.loop.close()
        for served in self.served:
            os.close(served.fd)


@contextmanager
def door(
    path: Path, users: frozenset[int] | None = None, most: int = 100, options: Sequence[bytes] = ()
) -> Iterator[Door]:
    before = signal.signal(INTERRUPTING, lambda number, frame: None)
    made = Door(path, Terms(users, most, frozenset(options)))
    made.start()
    try:
        yield made
    finally:
        made.end()
        signal.signal(INTERRUPTING, before)


class Somebody:
    """A process that connects, and gives its connections to the test."""

    def __init__(self, path: Path, uid: int, namespace: Sequence[str]) -> None:
        self._asking, theirs = socket.socketpair()
        self._asking.settimeout(LIMIT)
        with theirs:
            self.process = subprocess.Popen(
                [*user_prefix(uid), *namespace, sys.executable, "-P", "-c", _CONNECT, str(path)],
                stdin=theirs.fileno(), env=environment(),
            )  # fmt: skip

    def comes(self) -> socket.socket:
        self._asking.send(b".")
        _, fds, _, _ = socket.recv_fds(self._asking, 1, 1)
        connection = socket.socket(fileno=fds[0])
        connection.settimeout(LIMIT)
        return connection

    def end(self) -> None:
        self._asking.close()
        self.process.wait(EXIT_LIMIT)


@contextmanager
def somebody(path: Path, uid: int = USER, namespace: Sequence[str] = ("unshare", "-Ur")) -> Iterator[Somebody]:
    one = Somebody(path, uid, namespace)
    try:
        yield one
    finally:
        one.end()


def say(connection: socket.socket, text: bytes, rights: Sequence[int] = ()) -> bytes:
    """What is answered; nothing if he is shown out."""
    controls = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))] if rights else []
    try:
        connection.sendmsg([text], controls)
        return connection.recv(LONGEST)
    except (ConnectionResetError, BrokenPipeError):
        return b""


def mounts(one: Somebody, fd: int) -> bytes:
    """An honest one. What he is told at last."""
    with one.comes() as connection:
        said = say(connection, HELLO)
        return say(connection, b"connection", [fd]) if said.startswith(b"ok") else said


def held() -> int:
    return len(os.listdir("/proc/self/fd"))


def has_closed_all(at: Door, before: int) -> bool:
    """Nobody is at it any more, and there are no more descriptors than before."""
    return at.is_empty and held() <= before
