"""A mount that somebody has made of a mark in his own namespaces, as the mark's process serves it.

Owns its session, and what follows the layers for it, until the mount is gone. Loop thread.
"""

import json
from collections.abc import Callable
from typing import Any

from .. import __version__
from ..inodes import InodeTable
from ..locks.table import Locks
from ..loop import Loop
from ..reflect.hub import Hub
from ..reflect.journal import Journal
from ..reflect.reflection import Reflection
from ..session import Session
from ..shift.idmap import IdMap
from .broker import Owner
from .protocol import NO_ATIME, READ_ONLY
from .shared import SharedTree

__all__ = ["NO_ATIME", "READ_ONLY", "DerivedMount", "Served"]


class Served:
    """What all mounts of one mark have in common."""

    def __init__(
        self, loop: Loop, tree: SharedTree, uids: IdMap, gids: IdMap, *, timeout: float, serves_open: bool,
        max_write: int, hub: Hub | None, locks: Callable[[Any], Locks] | None, log: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`hub` is None where layers are not followed, `locks` where they stay with the kernel."""
        self.loop = loop
        self.tree = tree
        self.uids = uids
        self.gids = gids
        self.timeout = timeout
        self.serves_open = serves_open
        self.max_write = max_write
        self.hub = hub
        self.locks = locks
        self.log = log


class DerivedMount:
    """One of them. `ended` is called when it is gone."""

    def __init__(
        self, served: Served, fd: int, owner: Owner, options: frozenset[bytes],
        tell: Callable[[str | None], None], ended: Callable[["DerivedMount"], None],
    ) -> None:  # fmt: skip
        """Takes over `fd`."""
        self.owner = owner
        self._ended = ended
        self._tree = served.tree.use()
        self.session = session = Session(
            served.loop, fd, self._tree, served.uids, served.gids,
            timeout=served.timeout,
            serves_open=served.serves_open,
            max_write=served.max_write,
            report=self._report,
            log=served.log,
            read_only=READ_ONLY in options,
        )  # fmt: skip
        session.context.inside = owner.uids
        session.on_ready = lambda: tell(None)
        session.on_end = self._gone
        session.on_failure = lambda: tell(session.failure)
        self._journal = Journal()
        self._reflection: Reflection | None = None
        if served.locks is not None:
            session.context.serve_locks(served.locks(self._tree))
        if served.hub is not None:
            self._reflection = Reflection(served.loop, session, "inotify", self._journal, served.log, served.hub)

    def end(self) -> None:
        """Serve it no more: whoever is on it gets ENOTCONN."""
        self.session.end()

    def _gone(self) -> None:
        context = self.session.context
        if self._reflection is not None:
            self._reflection.close()
        if context.locks is not None:
            context.locks.close()
        context.handles.clear()
        _release_all(context.inodes, self._tree.release)
        self._ended(self)

    def _report(self, name: str, after: int = 0, when: float = 0.0) -> bytes:
        """To container root, who is told nothing of the host."""
        context = self.session.context
        sizes = {"inodes": len(context.inodes), "handles": len(context.handles), "waiting": self.session.waiting}
        told: dict[str, object] = {
            "status": {"version": __version__, "marked": True, **sizes},
            "stats": {"requests": self.session.counters.report(), **sizes},
            "events": self._journal.report(after, when),
            "locks": {"served": context.locks is not None, "waiting": 0, "locks": []},
        }
        return json.dumps(told[name]).encode()


def _release_all(inodes: InodeTable, release: Callable[[Any], None]) -> None:
    for inode in inodes.drop_all():
        release(inode.entry)
