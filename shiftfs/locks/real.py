"""The real files that the locks of one inode are held on, on behalf of all who hold them on the mount.

Owns descriptors of them. Held is what all users together hold, the strongest of each byte; who holds what is `ranges`'.
Loop thread, but for what waits.
"""

import errno
import os
from collections.abc import Callable, Iterable
from typing import Final

from ..sys import locks
from ..sys.locks import NONE, READ, WRITE, Range
from ..tree import Descriptor

_FOR_GOOD: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_ONLY_READABLE: Final = _FOR_GOOD | {errno.ETXTBSY, errno.EWOULDBLOCK}

Held = Callable[[int, int], Iterable[Range]]
"""What is held of a range at the moment, first and last byte."""


class RealFile:
    """One of them; `role` says which, in a word. `open` gives a new descriptor for O_RDONLY or O_RDWR.

    It is open for writing only once a lock needs that: until then it can be executed, and its watchers hear of no
    closing."""

    def __init__(self, role: str, open: Callable[[int], int], done: Callable[[], None] = lambda: None) -> None:
        self.role = role
        self._open = open
        self._done = done
        self.ranges = -1
        self.whole = -1
        self.is_writable: bool | None = None

    def set_range(self, start: int, end: int, kind: int, held: Held) -> bool:
        """False if somebody else's lock is in the way. A lock for writing, where the file cannot be written, is held
        as one for reading: that is what the layer can be told."""
        if kind == NONE and self.ranges < 0:
            return True  # nothing was ever locked: unlocking opens nothing, and cannot fail for that
        return locks.set_range(self._for(kind, held), start, end, self._expressed(kind))

    def set_whole(self, kind: int) -> bool:
        """flock(2)."""
        if kind == NONE and self.whole < 0:
            return True
        return locks.set_whole(self._for_whole(), kind)

    def in_the_way(self, start: int, end: int, kind: int, held: Held) -> tuple[Range, int] | None:
        return locks.in_the_way(self._for(kind, held), start, end, self._expressed(kind))

    def waiting_for_range(self, start: int, end: int, kind: int, held: Held) -> Callable[[], object]:
        """A call that returns when what is in the way may have gone. On a thread of its own: a signal ends it (EINTR).

        An upgrade waits with the very description that holds what is to be upgraded, which a grant only adds to. A lock
        for reading waits with another one, or a grant would take others' locks for writing; no further than somebody
        outside has locked, or it would wait for our own.
        """
        fd, kind = self._for(kind, held), self._expressed(kind)
        if kind == WRITE:
            waiting = Descriptor(os.dup(fd), os.close)
            return lambda: locks.set_range(waiting.fd, start, end, kind, wait=True)
        found = locks.in_the_way(fd, start, end, kind)
        if found is None:
            return lambda: None
        first, last = max(start, found[0][0]), min(end, found[0][1])
        waiting = Descriptor(self._open(os.O_RDONLY), os.close)

        def wait() -> None:
            locks.set_range(waiting.fd, first, last, kind, wait=True)
            locks.set_range(waiting.fd, first, last, NONE)  # it is to be free when it is looked at

        return wait

    def waiting_for_whole(self, kind: int) -> Callable[[], object]:
        """flock(2) lets go of what its description has before it waits: so this is another."""
        waiting = Descriptor(self._open(os.O_RDONLY), os.close)

        def wait() -> None:
            locks.set_whole(waiting.fd, kind, wait=True)
            locks.set_whole(waiting.fd, NONE)  # not only when this descriptor closes: that may be later

        return wait

    def _expressed(self, kind: int) -> int:
        return READ if kind == WRITE and not self.is_writable else kind

    def _for(self, kind: int, held: Held) -> int:
        if self.ranges < 0:
            self.ranges = self._open(os.O_RDONLY)
        if kind == WRITE and self.is_writable is None:
            self.is_writable = self._open_for_writing(held)
        return self.ranges

    def _open_for_writing(self, held: Held) -> bool | None:
        """Without a moment in which nothing is held. Nothing is for writing so far. None if it may be possible later.
        """
        try:
            fd = self._open(os.O_RDWR)
        except OSError as error:
            if error.errno not in _ONLY_READABLE:
                raise
            return False if error.errno in _FOR_GOOD else None
        try:
            for start, end, kind in held(0, locks.END):
                if kind != NONE:
                    locks.set_range(fd, start, end, kind)
        except BaseException:
            os.close(fd)
            raise
        locks.set_range(self.ranges, 0, locks.END, NONE)
        os.close(self.ranges)
        self.ranges = fd
        return True

    def _for_whole(self) -> int:
        if self.whole < 0:
            self.whole = self._open(os.O_RDONLY)
        return self.whole

    def close(self) -> None:
        """Nothing is held any more."""
        for fd in (self.ranges, self.whole):
            if fd >= 0:
                os.close(fd)
        self.ranges = self.whole = -1
        self._done()


class RealFiles:
    """All real files of one inode, always locked in the same order. `held` tells the ranges that are held for all
    users."""

    def __init__(self, files: Iterable[RealFile], held: Held) -> None:
        self.files = list(files)
        self._held = held

    def lock(self, start: int, end: int, kind: int) -> RealFile | None:
        """Hold a range on all files, before `held` tells of it; or, where somebody else's lock is in the way on one,
        no more than before: it is that file. Raises OSError, and holds no more than before."""
        is_held = False
        try:
            for file in self.files:
                if not file.set_range(start, end, kind, self._held):
                    return file
            is_held = True
        finally:
            if not is_held:
                self.unlock(start, end)
        return None

    def unlock(self, start: int, end: int) -> None:
        """Hold no more of a range than `held` tells."""
        failed = 0
        for first, last, kind in self._held(start, end):
            for file in self.files:
                try:
                    file.set_range(first, last, kind, self._held)
                except OSError as error:  # whatever becomes of one
                    failed = error.errno or errno.EIO
        _raise(failed)

    def lock_whole(self, kind: int, before: int) -> RealFile | None:
        """flock(2), as `lock`."""
        is_held = False
        try:
            for file in self.files:
                if not file.set_whole(kind):
                    return file
            is_held = True
        finally:
            if not is_held:
                self.unlock_whole(before)
        return None

    def unlock_whole(self, left: int) -> None:
        failed = 0
        for file in self.files:
            try:
                file.set_whole(left)
            except OSError as error:
                failed = error.errno or errno.EIO
        _raise(failed)

    def in_the_way(self, start: int, end: int, kind: int) -> tuple[Range, int] | None:
        """A lock of somebody outside of the mount."""
        for file in self.files:
            found = file.in_the_way(start, end, kind, self._held)
            if found is not None:
                return found
        return None

    def add(self, file: RealFile, whole: int) -> None:
        """One more, which nobody else knows yet: what is held is held on it as well."""
        try:
            for start, end, kind in self._held(0, locks.END):
                if kind != NONE:
                    file.set_range(start, end, kind, self._held)
            if whole != NONE:
                file.set_whole(whole)
        except OSError:
            file.close()
            raise
        self.files.append(file)

    @property
    def roles(self) -> list[str]:
        return [file.role for file in self.files]

    def close(self) -> None:
        for file in self.files:
            file.close()
        self.files.clear()


def _raise(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
