"""Answers to the requests that come of the agent's own operations: nothing is done for them in any layer.

The agent is shown the state from before the change, everybody else the state after it. What an action does not answer
is served like anybody's request. Loop thread.
"""

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Any, Final

from ..inodes import Inode, Place
from ..ops.context import DONE, NOBODYS, Context, Payload, not_supported, stale
from ..tree import Attributes
from ..wire import replies
from ..wire.abi import FOpen, Opcode
from ..wire.requests import Header
from .action import Action, Subject, Verb

_NOW: Final = (0, 0)
_DIRECT: Final = int(FOpen.DIRECT_IO | FOpen.NOFLUSH)
_PASS: Final = int(FOpen.PASSTHROUGH | FOpen.NOFLUSH)
_LOOKUP: Final = int(Opcode.LOOKUP)
_GETATTR: Final = int(Opcode.GETATTR)
_CREATING: Final = frozenset(map(int, (Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK)))
_CREATED_BY: Final = frozenset({Verb.MKNOD, Verb.MKDIR, Verb.SYMLINK, Verb.LINK})
_REMOVING: Final = frozenset(map(int, (Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2)))
_RENAMING: Final = frozenset(map(int, (Opcode.RENAME, Opcode.RENAME2)))
_OPENING: Final = frozenset(map(int, (Opcode.OPEN, Opcode.FLUSH, Opcode.RELEASE)))
_CHANGING: Final = frozenset(
    map(int, (Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.WRITE, Opcode.FALLOCATE, Opcode.CREATE))
)
_DECIDING: Final = _CREATING | _REMOVING | _OPENING | {int(Opcode.SETATTR)}
EARLY: Final = errno.ENOMEM
"""What becomes of an action whose turn has not come after all."""


class Answers:
    """For one mount."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._absent = replies.entry(0, 0, _NOW, _NOW, (0,) * 16)

    def to(self, action: Action, header: Header, request: Any) -> Payload | None:
        """The answer, or None if the request is to be served as any other."""
        opcode = header.opcode
        decides = opcode in _DECIDING or (opcode == _LOOKUP and (header.nodeid, request.name) in action.view)
        if action.is_early and decides:
            # This error of a lookup leaves what the kernel knows of the name as it is (fuse_dentry_revalidate).
            raise OSError(EARLY, "not yet")
        if opcode == _LOOKUP:
            place = (header.nodeid, request.name)
            if place not in action.view:
                return None
            action.asked.add(place)
            return self._found(action.view[place])
        if opcode in _CREATING:
            if action.verb not in _CREATED_BY:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))  # it only wants the name looked up
            self._check_source(action, opcode, request)
            _check_places(action, ((header.nodeid, request.name),))
            return self._made(action)
        if opcode in _REMOVING:
            _check_places(action, _names_of(header, request))
            if not action.must_ask <= action.asked:
                raise stale()  # the kernel does it again, and asks for all names then (namei.c, LOOKUP_REVAL)
            action.served = True
            return DONE
        if opcode == Opcode.SETATTR:
            return self._attributes(action, header)
        if opcode in _OPENING:
            if not self._ctx.serves_open:
                raise not_supported()
            return self._opened(action, header) if opcode == Opcode.OPEN else DONE
        if opcode in _CHANGING:
            raise OSError(errno.EPERM, "not an operation of the agent's")
        subject = _made_up(action, header.nodeid)
        if subject is None:
            return None
        if opcode == _GETATTR:
            return replies.attr(_NOW, self._shown_made_up(subject))
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def _opened(self, action: Action, header: Header) -> Payload:
        """As the file is open otherwise: to be passed on, or else past the page cache, which goes with either."""
        backings = self._ctx.backings
        if backings is None:
            return replies.open(NOBODYS, 0)
        is_made_up = _made_up(action, header.nodeid) is not None
        backing = None if is_made_up else backings.open_for_agent(self._ctx.inodes.get(header.nodeid))
        return replies.open(NOBODYS, _DIRECT) if backing is None else replies.open(NOBODYS, _PASS, backing.number)

    def _check_source(self, action: Action, opcode: int, request: Any) -> None:
        """Is it the right inode that gets one more name?"""
        inode = action.subject.inode if action.subject is not None else None
        if opcode == Opcode.LINK and inode is not None and request.oldnodeid != inode.nodeid:
            raise stale()

    def _found(self, subject: Subject | None) -> Payload:
        if subject is None:
            return self._absent
        inode = subject.inode
        if inode is not None and inode.nlookup > 0:
            inode.nlookup += 1
            return replies.entry(inode.nodeid, 0, _NOW, _NOW, self._shown(inode, subject))
        return self._by_now(subject, subject.place, lambda mode: stat.S_ISDIR(mode) is stat.S_ISDIR(subject.type))

    def _made(self, action: Action) -> Payload:
        """The kernel makes a name for what is there by now."""
        subject = action.subject
        assert subject is not None
        return self._by_now(subject, action.places[-1], lambda mode: stat.S_IFMT(mode) == subject.type)

    def _by_now(self, subject: Subject, place: Place | None, fits: Callable[[int], bool]) -> Payload:
        """What is at a place, or something made up where that has gone again or been replaced by what does not fit."""
        if place is not None:
            parent, name = place
            try:
                found = self._ctx.tree.lookup(parent.entry, name)
                if fits(found[1].mode):
                    return _for_now(self._ctx.adopt(parent, name, *found))
            except OSError:
                pass
        return replies.entry(subject.nodeid, 0, _NOW, _NOW, self._shown_made_up(subject))

    def _attributes(self, action: Action, header: Header) -> Payload:
        subject = _made_up(action, header.nodeid)
        if subject is not None:
            return replies.attr(_NOW, self._shown_made_up(subject))
        inode = self._ctx.inodes.get(header.nodeid)
        return replies.attr(_NOW, self._ctx.shown(self._ctx.tree.attributes(inode.entry)))

    def _shown(self, inode: Inode, subject: Subject) -> tuple[int, ...]:
        try:
            attributes = self._ctx.tree.attributes(inode.entry)
        except OSError:  # it is gone, and nothing of it was open
            return self._shown_made_up(subject, self._ctx.tree.numbers(_numbered(inode)))
        shown = self._ctx.shown(attributes)
        return (*shown[:10], max(shown[10] + subject.links, 1), *shown[11:])

    def _shown_made_up(self, subject: Subject, number: int = 1) -> tuple[int, ...]:
        now = int(time.time())
        links = 2 if stat.S_ISDIR(subject.type) else 1
        return (number, 0, 0, now, now, now, 0, 0, 0, subject.type | 0o600, links, 0, 0, 0, 4096, 0)


def _names_of(header: Header, request: Any) -> tuple[tuple[int, bytes], ...]:
    """What is removed or renamed: directory and name, of a rename also the new ones."""
    if header.opcode in _RENAMING:
        return (header.nodeid, request.oldname), (request.newdir, request.newname)
    return ((header.nodeid, request.name),)


def _check_places(action: Action, names: tuple[tuple[int, bytes], ...]) -> None:
    """The agent goes by paths. Where a directory is at another since, or another is at its own, these are not the names
    that were meant: the kernel would change what it keeps of these, and keep what it has of the others for good."""
    meant = action.places[-len(names) :]
    if names != tuple((parent.nodeid, name) for parent, name in meant):
        raise stale()


def _for_now(entry: bytes) -> bytes:
    """The same entry (struct fuse_entry_out), its attributes not to be believed: what comes next may be on its way, and
    whoever wants them shall have them as they are then."""
    return entry[:24] + bytes(8) + entry[32:36] + bytes(4) + entry[40:]


def _made_up(action: Action, nodeid: int) -> Subject | None:
    """What the action shows under a nodeid that nothing else has."""
    subjects = (action.subject, *action.view.values())
    return next((one for one in subjects if one is not None and one.nodeid == nodeid), None)


def _numbered(inode: Inode) -> Attributes:
    """As much of the attributes as st_ino is made of."""
    none: list[Any] = [0] * 22
    none[0], none[21] = inode.key[1], inode.key[0]
    return Attributes(*none)
