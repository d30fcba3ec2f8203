"""The mounts of one mark as they concern each other: what is changed through one is told to the others.

Owns the list of them. Loop thread.
"""

from functools import partial

from ..inodes import Inode
from ..reflect.hub import Hub
from ..reflect.reflection import Reflection
from ..session import Session
from .telling import telling


class Neighbours:
    """Of one mark; without a hub, nobody hears of anything."""

    def __init__(self, hub: Hub | None) -> None:
        self._hub = hub
        self._sessions: set[Session] = set()

    def join(self, session: Session, reflection: Reflection) -> None:
        """One more, whose requests are heard of from now on."""
        if self._hub is None:
            return
        self._sessions.add(session)
        session.wrap(partial(telling, tell=partial(self._hub.tell, own=reflection.branches)))
        session.context.also_up = partial(self._is_up, session)

    def leave(self, session: Session) -> None:
        self._sessions.discard(session)

    def _is_up(self, session: Session, inode: Inode) -> None:
        """The others are to watch it in the upper layer too."""
        for other in self._sessions:
            known = other.context.inodes.known(inode.key) if other is not session else None
            if known is not None and other.context.live is not None:
                other.context.live.is_up_now(known)
