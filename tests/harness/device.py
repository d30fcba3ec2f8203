"""A pair of sockets in place of /dev/fuse: the kernel's end of a session that serves a tree without a mount.

Owns both ends and the thread in which the session runs, as on a mount; the test's thread plays the kernel. What a
test does to the session's own state it does while no request is under way.
"""

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from shiftfs.channel import Buffers
from shiftfs.loop import Loop
from shiftfs.session import Session
from shiftfs.shift.idmap import IDENTITY, IdMap
from shiftfs.tree import Tree
from shiftfs.wire import abi

LIMIT = 20.0
MAX_WRITE = 64 * 1024
HEADER = struct.Struct("@IIQQIIIHH")
ANSWER = struct.Struct("@IiQ")
ENTRY_NODEID = struct.Struct("@Q")


class Answer(NamedTuple):
    """What came back: the request's unique, the errno or 0, and what follows the header."""

    unique: int
    errno: int
    payload: bytes


class Device:
    """The kernel's end."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(LIMIT)
        self.fd = theirs.detach()
        self._unique = 0
        self.gone = False

    def put(self, message: bytes) -> None:
        """Any bytes, as one message."""
        self._ours.send(message)

    def send(
        self, opcode: int, body: bytes = b"", nodeid: int = abi.ROOT_ID, *, uid: int | None = None, pid: int = 1
    ) -> int:
        """A request, as whoever runs the test unless told; its unique, even as the kernel's are."""
        gid = os.getegid()
        uid = os.geteuid() if uid is None else uid
        self._unique += 2
        self.put(HEADER.pack(HEADER.size + len(body), opcode, self._unique, nodeid, uid, gid, pid, 0, 0) + body)
        return self._unique

    def receive(self) -> Answer:
        """The next answer; TimeoutError if none comes."""
        answer = self.receive_any()
        assert 0 <= answer.errno < 512
        return answer

    def receive_any(self) -> Answer:
        """The next answer or notice: that has unique 0 and its code as a negative errno."""
        message = self._ours.recv(1 << 20)
        length, error, unique = ANSWER.unpack_from(message)
        assert length == len(message)
        return Answer(unique, -error, message[ANSWER.size :])

    def ask(self, opcode: int, body: bytes = b"", nodeid: int = abi.ROOT_ID, **caller: int) -> Answer:
        """A request and its answer, which is the next."""
        unique = self.send(opcode, body, nodeid, **caller)
        answer = self.receive()
        assert answer.unique == unique
        return answer

    def look(self, name: bytes, parent: int = abi.ROOT_ID) -> int:
        """The nodeid of a name."""
        answer = self.ask(abi.Opcode.LOOKUP, name + b"\0", parent)
        assert answer.errno == 0
        (nodeid,) = ENTRY_NODEID.unpack_from(answer.payload)
        return int(nodeid)

    def expect_nothing(self) -> None:
        """No answer is under way: the next one is that of what is asked now."""
        assert self.ask(abi.Opcode.STATFS).errno == 0

    def unplug(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENODEV) -> None:
        """As an unmount or an abort: reads fail from now on."""
        read = os.readv
        monkeypatch.setattr(os, "readv", lambda fd, room: _fail(number) if fd == self.fd else read(fd, room))
        self.put(b"x")  # wakes the reader

    def close(self) -> None:
        self._ours.close()


def _fail(number: int) -> int:
    raise OSError(number, os.strerror(number))


class Served:
    """A session at work, and what it said."""

    def __init__(self, tree: Tree, device: Device, uids: IdMap, gids: IdMap, options: dict[str, Any]) -> None:
        self.device = device
        self.log: list[str] = []
        self.trace: list[str] = []
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self._begun = threading.Event()
        self._tree, self._maps, self._options = tree, (uids, gids), options
        self._prepare = options.pop("prepare", lambda loop, session: None)
        self.thread = threading.Thread(target=self._run, name="session", daemon=True)
        self.thread.start()
        assert self._begun.wait(LIMIT)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        # On a thread of its own since a session changes the thread's ids and secure bits.
        try:
            self.loop = Loop()
            self.session = Session(
                self.loop, self.device.fd, self._tree, *self._maps,
                timeout=1.5,
                buffers=Buffers(MAX_WRITE),
                log=self.log.append,
                **{
                    "serves_open": True, "report": lambda name, *wanted: name.encode(), "trace": self.trace.append,
                    **self._options,
                },
            )  # fmt: skip
            self._prepare(self.loop, self.session)
            self.session.on_end = self._end
        except BaseException as error:
            self.failure = error
            return
        finally:
            self._begun.set()
        try:
            self.loop.run()
        except BaseException as error:
            self.failure = error

    def _end(self) -> None:
        self.ended.set()
        self.loop.stop()

    def stop(self) -> None:
        """Expects that the session still runs, or has ended in order."""
        self.loop.stop()
        self.loop.wake()
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()
        self.session.end()
        workers = [thread for thread in threading.enumerate() if thread.name == "worker"]
        self.loop.close()
        for worker in workers:
            worker.join(LIMIT)  # until then it may hold what its last call held
        del self.session, self.loop  # and what they hold
        if self.failure is not None:
            raise self.failure


@contextlib.contextmanager
def served(tree: Tree, uids: IdMap = IDENTITY, gids: IdMap = IDENTITY, **options: Any) -> Iterator[Served]:
    """A session that serves `tree`; `options` as Session takes them, and `prepare`, called with both loop and session
    before the first request. What ended it unasked is raised at the end."""
    device = Device()
    umask = os.umask(0o022)  # belongs to the process, and a session changes it
    try:
        running = Served(tree, device, uids, gids, options)
        try:
            yield running
        finally:
            running.stop()
    finally:
        device.close()
        os.umask(umask)
