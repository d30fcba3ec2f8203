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
from weakref import WeakSet

from ..daemon import tell_service_manager
from ..interpreter import Interpreter
from ..layer import magic_link
from ..locks.mounts import Locking
from ..loop import INTERRUPTING, Loop
from ..mount import MountError
from ..opening import open_tree, raise_descriptor_limit, stay_within_quota
from ..options import MountOptions
from ..sys import privileges
from ..tree import Descriptor, RealKey, Tree
from . import marking, permanent, protocol
from .broker import Broker, Derived, Owner, Refused, Serve, Tell, Terms
from .limits import Limits
from .marking import Marking
from .permanent import Mark

_FIRST_PASSED = 3
"""SD_LISTEN_FDS_START (sd_listen_fds(3))."""
_MAX_WRITE = 1 << 20
_TREES = 16
"""As many may be mounted at once, and have their share of the descriptors."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Tree:
    """A marked directory that somebody has mounted, which keeps the disk that it is on from being unmounted."""

    def __init__(self, directory: Descriptor, marking: Marking, serve: Serve) -> None:
        self.directory = directory
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
        self._not_collected: WeakSet[Tree] = WeakSet()
        """With those that nobody has mounted any more, which hold a descriptor until then."""
        bound, _ = raise_descriptor_limit(0)
        self._bound = max(bound // _TREES, 32)
        stay_within_quota()
        self._interpreter = Interpreter()
        self._locking = Locking(self._loop.wait_aside, log, has_many=True)
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
        for key in list(self._trees):
            is_untidy = self._look_after(key, now) or is_untidy
        return self._interpreter.tick() or is_untidy  # last, when nothing here refers to a tree that is gone

    def _look_after(self, key: RealKey, now: float) -> bool:
        marked = self._trees[key].marking
        if marked.has_lost_some:
            marked.has_lost_some = False
            self._interpreter.much_has_gone()
        tree = marked.tree.tree
        is_untidy = marked.tick(now) or tree.tidy(now)
        for chore in tree.chores():
            self._loop.submit(chore, lambda result, error: None)
        if not marked.mounts:
            del self._trees[key]
            marked.close()
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
        return terms, partial(self._serve, directory, path, mark)

    def _serve(
        self, directory: Descriptor, path: bytes, mark: Mark, fd: int, owner: Owner, options: frozenset[bytes],
        tell: Tell,
    ) -> Derived:  # fmt: skip
        found = os.fstat(directory.fd)
        key = (found.st_dev, found.st_ino, 0, 0)
        known = self._trees.get(key)
        if known is None:
            self._check_room(owner)
            known = self._trees[key] = self._open(directory, path, mark)
        return known.serve(fd, owner, options, tell)

    def _check_room(self, owner: Owner) -> None:
        """Root may have all; another half of them to himself, so that others have theirs. Raises Refused."""
        his = sum(all(mount.owner.user == owner.user for mount in one.marking.mounts) for one in self._trees.values())
        if len(self._trees) >= _TREES or (owner.uid != 0 and his >= _TREES // 2):
            raise Refused("as many marked directories are mounted as can be; unmount some")

    def _open(self, directory: Descriptor, path: bytes, mark: Mark) -> "_Tree":
        if len(self._not_collected) >= 2 * _TREES:
            self._interpreter.look_at_all()
        locks = None if mark.locks_stay else self._locking.of
        source = magic_link(directory.fd)
        options = MountOptions(source, path, mark=True, locks="layers" if locks is not None else "mount")
        try:
            tree, _ = open_tree(options, self._bound, self._bound, self._log)
        except MountError as error:
            raise Refused(str(error)) from None
        self._not_collected.add(tree)
        marked = Marking(self._loop, options, tree, None, self._log, self._limits)
        marked.ended = self._broker.ended
        serve = marked.serving(serves_open=locks is not None, max_write=_MAX_WRITE, locks=locks)
        return _Tree(directory, marked, serve)


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
