"""A mount that somebody has made of a mark in his own namespaces, as the mark's process serves it.

Owns its session, and what follows the layers for it, until the mount is gone. Loop thread.
"""

import os
from collections.abc import Callable, Hashable
from typing import NamedTuple

from .. import __version__
from ..channel import Buffers
from ..locks.table import Locks
from ..loop import Loop
from ..ops import namespace
from ..ops.context import Inside
from ..reflect.hub import Hub
from ..reflect.journal import Journal
from ..reflect.reflection import Reflection
from ..session import Session
from ..shares import Common, Share
from ..shift.idmap import IdMap
from ..tree import Tree
from .broker import Owner, Tell
from .limits import Size
from .neighbours import Neighbours
from .outsiders import keeping_out
from .protocol import READ_ONLY
from .remote_agent import RemoteAgent
from .shared import SharedTree
from .turns import Turns

_NOTICE_THREADS = 8
"""Notices may wait for whoever has mounted, who may wait for good: not with threads that others need."""


class Served(NamedTuple):
    """What all mounts of one mark have in common. `hub` is None where layers are not followed, `locks` where they stay
    with the kernel."""

    loop: Loop
    tree: SharedTree
    uids: IdMap
    gids: IdMap
    timeout: float
    serves_open: bool
    buffers: Buffers
    watch: str
    hub: Hub | None
    neighbours: Neighbours
    locks: Callable[[Tree], Locks] | None
    open_files: Common
    workers: Common
    log: Callable[[str], None]


class DerivedMount:
    """One of them. `ended` is called when it is gone."""

    def __init__(
        self, served: Served, fd: int, owner: Owner, options: frozenset[bytes],
        tell: Tell, ended: Callable[["DerivedMount"], None],
    ) -> None:  # fmt: skip
        """Takes over `fd`."""
        self.owner = owner
        self._tell = tell
        self._ended = ended
        self._served = served
        self._agent: RemoteAgent | None = None
        self._tree, self._leave_tree = served.tree.use()
        self.session = session = Session(
            served.loop, fd, self._tree, served.uids, served.gids,
            timeout=served.timeout,
            serves_open=served.serves_open,
            report=self._report,
            log=served.log,
            read_only=READ_ONLY in options,
            buffers=served.buffers,
        )  # fmt: skip
        session.context.inside = Inside(owner.uids, owner.gids)
        session.context.note_owner(session.context.inodes.root, self._tree.root_attributes()[1])
        session.wrap(keeping_out)
        session.context.credentials.acts_for_itself = False  # callers there bear the same ids
        session.context.open_files = Share(served.open_files)
        session.is_somebody_elses = True
        self._turns = Turns(served.loop, served.workers, session.pause, session.resume)
        session.submit = self._turns.submit
        served.loop.confine(session, _NOTICE_THREADS)
        session.on_ready = self._ready
        session.on_end = self._gone
        session.on_failure = lambda: tell(session.failure, ())
        self._journal = Journal()
        self._reflection: Reflection | None = None
        if served.locks is not None:
            session.context.serve_locks(served.locks(self._tree))
        if served.hub is not None:
            self._reflection = Reflection(
                served.loop, session, served.watch, self._journal, served.log, served.hub
            )
            served.neighbours.join(session, self._reflection)

    def _ready(self) -> None:
        given: list[int] = []
        if self._reflection is not None:
            self._agent = RemoteAgent(self._served.loop, self._reflection)
            given = self._agent.given
        self._tell(None, given)
        for fd in given:
            os.close(fd)

    def end(self) -> None:
        """Serve it no more: whoever is on it gets ENOTCONN."""
        self.session.end()

    @property
    def user(self) -> Hashable:
        return self.owner.user

    def size(self) -> Size:
        context = self.session.context
        waiting = self._served.loop.backlog(self.session)
        if self._reflection is not None:
            waiting += self._reflection.progress()[0]
        return Size(len(context.inodes), len(context.handles), context.listings.names, waiting)

    def tick(self, now: float) -> bool:
        """Now and then; True if it is to be called again. An agent that has done nothing for long is none: what it was
        to do would be kept for good."""
        is_busy = self._reflection is not None and self._reflection.live.tick()
        if self._agent is not None and self._reflection is not None:
            is_busy = self._agent.look(now, self._reflection.progress()) or is_busy
        return is_busy

    def _gone(self) -> None:
        context = self.session.context
        self._served.neighbours.leave(self.session)
        if self._agent is not None:
            self._agent.end()
        if self._reflection is not None:
            self._reflection.close()
        if context.locks is not None:
            context.locks.close()
        context.handles.clear()
        context.kept.clear()
        context.open_files.leave()
        self._turns.leave()
        self._leave_tree()
        self._served.loop.disband(self.session)
        for inode in context.inodes.drop_all():
            namespace.let_go(context, inode)
        self._ended(self)

    def _report(self, name: str, after: int = 0, when: float = 0.0) -> bytes:
        """To container root, who is told nothing of the host."""
        import json  # most mounts are never asked

        context = self.session.context
        sizes = {"inodes": len(context.inodes), "handles": len(context.handles), "waiting": self.session.waiting}
        live = self._reflection.describe() if self._reflection is not None else None
        told: dict[str, object] = {
            "status": {"version": __version__, "marked": True, "live": live, **sizes},
            "stats": {"requests": self.session.counters.report(), **sizes},
            "events": self._journal.report(after, when),
            "locks": {"served": context.locks is not None, "waiting": 0, "locks": []},
        }
        return json.dumps(told[name]).encode()
