"""The locks of one file against the kernel's: every owner is an open file description of one temporary file.

What a description holds is read from its fdinfo, what it would have to wait for is asked with F_OFD_GETLK.
"""

import errno
import fcntl
import os
import struct
import tempfile
from itertools import pairwise
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shiftfs import native
from shiftfs.locks.ranges import FileLocks, Held
from shiftfs.sys.locks import END, NONE, READ, WRITE, Range

FLOCK: Final = struct.Struct("hhqqi4x")
"""l_type, l_whence, l_start, l_len, l_pid: struct flock of 64-bit Linux."""
OWNERS: Final = range(3)
PROBES: Final = (*range(0, 23), END - 2, END - 1, END)
TYPES = {"READ": READ, "WRITE": WRITE}
KINDS = st.sampled_from((READ, WRITE, NONE))
OFFSETS = st.sampled_from([*range(0, 21), END - 1, END])
RANGES = st.one_of(
    st.tuples(OFFSETS, st.integers(0, 3)).map(lambda short: [short[0], min(sum(short), END)]),
    st.lists(OFFSETS, min_size=2, max_size=2).map(sorted),
)
HANDLES = st.integers(1, 3)
PIDS = st.integers(100, 103)


def flock(start: int, end: int, kind: int) -> bytes:
    return FLOCK.pack(kind, os.SEEK_SET, start, 0 if end == END else end - start + 1, 0)


def granted(descriptor: int, start: int, end: int, kind: int) -> bool:
    """F_OFD_SETLK"""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, flock(start, end, kind))
    except OSError as refused:
        assert refused.errno in (errno.EAGAIN, errno.EACCES)
        return False
    return True


def in_the_way(descriptor: int, start: int, end: int, kind: int) -> Range | None:
    """F_OFD_GETLK: one of those that conflict, whole."""
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, flock(start, end, kind))
    found, whence, first, length, pid = FLOCK.unpack(answer)
    if found == NONE:
        return None
    assert (whence, pid) == (os.SEEK_SET, -1)
    return first, first + length - 1 if length else END, found


def held_through(descriptor: int) -> list[Range]:
    """lock:   1: OFDLCK ADVISORY  WRITE -1 fe:00:1234 0 EOF"""
    with open(f"/proc/self/fdinfo/{descriptor}") as lines:
        fields = [line.split() for line in lines if line.startswith("lock:")]
    return sorted((int(each[7]), END if each[8] == "EOF" else int(each[8]), TYPES[each[4]]) for each in fields)


class Locks(RuleBasedStateMachine):
    """`descriptors` are those of the owners; `observer` never holds a lock, so all others' are in its way."""

    def __init__(self) -> None:
        super().__init__()
        self.locks = self.new()
        self.observer, self.path = tempfile.mkstemp()
        self.descriptors = [self._open() for _ in OWNERS]

    def new(self) -> FileLocks:
        return FileLocks()

    def teardown(self) -> None:
        for descriptor in (self.observer, *self.descriptors):
            os.close(descriptor)
        os.unlink(self.path)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    @rule(owner=st.sampled_from(OWNERS), span=RANGES, kind=KINDS, pid=PIDS, fh=HANDLES)
    def lock(self, owner: int, span: list[int], kind: int, pid: int, fh: int) -> None:
        start, end = span
        conflict = self.locks.conflict(owner, start, end, kind)
        assert granted(self.descriptors[owner], start, end, kind) == (conflict is None)
        if conflict is None:
            before = list(self.locks)
            self.locks.set(owner, start, end, kind, pid, fh)
            self._belongs_to_the_last_caller(before, Held(owner, start, end, kind, pid, fh))

    @precondition(lambda self: len(self.locks) > 0)
    @rule(choice=st.integers(0, 30), before=st.booleans(), length=st.integers(1, 3), kind=KINDS, pid=PIDS, fh=HANDLES)
    def lock_beside(self, choice: int, before: bool, length: int, kind: int, pid: int, fh: int) -> None:
        """Right before or after one of the owner's."""
        held = list(self.locks)[choice % len(self.locks)]
        start, end = (held.start - length, held.start - 1) if before else (held.end + 1, held.end + length)
        if start >= 0 and end <= END:
            self.lock(held.owner, [start, end], kind, pid, fh)

    @rule(owner=st.sampled_from(OWNERS), first=st.integers(0, 3), step=st.integers(2, 4), kind=KINDS)
    def lock_many(self, owner: int, first: int, step: int, kind: int) -> None:
        """Single bytes, at a distance from each other."""
        for offset in range(first, 21, step):
            self.lock(owner, [offset, offset], kind, 100, 1)

    def _belongs_to_the_last_caller(self, before: list[Held], now: Held) -> None:
        """What holds the range now is his, and all else of whom it was."""
        for lock in self.locks:
            if lock.owner == now.owner and lock.start <= now.start and now.end <= lock.end:
                assert lock == now._replace(start=lock.start, end=lock.end)
            else:
                assert any(was._replace(start=lock.start, end=lock.end) == lock for was in before if within(lock, was))

    @rule(owner=st.sampled_from(OWNERS))
    def close(self, owner: int) -> None:
        held = held_through(self.descriptors[owner])
        os.close(self.descriptors[owner])
        self.descriptors[owner] = self._open()
        assert self.locks.drop(owner) == [(start, end) for start, end, _ in held]

    @rule(fh=HANDLES)
    def close_a_handle(self, fh: int) -> None:
        gone = [lock for lock in self.locks if lock.fh == fh]
        for lock in gone:
            assert granted(self.descriptors[lock.owner], lock.start, lock.end, NONE)
        assert self.locks.drop_handle(fh) == sorted((lock.start, lock.end) for lock in gone)

    @rule(span=RANGES)
    def ask(self, span: list[int]) -> None:
        self._same_conflicts(*span)

    def _same_conflicts(self, start: int, end: int) -> None:
        met = [lock for lock in self.locks if lock.start <= end and start <= lock.end]
        for owner, descriptor in enumerate(self.descriptors):
            for kind in (READ, WRITE):
                excluding = [lock for lock in met if lock.owner != owner and WRITE in (kind, lock.kind)]
                others = {(lock.start, lock.end, lock.kind) for lock in excluding}
                found = in_the_way(descriptor, start, end, kind)
                ours = self.locks.conflict(owner, start, end, kind)
                assert (found is None) == (ours is None) == (not others)
                if ours is not None:
                    assert found in others
                    assert ours in excluding
                    assert ours.start == min(others)[0]
            assert self.locks.conflict(owner, start, end, NONE) is None

    @invariant()
    def the_same_is_held(self) -> None:
        locks = list(self.locks)
        for owner, descriptor in enumerate(self.descriptors):
            held = held_through(descriptor)
            assert [(lock.start, lock.end, lock.kind) for lock in locks if lock.owner == owner] == held
        starts = [lock.start for lock in locks]
        assert starts == sorted(starts)
        assert len(starts) == len(self.locks)

    @invariant()
    def the_same_is_in_the_way(self) -> None:
        for start, end in ((0, END), (0, 0), (7, 13), (20, END), (END, END)):
            self._same_conflicts(start, end)

    @invariant()
    def what_is_needed_is_what_others_see(self) -> None:
        seen = {offset: self._seen_at(offset) for offset in PROBES}
        for start, end in ((0, END), (5, 15), (12, 12), (20, END - 1)):
            parts = self.locks.needed(start, end)
            assert [part[0] for part in parts] == [start, *(part[1] + 1 for part in parts[:-1])], "gaps, or overlaps"
            assert parts[-1][1] == end
            assert all(first <= last for first, last, _ in parts)
            assert all(one[2] != other[2] for one, other in pairwise(parts))
            for first, last, kind in parts:
                assert {seen[offset] for offset in PROBES if first <= offset <= last} <= {kind}

    def _seen_at(self, offset: int) -> int:
        if in_the_way(self.observer, offset, offset, READ) is not None:
            return WRITE
        return NONE if in_the_way(self.observer, offset, offset, WRITE) is None else READ


class Compiled(Locks):
    """The same of the twin."""

    def new(self) -> FileLocks:
        made: FileLocks = native.FileLocks(Held)
        return made


def within(part: Held, whole: Held) -> bool:
    return whole.start <= part.start and part.end <= whole.end


TestLocks = Locks.TestCase
TestCompiled = Compiled.TestCase
