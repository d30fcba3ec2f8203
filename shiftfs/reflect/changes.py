"""What the mount is to show of a change of a layer: the change as actions and notices, and nothing where it is hidden.

Compares what has happened with what the kernel was told of the names (inodes.py). Owns no state but the place where
what lies outside of the tree is shown to the agent. Loop thread.
"""

import contextlib
import os
import stat
from typing import Final

from cachetools import TTLCache

from ..inodes import Inode, Place
from ..ops.context import Context
from ..tree import Attributes, RealKey
from ..wire import notices
from .action import DIRECTORY, FILE, Action, Subject, Verb
from .performing import Performing

_OUTSIDE: Final = b".shiftfs-outside-"
"""With what nobody can guess behind it, a name in the root that nobody but the agent is shown: what comes from outside
of the tree comes from there, and what leaves the tree goes there."""
_ANNOUNCED: Final = 16384
_ANNOUNCED_SECONDS: Final = 60.0
_OTHER: Final = {stat.S_IFDIR: Verb.MKDIR, stat.S_IFLNK: Verb.SYMLINK}
Found = tuple[RealKey, Attributes, object]


class Changes:
    """Turns changes into what makes the mount show them."""

    def __init__(self, ctx: Context, performing: Performing) -> None:
        self._ctx = ctx
        self._inodes = ctx.inodes
        self._perform = performing.add
        self._outside = Inode(ctx.inodes.new_nodeid(), (0, 0, 0, 4), None)
        self._outside.name = _OUTSIDE + os.urandom(8).hex().encode()
        self._announced: TTLCache[tuple[int, bytes], RealKey] = TTLCache(_ANNOUNCED, _ANNOUNCED_SECONDS)
        self._last_outside = 0

    # One name.

    def found_new(self, parent: Inode, name: bytes) -> None:
        """The same as `created` of what is there now, if that has not been heard of."""
        found = self.found(parent, name)
        if found is not None and not self.is_announced(parent, name):
            self.created(parent, name, stat.S_ISDIR(found[1].mode))

    def forget_announced(self, directory: Inode) -> None:
        """It is made of other directories now: names may come to light again that were told before."""
        for place in [place for place in self._announced if place[0] == directory.nodeid]:
            self._announced.pop(place, None)

    def is_announced(self, parent: Inode, name: bytes) -> bool:
        """Has what is there been told already: found before its creation was heard of, or the other way round?"""
        key = self._announced.get((parent.nodeid, name))
        found = self.found(parent, name) if key is not None else None
        return found is not None and found[0] == key

    def created(self, parent: Inode, name: bytes, is_directory: bool) -> None:
        """IN_CREATE, and IN_ATTRIB of an inode that has one more link. What has gone again meanwhile is made up.

        Where the kernel was told of something else somebody has looked since: what had the name before went before.
        """
        told = parent.told(name)
        found = self.found(parent, name)
        if found is not None and stat.S_ISDIR(found[1].mode) is not is_directory:
            found = None  # it has been replaced since
        if found is not None:
            self._announced[parent.nodeid, name] = found[0]
        mode = stat.S_IFMT(found[1].mode) if found is not None else DIRECTORY if is_directory else FILE
        action = Action(_OTHER.get(mode, Verb.MKNOD), ((parent, name),), self._subject(mode))
        known = self._inodes.known(found[0]) if found is not None else None
        if known is not None and not is_directory and known.parent is not None and known is not told:
            subject = self._subject(mode, known)
            action = Action(Verb.LINK, ((known.parent, known.name), (parent, name)), subject)
            action.view[known.parent.nodeid, known.name] = subject
        if is_directory and found is not None:
            action.keys.add(found[0])
        action.view[parent.nodeid, name] = None
        action.raced = [_expired(parent, name)]
        action.fallback = [_expired(parent, name), _listing(parent)]
        self._perform(action)

    def deleted(
        self, parent: Inode, name: bytes, is_directory: bool, handle: bytes | None = None, watched: Inode | None = None
    ) -> None:  # fmt: skip
        """IN_DELETE, and IN_DELETE_SELF or, of an inode with other names, IN_ATTRIB. `handle`: of what has gone, which
        is `watched` if it has, or had, other names."""
        self._announced.pop((parent.nodeid, name), None)
        told = parent.told(name)
        found = self.found(parent, name)
        subject = self._subject(DIRECTORY if is_directory else FILE)
        action = Action(Verb.RMDIR if is_directory else Verb.UNLINK, ((parent, name),), subject)
        action.view[parent.nodeid, name] = subject
        action.raced = [_expired(parent, name)]
        if told is not None and found is not None and told.key == found[0] and not told.unlinked:
            self._ask(action, parent, name)  # it is there again, or anew; what had the name before was not told
        elif told is not None and told.is_directory is is_directory:
            self._inodes.untell(parent, name)
            subject.inode = told
            self._leaves(action, told, handle)
        else:
            action.must_ask.add((parent.nodeid, name))
            if watched is not None and watched.is_directory is is_directory and not watched.unlinked:
                subject.inode = watched  # the kernel knows it by another name
                self._leaves(action, watched, handle)
        gone = notices.inval_entry(parent.nodeid, name, notices.EXPIRE_ONLY if found is not None else 0)
        action.fallback = [gone, _listing(parent)]
        self._perform(action)

    def replaced(self, parent: Inode, name: bytes, told: Inode, is_directory: bool) -> None:
        """IN_DELETE and IN_CREATE: the inode is gone, and what it hid is to be seen, as another one even if it is that
        which it came from."""
        self._inodes.bury(told)
        self.deleted(parent, name, told.is_directory)
        self.created(parent, name, is_directory)

    def _leaves(self, action: Action, inode: Inode, handle: bytes | None = None) -> None:
        """An inode loses the name that the action takes away. If it has others, it is to keep a link in the kernel's
        eyes, or the watches on it would end: it is shown with the count from before."""
        if inode.is_directory:
            action.keys.add(inode.key)
            # The kernel takes it for dead from then on (S_DEAD): if it comes back, it is to be another.
            self._inodes.bury(inode)
        elif self._has_names(inode, handle):
            assert action.subject is not None
            subject = action.subject if action.subject.inode is inode else self._subject(FILE, inode)
            subject.links = 1
            parent, name = action.places[-1]
            action.view[parent.nodeid, name] = subject
            action.must_ask.add((parent.nodeid, name))
            action.then.append(notices.inval_inode(inode.nodeid, -1, 0))
        elif inode.key[2] == 0:
            self._inodes.bury(inode)  # its number may be another's next, and nothing else would tell them apart

    def _has_names(self, inode: Inode, handle: bytes | None) -> bool:
        tree = self._ctx.tree
        if inode.parent is not None:
            found = self.found(inode.parent, inode.name)
            if found is not None and found[0] == inode.key:
                tree.found_at(inode.entry, inode.parent.entry, inode.name, found[2])
                return True
        try:
            return tree.attributes(inode.entry).nlink > 0
        except OSError:  # no name that we know leads to it
            if handle is None or not tree.found_by(inode.entry, handle):
                return False
            return tree.attributes(inode.entry).nlink > 0

    def _replaced(self, action: Action, inode: Inode) -> None:
        parent, name = action.places[-1]
        action.view[parent.nodeid, name] = self._subject(FILE, inode)
        self._leaves(action, inode)

    def modified(self, parent: Inode, name: bytes) -> None:
        """IN_MODIFY: the content is another."""
        self._content(Verb.MODIFIED, (parent, name))

    def closed(self, parent: Inode, name: bytes) -> None:
        """IN_CLOSE_WRITE: whoever wrote has closed it; what was written through a mapping is seen from here on."""
        self._content(Verb.CLOSED, (parent, name))

    def closed_again(self, inode: Inode, deadline: float) -> None:
        """The same, wherever the file is by now, where a lease was in the way."""
        if inode.parent is not None:
            self._content(Verb.CLOSED, (inode.parent, inode.name), deadline)
        else:
            self.changed_outside(inode, Verb.CLOSED, deadline)

    def _content(self, verb: Verb, place: Place, deadline: float = 0.0) -> None:
        action = self._at(verb, place, FILE)
        action.deadline = deadline
        told = place[0].told(place[1])
        if told is not None:
            action.notices = [notices.inval_inode(told.nodeid, 0, 0)]
        self._perform(action)

    def attributes(self, parent: Inode, name: bytes, is_directory: bool) -> None:
        """IN_ATTRIB: mode, owner, times, attributes."""
        told = parent.told(name) if name else parent
        if told is not None:
            self._ctx.notify(notices.inval_inode(told.nodeid, -1, 0))
            with contextlib.suppress(OSError):  # it is gone, which will be heard of
                self._ctx.check_links(told, self._ctx.tree.attributes(told.entry))
        self._perform(self._at(Verb.ATTRIBUTES, (parent, name), DIRECTORY if is_directory else FILE))

    def _at(self, verb: Verb, place: Place, mode: int) -> Action:
        parent, name = place
        action = Action(verb, (place,))
        if name:
            action.subject = self._subject(mode, None, place)
            action.view[parent.nodeid, name] = action.subject
        return action

    # Two names.

    def moved(
        self, parent: Inode, name: bytes, to: Inode, new_name: bytes, is_directory: bool, handle: bytes | None
    ) -> None:  # fmt: skip
        """IN_MOVED_FROM, IN_MOVED_TO and IN_MOVE_SELF; what the new name led to is replaced. `handle`: of what has been
        moved. Either name may have been looked up meanwhile, when it led to something else again."""
        self._announced.pop((parent.nodeid, name), None)
        told, replaced, found = parent.told(name), to.told(new_name), self.found(to, new_name)
        inode = self._known(handle) or self._left(parent, name, found)
        subject = self._subject(DIRECTORY if is_directory else FILE, inode, (to, new_name))
        action = Action(Verb.RENAME, ((parent, name), (to, new_name)), subject)
        action.view = {(parent.nodeid, name): subject, (to.nodeid, new_name): None}
        action.raced = [_expired(parent, name), _expired(to, new_name)]
        gone = notices.inval_entry(parent.nodeid, name, 0 if told is inode else notices.EXPIRE_ONLY)
        action.fallback = [gone, _expired(to, new_name), _listing(parent), _listing(to)]
        is_early = replaced is inode or (found is not None and replaced is not None and found[0] == replaced.key)
        if replaced is not None and not is_early:
            self._inodes.untell(to, new_name)
            self._replaced(action, replaced)
        if told is not inode or inode is None:
            self._ask(action, parent, name)
        else:
            self._inodes.untell(parent, name)
        if is_early or action.must_ask:
            action.then.append(_expired(to, new_name))
        if inode is not None:
            self._follow(inode, to, new_name, found)
        if is_directory and (inode is not None or found is not None):
            action.keys.add(inode.key if inode is not None else found[0])  # type: ignore[index]
        self._perform(action)

    def _left(self, parent: Inode, name: bytes, moved: Found | None) -> Inode | None:
        """What has left a name, by what is known without a handle: what the kernel was told of it, unless that is there
        now; then what is at its new name, if that is known."""
        told, found = parent.told(name), self.found(parent, name)
        if told is not None and (found is None or found[0] != told.key):
            return told
        return self._inodes.known(moved[0]) if moved is not None else None

    def _ask(self, action: Action, parent: Inode, name: bytes) -> None:
        """What the kernel has been told of a name may be what came after the change: it is not to go by that, and to
        ask again afterwards."""
        action.must_ask.add((parent.nodeid, name))
        action.then.append(_expired(parent, name))

    def _known(self, handle: bytes | None) -> Inode | None:
        """The inode that a file handle leads to, if the kernel knows it."""
        keys = self._ctx.tree.keys_of(handle) if handle is not None else []
        return next((inode for key in keys if (inode := self._inodes.known(key)) is not None), None)

    def exchanged(self, parent: Inode, name: bytes, to: Inode, new_name: bytes) -> None:
        """renameat2(2), RENAME_EXCHANGE. The kernel was told of the second name, and perhaps of the first."""
        first, second, found = parent.told(name), to.told(new_name), self.found(to, new_name)
        assert second is not None
        action = Action(Verb.EXCHANGE, ((parent, name), (to, new_name)), self._subject(FILE))
        kind = stat.S_IFMT(found[1].mode) if found is not None else FILE
        action.view = {
            (parent.nodeid, name): self._subject(kind, first, (to, new_name)),
            (to.nodeid, new_name): self._subject(FILE, second),
        }
        if first is None:
            self._ask(action, parent, name)
        action.raced = [_expired(parent, name), _expired(to, new_name)]
        action.fallback = [*action.raced, _listing(parent), _listing(to)]
        action.keys |= {one.key for one in (first, second) if one is not None}
        self._inodes.renamed(parent, name, to, new_name, exchanged=True)
        for place in ((parent, name), (to, new_name)):
            inode, found = place[0].told(place[1]), self.found(*place)
            if inode is not None and found is not None and found[0] == inode.key:
                self._ctx.tree.found_at(inode.entry, place[0].entry, place[1], found[2])
        self._perform(action)

    def _follow(self, inode: Inode, to: Inode, new_name: bytes, found: Found | None) -> None:
        if to.told(new_name) is None:
            self._inodes.tell(to, new_name, inode)
        if found is not None and found[0] == inode.key:
            self._ctx.tree.found_at(inode.entry, to.entry, new_name, found[2])

    def moved_out(self, parent: Inode, name: bytes, is_directory: bool, handle: bytes | None) -> None:
        """IN_MOVED_FROM and IN_MOVE_SELF: it is somewhere that the mount does not show."""
        self._announced.pop((parent.nodeid, name), None)
        told, found = parent.told(name), self.found(parent, name)
        inode = self._known(handle) or self._left(parent, name, None)
        subject = self._subject(DIRECTORY if is_directory else FILE, inode)
        action = Action(Verb.RENAME, ((parent, name), self._new_outside()), subject)
        self._show_outside(action)
        action.view[parent.nodeid, name] = subject
        action.raced = [_expired(parent, name)]
        gone = notices.inval_entry(parent.nodeid, name, notices.EXPIRE_ONLY if found is not None else 0)
        action.fallback = [gone, _listing(parent)]
        if told is not inode or inode is None:
            self._ask(action, parent, name)
        elif found is not None and found[0] == inode.key:
            subject.inode = None  # it is back already
            self._ask(action, parent, name)
        else:
            self._inodes.untell(parent, name)
        if inode is not None:
            action.keys.add(inode.key)
            if handle is not None:  # whoever has it open, or works in it, goes on
                self._ctx.tree.note_handle(inode.entry, handle)
        self._perform(action)

    def moved_in(self, to: Inode, new_name: bytes, is_directory: bool) -> None:
        """IN_MOVED_TO and IN_MOVE_SELF: it comes from somewhere that the mount does not show."""
        replaced, found = to.told(new_name), self.found(to, new_name)
        subject = self._subject(DIRECTORY if is_directory else FILE, None, (to, new_name))
        place = self._new_outside()
        action = Action(Verb.RENAME, (place, (to, new_name)), subject)
        self._show_outside(action)
        action.view[place[0].nodeid, place[1]] = subject
        action.view[to.nodeid, new_name] = None
        action.raced = [_expired(to, new_name)]
        action.fallback = [_expired(to, new_name), _listing(to)]
        if replaced is not None and found is not None and replaced.key == found[0]:
            action.then.append(_expired(to, new_name))
        elif replaced is not None:
            self._inodes.untell(to, new_name)
            self._replaced(action, replaced)
        if is_directory and found is not None:
            action.keys.add(found[0])
        self._perform(action)

    # An inode itself, changed through a name that the mount does not show.

    def changed_outside(self, inode: Inode, verb: Verb, deadline: float = 0.0) -> None:
        place = self._new_outside()
        action = Action(verb, (place,))
        action.deadline = deadline
        action.keys.add(inode.key)
        self._show_outside(action)
        action.view[place[0].nodeid, place[1]] = self._subject(FILE, inode)
        action.notices = [notices.inval_inode(inode.nodeid, -1 if verb is Verb.ATTRIBUTES else 0, 0)]
        self._perform(action)

    def link_count(self, inode: Inode) -> None:
        """It has one name more or less, somewhere."""
        self._ctx.notify(notices.inval_inode(inode.nodeid, -1, 0))

    def silently(self, inode: Inode) -> None:
        """Nobody need be told, but nothing of it is to be believed any more."""
        self._ctx.notify(notices.inval_inode(inode.nodeid, 0, 0))

    def listing(self, inode: Inode) -> None:
        """A directory's listing is another, and so are its attributes."""
        self._ctx.notify(_listing(inode))

    # What all have.

    def found(self, parent: Inode, name: bytes) -> Found | None:
        """What the tree has at a name now."""
        try:
            return self._ctx.tree.lookup(parent.entry, name)
        except OSError:
            return None

    def _subject(self, type: int, inode: Inode | None = None, place: Place | None = None) -> Subject:
        return Subject(self._inodes.new_nodeid(), type, inode, place)

    def _new_outside(self) -> Place:
        self._last_outside += 1
        return self._outside, b"%d" % self._last_outside

    def _show_outside(self, action: Action) -> None:
        self._outside.parent = self._inodes.root
        action.keys.discard(self._outside.key)
        action.view[self._inodes.root.nodeid, self._outside.name] = Subject(self._outside.nodeid, DIRECTORY)
        for parent, name in action.places:
            if parent is self._outside:
                action.view[parent.nodeid, name] = None


def _expired(parent: Inode, name: bytes) -> bytes:
    """The name is to be looked up again; what is mounted below it stays."""
    return notices.inval_entry(parent.nodeid, name, notices.EXPIRE_ONLY)


def _listing(directory: Inode) -> bytes:
    return notices.inval_inode(directory.nodeid, 0, 0)
