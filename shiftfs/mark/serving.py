"""Serves the directories that are marked for good (permanent.py), each with one tree for all mounts of it, as long as
there are any: `shiftfsctl serve`.

Owns the loop of its process, the socket, and what is marked and mounted. Main thread, which becomes the loop's.
"""

import os
import resource
import signal
import socket
from collections.abc import Callable
from functools import partial

from ..daemon import tell_service_manager
from ..interpreter import Interpreter
from ..layer import magic_link
from ..loop import INTERRUPTING, Loop
from ..mount import MountError
from ..opening import open_tree, raise_descriptor_limit, stay_within_quota
from ..options import MountOptions
from ..sys import privileges
from ..tree import Descriptor, RealKey
from . import marking, permanent, protocol
from .broker import Broker, Derived, Owner, Refused, Serve, Tell, Terms
from .limits import Limits
from .marking import Marking

_FIRST_PASSED = 3
"""SD_LISTEN_FDS_START (sd_listen_fds(3))."""
_MAX_WRITE = 1 << 20
_TREES = 16
"""As many may be mounted at once, and have their share of the descriptors."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Tree:
    """A marked directory that somebody has mounted."""

    def __init__(self, marking: Marking, serve: Serve) -> None:
        self.marking = marking
        self.serve = serve


class Server:
    """The process."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Raises MountError."""
        self._log = log
        self._loop = Loop()
        self._limits = Limits(log)
        self._trees: dict[RealKey, _Tree] = {}
        bound, _ = raise_descriptor_limit(0)
        self._bound = max(bound // _TREES, 32)
        stay_within_quota()
        self._interpreter = Interpreter()
        listener, is_ours = _listener()
        self._broker = Broker(self._loop, listener, None, None, log, self._find, is_ours=is_ours)

    def run(self) -> None:
        """Until a signal."""
        for number in _ENDING:
            signal.signal(number, self._stop)
        signal.signal(INTERRUPTING, lambda number, frame: None)
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        marking.drop_privileges()
        self._loop.on_tick = self._tick
        tell_service_manager()
        try:
            self._loop.run()
        finally:
            self._broker.close()

    def _stop(self, number: int, frame: object) -> None:
        self._loop.stop()
        self._loop.wake()

    def _tick(self, now: float) -> bool:
        is_untidy = self._broker.tick(now)
        for key, one in list(self._trees.items()):
            marked = one.marking
            if marked.has_lost_some:
                marked.has_lost_some = False
                self._interpreter.much_has_gone()
            tree = marked.tree.tree
            is_untidy = marked.tick(now) or tree.tidy(now) or is_untidy
            for chore in tree.chores():
                self._loop.submit(chore, lambda result, error: None)
            if not marked.mounts:
                del self._trees[key]
                marked.close()
        self._interpreter.tick()
        return is_untidy

    def _find(self, path: bytes) -> tuple[Terms, Serve]:
        """In a thread."""
        try:
            fd, mark = permanent.find(path)
        except (permanent.NoMark, OSError):
            # Who may not look there learns nothing of it; root is told by `shiftfsctl marks`.
            raise Refused(f"{os.fsdecode(path)} is not marked, or not so that it counts") from None
        directory = Descriptor(fd, os.close)
        terms = Terms(mark.users, marking.most_mounts(), frozenset([protocol.READ_ONLY] * mark.read_only))
        return terms, partial(self._serve, directory, path)

    def _serve(
        self, directory: Descriptor, path: bytes, fd: int, owner: Owner, options: frozenset[bytes], tell: Tell
    ) -> Derived:
        found = os.fstat(directory.fd)
        key = (found.st_dev, found.st_ino, 0, 0)
        known = self._trees.get(key)
        if known is None:
            known = self._trees[key] = self._open(magic_link(directory.fd), path)
        return known.serve(fd, owner, options, tell)

    def _open(self, source: bytes, path: bytes) -> "_Tree":
        if len(self._trees) >= _TREES:
            raise Refused("as many marked directories are mounted as can be; unmount some")
        options = MountOptions(source, path, mark=True)
        try:
            tree, _ = open_tree(options, self._bound, self._bound, self._log)
        except MountError as error:
            raise Refused(str(error)) from None
        marked = Marking(self._loop, options, tree, None, self._log, self._limits)
        marked.ended = self._broker.ended
        return _Tree(marked, marked.serving(serves_open=False, max_write=_MAX_WRITE, locks=None))


def _listener() -> tuple[socket.socket, bool]:
    """What the service manager has opened for us, or our own; and is it that? Raises MountError."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=_FIRST_PASSED), False
    return marking.listening(protocol.PERMANENT, "marked directories cannot be served"), True


def check() -> None:
    """Raises MountError for who may not serve."""
    if os.geteuid() != 0 or not privileges.in_initial_namespace():
        raise MountError("serve: needs root, in the initial user namespace")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1024:
        raise MountError("serve: needs 1024 descriptors at least (ulimit -Hn)")
