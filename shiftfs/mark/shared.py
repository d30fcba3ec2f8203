"""One tree for several mounts: what each of them knows of an inode is one entry.

Owns who uses which entry. So a copy-up that one mount has made is at once the others' as well, and what one forgets
stays for those that do not. Loop thread.
"""

import errno
import os
from collections.abc import Callable
from typing import Any, cast

from ..shares import Common, Share
from ..sys.files import RENAME_EXCHANGE
from ..tree import Attributes, RealKey, Tree

_FEWEST = 64
_SHARE = 16
"""Files that are open on the mark itself keep no more than this part of the descriptors that the tree may keep."""
_FEWEST_REMOVED = 1


class SharedTree:
    """The tree, and its entries by their keys. `bound`: how many descriptors it may keep as long as it likes; as many
    more of removed files, and of open ones."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.bound = tree.descriptors()["bound"]
        self._known: dict[RealKey, Any] = {tree.root_attributes()[0]: tree.root}
        self._uses: dict[Any, list[Any]] = {}
        """By entry: its key, and who uses it."""
        self._removed = Common(self.bound * 2 // 3, _FEWEST_REMOVED)  # the last third: a few for each mount
        self._charged: dict[Any, TreeUse] = {}
        """What has no name any more, and to whose account that is: it is among those who use it."""
        self._copied: list[Callable[[Any, int], None]] = []
        self._all: set[TreeUse] = set()
        tree.knows(self._known.get)
        tree.on_copy(self._has_copied)

    def use(self) -> tuple[Tree, Callable[[], None]]:
        """The tree as one mount sees it, and what to call when that is gone."""
        use = TreeUse(self, Share(self._removed))
        self._all.add(use)
        return cast(Tree, use), use.leave

    def left(self, use: "TreeUse") -> None:
        self._all.discard(use)

    def known(self, key: RealKey) -> Any | None:
        return self._known.get(key)

    def entry(self, directory: Any, name: bytes, key: RealKey, place: Any, use: "TreeUse") -> Any:
        """For one more mount."""
        entry = self._known.get(key)
        if entry is not None:
            self.tree.found_at(entry, directory, name, place)
        else:
            entry = self._known[key] = self.tree.entry(directory, name, key, place)
        self.add(entry, key, use)
        return entry

    def add(self, entry: Any, key: RealKey, use: "TreeUse", is_known: bool = False) -> None:
        if is_known:
            self._known.setdefault(key, entry)
        self._uses.setdefault(entry, [key]).append(use)

    def release(self, entry: Any, use: "TreeUse") -> None:
        """One mount needs it no more."""
        uses = self._uses.get(entry)
        if uses is None:
            return  # the root, or what was let go of already
        uses.remove(use)
        is_removed = self._charged.get(entry) is use
        if is_removed:
            self.has_name(entry)
        if len(uses) == 1:
            self._let_go(entry)
        elif is_removed:
            self.has_no_name(entry)

    def _let_go(self, entry: Any) -> None:
        self.bury(entry)
        del self._uses[entry]
        self.tree.release(entry)

    def bury(self, entry: Any) -> None:
        """The real inode has lost its last name: whatever gets its number is another."""
        uses = self._uses.get(entry)
        if uses is not None and self._known.get(uses[0]) is entry:
            del self._known[uses[0]]

    def has_no_name(self, entry: Any, remover: "TreeUse | None" = None) -> None:
        """It keeps a descriptor until all have forgotten it, to the account of whoever has removed it and uses it, or
        of somebody else who does. If none of them can have one more, they have lost it."""
        self.has_name(entry)
        using: list[TreeUse] = self._uses.get(entry, [None])[1:]
        for use in [remover] if remover is not None and remover in using else using:
            if use is remover or use.removed.has_room:
                use.removed.take()
                self._charged[entry] = use
                return
        if using:
            self._let_go(entry)

    def has_name(self, entry: Any) -> None:
        """Again, or it is nobody's any more."""
        use = self._charged.pop(entry, None)
        if use is not None:
            use.removed.give_back()

    def check_listing(self, entry: Any) -> None:
        """Let all who use a directory know if it has changed: the tree tells once."""
        if self.tree.listing_changed(entry):
            for use in self._all if entry is self.tree.root else self._uses.get(entry, [None])[1:]:
                use.changed.add(entry)

    def on_copy(self, call: Callable[[Any, int], None]) -> Callable[[], None]:
        """Call it for each file that comes up; what is returned ends that."""
        self._copied.append(call)
        return lambda: self._copied.remove(call)

    def _has_copied(self, entry: Any, made: int) -> None:
        for call in self._copied:
            call(entry, made)

    def __len__(self) -> int:
        return len(self._uses)


class TreeUse:
    """As one mount has it (tree.Tree): all that is not here is the tree's own."""

    def __init__(self, shared: SharedTree, removed: Share) -> None:
        self.removed = removed
        self.changed: set[Any] = set()
        """Directories that have, and of which this mount has not been told yet."""
        self._shared = shared
        self._calls: list[Callable[[], None]] = []
        self._tree = tree = shared.tree
        for name in dir(Tree):
            if not name.startswith("_") and name not in vars(TreeUse):
                setattr(self, name, getattr(tree, name))

    def entry(self, directory: Any, name: bytes, key: RealKey, place: Any) -> Any:
        return self._shared.entry(directory, name, key, place, self)

    def plain(self) -> None:
        """Who uses which entry is counted here, so all are special."""

    def release(self, entry: Any) -> None:
        self.changed.discard(entry)
        self._shared.release(entry, self)

    def held(self, entry: Any) -> Any:
        self._shared.check_listing(entry)
        self.changed.discard(entry)
        return self._tree.held(entry)

    def listing_changed(self, entry: Any) -> bool:
        self._shared.check_listing(entry)
        is_new = entry in self.changed
        self.changed.discard(entry)
        return is_new

    def knows(self, entry_of: Callable[[RealKey], Any | None]) -> None:
        """All mounts know what one does."""

    def on_copy(self, call: Callable[[Any, int], None]) -> None:
        self._calls.append(self._shared.on_copy(call))

    def leave(self) -> None:
        """The mount is gone."""
        for end in self._calls:
            end()
        self._calls.clear()
        self._shared.left(self)

    def link(self, entry: Any, directory: Any, name: bytes) -> None:
        self._tree.link(entry, directory, name)
        self._shared.has_name(entry)

    def tmpfile(self, directory: Any, mode: int) -> tuple[RealKey, Attributes, Any]:
        self._check_room()
        key, attributes, entry = self._tree.tmpfile(directory, mode)
        self._shared.add(entry, key, self, is_known=True)
        self._shared.has_no_name(entry, self)
        return key, attributes, entry

    def unlink(self, directory: Any, name: bytes, known: Any | None) -> bool:
        known = self._to_remove(directory, name, known)
        is_last = self._tree.unlink(directory, name, known)
        if is_last:
            self._has_removed(known)
        return is_last

    def rmdir(self, directory: Any, name: bytes, known: Any | None) -> None:
        known = self._to_remove(directory, name, known)
        self._tree.rmdir(directory, name, known)
        self._has_removed(known)

    def rename(
        self, directory: Any, name: bytes, to: Any, new_name: bytes, flags: int, moved: Any | None, replaced: Any | None
    ) -> bool:  # fmt: skip
        moved = moved or self._at(directory, name)
        if flags & RENAME_EXCHANGE:
            replaced = replaced or self._at(to, new_name)
        else:
            replaced = self._to_remove(to, new_name, replaced)
        is_last = self._tree.rename(directory, name, to, new_name, flags, moved, replaced)
        if is_last:
            self._has_removed(replaced)
        return is_last

    def _to_remove(self, directory: Any, name: bytes, known: Any | None) -> Any | None:
        """What some mount knows of a name. ENFILE for more than this one may keep without."""
        if known is None:
            return self._at(directory, name)
        self._check_room()
        return known

    def _check_room(self) -> None:
        if not self.removed.has_room:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def _has_removed(self, known: Any | None) -> None:
        if known is not None:
            self._shared.bury(known)
            self._shared.has_no_name(known, self)

    def _at(self, directory: Any, name: bytes) -> Any | None:
        """What another mount knows of a name."""
        try:
            return self._shared.known(self._tree.lookup(directory, name)[0])
        except OSError:
            return None

    def descriptors(self) -> dict[str, int]:
        counts = self._tree.descriptors()
        return {**counts, "bound": max(counts["bound"] // _SHARE, _FEWEST)}
