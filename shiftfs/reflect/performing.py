"""Owns the actions that wait and those that the agent is at: which runs when, and what becomes of it.

Actions that share a key (a directory, or an inode that comes, goes or moves) are done in the order in which they were
added, also where one has to be done again; a directory whose lock is held for long holds up its own actions and nobody
else's. Loop thread.
"""

import collections
import errno
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol

from ..inodes import Inode
from ..ops.context import Context, Payload
from ..tree import Gate, RealKey
from ..wire import notices
from ..wire.requests import Header
from .action import Action, Verb
from .answers import EARLY, Answers

_AHEAD: Final = 24
"""How many actions one thread of the agent is given before it has told of the first. Only one where the last had to be
done again: what was given after it is done again as well."""

_ATTEMPTS: Final = 4
_RACED: Final = frozenset({errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY, errno.ESTALE, errno.ENOTDIR, errno.EISDIR})
_NO_WAY: Final = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR})
_REMOVALS: Final = frozenset({Verb.UNLINK, Verb.RMDIR, Verb.RENAME, Verb.EXCHANGE})
_MOVES: Final = frozenset({Verb.RENAME, Verb.EXCHANGE})
_BUSY: Final = frozenset({errno.EAGAIN, errno.ETXTBSY})
_LEASE_SECONDS: Final = 60.0
"""The kernel gives holders 45 (fs.lease-break-time)."""


class Thread(Protocol):
    """One thread of the agent, as the parent sees it."""

    tid: int
    fd: int
    ended: bool

    def send(self, job: int, verb: int, *paths: bytes, mode: int = 0) -> bool: ...

    def receive(self) -> list[tuple[int, int]]: ...


class _Hand:
    """A thread of the agent, the actions it has been given, and for which keys."""

    __slots__ = ("ahead", "given", "keys", "thread")

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.ahead = _AHEAD
        self.given: collections.deque[tuple[int, Action]] = collections.deque()
        self.keys: collections.Counter[RealKey] = collections.Counter()


class Performing:
    """Where there is no agent, all that can be done is to tell the kernel."""

    def __init__(
        self, ctx: Context, notify: Callable[[list[bytes], Callable[[], None]], None]
    ) -> None:
        """`notify` lets notices be written, and then calls the other on the loop."""
        self._ctx = ctx
        self._answers = Answers(ctx)
        self._hands: list[_Hand] = []
        self._by_tid: dict[int, _Hand] = {}
        self._notify = notify
        self._telling = 0
        self.viewed: dict[tuple[int, bytes], list[Action]] = {}
        """The removals and renames that are not done yet, by the names that they show the agent."""
        self._asks: Action | None = None
        self._queues: dict[RealKey, collections.deque[Action]] = {}
        self._starved: dict[RealKey, None] = {}
        self._leased: list[tuple[Inode, float]] = []
        self._progress = Gate()
        self._closing: dict[Action, Gate] = {}
        """Those with the agent that open a file for writing to close it."""
        self._last_job = 0
        self._last_order = 0
        self.done = 0
        self.repeated = 0
        self.failed = 0

    def describe(self) -> dict[str, object]:
        """For `status`: is there an agent; actions not done yet, done, done again as somebody was faster, and not to be
        done, so that the kernel alone was told."""
        return {
            "agent": bool(self._hands),
            "waiting": self.progress()[0] + self._telling,
            "reflected": self.done,
            "repeated": self.repeated,
            "unreflected": self.failed,
        }

    def progress(self) -> tuple[int, int]:
        """Actions that are not done yet, and those that have been ended, in whatever way."""
        queued = {id(action) for queue in self._queues.values() for action in queue}
        return len(queued) + sum(len(hand.given) for hand in self._hands), self.done + self.repeated + self.failed

    def employ(self, threads: Iterable[Thread]) -> list[tuple[int, Callable[[], None]]]:
        """There is an agent: which descriptors tell of outcomes, and what to call then."""
        self._hands = [_Hand(thread) for thread in threads]
        self._by_tid = {hand.thread.tid: hand for hand in self._hands}
        return [(hand.thread.fd, partial(self._outcomes, hand)) for hand in self._hands]

    def dismiss(self) -> None:
        """There is no agent any more: what it was to do is told to the kernel instead."""
        hands, self._hands = self._hands, []
        self._by_tid = {}
        for hand in hands:
            for _, action in hand.given:
                self._has_closed(action)
                self._give_up(action)
        self._go_on(list(self._queues))
        self._has_progressed()

    def add(self, action: Action) -> None:
        """Do it, after the notices that come first."""
        if not self._hands:
            self._tell([*action.notices, *action.fallback, *action.then])
            return
        self._find_paths(action)
        self._last_order += 1
        action.order = self._last_order
        for key in action.keys:
            self._queues.setdefault(key, collections.deque()).append(action)
        if action.verb in _REMOVALS:
            for place in action.view:
                self.viewed.setdefault(place, []).append(action)
        self._prepare(action)

    def told(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """What waits to take a name away must not take away what the kernel has learnt of it meanwhile: it is to ask,
        and so is everybody afterwards."""
        place = (parent.nodeid, name)
        for action in self.viewed.get(place, ()):
            subject = action.view[place]
            if action is not self._asks and (subject is None or subject.inode is not inode):
                action.must_ask.add(place)
                action.then.append(notices.inval_entry(parent.nodeid, name, notices.EXPIRE_ONLY))

    def _is_over(self, action: Action) -> None:
        if action.verb not in _REMOVALS:
            return
        for place in action.view:
            waiting = self.viewed.get(place)
            if waiting is not None and action in waiting:
                waiting.remove(action)
                if not waiting:
                    del self.viewed[place]

    def _find_paths(self, action: Action) -> None:
        paths = [path_of(place, self._ctx.inodes.root) for place in action.places]
        if None not in paths:  # else as it was known before
            action.paths = [path for path in paths if path is not None]

    def _add_again(self, action: Action) -> None:
        """Before all that has come after it."""
        for key in action.keys:
            queue = self._queues.setdefault(key, collections.deque())
            later = (at for at, other in enumerate(queue) if other.order > action.order)
            queue.insert(next(later, len(queue)), action)
        self._prepare(action)

    def _prepare(self, action: Action) -> None:
        if action.notices:
            action.ready = False
            messages, action.notices = action.notices, []
            self._notify(messages, partial(self._prepared, action))
        else:
            self._prepared(action)

    def _prepared(self, action: Action) -> None:
        action.ready = True
        self._go_on(action.keys)

    def _tell(self, messages: list[bytes]) -> None:
        if messages:
            self._telling += 1
            self._notify(messages, self._are_told)

    def _are_told(self) -> None:
        self._telling -= 1

    def _go_on(self, keys: Iterable[RealKey]) -> bool:
        """Hand over what is next for these keys, and for all whose turn comes by that. False if some had to wait for a
        thread."""
        due = dict.fromkeys(keys)
        all_went = True
        while due:
            key = next(iter(due))
            del due[key]
            action = self._next(key)
            if action is None:
                continue
            hand = self._hand_for(action)
            if hand is None and not self._hands:
                self._leave(action)
                self._give_up(action)
            elif hand is None or not self._send(hand, action):
                self._starved[key] = None
                all_went = False
                continue
            due.update(dict.fromkeys(action.keys))
        return all_went

    def _next(self, key: RealKey) -> Action | None:
        """The next one of a key, if its turn has come for all its keys."""
        queue = self._queues.get(key)
        if not queue or not queue[0].ready:
            return None
        action = queue[0]
        return action if all(self._queues[other][0] is action for other in action.keys) else None

    def _hand_for(self, action: Action) -> _Hand | None:
        """The thread that is at one of its keys already, or one that is idle; None if it has to wait."""
        busy = [hand for hand in self._hands if hand.keys and any(key in hand.keys for key in action.keys)]
        if len(busy) > 1:
            return None
        if busy:
            return busy[0] if len(busy[0].given) < busy[0].ahead else None
        return next((hand for hand in self._hands if not hand.given), None)

    def _send(self, hand: _Hand, action: Action) -> bool:
        """False if the thread takes no more at the moment."""
        if not action.paths:  # nothing leads there
            self._leave(action)
            self._give_up(action)
            return True
        if action.verb is Verb.CLOSED and _file_of(action) in self._ctx.executed:
            self._leave(action)
            self._ended(action, errno.ETXTBSY)
            return True
        action.asked.clear()
        action.served = False
        mode = action.subject.type if action.subject is not None else 0
        if not hand.thread.send(self._last_job + 1, action.verb, *action.paths, mode=mode):
            return False
        self._last_job += 1
        self._leave(action)
        hand.given.append((self._last_job, action))
        if action.verb is Verb.CLOSED:
            self._closing[action] = Gate()
        hand.keys.update(action.keys)
        return True

    def _leave(self, action: Action) -> None:
        for key in action.keys:
            queue = self._queues[key]
            queue.popleft()
            if not queue:
                del self._queues[key]

    def _outcomes(self, hand: _Hand) -> None:
        if not self._take(hand):
            return
        held_up = 0
        while self._starved and held_up <= len(self._hands):
            key = next(iter(self._starved))
            del self._starved[key]
            held_up += not self._go_on((key,))

    def _take(self, hand: _Hand) -> bool:
        """Hear of what a thread has done; True if there was anything."""
        outcomes = hand.thread.receive()
        for job, number in outcomes:
            if not hand.given or hand.given[0][0] != job:
                hand.thread.ended = True  # a thread does its jobs in their order; this is none of ours any more
                break
            _, action = hand.given.popleft()
            hand.keys.subtract(action.keys)
            if not self._ended(action, number):
                hand.ahead = min(hand.ahead + 1, _AHEAD)
            else:
                hand.ahead = 1
                for _, other in hand.given:
                    if other.order > action.order and not other.keys.isdisjoint(action.keys):
                        other.is_early = True
            for key in action.keys:
                if key in self._queues:
                    self._starved.setdefault(key)
        if outcomes:
            hand.keys = +hand.keys
            self._has_progressed()
        return bool(outcomes)

    def _ended(self, action: Action, number: int) -> bool:
        """True if it is to be done again."""
        was_early, action.is_early = action.is_early, False
        if number == 0 and action.verb in _MOVES and not action.served:
            # One inode at both names by now, as somebody has looked: then there is nothing to do (rename(2)).
            number = errno.EEXIST
        self._has_closed(action)
        if number == 0:
            self.done += 1
            self._is_over(action)
            self._tell(action.then)
        elif was_early and (number == EARLY or number in _RACED):
            self._add_again(action)
            return True
        elif self._has_raced(action, number) and action.attempts < _ATTEMPTS and not self._is_gone(action, number):
            action.attempts += 1
            self.repeated += 1
            if number != errno.EEXIST:
                self._find_paths(action)  # a user may have made the kernel see a directory where it is now
            action.notices = action.raced
            self._add_again(action)
            return True
        elif number in _BUSY:  # a lease is being broken, or the file is being run: nobody may have it open for writing
            self._postpone(action)
            self._is_over(action)
            self._tell(action.then)
        elif number == errno.EBUSY:  # something is mounted there, and is to stay
            action.fallback = [notices.expiring(notice) for notice in action.fallback]
            self._give_up(action)
        else:
            self._give_up(action)
        return False

    def _has_raced(self, action: Action, number: int) -> bool:
        """EIO: its open was to go past the page cache, and a user's to be passed on, whose answer was faster."""
        is_mixed = number == errno.EIO and action.verb is Verb.CLOSED and self._ctx.backings is not None
        return number in _RACED or is_mixed

    def busy_with(self, keys: set[RealKey], last: int) -> Gate | None:
        """What is opened when there is something less to do, if there is something for these keys that was added no
        later than the action with the order `last`."""
        is_queued = any(queue[0].order <= last for key in keys if (queue := self._queues.get(key)))
        given = (action for hand in self._hands for _, action in hand.given)
        is_busy = is_queued or any(one.order <= last and not keys.isdisjoint(one.keys) for one in given)
        return self._progress if is_busy else None

    @property
    def is_idle(self) -> bool:
        """Is there nothing to be done?"""
        return not self._queues and not any(hand.given for hand in self._hands)

    @property
    def last_order(self) -> int:
        """Of all that has been added so far."""
        return self._last_order

    def _has_progressed(self) -> None:
        gate, self._progress = self._progress, Gate()
        gate.open()

    def closing(self, inode: Inode) -> Gate | None:
        """As long as the agent may have it open for writing nobody can execute it: who wants to has to wait a moment.
        """
        return next((gate for action, gate in self._closing.items() if _file_of(action) is inode), None)

    def _has_closed(self, action: Action) -> None:
        gate = self._closing.pop(action, None)
        if gate is not None:
            gate.open()

    def _postpone(self, action: Action) -> None:
        now = time.monotonic()
        action.deadline = action.deadline or now + _LEASE_SECONDS
        inode = _file_of(action)
        if inode is not None and now < action.deadline:
            self._leased.append((inode, action.deadline))

    def take_leased(self) -> list[tuple[Inode, float]]:
        """The files that could not be opened for writing, as somebody has a lease or runs them, each to be tried again
        until when."""
        leased, self._leased = self._leased, []
        return leased

    def _is_gone(self, action: Action, number: int) -> bool:
        """Is there no way to one of its directories any more, and never again?"""
        return number in _NO_WAY and any(parent.unlinked for parent, _ in action.places)

    def _give_up(self, action: Action) -> None:
        self.failed += 1
        self._is_over(action)
        self._tell([*action.fallback, *action.then])

    # What the session asks.

    def answer(self, header: Header, request: Any) -> Payload | None:
        """The answer to a request of the agent's, if it comes of what it was told to do; else None."""
        hand = self._by_tid[header.pid]
        self._outcomes(hand)  # what it has done before, it has told of before
        if not hand.given:
            return None
        self._asks = hand.given[0][1]
        try:
            return self._answers.to(self._asks, header, request)
        finally:
            self._asks = None


def _file_of(action: Action) -> Inode | None:
    """The file that a change of one is about, if the kernel knows it."""
    parent, name = action.places[0]
    subject = action.view.get((parent.nodeid, name))
    return parent.told(name) or (subject.inode if subject is not None else None)


def path_of(place: tuple[Inode, bytes], root: Inode) -> bytes | None:
    """The path from the mount's root, as the kernel was told; None if no known name leads there."""
    parent, name = place
    names = [name] if name else []
    while parent is not root:
        if parent.parent is None:
            return None
        names.append(parent.name)
        parent = parent.parent
    names.reverse()
    return b"/".join(names)
