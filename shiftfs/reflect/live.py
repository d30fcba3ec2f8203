"""Follows the changes made behind the mount: what is heard of the layers becomes what the mount shows of it.

Owns the order of things: is it hidden, is it our own, has it been told already? Loop thread.
"""

import contextlib
import stat
from collections.abc import Callable
from itertools import zip_longest
from typing import Final

from cachetools import LRUCache

from ..inodes import Inode
from ..ops.context import Context
from ..ops.own import OwnChanges
from ..sys.fanotify import handle
from ..tree import Attributes, RealKey, Shown, Steps
from ..wire import notices
from .action import Verb
from .changes import Changes
from .happening import Happening, Token, What
from .journal import Journal
from .performing import Performing, path_of
from .revalidation import Revalidation
from .watchers import Watchers
from .watching import Watching

_COMES_OR_GOES: Final = What.CREATED | What.DELETED
_CONTENT: Final = What.MODIFIED | What.CLOSED
_READS: Final = 64
"""How often a watcher is read for somebody who waits for its news: no request is served meanwhile."""
_WHITEOUTS: Final = 4096
"""How many that have been made behind the mount are remembered: what goes with them does not uncover what it hid."""
_WORDS: Final = {
    What.CREATED: "create",
    What.DELETED: "delete",
    What.MODIFIED: "modify",
    What.ATTRIBUTES: "attributes",
    What.CLOSED: "close",
}
_VERBS: Final = {What.MODIFIED: Verb.MODIFIED, What.ATTRIBUTES: Verb.ATTRIBUTES, What.CLOSED: Verb.CLOSED}


class Live:
    """For one mount."""

    def __init__(
        self, ctx: Context, watchers: Watchers, performing: Performing, journal: Journal, log: Callable[[str], None],
        own: OwnChanges, *, run: Callable[[Steps], None], closing: Callable[[int], None],
    ) -> None:  # fmt: skip
        """`own`: what we have changed ourselves, where the watcher does not leave that out. `run` goes through steps
        that nobody waits for; `closing` is called before a watcher's descriptor closes."""
        self._ctx = ctx
        self._tree = ctx.tree
        self._watchers = watchers
        self._performing = performing
        self.told, self.closing, self.viewed = performing.told, performing.closing, performing.viewed
        self.readers = watchers.readers
        self._changes = Changes(ctx, performing)
        self._journal = journal
        self._log = log
        self._own = own
        self._closing = closing
        self._watching = Watching(ctx, watchers)
        self._look_again = Revalidation(ctx, self._changes, self.seen_again, run, self._tell_of_loss)
        self._whiteouts: LRUCache[Token, None] = LRUCache(_WHITEOUTS)
        self._exchanged: tuple[Inode, bytes, Inode, bytes] | None = None
        self._watching.begin()

    # What is watched.

    def added(self, inode: Inode, attributes: Attributes) -> Attributes:
        return self._watching.added(inode, attributes)

    def watch(self, inode: Inode) -> bool:
        return self._watching.watch(inode)

    def forgotten(self, inode: Inode) -> None:
        self._watching.forgotten(inode)

    def seen_again(self, inode: Inode) -> None:
        before = self._watching.renew(inode)
        if before is not None:
            self._changes.forget_announced(inode)
            self._look_again.made_of_others(inode, before)

    def is_up_now(self, inode: Inode) -> None:
        above: Inode | None = inode
        while above is not None:
            self._watching.renew(above)
            above = above.parent

    # What is heard.

    def ready(self, fd: int) -> None:
        """A watcher has something to tell."""
        try:
            happenings = self._watchers.read(fd)
        except OSError as error:
            self._log(f"watching the layers failed ({error.strerror}); it is begun anew")
            self._begin_anew(fd)
            return
        for happening in happenings:
            try:
                self._heard_of(happening)
            except Exception as error:  # of a layer, as a rule, that is being changed faster than we look
                self._log(f"a change of a layer was not understood: {error!r}")
                self._look_again.lost()
        if not self._watchers.has_news():
            self._look_again.heard()

    def catch_up(self, inode: Inode) -> Steps | None:
        """As ops.context.Live: who changes something has put the news of it into our queue before his call returned."""
        reads = 0
        while reads < _READS and self._watchers.has_news():
            reads += 1
            for fd in self._watchers.descriptors:
                self.ready(fd)
        if not reads and self.is_told():
            return None
        about = [inode, *{parent for parent, _ in self._ctx.inodes.places(inode)}]
        keys = {one.key for one in about}
        last = self._performing.last_order
        if not reads and self._performing.busy_with(keys, last) is None and not self._ctx.is_telling(about):
            return None
        return self._caught_up(about, keys, last)

    def is_told(self) -> bool:
        return self._performing.is_idle and not self._ctx.is_telling_anything()

    def _caught_up(self, about: list[Inode], keys: set[RealKey], last: int) -> Steps:
        while (gate := self._performing.busy_with(keys, last)) is not None:
            yield gate
        # Notices about one inode, and about names in it, are written in their order.
        yield self._ctx.tell([notices.inval_inode(one.nodeid, -1 if one.is_directory else 0, 0) for one in about])

    def tick(self) -> bool:
        """Now and then: try again what was in somebody's way. True if it is to be called again."""
        leased = self._performing.take_leased()
        for inode, deadline in leased:
            self._changes.closed_again(inode, deadline)
        return bool(leased)

    def _heard_of(self, h: Happening) -> None:
        if h.what & What.OVERFLOW:
            self._look_again.lost()
            return
        if h.what & What.MOVED:
            for source, target in zip_longest(self._watching.of(h.directory), self._watching.of(h.to)):
                self._moved(h, source, target)
            return
        watched = self._watching.of(h.directory if h.directory is not None else h.target)
        if not watched and h.directory is None:
            self._linked_elsewhere(h)
        for inode, layer in watched:
            if not inode.is_directory:
                self._changed_outside(inode, layer, h)
            elif h.name:
                self._named(inode, layer, h)
            else:
                self._itself(inode, layer, h)

    def _linked_elsewhere(self, h: Happening) -> None:
        """An inode that had one name has got another, or lost one. If it is known, it is to be watched by itself."""
        file_handle = _handle(h)
        for key in self._tree.keys_of(file_handle) if file_handle is not None else ():
            inode = self._ctx.inodes.known(key)
            if inode is None or inode.watch is not None:
                continue
            self._changes.link_count(inode)
            with contextlib.suppress(OSError):  # it may have no name any more, though somebody has it open
                self._ctx.check_links(inode, self._tree.attributes(inode.entry))

    def _named(self, parent: Inode, layer: int, h: Happening) -> None:
        name = self._tree.concerns(h.name)
        if name is None:
            return
        if name != h.name:
            if h.what & _COMES_OR_GOES:
                self._note(layer, parent, name, "whiteout", True)
                self._reconsider(parent, name, layer, bool(h.what & What.DELETED)) if name else self._again(parent)
            return
        shown = self._tree.hidden(parent.entry, layer, name)
        kinds = self._kinds(parent, name, h, layer)
        if not kinds:
            return
        for what in kinds:
            self._note(layer, parent, name, _WORDS[what], shown is Shown.TOP)
        if shown is Shown.HIDDEN:
            self._part_of_another(h)
            return
        if shown is Shown.MERGED or (h.what & _COMES_OR_GOES and self._tree.covered(parent.entry, layer, name)):
            self._merged(parent, name, layer, h)
            return
        if h.what & What.ATTRIBUTES and self._tree.layered and self._is_another(parent, name):
            self._reconsider(parent, name, layer)
        for what in kinds:
            self._one(what, parent, name, h)

    def _merged(self, parent: Inode, name: bytes, layer: int, h: Happening) -> None:
        """Something of a name changes, of which other layers have something too."""
        told, found = parent.told(name), self._changes.found(parent, name)
        if h.what & _CONTENT and told is not None and not told.is_directory:
            self._changes.modified(parent, name)  # metadata above, content here
        # Whiteouts are links of one: what has just got a name hid nothing there before.
        was_whiteout = not h.what & What.CREATED and h.target in self._whiteouts
        if found is None and h.what & What.CREATED and h.target is not None:
            self._whiteouts[h.target] = None
        if h.what & What.DELETED and told is not None and not told.is_directory and found is not None:
            self._changes.replaced(parent, name, told, stat.S_ISDIR(found[1].mode))
        else:
            self._reconsider(parent, name, layer, was_whiteout)

    def _kinds(self, parent: Inode, name: bytes, h: Happening, layer: int) -> list[What]:
        """Changes that the kernel has merged, in the order in which they are most likely to have been made. Without our
        own, where we hear of them: it is seen by what has been told already."""
        kinds = [one for one in (What.CREATED, What.MODIFIED, What.ATTRIBUTES, What.CLOSED) if h.what & one]
        if h.what & What.DELETED:
            comes_last = h.what & What.CREATED and self._is_still(parent, name, h.target)
            kinds.insert(0 if comes_last else len(kinds), What.DELETED)
        if isinstance(h.directory, int) and layer == 0:  # we change no other
            told, found = parent.told(name), self._changes.found(parent, name)
            is_told = (told is None) is (found is None) and (told is None or found is None or told.key == found[0])
            if What.DELETED in kinds and is_told and self._own.removed(parent.nodeid, name):
                return []
            if kinds == [What.CREATED] and is_told and told is not None:
                return []
            about = {told.key} if told is not None else set()
            about |= {found[0]} if found is not None else set()
            is_ours = (told is not None and told in self._ctx.written) or any(map(self._own.changed, about))
            if not h.what & _COMES_OR_GOES and is_ours:
                if told is not None:
                    self._changes.silently(told)
                return []
        return kinds

    def _is_still(self, parent: Inode, name: bytes, target: Token | None) -> bool:
        """Does the name lead to what has had it by then?"""
        found = self._changes.found(parent, name)
        if found is None or target is None:
            return found is not None
        return self._watching.identify(parent, name, found[1].device) == target

    def _one(self, what: What, parent: Inode, name: bytes, h: Happening) -> None:
        if what is What.CREATED:
            if not self._changes.is_announced(parent, name):
                self._changes.created(parent, name, h.is_directory)
        elif what is What.DELETED:
            watched = next((inode for inode, _ in self._watching.of(h.target)), None)
            self._changes.deleted(parent, name, h.is_directory, _handle(h), watched)
        elif what is What.ATTRIBUTES:
            self._changes.attributes(parent, name, h.is_directory)
        elif not h.is_directory:
            (self._changes.modified if what is What.MODIFIED else self._changes.closed)(parent, name)

    def _itself(self, inode: Inode, layer: int, h: Happening) -> None:
        if not h.what & What.ATTRIBUTES:
            return
        shown = self._tree.hidden(inode.entry, layer, b"")
        if self._tree.layered:
            self._again(inode)
        parent, name = (inode.parent, inode.name) if inode.parent is not None else (inode, b"")
        self._note(layer, parent, name, "attributes", shown is Shown.TOP)
        if shown is Shown.TOP and (inode.parent is not None or inode is self._ctx.inodes.root):
            self._changes.attributes(parent, name, True)

    def _changed_outside(self, inode: Inode, layer: int, h: Happening) -> None:
        """A file of several names, changed through one that the mount does not know."""
        if inode.is_directory:
            return
        if isinstance(h.directory, int):  # its directory, if it is known, tells the same
            self._changes.silently(inode)
            return
        if h.what == What.ATTRIBUTES and not h.name:
            self._changes.link_count(inode)
            return
        for what, verb in _VERBS.items():
            if h.what & what:
                self._changes.changed_outside(inode, verb)

    # Renames.

    def _moved(self, h: Happening, source: tuple[Inode, int] | None, target: tuple[Inode, int] | None) -> None:
        if self._is_other_half(h, source, target):
            return
        if source is not None and target is not None and self._is_own_move(h, source, target):
            return
        comes = self._shows(source, h.name, h.is_directory)
        goes = self._shows(target, h.to_name, h.is_directory)
        layer = (source or target or (None, 0))[1]
        parent, name = (source[0], h.name) if source is not None else (None, b"")
        to, new_name = (target[0], h.to_name) if target is not None else (None, b"")
        first, second = parent or to, to or parent
        assert first is not None and second is not None
        self._note(layer, first, name or new_name, "move", comes is Shown.TOP or goes is Shown.TOP, second, new_name)
        if target is not None and goes is Shown.TOP:
            self._make_way(*target, new_name, h.is_directory)
        if parent is not None and comes is Shown.TOP and to is not None and goes is Shown.TOP:
            if self._is_exchange(parent, name, to, new_name):
                self._exchanged = (to, new_name, parent, name)
                self._changes.exchanged(parent, name, to, new_name)
                return
            self._changes.moved(parent, name, to, new_name, h.is_directory, _handle(h))
        elif parent is not None and comes is Shown.TOP:
            self._changes.moved_out(parent, name, h.is_directory, _handle(h))
        elif to is not None and goes is Shown.TOP:
            self._changes.moved_in(to, new_name, h.is_directory)
        if self._tree.layered and source is not None:
            self._settle(source[0], name, source[1])
        if self._tree.layered and target is not None and goes is not Shown.TOP:
            self._settle(target[0], new_name, target[1])
        if comes is not Shown.TOP:
            self._part_of_another(h)

    def _make_way(self, to: Inode, layer: int, new_name: bytes, is_directory: bool) -> None:
        """No rename replaces a directory by a file, but what comes to lie above one in another layer does."""
        told = to.told(new_name)
        if (
            told is not None
            and told.is_directory is not is_directory
            and self._tree.covered(to.entry, layer, new_name)
            and self._is_another(to, new_name)
        ):
            self._changes.deleted(to, new_name, told.is_directory)

    def _is_own_move(self, h: Happening, source: tuple[Inode, int], target: tuple[Inode, int]) -> bool:
        if not isinstance(h.directory, int):
            return False
        told, found = target[0].told(h.to_name), self._changes.found(target[0], h.to_name)
        is_told = told is not None and found is not None and told.key == found[0]
        return is_told and self._own.removed(source[0].nodeid, h.name)

    def _shows(self, place: tuple[Inode, int] | None, name: bytes, is_directory: bool) -> Shown:
        """A directory that comes above others, or goes from above them, leaves the name to what they are together."""
        if place is None or self._tree.concerns(name) != name:
            return Shown.HIDDEN
        parent, layer = place
        shown = self._tree.hidden(parent.entry, layer, name)
        is_merged = shown is Shown.TOP and is_directory and self._tree.covered(parent.entry, layer, name) != 0
        return Shown.MERGED if is_merged else shown

    def _is_exchange(self, parent: Inode, name: bytes, to: Inode, new_name: bytes) -> bool:
        """By what there is now: what had the new name has the old one."""
        first, second = parent.told(name), to.told(new_name)
        if second is None or first is second:
            return False
        here, there = self._changes.found(parent, name), self._changes.found(to, new_name)
        return bool(here and there and here[0] == second.key and (first is None or there[0] == first.key))

    def _is_other_half(
        self, h: Happening, source: tuple[Inode, int] | None, target: tuple[Inode, int] | None
    ) -> bool:  # fmt: skip
        """An exchange is told as two renames."""
        expected, self._exchanged = self._exchanged, None
        return bool(
            expected and source and target and expected == (source[0], h.name, target[0], h.to_name)
        )  # fmt: skip

    # What a name leads to, whatever has happened to it.

    def _is_there(self, parent: Inode, name: bytes) -> bool:
        return self._changes.found(parent, name) is not None

    def _is_another(self, parent: Inode, name: bytes) -> bool:
        told, found = parent.told(name), self._changes.found(parent, name)
        return told is not None and (found is None or found[0] != told.key)

    def _reconsider(self, parent: Inode, name: bytes, layer: int, was_hidden: bool = False) -> None:
        """What a name leads to may be another inode now, or none, or made of other real ones. `was_hidden`: there was
        nothing to be seen before."""
        told, found = parent.told(name), self._changes.found(parent, name)
        if told is not None and found is not None and told.key == found[0]:
            self._tree.found_at(told.entry, parent.entry, name, found[2])
            self.seen_again(told)
            if not told.is_directory:
                self._changes.modified(parent, name)
            self._changes.attributes(parent, name, told.is_directory)
            return
        if told is not None:
            self._changes.deleted(parent, name, told.is_directory)
        elif not was_hidden and (hidden := self._tree.covered(parent.entry, layer, name)):
            self._changes.deleted(parent, name, stat.S_ISDIR(hidden))
        if found is not None:
            self._changes.created(parent, name, stat.S_ISDIR(found[1].mode))

    def _settle(self, parent: Inode, name: bytes, layer: int) -> None:
        """After a rename in a layer: what other layers have at either name comes to light, or is merged."""
        told, found = parent.told(name), self._changes.found(parent, name)
        if told is not None and found is not None and told.key == found[0]:
            self._tree.found_at(told.entry, parent.entry, name, found[2])
            self.seen_again(told)
        elif found is not None and self._tree.covered(parent.entry, layer, name):
            self._reconsider(parent, name, layer)

    def _part_of_another(self, h: Happening) -> None:
        """What is hidden where it is may be part of a directory elsewhere, by a redirect, and have gone from there."""
        if h.is_directory and h.what & (What.MOVED | What.DELETED):
            for inode, _ in self._watching.of(h.target):
                self._again(inode)

    def _again(self, inode: Inode) -> None:
        """A directory's marks may have changed, and with them what it is made of."""
        if inode is self._ctx.inodes.root:
            self._tree.refresh_root()
        elif inode.parent is not None:
            found = self._changes.found(inode.parent, inode.name)
            if found is not None and found[0] == inode.key:
                self._tree.found_at(inode.entry, inode.parent.entry, inode.name, found[2])
        self.seen_again(inode)

    # What was not heard.

    def _tell_of_loss(self, begins: bool) -> None:
        self._journal.add(-1, b"/", "overflow")
        if begins:
            self._log("changes of the layers came faster than they could be followed; all that is known is looked at")

    def _begin_anew(self, fd: int) -> None:
        self._closing(fd)
        self._watchers.reopen(fd)
        self._watching.again()
        if self._ctx.backings is not None:
            self._ctx.backings.watched_anew()
        self._look_again.lost()

    # The journal.

    def _note(
        self, layer: int, parent: Inode, name: bytes, kind: str, shown: bool, to: Inode | None = None, new: bytes = b""
    ) -> None:  # fmt: skip
        root = self._ctx.inodes.root
        path = path_of((parent, name), root)
        target = path_of((to, new), root) if to is not None and new else None
        if path is not None:
            self._journal.add(layer, b"/" + path, kind, b"/" + target if target is not None else b"", shown)

    def describe(self) -> dict[str, object]:
        """For `status`."""
        return {**self._watchers.counts(), "overflows": self._look_again.losses}

    def ways(self) -> dict[int, str]:
        """How each layer is watched."""
        return self._watching.ways()


def _handle(h: Happening) -> bytes | None:
    """The file handle of what it is about, where the watcher tells."""
    return handle(h.target) if isinstance(h.target, bytes) else None
