"""What is watched for all mounts of one process, by one source of each kind: the kernel tells one what it would have to
tell hundreds, and a user may have but a hundred.

Owns the sources, and who wants to hear of which watch. None of them tells what this process does itself, for whichever
of its mounts: `tell` does. Loop thread.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Container

from .happening import Happening, Token, What
from .sources import Source

_BURST = 256
"""Happenings that are handed out in one read: requests have their turn in between."""


class Hub:
    """`listen` is given a source's descriptor, and what to call when that is readable, until `ignore` is; `new` makes a
    source."""

    def __init__(
        self, listen: Callable[[int, Callable[[], None]], None], ignore: Callable[[int], None],
        new: Callable[[str], Source],
    ) -> None:  # fmt: skip
        self._listen = listen
        self._ignore = ignore
        self._new = new
        self._sources: dict[str, Source] = {}
        self._wanted: dict[Token, set[Branch]] = {}
        self._branches: set[Branch] = set()

    def branch(self, kind: str) -> "Branch":
        """What one more mount hears of the source of a kind."""
        branch = Branch(self, self._source(kind))
        self._branches.add(branch)
        return branch

    def _source(self, kind: str) -> Source:
        source = self._sources.get(kind)
        if source is None:
            source = self._sources[kind] = self._new(kind)
            self._listen(source.fd, lambda: self._hear(source))
        return source

    def close(self) -> None:
        """Nobody is left."""
        for source in self._sources.values():
            self._ignore(source.fd)
            source.close()
        self._sources.clear()

    def want(self, branch: "Branch", token: Token) -> None:
        self._wanted.setdefault(token, set()).add(branch)

    def unwant(self, branch: "Branch", token: Token) -> bool:
        """True if nobody else wants it."""
        wanting = self._wanted.get(token, set())
        wanting.discard(branch)
        if wanting:
            return False
        self._wanted.pop(token, None)
        return True

    def gone(self, branch: "Branch") -> None:
        self._branches.discard(branch)

    def _hear(self, source: Source) -> None:
        try:
            happenings = source.read(())
        except OSError:  # some of it is lost: all look at what they know
            happenings = [Happening(What.OVERFLOW, False, None, b"")]
        for happening in happenings:
            self.tell(happening)

    def tell(self, happening: Happening, own: Container["Branch"] = ()) -> None:
        """Let all hear of it who want to, but those of whoever did it."""
        tokens = [one for one in (happening.directory, happening.to, happening.target) if one is not None]
        concerned: set[Branch] = set().union(*(self._wanted.get(token, ()) for token in tokens))
        if not concerned and happening.directory is None and happening.to is None:
            concerned = self._branches  # an overflow; or an inode that nobody watches, and some may know
        for branch in concerned:
            if branch not in own:
                branch.put(happening)


class Branch:
    """What one mount hears of a source (sources.Source)."""

    reader = None

    def __init__(self, hub: Hub, source: Source) -> None:
        self._hub = hub
        self._source = source
        self._queue: deque[Happening] = deque()
        self.known: set[Token] = set()
        self.removes_by_way = source.removes_by_way
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def prepare(self, device: int, fd: int, name: bytes) -> None:
        self._source.prepare(device, fd, name)

    def add(self, device: int, fd: int, name: bytes, is_directory: bool) -> Token:
        token = self._source.add(device, fd, name, is_directory)
        self.known.add(token)
        self._hub.want(self, token)
        return token

    def remove(self, token: Token, fd: int, name: bytes) -> bool:
        self.known.discard(token)
        return not self._hub.unwant(self, token) or self._source.remove(token, fd, name)

    def identify(self, device: int, fd: int, name: bytes) -> Token | None:
        return self._source.identify(device, fd, name)

    def disregard(self, fd: int) -> bool:
        return self._source.disregard(fd)

    def put(self, happening: Happening) -> None:
        if not self._queue:
            os.eventfd_write(self.fd, 1)
        elif self._queue[-1] == happening:
            return  # a file that is written to again and again
        self._queue.append(happening)

    def read(self, own: Container[int]) -> list[Happening]:
        found = [self._queue.popleft() for _ in range(min(len(self._queue), _BURST))]
        if not self._queue:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.fd)
        return found

    def close(self) -> None:
        for token in list(self.known):
            self.remove(token, -1, b"")
        self._hub.gone(self)
        os.close(self.fd)
