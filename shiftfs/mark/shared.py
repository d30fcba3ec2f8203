"""One tree for several mounts: what each of them knows of an inode is one entry.

Owns who uses which entry. So a copy-up that one mount has made is at once the others' as well, and what one forgets
stays for those that do not. Loop thread.
"""

from collections.abc import Callable
from typing import Any, cast

from ..tree import RealKey, Tree

_FEWEST = 64
_SHARE = 16
"""One mount's open files keep no more than this part of the descriptors that the tree may keep."""


class SharedTree:
    """The tree, and its entries by their keys."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._known: dict[RealKey, Any] = {tree.root_attributes()[0]: tree.root}
        self._uses: dict[Any, list[Any]] = {}
        """By entry: by how many it is used, and its key."""
        self._copied: list[Callable[[Any, int], None]] = []
        tree.knows(self._known.get)
        tree.on_copy(self._has_copied)

    def use(self) -> tuple[Tree, Callable[[], None]]:
        """The tree as one mount sees it, and what to call when that is gone."""
        use = TreeUse(self)
        return cast(Tree, use), use.leave

    def known(self, key: RealKey) -> Any | None:
        return self._known.get(key)

    def entry(self, directory: Any, name: bytes, key: RealKey, place: Any) -> Any:
        """For one more mount."""
        entry = self._known.get(key)
        if entry is not None:
            self.tree.found_at(entry, directory, name, place)
        else:
            entry = self._known[key] = self.tree.entry(directory, name, key, place)
        self.add(entry, key)
        return entry

    def add(self, entry: Any, key: RealKey, is_known: bool = False) -> None:
        if is_known:
            self._known.setdefault(key, entry)
        self._uses.setdefault(entry, [0, key])[0] += 1

    def release(self, entry: Any) -> None:
        """One mount needs it no more."""
        use = self._uses.get(entry)
        if use is None:
            return  # the root
        use[0] -= 1
        if not use[0]:
            del self._uses[entry]
            self.bury(entry, use[1])
            self.tree.release(entry)

    def bury(self, entry: Any, key: RealKey | None = None) -> None:
        """The real inode has lost its last name: whatever gets its number is another."""
        if key is None and entry in self._uses:
            key = self._uses[entry][1]
        if key is not None and self._known.get(key) is entry:
            del self._known[key]

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

    def __init__(self, shared: SharedTree) -> None:
        self._shared = shared
        self._calls: list[Callable[[], None]] = []
        self._tree = tree = shared.tree
        for name in dir(Tree):
            if not name.startswith("_") and name not in vars(TreeUse):
                setattr(self, name, getattr(tree, name))

    def entry(self, directory: Any, name: bytes, key: RealKey, place: Any) -> Any:
        return self._shared.entry(directory, name, key, place)

    def release(self, entry: Any) -> None:
        self._shared.release(entry)

    def knows(self, entry_of: Callable[[RealKey], Any | None]) -> None:
        """All mounts know what one does."""

    def on_copy(self, call: Callable[[Any, int], None]) -> None:
        self._calls.append(self._shared.on_copy(call))

    def leave(self) -> None:
        """The mount is gone."""
        for end in self._calls:
            end()
        self._calls.clear()

    def tmpfile(self, directory: Any, mode: int) -> tuple[RealKey, Any, Any]:
        key, attributes, entry = self._tree.tmpfile(directory, mode)
        self._shared.add(entry, key, is_known=True)
        return key, attributes, entry

    def unlink(self, directory: Any, name: bytes, known: Any | None) -> bool:
        known = known or self._at(directory, name)
        is_last = self._tree.unlink(directory, name, known)
        if is_last and known is not None:
            self._shared.bury(known)
        return is_last

    def rmdir(self, directory: Any, name: bytes, known: Any | None) -> None:
        known = known or self._at(directory, name)
        self._tree.rmdir(directory, name, known)
        if known is not None:
            self._shared.bury(known)

    def rename(
        self, directory: Any, name: bytes, to: Any, new_name: bytes, flags: int, moved: Any | None, replaced: Any | None
    ) -> bool:  # fmt: skip
        moved, replaced = moved or self._at(directory, name), replaced or self._at(to, new_name)
        is_last = self._tree.rename(directory, name, to, new_name, flags, moved, replaced)
        if is_last and replaced is not None:
            self._shared.bury(replaced)
        return is_last

    def _at(self, directory: Any, name: bytes) -> Any | None:
        """What another mount knows of a name."""
        try:
            return self._shared.known(self._tree.lookup(directory, name)[0])
        except OSError:
            return None

    def descriptors(self) -> dict[str, int]:
        counts = self._tree.descriptors()
        return {**counts, "bound": max(counts["bound"] // _SHARE, _FEWEST)}
