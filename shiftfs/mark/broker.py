"""Lets others mount a mark: hears who asks at its socket, decides whether he may, and takes his connection over.

Owns the socket, and those who are at it, none of whom is ever waited for. Whoever asks is known by what the kernel says
of him, not by what he says. What is done with a connection is the caller's. Loop thread.
"""

import contextlib
import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from ..loop import Loop
from ..shift.idmap import IdMap, MapError
from ..sys import handover
from ..usermaps import of_namespace
from . import protocol
from .protocol import CONNECTION, HELLO, NO, OK, SERVING, Malformed, packed

_PATIENCE: Final = 10.0
"""Seconds that somebody may take from one step to the next."""
_MOST_VISITORS: Final = 128
_MOST_OF_ONE: Final = 16
_BACKLOG: Final = 128


class Refused(Exception):
    """Why somebody may not mount: one line, for him."""


class Owner(NamedTuple):
    """Whose the new mount is: who made the user namespace, and its uids and gids, shown inside and real outside."""

    uid: int
    uids: IdMap
    gids: IdMap


class Derived(Protocol):
    """A mount that was made of the mark."""

    owner: Owner

    def end(self) -> None: ...


class Terms(NamedTuple):
    """`users`: who may mount, by the uid of who made the namespace; everybody for None. `most`: how many mounts there
    may be, and `options` what all have."""

    users: frozenset[int] | None
    most: int
    options: frozenset[bytes]


Tell = Callable[[str | None, Sequence[int]], None]
"""Called with None, and descriptors to be given to whoever mounts, once a mount is served, or with why it is not."""
Serve = Callable[[int, Owner, frozenset[bytes], Tell], Derived]
"""Serve a connection, with these options."""


class Visitor:
    """Somebody at the socket, who has come as far as `step`."""

    def __init__(self, connection: socket.socket, peer: handover.Peer, deadline: float) -> None:
        self.connection = connection
        self.peer = peer
        self.deadline = deadline
        self.step: Callable[[Visitor, list[bytes], list[int]], None] | None = None
        self.owner: Owner | None = None
        self.options: frozenset[bytes] = frozenset()
        self.derived: Derived | None = None


class Broker:
    """For one mark."""

    def __init__(
        self, loop: Loop, listener: socket.socket, terms: Terms, serve: Serve, log: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._listener: socket.socket | None = listener
        self._terms = terms
        self._serve = serve
        self._log = log
        self._visitors: set[Visitor] = set()
        self._own = _identity(os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC))
        self.mounts: set[Derived] = set()
        listener.setblocking(False)
        loop.add(listener.fileno(), self._comes)

    def _comes(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        try:
            peer = handover.peer(connection)
        except OSError as error:
            self._log(f"who asks for a mount cannot be told ({error.strerror}): it takes Linux 6.5")
            connection.close()
            return
        theirs = Counter(visitor.peer.uid for visitor in self._visitors)[peer.uid]
        if len(self._visitors) >= _MOST_VISITORS or theirs >= _MOST_OF_ONE:
            os.close(peer.pidfd)
            connection.close()
            return
        visitor = Visitor(connection, peer, time.monotonic() + _PATIENCE)
        visitor.step = self._hello
        self._visitors.add(visitor)
        self._loop.add(connection.fileno(), lambda: self._says(visitor))

    def _says(self, visitor: Visitor) -> None:
        rights: list[int] = []
        try:
            words, rights = protocol.receive(visitor.connection)
            if not words or visitor.step is None:
                self._goes(visitor)
                return
            visitor.deadline = time.monotonic() + _PATIENCE
            visitor.step(visitor, words, rights)
        except BlockingIOError:
            pass
        except Refused as refusal:
            self._answer(visitor, NO, str(refusal).encode(errors="replace"))
            self._goes(visitor)
        except (Malformed, OSError, MapError) as error:
            self._log(f"uid {visitor.peer.uid} asked for a mount, and was not understood: {error}")
            self._goes(visitor)
        finally:
            for fd in rights:
                os.close(fd)

    def _hello(self, visitor: Visitor, words: list[bytes], rights: list[int]) -> None:
        if words[0] != HELLO or len(words) != 3:
            raise Malformed(f"{words[0][:20]!r}")
        if words[1] != protocol.VERSION:
            raise Refused("the mark is served by another version of shiftfs; mount with that one, or mark it anew")
        asked = frozenset(word for word in words[2].split(b",") if word)
        if not asked <= protocol.OPTIONS:
            raise Malformed("options that are none")
        visitor.owner = self._owner(visitor.peer)
        if len(self.mounts) >= self._terms.most or self._has_enough(visitor.owner):
            raise Refused("there are as many mounts of this mark as its process can serve; unmount some")
        visitor.options = asked | self._terms.options
        visitor.step = self._hands_over
        self._answer(visitor, OK, b",".join(sorted(visitor.options)))

    def _owner(self, peer: handover.Peer) -> Owner:
        """Raises Refused, OSError."""
        namespace = peer.namespace("user")
        try:
            uid = handover.namespace_owner(namespace)
        finally:
            identity = _identity(namespace)
        if identity == self._own:
            raise Refused("a mark is mounted in a user namespace of your own; run it in one (unshare -Urm)")
        if self._terms.users is not None and uid != 0 and uid not in self._terms.users:
            raise Refused("this mark is not for you; whoever marked it says who may mount it (mark_users)")
        uids, gids = of_namespace(str(peer.pid))
        if peer.has_ended():
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return Owner(uid, uids.inverse, gids.inverse)

    def _has_enough(self, owner: Owner) -> bool:
        """Root may have all; another half of them, so that nobody has them all."""
        theirs = sum(one.owner.uid == owner.uid for one in self.mounts)
        return owner.uid != 0 and theirs >= max(self._terms.most // 2, 1)

    def _hands_over(self, visitor: Visitor, words: list[bytes], rights: list[int]) -> None:
        if words != [CONNECTION] or len(rights) != 1 or visitor.owner is None:
            raise Malformed("not one connection")
        # From here on by a descriptor that nobody else has, whose flags are ours alone.
        fd = handover.join_connection(rights[0])
        visitor.step = None
        derived = self._serve(fd, visitor.owner, visitor.options, partial(self._is_served, visitor))
        visitor.derived = derived
        self.mounts.add(derived)

    def _is_served(self, visitor: Visitor, reason: str | None, given: Sequence[int]) -> None:
        if reason is None:
            self._answer(visitor, SERVING, given=given)
        else:
            self._answer(visitor, NO, reason.encode(errors="replace"))
        self._goes(visitor)

    def _answer(self, visitor: Visitor, *words: bytes, given: Sequence[int] = ()) -> None:
        """If he listens: nobody is waited for, as the socket does not block."""
        with contextlib.suppress(OSError):
            protocol.send(visitor.connection, packed(*words)[: protocol.LONGEST], given)

    def _goes(self, visitor: Visitor) -> None:
        if visitor in self._visitors:
            self._visitors.remove(visitor)
            self._loop.remove(visitor.connection.fileno())
            visitor.connection.close()
            os.close(visitor.peer.pidfd)

    def ended(self, derived: Derived) -> None:
        """A mount is gone."""
        self.mounts.discard(derived)

    def tick(self, now: float) -> bool:
        """Show those out who take too long; True if there are more to be looked after."""
        for visitor in [one for one in self._visitors if now >= one.deadline]:
            self._goes(visitor)
        return bool(self._visitors)

    def close_door(self) -> None:
        """Nobody may mount any more. Those who have may go on."""
        if self._listener is not None:
            self._loop.remove(self._listener.fileno())
            with contextlib.suppress(OSError):
                os.unlink(self._listener.getsockname())
            self._listener.close()
            self._listener = None
        for visitor in list(self._visitors):
            if visitor.derived is None:
                self._goes(visitor)

    def close(self) -> None:
        """All end."""
        self.close_door()
        for derived in list(self.mounts):
            derived.end()
        for visitor in list(self._visitors):
            self._goes(visitor)


def listen(path: str) -> socket.socket:
    """The socket at a path of ours, which everybody may come to. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by a process that was killed, whose number is ours now
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _identity(namespace: int) -> tuple[int, int]:
    """What tells namespaces apart; the descriptor is closed."""
    try:
        found = os.fstat(namespace)
        return found.st_dev, found.st_ino
    finally:
        os.close(namespace)
