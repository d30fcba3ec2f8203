"""Lets others mount a mark: hears who asks at its socket, decides whether he may, and takes his connection over.

Owns the socket, and those who are at it, none of whom is ever waited for. Whoever asks is known by what the kernel says
of him, not by what he says. What is done with a connection is the caller's.

Loop thread, which never touches a descriptor that somebody has sent: closing a file of his filesystem waits for his
answer (FLUSH), a socket's close for its peer (SO_LINGER), joining a connection for a mount (FUSE_DEV_IOC_SYNC_INIT). So
packets are read, and connections closed, in threads: one at a time for each who is at the socket, and who stays counted
as long as it lasts.
"""

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from ..loop import Loop
from ..shift.idmap import IdMap
from ..sys import handover, privileges
from ..usermaps import of_namespace
from . import protocol
from .protocol import CONNECTION, HELLO, NO, OK, SERVING, Malformed, packed

_PATIENCE: Final = 10.0
"""Seconds that somebody may take from one step to the next."""
_PARTING: Final = 1.0
"""Seconds that closing a connection may take, before it is interrupted."""
_REST: Final = 1.0
"""Seconds without looking who comes, when nobody could be let in."""
_MOST_VISITORS: Final = 128
_MOST_OF_ONE: Final = 16
_LOG_AGAIN: Final = 1.0
"""Seconds from one line to the next of what others cause: they could fill the log."""
_BACKLOG: Final = 128


class Refused(Exception):
    """Why somebody may not mount: one line, for him."""


class Owner(NamedTuple):
    """Whose a mount is: who made its user namespace, the ids there (shown inside, real outside), for whom it counts."""

    uid: int
    uids: IdMap
    gids: IdMap
    user: Hashable


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
Find = Callable[[bytes], tuple[Terms, Serve]]
"""What is marked at a path. In a thread, since the path is whoever asks's choice. Raises Refused."""


class Visitor:
    """Somebody at the socket, who has come as far as `step`. `user`: whom he counts for. `call_off` ends what a thread
    does for him."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline
        self.peer: handover.Peer | None = None
        self.user: Hashable = None
        self.step: Callable[[Visitor, handover.Peer, list[bytes]], None] | None = None
        self.call_off: Callable[[], None] | None = None
        self.is_leaving = False
        self.owner: Owner | None = None
        self.options: frozenset[bytes] = frozenset()
        self.offer: tuple[Terms, Serve] | None = None
        self.joined: int | None = None
        """The connection that he has handed over, by a descriptor of ours, until it is served."""
        self.derived: Derived | None = None


class Broker:
    """For one mark."""

    def __init__(
        self, loop: Loop, listener: socket.socket, terms: Terms | None, serve: Serve | None,
        log: Callable[[str], None], find: Find | None = None, *, is_ours: bool = True,
    ) -> None:  # fmt: skip
        """Either `terms` and `serve`, or `find`, for whoever serves several. `is_ours`: the socket's path goes with us.
        """
        self._is_ours = is_ours
        self._rests_until = 0.0
        self._loop = loop
        self._listener: socket.socket | None = listener
        self._is_listening = False
        self._only = (terms, serve) if terms is not None and serve is not None else None
        self._find = find
        self._log = log
        self._log_due = 0.0
        self._visitors: set[Visitor] = set()
        self._own = handover.identity(os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC))
        self.mounts: dict[Derived, Hashable] = {}
        """And for whom they count."""
        listener.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        """As long as there is room: the others wait outside."""
        has_room = len(self._visitors) < _MOST_VISITORS and time.monotonic() >= self._rests_until
        if self._listener is not None and has_room != self._is_listening:
            self._is_listening = has_room
            if has_room:
                self._loop.add(self._listener.fileno(), self._comes)
            else:
                self._loop.remove(self._listener.fileno())

    def _comes(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors, most likely
            self._rests_until = time.monotonic() + _REST
            self._listen()
            return
        connection.setblocking(False)
        visitor = Visitor(connection, time.monotonic() + _PATIENCE)
        self._visitors.add(visitor)
        self._listen()
        try:
            visitor.peer = handover.peer(connection)
            visitor.user = self._user(visitor.peer)
            if Counter(one.user for one in self._visitors)[visitor.user] > _MOST_OF_ONE:
                self._goes(visitor)
                return
            visitor.step = self._hello
            self._await(visitor)
        except OSError as error:
            self._complain(f"who asks for a mount cannot be told ({error.strerror}): it takes Linux 6.5")
            self._goes(visitor)

    def _user(self, peer: handover.Peer) -> Hashable:
        """Whom somebody counts for, who may have many ids in namespaces within namespaces: who made the outermost of
        them, or that itself if it was root. Raises OSError."""
        outermost = handover.outermost(peer.namespace("user"), self._own)
        try:
            uid = handover.namespace_owner(outermost)
        finally:
            identity = handover.identity(outermost)
        if identity == self._own:
            return peer.uid
        return uid or identity

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._log_due:
            self._log_due = now + _LOG_AGAIN
            self._log(text)

    def _await(self, visitor: Visitor) -> None:
        self._loop.add(visitor.connection.fileno(), lambda: self._says(visitor))

    def _says(self, visitor: Visitor) -> None:
        if visitor.step is None:
            self._goes(visitor)
            return
        self._loop.remove(visitor.connection.fileno())
        is_due = visitor.owner is not None
        try:
            self._aside(visitor, partial(_hear, visitor.connection, is_due, self._find), self._has_said)
        except OSError:
            self._goes(visitor)

    def _aside(
        self, visitor: Visitor, call: Callable[[], Any], done: Callable[[Visitor, Any, BaseException | None], None]
    ) -> None:
        """Raises OSError where there are too many threads."""

        def ended(result: Any, error: BaseException | None) -> None:
            visitor.call_off = None
            done(visitor, result, error)

        visitor.call_off = self._loop.wait_aside(call, ended)

    def _has_said(self, visitor: Visitor, result: Any, error: BaseException | None) -> None:
        words, visitor.joined, found = result or ([], None, None)
        visitor.offer = visitor.offer or found or self._only
        try:
            if error is not None:
                raise error
            if words and not visitor.is_leaving and visitor.step is not None and visitor.peer is not None:
                visitor.deadline = time.monotonic() + _PATIENCE
                visitor.step(visitor, visitor.peer, words)
                if not visitor.is_leaving:
                    self._await(visitor)
                return
        except BlockingIOError:
            if not visitor.is_leaving:
                self._await(visitor)
                return
        except Refused as refusal:
            self._answer(visitor, NO, str(refusal).encode(errors="replace"))
        except Exception as failure:  # whatever it is, it is his: the others' mounts go on
            uid = visitor.peer.uid if visitor.peer is not None else "?"
            self._complain(f"uid {uid} asked for a mount, and was not understood: {failure}")
        finally:
            if visitor.joined is not None:
                os.close(visitor.joined)
                visitor.joined = None
        self._goes(visitor)

    def _hello(self, visitor: Visitor, peer: handover.Peer, words: list[bytes]) -> None:
        if words[0] != HELLO or len(words) != (3 if self._find is None else 4):
            raise Malformed(f"{words[0][:20]!r}")
        if words[1] != protocol.VERSION:
            raise Refused("the mark is served by another version of shiftfs; mount with that one, or mark it anew")
        asked = frozenset(word for word in words[2].split(b",") if word)
        if not asked <= protocol.OPTIONS:
            raise Malformed("options that are none")
        assert visitor.offer is not None
        terms, _ = visitor.offer
        owner = self._owner(peer, terms, visitor.user)
        self._check_room(visitor, owner, terms)
        visitor.owner = owner
        visitor.options = asked | terms.options
        visitor.step = self._hands_over
        self._answer(visitor, OK, b",".join(sorted(visitor.options)))

    def _owner(self, peer: handover.Peer, terms: Terms, user: Hashable) -> Owner:
        """Raises Refused, OSError, MapError."""
        namespace = peer.namespace("user")
        try:
            uid = handover.namespace_owner(namespace)
        finally:
            identity = handover.identity(namespace)
        if identity == self._own:
            raise Refused("a mark is mounted in a user namespace of your own; run it in one (unshare -Urm)")
        if terms.users is not None and uid != 0 and uid not in terms.users:
            raise Refused("this mark is not for you; whoever marked it says who may mount it (mark_users)")
        # Else anybody in it could have a mount that he has made in one of his own served as if it were its root's.
        if not peer.capabilities() >> privileges.CAP_SYS_ADMIN & 1:
            raise Refused("a mark is mounted by root of the user namespace (CAP_SYS_ADMIN in it)")
        uids, gids = of_namespace(str(peer.pid))
        # Who he was when he connected, which nothing that he executes since has changed.
        if peer.uid != uids.shown[0]:
            raise Refused("a mark is mounted by root of the user namespace")
        # Whoever leaves a user namespace for one in it does not come back: all this was said of one and the same.
        if handover.identity(peer.namespace("user")) != identity:
            raise Refused("you have changed your user namespace meanwhile")
        return Owner(uid, uids.inverse, gids.inverse, user)

    def _check_room(self, visitor: Visitor, owner: Owner, terms: Terms) -> None:
        """Root may have all; another half of them, so that nobody has them all. Raises Refused."""
        theirs = sum(user == visitor.user for user in self.mounts.values())
        has_enough = owner.uid != 0 and theirs >= max(terms.most // 2, 1)
        if len(self.mounts) >= terms.most or has_enough:
            raise Refused("there are as many mounts of this mark as its process can serve; unmount some")

    def _hands_over(self, visitor: Visitor, peer: handover.Peer, words: list[bytes]) -> None:
        if words != [CONNECTION] or visitor.joined is None or visitor.owner is None or visitor.offer is None:
            raise Malformed("not one connection")
        terms, serve = visitor.offer
        self._check_room(visitor, visitor.owner, terms)  # others have come in since
        visitor.step = visitor.offer = None  # the mount refers to its visitor, but shall not hold what was offered
        fd, visitor.joined = visitor.joined, None
        try:
            derived = serve(fd, visitor.owner, visitor.options, partial(self._is_served, visitor))
        except BaseException:
            self._loop.remove(fd)
            os.close(fd)
            raise
        visitor.derived = derived
        self.mounts[derived] = visitor.user

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
        if not visitor.is_leaving:
            visitor.is_leaving = True
            visitor.step = visitor.offer = None
            visitor.deadline = time.monotonic() + _PARTING
            self._loop.remove(visitor.connection.fileno())
        self._leave(visitor)

    def _leave(self, visitor: Visitor) -> None:
        """What he has sent and nobody has read goes with his connection."""
        if visitor.call_off is None and visitor in self._visitors:
            with contextlib.suppress(OSError):  # else later
                self._aside(visitor, visitor.connection.close, self._has_left)

    def _has_left(self, visitor: Visitor, result: Any, error: BaseException | None) -> None:
        if visitor.connection.fileno() >= 0:
            self._leave(visitor)  # it was called off before it began
            return
        if visitor.peer is not None:
            os.close(visitor.peer.pidfd)
        self._visitors.remove(visitor)
        self._listen()

    def ended(self, derived: Derived) -> None:
        """A mount is gone."""
        self.mounts.pop(derived, None)
        for visitor in [one for one in self._visitors if one.derived is derived]:
            self._goes(visitor)

    def tick(self, now: float) -> bool:
        """Show those out who take too long; True if there are more to be looked after."""
        for visitor in [one for one in self._visitors if now >= one.deadline]:
            if visitor.call_off is not None:
                visitor.call_off()
            self._goes(visitor)
        is_resting = self._rests_until > 0
        if is_resting and now >= self._rests_until:
            self._rests_until = 0.0
            self._listen()
        return bool(self._visitors) or is_resting

    def close_door(self) -> None:
        """Nobody may mount any more. Those who have may go on."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            self._loop.remove(listener.fileno())
            if self._is_ours:
                with contextlib.suppress(OSError):
                    os.unlink(listener.getsockname())
            try:
                self._loop.wait_aside(listener.close, lambda result, error: None)  # with those who wait outside
            except OSError:
                listener.close()
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


def _hear(
    connection: socket.socket, is_connection_due: bool, find: Find | None
) -> tuple[list[bytes], int | None, tuple[Terms, Serve] | None]:
    """One packet; the connection that came with it, by a descriptor that nobody else has, whose flags are ours alone;
    what is asked for. In a thread. Raises Malformed, Refused, OSError."""
    words, rights = protocol.receive(connection)
    try:
        if rights and not (is_connection_due and len(rights) == 1 and words == [CONNECTION]):
            raise Malformed("descriptors that nobody has asked for")
        joined = handover.join_connection(rights[0]) if rights else None
        asks = find is not None and not is_connection_due and len(words) == 4 and words[0] == HELLO
        return words, joined, find(words[3]) if find is not None and asks else None
    finally:
        for fd in rights:
            os.close(fd)
