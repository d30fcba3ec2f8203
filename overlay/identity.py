"""Which inode of the mount a directory is, whatever real directories it is made of by now.

Layers change while mounted: a directory that is merged may gain parts and lose them, the topmost too. As long as one
part stays where it was it is the same inode, so that nobody in it, no watch and no mount on it notices. Owns which
known entries real directories belong to. Loop thread.
"""

from collections.abc import Callable
from typing import Final

from shiftfs.descriptors import is_directory, seen_at
from shiftfs.tree import RealKey

from .entry import Entry, Found, Real

_OTHER: Final = 1 << 47
"""The bit of an inode number that is another in a second directory made of the same real one."""


class Identities:
    """`known` gives the entry of an inode that the kernel knows; `is_there` tells whether a real directory is still
    where it was last seen."""

    def __init__(self, is_there: Callable[[Real], bool]) -> None:
        self._is_there = is_there
        self.known: Callable[[RealKey], Entry | None] = lambda key: None
        self.by_part: dict[RealKey, Entry] = {}
        """Known directories by the real ones that they are made of, those that were found last."""
        self._before: dict[RealKey, list[Entry]] = {}
        """Others that are still known: somebody has them open, and the kernel another inode at the name."""

    def made_of(self, key: RealKey) -> Entry | None:
        """The known directory that a real one is part of."""
        return self.by_part.get(key)

    def add(self, entry: Entry) -> None:
        """What a directory is made of, all of it known from now on."""
        for one in entry.reals:
            before = self.by_part.get(one.key)
            if before is not None and before is not entry:
                self._before.setdefault(one.key, []).append(before)
            self.by_part[one.key] = entry

    def remove(self, entry: Entry) -> None:
        """The kernel has forgotten the directory."""
        for one in entry.reals:
            self._lose(entry, one)

    def _lose(self, entry: Entry, one: Real) -> None:
        before = self._before.get(one.key)
        if before is not None:
            before[:] = [other for other in before if other is not entry]
        if self.by_part.get(one.key) is entry:
            if before:
                self.by_part[one.key] = before.pop()
            else:
                del self.by_part[one.key]
        if not before:
            self._before.pop(one.key, None)

    def of_directory(self, directory: Entry, name: bytes, upper: Real | None, lowers: tuple[Real, ...]) -> RealKey:
        """The key of a directory found at a name: its topmost lower's, which is its origin, or the upper's; unless it
        is known as another inode, or another inode is known by that key."""
        for one in (upper, *lowers):
            entry = self.by_part.get(one.key) if one is not None else None
            if entry is not None and is_at(entry, directory, name):
                return entry.key
        top = upper or lowers[0]
        entry = self.by_part.get(top.key)
        if entry is not None and not entry.removed and len(entry.reals) == 1:
            return entry.key  # moved behind the mount, with all that it was made of
        for key in ((lowers or (top,))[0].key, top.key):
            if self._is_free(key, directory, name, upper):
                return key
        device, number, born, kind = top.key
        return device, number ^ _OTHER, ~born, kind

    def _is_free(self, key: RealKey, directory: Entry, name: bytes, upper: Real | None) -> bool:
        """May the directory have the key? Not if it is another's: with another upper, or made of others by now, or
        still where it was but for the part that has come here."""
        entry = self.known(key)
        if entry is None or is_at(entry, directory, name):
            return True
        if entry.upper is not None and upper is not None:
            return entry.upper.key == upper.key
        if entry.upper is not upper or self.by_part.get(key) is not entry:
            return False
        return not any(self._is_there(one) for one in entry.reals if one.key != key)

    def found_at(self, entry: Entry, directory: Entry, name: bytes, place: Found) -> None:
        """As tree.Tree.found_at."""
        if entry.gate is not None:
            return
        is_dir = is_directory(entry.key)
        if directory is entry:
            return
        if is_dir:
            self.remove(entry)
        seen_at(entry, directory, name)
        entry.removed = False
        entry.upper = _kept(entry.upper, place.upper)
        if place.lowers != entry.lowers:
            known = {one.key: one for one in entry.lowers}
            entry.lowers = tuple(_kept(known.pop(one.key, None), one) or one for one in place.lowers)
            for one in known.values():
                one.held.release(one)
        entry.links, entry.redirected = place.links, place.redirected
        if is_dir:
            self.add(entry)
            note_number(entry, directory)


def _kept(old: Real | None, new: Real | None) -> Real | None:
    """The real inode as it was known, if it is the same; else the new one."""
    if old is None or old is new:
        return new
    if new is None or old.key != new.key:
        old.held.release(old)
        return new
    if new.parent is not None:
        seen_at(old, new.parent, new.name)
    old.is_marked, old.is_impure = new.is_marked, old.is_impure or new.is_impure
    if old.path is not None:
        old.held.unpin(old)
    return old


def is_at(entry: Entry, directory: Entry, name: bytes) -> bool:
    """Was the inode last seen under this name?"""
    above = entry.parent
    return not entry.removed and above is not None and entry.name == name and above.key == directory.key


def note_number(entry: Entry, directory: Entry) -> None:
    """A listing of `directory` has another number for the directory `entry` than the mount shows: it is to be looked
    up."""
    if entry.key != (entry.lowers or (entry.top,))[0].key:
        directory.has_other_numbers = True
