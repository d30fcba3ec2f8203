"""What makes a mount a mark: its tree is shared with the mounts that others make of it, which one process serves.

Owns the tree's sharing, the hub through which these hear of each other, and the broker. Loop thread; `check` before.
"""

import os
import pwd
import resource
import socket
from collections.abc import Callable

from .. import runtime
from ..channel import Buffers
from ..locks.table import Locks
from ..loop import Loop
from ..mount import MountError
from ..options import MountOptions
from ..reflect.ending import Ending
from ..reflect.hub import Hub
from ..reflect.watchers import new_source
from ..shares import Common
from ..sys import privileges
from ..tree import Tree
from . import client, exposure, protocol
from .broker import Broker, Derived, Owner, Serve, Tell, Terms, listen
from .derived import DerivedMount, Served
from .limits import Limits
from .neighbours import Neighbours
from .shared import SharedTree

_PER_MOUNT = 8
"""Descriptors that one may come to, without those of the tree."""
_SHARE = 2 / 5
"""Of the descriptors that there are: what is left to mounts (opening.raise_descriptor_limit)."""


_NEEDED = (
    privileges.CAP_CHOWN,
    privileges.CAP_DAC_OVERRIDE,
    privileges.CAP_DAC_READ_SEARCH,  # open_by_handle_at(2)
    privileges.CAP_FOWNER,
    privileges.CAP_FSETID,  # set-id bits stay where they are to stay
    privileges.CAP_SETGID,  # setfsgid(2): to create as the caller
    privileges.CAP_SETUID,
    privileges.CAP_LINUX_IMMUTABLE,
    privileges.CAP_SYS_PTRACE,  # whose the namespaces are of whoever asks
    privileges.CAP_SYS_ADMIN,  # trusted.*, fanotify(7), mounts
    privileges.CAP_MKNOD,
    privileges.CAP_LEASE,
    privileges.CAP_SETFCAP,
)


def drop_privileges() -> None:
    """Keep what is needed for files alone. Before there are threads."""
    privileges.keep_capabilities_over_setfsuid()  # which takes one that is not kept
    privileges.keep_only(sum(1 << number for number in _NEEDED))


def most_mounts() -> int:
    """As many can be served by one process."""
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _SHARE) // _PER_MOUNT


def check(options: MountOptions) -> frozenset[int] | None:
    """Who may mount what is to be marked; None for everybody. Raises MountError for what must not be marked."""
    is_powerful = privileges.effective_capabilities() >> privileges.CAP_SYS_ADMIN & 1
    if os.geteuid() != 0 or not is_powerful or not privileges.in_initial_namespace():
        raise MountError("mark: needs root, with CAP_SYS_ADMIN in the initial user namespace; nothing was mounted")
    within = [path for path in (options.lowerdirs or (options.source,)) if path is not None and _is_in_mark(path)]
    if within:
        raise MountError(f"{os.fsdecode(within[0])}: lies in a mark already; mark what that shows")
    exposed = [path for path in _taking(options) if exposure.hiding_place(path) is None]
    if exposed and not options.allow_exposed:
        raise MountError(
            f"{os.fsdecode(exposed[0])}: set-id files that others make there would be root's own, for everybody who"
            " comes to them; put it beneath a directory that only root may search (chmod 0700), or give allow_exposed"
        )
    return users(options.mark_users)


def _is_in_mark(path: bytes) -> bool:
    device = os.stat(path).st_dev
    return client.answers(f"{os.major(device)}:{os.minor(device)}")


def users(names: tuple[str, ...]) -> frozenset[int] | None:
    """By uid; None for nobody in particular. Raises MountError."""
    return frozenset(map(_uid, names)) or None


def _taking(options: MountOptions) -> list[bytes]:
    """Where others can make files."""
    if options.lowerdirs:
        return [options.upperdir] if options.upperdir is not None else []
    return [options.source] if options.source is not None and not options.read_only else []


def _uid(user: str) -> int:
    try:
        return int(user) if user.isascii() and user.isdigit() else pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise MountError(f"mark_users: there is no user {user!r}; see getent passwd") from None


def listening(name: str, otherwise: str) -> socket.socket:
    """The socket of this name, where those who mount look for it. Raises MountError, which says what is so `otherwise`.
    """
    path = protocol.path(name)
    try:
        os.close(runtime.directory(protocol.DIRECTORY, is_public=True))
        return listen(path)
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}; {otherwise}") from None


class Marking:
    """Of one mark."""

    drop_privileges = staticmethod(drop_privileges)

    def __init__(
        self, loop: Loop, options: MountOptions, tree: Tree, users: frozenset[int] | None, log: Callable[[str], None],
        limits: Limits | None = None,
    ) -> None:  # fmt: skip
        """`limits`: of all mounts of the process, if there are others than those of this mark."""
        self._limits = limits or Limits(log)
        self._loop = loop
        self._options = options
        self._users = users
        self._log = log
        self._broker: Broker | None = None
        self._ending: Ending | None = None
        self._alone: Callable[[], None] = lambda: None
        self.tree = SharedTree(tree)
        self.hub = Hub(loop.add, loop.remove, new_source) if options.watch != "off" else None
        self.neighbours = Neighbours(self.hub)
        self.mounts: set[DerivedMount] = set()
        self.ended: Callable[[Derived], None] = lambda derived: None
        """Told of each mount that has ended."""
        self.has_lost_some = False
        """Mounts have ended since this was last cleared."""

    def open_door(
        self, device: str, *, serves_open: bool, max_write: int, locks: Callable[[Tree], Locks] | None,
        unmounted: Callable[[], None],
    ) -> None:  # fmt: skip
        """Let others in, who find us by the number of the mark's filesystem. `unmounted` is called when nobody in our
        mount namespace has the mark any more; those who have mounted it have copies of it in theirs. Raises MountError.
        """
        listener = listening(device, "nobody could mount the mark, and it is none")
        self._ending = Ending(self._loop, device, unmounted)
        terms = Terms(self._users, most_mounts(), self.options)
        serve = self.serving(serves_open=serves_open, max_write=max_write, locks=locks)
        self._broker = Broker(self._loop, listener, terms, serve, self._log)
        self.ended = self._broker.ended

    @property
    def options(self) -> frozenset[bytes]:
        """What all mounts of it have."""
        return frozenset([protocol.READ_ONLY] * self._options.read_only)

    def serving(
        self, *, serves_open: bool, max_write: int, locks: Callable[[Tree], Locks] | None
    ) -> Serve:
        """What makes mounts of it out of connections."""
        options = self._options
        served = Served(
            self._loop, self.tree, options.uidmap, options.gidmap, options.timeout, serves_open, Buffers(max_write),
            options.watch, self.hub, self.neighbours, locks, Common(self.tree.bound, 1), self._limits.workers,
            self._log,
        )

        def serve(fd: int, owner: Owner, asked: frozenset[bytes], tell: Tell) -> Derived:
            derived = DerivedMount(served, fd, owner, asked, tell, self._has_ended)
            self.mounts.add(derived)
            self._limits.mounts.add(derived)
            return derived

        return serve

    def tick(self, now: float) -> bool:
        self._limits.look(now)
        is_due = self._ending is not None and self._ending.look(now)
        is_due = (self._broker is not None and self._broker.tick(now)) or is_due
        return any([derived.tick(now) for derived in list(self.mounts)]) or is_due

    def close_door(self, alone: Callable[[], None]) -> None:
        """The mark's own mount is gone: nobody may mount it any more. `alone` is called when all are gone."""
        self._alone = alone
        if self._ending is not None:
            self._ending.close()
        if self._broker is not None:
            self._broker.close_door()
        if not self.mounts:
            alone()

    def _has_ended(self, derived: DerivedMount) -> None:
        self.has_lost_some = True
        self.mounts.discard(derived)
        self._limits.mounts.discard(derived)
        self.ended(derived)
        if not self.mounts:
            self._alone()

    def close(self) -> None:
        """End all mounts."""
        self._alone = lambda: None
        if self._broker is not None:
            self._broker.close()
        for derived in list(self.mounts):
            derived.end()
        if self.hub is not None:
            self.hub.close()
