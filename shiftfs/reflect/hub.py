"""One inotify instance for the mounts of one process: a user may have a hundred of them, and mounts there are more.

Owns the instance, and who wants to hear of which watch. Each mount has a source of its own, which tells all that
anybody changes in what it watches: what one mount does is news to the others. Loop thread.
"""

import os
from collections import deque
from collections.abc import Callable, Container

from .happening import Happening, Token, What
from .sources import Inotify

_BURST = 256
"""Happenings that are handed out in one read: requests have their turn in between."""


class Hub:
    """The instance. `listen` is given its descriptor, and what to call when that is readable."""

    def __init__(self, listen: Callable[[int, Callable[[], None]], None]) -> None:
        self._listen = listen
        self._inotify: Inotify | None = None
        self._wanted: dict[Token, set[Branch]] = {}
        self._branches: set[Branch] = set()

    def branch(self) -> "Branch":
        """For one more mount."""
        branch = Branch(self)
        self._branches.add(branch)
        return branch

    @property
    def inotify(self) -> Inotify:
        if self._inotify is None:
            self._inotify = Inotify()
            self._listen(self._inotify.fd, self.pump)
        return self._inotify

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

    def pump(self) -> None:
        """Hand out what is there."""
        if self._inotify is None:
            return
        for h in self._inotify.read(()):
            if h.what & What.OVERFLOW:
                concerned = set(self._branches)
            else:
                tokens = (one for one in (h.directory, h.to, h.target) if one is not None)
                concerned = set().union(*(self._wanted.get(token, ()) for token in tokens))
            for branch in concerned:
                branch.put(h)


class Branch:
    """What one mount hears (sources.Source)."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._queue: deque[Happening] = deque()
        self.known: set[Token] = set()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def prepare(self, device: int, fd: int, name: bytes) -> None:
        self._hub.inotify.prepare(device, fd, name)

    def add(self, device: int, fd: int, name: bytes, is_directory: bool) -> Token:
        token = self._hub.inotify.add(device, fd, name, is_directory)
        self.known.add(token)
        self._hub.want(self, token)
        return token

    def remove(self, token: Token, fd: int, name: bytes) -> bool:
        self.known.discard(token)
        return not self._hub.unwant(self, token) or self._hub.inotify.remove(token, fd, name)

    def identify(self, device: int, fd: int, name: bytes) -> Token | None:
        return self._hub.inotify.identify(device, fd, name)

    def put(self, happening: Happening) -> None:
        if not self._queue:
            os.eventfd_write(self.fd, 1)
        self._queue.append(happening)

    def read(self, own: Container[int]) -> list[Happening]:
        found = [self._queue.popleft() for _ in range(min(len(self._queue), _BURST))]
        if not self._queue:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                pass
        return found

    def close(self) -> None:
        for token in list(self.known):
            self.remove(token, -1, b"")
        self._hub.gone(self)
        os.close(self.fd)
