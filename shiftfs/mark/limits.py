"""What all mounts of one process have to get by with, besides descriptors: workers, and memory.

Whoever mounts has the connection too, and may keep from us what the kernel forgets, or closes: what is remembered for
his mount then grows for as long as he likes. Loop thread.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple, Protocol

from ..sys import groups
from .turns import workers

_PAUSE: Final = 0.5
"""Seconds between looks."""
_NEWS: Final = 8
"""What others have done, and a mount is still to be told, does not count as its own up to this part of the memory."""
_WAITING: Final = 512
"""Bytes, about, of each of these."""


class Size(NamedTuple):
    """What is remembered for a mount."""

    inodes: int
    handles: int
    names: int
    """In listings that are kept."""
    waiting: int
    """To be told to the kernel, or by the agent."""

    @property
    def memory(self) -> int:
        """In bytes, about."""
        return 1024 * self.inodes + 512 * self.handles + _WAITING * self.waiting + 256 * self.names


class Sized(Protocol):
    """A mount, and for whom it counts."""

    @property
    def user(self) -> Hashable: ...

    def size(self) -> Size: ...

    def end(self) -> None: ...


def half_of_the_memory() -> int:
    """For each inode that we know, a kernel that tells us what it forgets has one too, which takes as much: it will
    forget before we have come to that."""
    return groups.memory() // 2


class Limits:
    """Of one process. `memory`: bytes that may be taken by all mounts together."""

    def __init__(self, log: Callable[[str], None], memory: int | None = None) -> None:
        self.workers = workers()
        self.mounts: set[Sized] = set()
        self._memory = half_of_the_memory() if memory is None else memory
        self._log = log
        self._next = 0.0

    def look(self, now: float) -> None:
        """Where it is too much: end the largest mount of whoever has most."""
        if now < self._next:
            return
        self._next = now + _PAUSE
        sizes = {mount: mount.size() for mount in self.mounts}
        if sum(size.memory for size in sizes.values()) <= self._memory:
            return
        news = self._memory // _NEWS
        own = {mount: size.memory - min(_WAITING * size.waiting, news) for mount, size in sizes.items()}
        of_users: Counter[Hashable] = Counter()
        for mount, count in own.items():
            of_users[mount.user] += count
        user = of_users.most_common(1)[0][0]
        largest = max((mount for mount in sizes if mount.user == user), key=own.__getitem__)
        what = ", ".join(f"{count} {name}" for name, count in sizes[largest]._asdict().items())
        self._log(
            f"a mount is ended, made by {user}, of which too much is to be remembered ({what}): all mounts together"
            f" may take {self._memory >> 20} MiB"
        )
        largest.end()
