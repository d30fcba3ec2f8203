"""Locks that are served natively: the same answers and locks, also on the real file, as where Python serves them."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.device import Device, Served
from harness.twins import following, in_plain_python
from shiftfs.layer import Layer
from shiftfs.locks.places import files_of
from shiftfs.locks.table import Locks, Wanted
from shiftfs.shares import alone
from shiftfs.shift.idmap import IDENTITY
from shiftfs.source import SourceTree
from shiftfs.sys.locks import END, NONE, READ, WRITE, in_the_way
from shiftfs.wire import abi
from shiftfs.wire.abi import LkFlag, Opcode

OWNERS: Final = st.integers(1, 3)
OFFSETS: Final = st.sampled_from((0, 1, 2, 3, 5, 8, END - 1, END))
KINDS: Final = st.sampled_from((READ, WRITE, NONE))


class Lock(NamedTuple):
    """A request for one; `fh` is the owner of flock(2)'s."""

    owner: int
    fh: int
    start: int
    end: int
    kind: int
    is_whole: bool = False
    waits: bool = False

    def ask(self, device: Device, nodeid: int) -> int:
        flags = int(LkFlag.FLOCK) if self.is_whole else 0
        body = abi.LK_IN.pack(self.fh, self.owner, self.start, self.end, self.kind, 100 + self.owner, flags)
        unique = device.send(Opcode.SETLKW if self.waits else Opcode.SETLK, body, nodeid)
        while (answer := device.receive_any()).unique != unique:
            pass  # what others have done is told as well
        return answer.errno


class Outside(NamedTuple):
    """Somebody in the layer takes a range, or lets go of all."""

    start: int
    end: int
    kind: int

    def ask(self, fd: int) -> int:
        length = 0 if self.end == END else self.end - self.start + 1
        packed = struct.pack("hhqqi4x", self.kind, os.SEEK_SET, self.start, length, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, packed)
        except BlockingIOError:
            return errno.EAGAIN
        return 0


SPANS: Final = st.tuples(OFFSETS, OFFSETS).map(lambda two: (min(two), max(two)))
LOCKS: Final = st.builds(
    lambda owner, fh, span, kind, is_whole: Lock(owner, fh, span[0], span[1], kind, is_whole),
    OWNERS, OWNERS, SPANS, KINDS, st.booleans(),
)  # fmt: skip
OTHERS: Final = st.builds(lambda span, kind: Outside(span[0], span[1], kind), SPANS, KINDS)


@contextmanager
def mounted(path: Path) -> Iterator[tuple[Served, int, Locks]]:
    """A tree with one file, whose locks go to the layer."""
    tables: list[Locks] = []
    tree = SourceTree(Layer(os.fsencode(path)), 64)

    def prepare(loop: Any, session: Any) -> None:
        tables.append(Locks(lambda inode: files_of(tree, None, inode.entry), loop.wait_aside, alone(64)))
        session.context.serve_locks(tables[0])

    with following(tree, IDENTITY, prepare) as served:
        yield served, served.device.look(b"file"), tables[0]
        tables.pop().close()


def played(path: Path, script: list[Lock | Outside]) -> list[object]:
    """What each is answered, who holds what in the end, and what of it somebody in the layer meets."""
    said: list[object] = []
    with mounted(path) as (served, nodeid, locks):
        other = os.open(path / "file", os.O_RDWR)
        try:
            for each in script:
                said.append(each.ask(other) if isinstance(each, Outside) else each.ask(served.device, nodeid))
            said += sorted((held, whole) for _, held, whole, _ in locks)
            said += [in_the_way(other, offset, offset, kind) for offset in (*range(10), END) for kind in (READ, WRITE)]
        finally:
            os.close(other)
    return said


@settings(deadline=None, max_examples=60)
@given(script=st.lists(st.one_of(LOCKS, LOCKS, LOCKS, OTHERS), max_size=30))
def test_as_in_python(tmp_path_factory: pytest.TempPathFactory, script: list[Lock | Outside]) -> None:
    path = tmp_path_factory.mktemp("layer")
    (path / "file").write_bytes(b"x")
    with in_plain_python():
        expected = played(path, script)
    assert played(path, script) == expected


@pytest.mark.parametrize("is_whole", [False, True], ids=["range", "whole"])
def test_what_nothing_is_in_the_way_of_is_served_natively(
    is_whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    taken: list[int] = []
    take = Locks.take

    def noted(self: Locks, wanted: Wanted) -> bool:
        taken.append(wanted.kind)
        return take(self, wanted)

    monkeypatch.setattr(Locks, "take", noted)
    with mounted(tmp_path) as (served, nodeid, _):
        for _ in range(10):
            for kind in (WRITE, NONE):
                assert Lock(1, 1, 0, END, kind, is_whole, waits=True).ask(served.device, nodeid) == 0
    assert taken == [WRITE], "only the first opens the file"


def test_what_somebody_waits_for_is_left_to_python(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    mine, yours = Lock(1, 1, 0, END, WRITE), Lock(2, 2, 0, END, WRITE, waits=True)
    with mounted(tmp_path) as (served, nodeid, locks):
        assert mine.ask(served.device, nodeid) == 0
        body = abi.LK_IN.pack(yours.fh, yours.owner, yours.start, yours.end, yours.kind, 102, 0)
        waiting = served.device.send(Opcode.SETLKW, body, nodeid)
        served.device.expect_nothing()
        assert locks.waiting == 1
        unlocking = abi.LK_IN.pack(mine.fh, mine.owner, 0, END, NONE, 101, 0)
        freed = served.device.send(Opcode.SETLK, unlocking, nodeid)
        answers = {answer.unique: answer.errno for answer in (served.device.receive(), served.device.receive())}
        assert answers == {waiting: 0, freed: 0}
