"""Who holds locks on the inodes of a mount, and who waits for them, where locks go to the layers (`locks=layers`).

Owns the locks and the waiters of all inodes, and the real files that they are held on. What is granted is held there
too; a lock of somebody outside is waited for on a thread of its own. Loop thread.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from ..inodes import Inode
from ..shares import Share
from ..sys.locks import END, NONE, READ, WRITE
from ..tree import Gate
from .ranges import Held, new_file_locks, suited
from .real import RealFile, RealFiles

_LONGEST_CHAIN: Final = 64
"""How many who wait for each other are followed to see whether that is a circle."""

Outcome = Callable[[Any, BaseException | None], None]
WaitAside = Callable[[Callable[[], object], Outcome], Callable[[], None]]


class Wanted(NamedTuple):
    """A lock that somebody asks for; `whole` for flock(2), which has no range, and whose owner is the open file."""

    inode: Inode
    owner: int
    pid: int
    fh: int
    start: int
    end: int
    kind: int
    whole: bool


class Waiter:
    """Somebody who waits. `gate` is opened when `is_granted`, or `failure` says why it will not be."""

    __slots__ = ("call_off", "failure", "gate", "is_granted", "wanted")

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.gate = Gate()
        self.is_granted = False
        self.failure: OSError | None = None
        self.call_off: Callable[[], None] | None = None


def _too_many() -> OSError:
    return OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


class _File:
    """The locks of one inode. `whole` are those of flock(2), by owner."""

    def __init__(self, files: Iterable[RealFile]) -> None:
        self.ranges = new_file_locks()
        self.whole: dict[int, Held] = {}
        self.waiters: dict[Waiter, None] = {}
        """In the order in which they came."""
        self.handles: set[int] = set()
        self.threads = 0
        """Those that wait for somebody outside."""
        self.is_looking = False
        self.is_freer = False
        self.real = RealFiles(files, lambda start, end: self.ranges.needed(start, end))

    @property
    def is_idle(self) -> bool:
        return not (self.handles or self.threads or self.waiters or self.whole or len(self.ranges))

    @property
    def whole_kind(self) -> int:
        """What all who hold flock(2)'s hold together."""
        kinds = {held.kind for held in self.whole.values()}
        return WRITE if WRITE in kinds else READ if kinds else NONE

    def is_closed_to(self, wanted: Wanted) -> bool:
        """Has another all of it to himself? Of many who wait for that, each is asked whenever one has had it."""
        if not wanted.whole or len(self.whole) != 1:
            return False
        ((owner, held),) = self.whole.items()
        return held.kind == WRITE and owner != wanted.owner

    def conflict(self, wanted: Wanted) -> Held | None:
        """Whose lock on the mount is in the way."""
        if not wanted.whole:
            return self.ranges.conflict(wanted.owner, wanted.start, wanted.end, wanted.kind)
        for owner, held in self.whole.items():
            if owner != wanted.owner and WRITE in (held.kind, wanted.kind):
                return held
        return None


class Locks:
    """Of one mount. `files_of` gives the real files of an inode, `wait_aside` runs a call that waits, and gives what
    calls it off."""

    def __init__(
        self, files_of: Callable[[Inode], Iterable[RealFile]], wait_aside: WaitAside, share: Share,
        most_ranges: int | None = None,
    ) -> None:  # fmt: skip
        """`share`: of how many inodes there may be locks at a time; one takes a few descriptors. `most_ranges`: as many
        may be locked."""
        self._share = share
        self._most_ranges = most_ranges
        self._ranges = 0
        self._files_of = files_of
        self._wait_aside = wait_aside
        self._files: dict[Inode, _File] = {}
        self._waiting: dict[int, list[Waiter]] = {}
        """By the owner of what they ask for."""

    # What is asked for.

    def in_the_way(self, wanted: Wanted) -> tuple[int, int, int, int] | None:
        """First and last byte, type and pid of a lock that keeps this one from being taken; 0 for a pid that is not
        known."""
        file = self._file(wanted.inode)
        try:
            held = file.conflict(wanted)
            if held is not None:
                return held.start, held.end, held.kind, held.pid
            found = file.real.in_the_way(wanted.start, wanted.end, wanted.kind)
            return (*found[0], max(found[1], 0)) if found is not None else None
        finally:
            self._let_go(wanted.inode, file)

    def take(self, wanted: Wanted) -> bool:
        """Lock, or unlock; False where somebody else's lock is in the way."""
        inode = wanted.inode
        file = self._files.get(inode)
        if file is None:
            if wanted.kind == NONE:
                return True
            file = self._file(inode)
        try:
            return self._take(file, wanted) is None
        finally:
            self._let_go(inode, file)

    def wait(self, wanted: Wanted) -> Waiter:
        """Lock as soon as possible. EDEADLK where those in the way wait for locks of the same owner."""
        file = self._file(wanted.inode)
        waiter = Waiter(wanted)
        try:
            self._try(file, waiter)
        except OSError:
            self._let_go(wanted.inode, file)
            raise
        if not waiter.is_granted:
            file.waiters[waiter] = None
            self._waiting.setdefault(wanted.owner, []).append(waiter)
        return waiter

    def give_up(self, waiter: Waiter) -> None:
        """Nobody waits for it any more."""
        file = self._files.get(waiter.wanted.inode)
        if file is None or waiter not in file.waiters:
            return
        self._forget(file, waiter)
        if waiter.call_off is not None:
            waiter.call_off()
        else:
            self._let_go(waiter.wanted.inode, file)

    def closed(self, inode: Inode, owner: int) -> None:
        """close(2): all ranges of the owner."""
        self._drop(inode, lambda file: file.ranges.drop(owner))

    def released(self, inode: Inode, fh: int) -> None:
        """The last descriptor of an open file: all that was locked through it."""
        file = self._files.get(inode)
        if file is None:
            return
        file.handles.discard(fh)
        try:
            if file.whole.pop(fh, None) is not None:
                file.real.unlock_whole(file.whole_kind)
        finally:
            self._look_at_waiters(file)
            self._drop(inode, lambda file: file.ranges.drop_handle(fh))

    def copied_up(self, entry: Any, file: Callable[[], RealFile]) -> None:
        """The inode of an entry has one more real file, which nobody can see yet."""
        for inode, locked in self._files.items():
            if inode.entry is entry:
                locked.real.add(file(), locked.whole_kind)

    def __iter__(self) -> Iterator[tuple[Inode, Held, bool, list[str]]]:
        """All that is held: on which inode, what, is it flock(2)'s, and on which real files?"""
        for inode, file in self._files.items():
            roles = file.real.roles
            yield from ((inode, held, False, roles) for held in file.ranges)
            yield from ((inode, held, True, roles) for held in file.whole.values())

    @property
    def unlimited(self) -> dict[Inode, Any] | None:
        """By inode, what the lane may lock of files that are locked here, without being counted; None if it is."""
        return self._files if self._most_ranges is None else None

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def close(self) -> None:
        """Nobody holds or waits for anything any more."""
        for file in self._files.values():
            waiters, file.waiters = file.waiters, {}
            for waiter in waiters:
                if waiter.call_off is not None:
                    waiter.call_off()
            file.real.close()
        self._waiting.clear()
        self._files.clear()
        self._share.leave()

    # One inode.

    def _file(self, inode: Inode) -> _File:
        file = self._files.get(inode)
        if file is None:
            if not self._share.has_room:
                raise _too_many()
            file = self._files[inode] = _File(self._files_of(inode))
            self._share.take()
        return file

    def _let_go(self, inode: Inode, file: _File) -> None:
        if file.is_idle and self._files.get(inode) is file:
            del self._files[inode]
            self._share.give_back()
            file.real.close()

    def _set(self, file: _File, wanted: Wanted) -> None:
        _, owner, pid, fh, start, end, kind, _ = wanted
        before = len(file.ranges)
        file.ranges.set(owner, start, end, kind, pid, fh)
        file.ranges = suited(file.ranges)
        self._ranges += len(file.ranges) - before

    def _take(self, file: _File, wanted: Wanted) -> Held | RealFile | None:
        """None if it is held now; else what is in the way: a lock of the mount, or the real file where one of somebody
        outside is."""
        return self._take_whole(file, wanted) if wanted.whole else self._take_range(file, wanted)

    def _take_range(self, file: _File, wanted: Wanted) -> Held | RealFile | None:
        _, owner, _, fh, start, end, kind, _ = wanted
        if kind == NONE:
            self._set(file, wanted)
            try:
                file.real.unlock(start, end)
            finally:
                self._look_at_waiters(file)
            return None
        held = file.ranges.conflict(owner, start, end, kind)
        if held is not None:
            return held
        if self._most_ranges is not None and self._ranges >= self._most_ranges:
            raise _too_many()
        # Others hold no more than this of the range: together that is it.
        blocked = file.real.lock(start, end, kind)
        if blocked is not None:
            return blocked
        frees = kind == READ and bool(file.waiters) and any(one[2] == WRITE for one in file.ranges.needed(start, end))
        self._set(file, wanted)
        file.handles.add(fh)
        if frees:
            self._look_at_waiters(file)
        return None

    def _take_whole(self, file: _File, wanted: Wanted) -> Held | RealFile | None:
        """What the owner held before goes first, also where it gets nothing instead (kernel flock_lock_inode)."""
        held = file.whole.get(wanted.owner)
        if held is not None and held.kind is wanted.kind:
            return None
        if held is not None:
            del file.whole[wanted.owner]
            file.real.unlock_whole(file.whole_kind)
            self._look_at_waiters(file)
        if wanted.kind == NONE:
            return None
        others = file.conflict(wanted)
        if others is not None:
            return others
        blocked = file.real.lock_whole(wanted.kind, file.whole_kind)
        if blocked is not None:
            return blocked
        file.whole[wanted.owner] = Held(wanted.owner, 0, END, wanted.kind, wanted.pid, wanted.fh)
        file.handles.add(wanted.fh)
        return None

    def _drop(self, inode: Inode, drop: Callable[[_File], list[tuple[int, int]]]) -> None:
        file = self._files.get(inode)
        if file is None:
            return
        before = len(file.ranges)
        dropped = drop(file)
        self._ranges += len(file.ranges) - before
        try:
            for start, end in dropped:
                file.real.unlock(start, end)
        finally:
            if dropped:
                self._look_at_waiters(file)
            self._let_go(inode, file)

    # Those who wait.

    def _try(self, file: _File, waiter: Waiter) -> None:
        blocked = self._take(file, waiter.wanted)
        if blocked is None:
            waiter.is_granted = True
        elif isinstance(blocked, RealFile):
            self._wait_outside(file, waiter, blocked)
        elif self._is_circle(waiter.wanted, blocked):
            raise OSError(errno.EDEADLK, os.strerror(errno.EDEADLK))

    def _wait_outside(self, file: _File, waiter: Waiter, blocked: RealFile) -> None:
        wanted = waiter.wanted
        if wanted.whole:
            call = blocked.waiting_for_whole(wanted.kind)
        else:
            call = blocked.waiting_for_range(wanted.start, wanted.end, wanted.kind, file.ranges.needed)
        waiter.call_off = self._wait_aside(call, lambda result, error: self._has_waited(file, waiter, error))
        file.threads += 1

    def _has_waited(self, file: _File, waiter: Waiter, error: BaseException | None) -> None:
        """One real file has it; whether that is for anybody is to be seen."""
        waiter.call_off = None
        file.threads -= 1
        try:
            self._look_after_waiting(file, waiter, error)
        except OSError as failure:
            if waiter in file.waiters:
                self._end(file, waiter, failure)

    def _look_after_waiting(self, file: _File, waiter: Waiter, error: BaseException | None) -> None:
        wanted = waiter.wanted
        if waiter in file.waiters:
            if isinstance(error, OSError) and error.errno != errno.EINTR:
                self._end(file, waiter, error)
            else:
                self._look_at(file, waiter)
        if not waiter.is_granted:
            if wanted.whole:
                file.real.unlock_whole(file.whole_kind)
            else:
                file.real.unlock(wanted.start, wanted.end)
        self._let_go(wanted.inode, file)

    def _look_at_waiters(self, file: _File) -> None:
        """Something is free. In the order in which they came; what one gets may free something again."""
        file.is_freer = True
        if file.is_looking or not file.waiters:
            return
        file.is_looking = True
        try:
            while file.is_freer:
                file.is_freer = False
                for waiter in list(file.waiters):
                    if waiter.call_off is None and waiter in file.waiters and not file.is_closed_to(waiter.wanted):
                        self._look_at(file, waiter)
        finally:
            file.is_looking = False

    def _look_at(self, file: _File, waiter: Waiter) -> None:
        try:
            self._try(file, waiter)
        except OSError as error:
            self._end(file, waiter, error)
            return
        if waiter.is_granted:
            self._end(file, waiter, None)

    def _end(self, file: _File, waiter: Waiter, failure: OSError | None) -> None:
        waiter.failure = failure
        self._forget(file, waiter)
        waiter.gate.open()

    def _forget(self, file: _File, waiter: Waiter) -> None:
        del file.waiters[waiter]
        of_owner = self._waiting[waiter.wanted.owner]
        of_owner.remove(waiter)
        if not of_owner:
            del self._waiting[waiter.wanted.owner]

    def _is_circle(self, wanted: Wanted, held: Held | None) -> bool:
        """`held` is in the way. Does its owner wait, himself or through others, for what is held by who wants it? Not
        asked of flock(2), as by the kernel (fs/locks.c, posix_locks_deadlock)."""
        if wanted.whole:
            return False
        seen = set[int]()
        due: list[Wanted] = []
        while True:
            if held is not None and held.owner not in seen:
                if held.owner == wanted.owner:
                    return True
                seen.add(held.owner)
                due += [waiter.wanted for waiter in self._waiting.get(held.owner, ()) if not waiter.wanted.whole]
            if not due or len(seen) >= _LONGEST_CHAIN:
                return False
            one = due.pop()
            held = self._file(one.inode).conflict(one)
