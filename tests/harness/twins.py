"""The same questions to what is compiled and to its twin in plain Python."""

import gc
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.device import ENTRY_NODEID, Answer, Device, Served, served
from shiftfs import native
from shiftfs.loop import Loop
from shiftfs.reflect.journal import Journal
from shiftfs.reflect.reflection import Reflection
from shiftfs.session import Session
from shiftfs.shift.idmap import IDENTITY, IdMap, Range
from shiftfs.tree import Tree
from shiftfs.wire.abi import Opcode

FUNCTIONS = ("Lane", "Reader", "FileLocks", "look", "list_directory", "list_attributes", "encode_handle", "rows")
INIT = struct.pack("=IIII12I", 7, 45, 1 << 17, 0xFFFFFFFF, *[0] * 12)
MAPS = {"identity": IDENTITY, "mapped": IdMap([Range(0, 100_000, 65_536)])}
ABSENT = b"system.posix_acl_access"


@contextmanager
def in_plain_python() -> Iterator[None]:
    """Use the twins."""
    kept = {name: getattr(native, name) for name in FUNCTIONS}
    try:
        for name in FUNCTIONS:
            setattr(native, name, None)
        yield
    finally:
        for name, value in kept.items():
            setattr(native, name, value)


@contextmanager
def running(tree: Tree, ids: IdMap) -> Iterator[Device]:
    with following(tree, ids) as made:
        device = made.device
        del made
        yield device


@contextmanager
def following(
    tree: Tree, ids: IdMap, prepare: Callable[[Loop, Session], None] = lambda loop, session: None
) -> Iterator[Served]:  # fmt: skip
    """A session that follows changes, as on a mount; `prepare` is called before the first request."""
    watchers: list[int] = []

    def follow(loop: Loop, session: Session) -> None:
        Reflection(loop, session, "auto", Journal(), lambda line: None)
        prepare(loop, session)
        watchers.extend(loop._ready.keys() - {session._channel.fd})

    try:
        with served(tree, ids, ids, prepare=follow, trace=None, serves_open=False) as made:
            assert made.device.ask(Opcode.INIT, INIT).errno == 0
            made.device.expect_nothing()
            assert (made.session.context.lane is not None) is (native.Lane is not None)
            yield made
    finally:
        for fd in watchers:
            os.close(fd)
    del made, tree
    gc.collect()  # a session, what follows changes for it, and its tree refer to each other


def asked(device: Device, names: list[bytes]) -> list[Answer]:
    """What a kernel asks: all of it answered at once, in order."""
    answers = []
    directory = device.look(b"d")
    for name in [*names, *(name + b"-absent" for name in names[:20]), b".wh.x", b"d"]:
        answers.append(device.ask(Opcode.LOOKUP, name + b"\0", directory))
    answers += listed(device, directory, 4096)
    known = [ENTRY_NODEID.unpack_from(answer.payload)[0] for answer in answers[: len(names)] if not answer.errno]
    for nodeid in [directory, *known[:40]]:
        answers.append(device.ask(Opcode.GETXATTR, struct.pack("=II", 100, 0) + ABSENT + b"\0", nodeid))
        answers.append(device.ask(Opcode.GETXATTR, struct.pack("=II", 100, 0) + b"user.large\0", nodeid))
        answers.append(device.ask(Opcode.GETATTR, struct.pack("=IIQ", 0, 0, 0), nodeid))
    forgotten = [nodeid for nodeid in known if nodeid][:150]
    items = b"".join(struct.pack("=QQ", nodeid, 1) for nodeid in forgotten)
    device.send(Opcode.BATCH_FORGET, struct.pack("=II", len(forgotten), 0) + items, 0)
    device.send(Opcode.FORGET, struct.pack("=Q", 1), known[-1])
    for name in names:
        answers.append(device.ask(Opcode.LOOKUP, name + b"\0", directory))
    answers += listed(device, directory, 32768)
    return answers


def listed(device: Device, directory: int, size: int) -> list[Answer]:
    """READDIRPLUS from the start to the end."""
    answers, offset = [], 0
    while True:
        answer = device.ask(Opcode.READDIRPLUS, struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0), directory)
        answers.append(answer)
        if answer.errno or not answer.payload:
            return answers
        offset = last_cookie(answer.payload)


def last_cookie(packed: bytes) -> int:
    at, cookie = 0, 0
    while at < len(packed):
        _, cookie, length, _ = struct.unpack_from("=QQII", packed, at + 128)
        at += 128 + (24 + length + 7 & ~7)
    return int(cookie)


def all_names(*directories: Path) -> list[bytes]:
    return sorted({os.fsencode(entry.name) for one in directories for entry in os.scandir(one)})
