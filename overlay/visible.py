"""What a change in one layer, behind the mount, has to do with what the mount shows.

Answers for one name or one inode at a time, from what the layers have there now. Owns nothing, and changes only what is
remembered of the roots' marks. Loop thread.
"""

import stat
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from shiftfs.descriptors import is_directory
from shiftfs.tree import Contributor, RealKey, Shown

from . import whiteout, xattrs
from .entry import Entry, Found, Real
from .identity import is_at
from .layers import Layers
from .lookup import Lookup, continues

_DOTS: Final = frozenset({b"", b".", b".."})


class Visible:
    """Of one mount."""

    def __init__(self, layers: Layers, lookup: Lookup) -> None:
        self._layers = layers
        self._lookup = lookup

    def contributors(self, entry: Entry) -> tuple[Contributor, ...]:
        """As tree.Tree.contributors."""
        reals = entry.reals
        if len(reals) > 2 and not is_directory(entry.key):
            reals = (reals[0], reals[-1])
        return tuple(Contributor(one.layer, one.key, partial(_place, entry, one)) for one in reals)

    def tells_changes(self, contributor: Contributor) -> bool:
        """As tree.Tree.tells_changes."""
        return self._layers.layers[contributor.layer].tells_changes(contributor.device)

    def keys_of(self, handle: bytes) -> list[RealKey]:
        """As tree.Tree.keys_of. Several layers may lie on one filesystem."""
        layers = {one.device: one for one in self._layers.layers}
        return [key for one in layers.values() if (key := one.key_of(handle)) is not None]

    def came_from(self, directory: Entry, place: Found) -> RealKey:
        """As tree.Tree.came_from."""
        parent = (place.upper or place.lowers[0]).parent
        return parent.key if parent is not None else directory.key

    def hidden(self, directory: Entry, layer: int, name: bytes) -> Shown:
        """As tree.Tree.hidden."""
        reals = directory.reals
        depth = next((index for index, real in enumerate(reals) if real.layer == layer), None)
        if depth is None:
            return Shown.HIDDEN
        if depth == 0:
            return Shown.TOP
        if not name:
            return Shown.MERGED
        try:
            return self._below(directory, reals[:depth], reals[depth], name)
        except OSError:  # it has changed once more, or is damaged: whoever looks it up will see
            return Shown.MERGED

    def _below(self, directory: Entry, above: Iterable[Real], here: Real, name: bytes) -> Shown:
        """What lets something of the layer `here` show, beneath what the layers above it have of that name."""
        last: RealKey | None = None
        is_ghost = False
        for one in above:
            seen = self._layers.find(one, name)
            if self._layers.hides(one, name):
                return Shown.HIDDEN
            if seen is None:
                continue
            key, attributes = seen
            private = self._lookup.private(one, name, attributes, True)
            if (
                whiteout.is_device(attributes)
                or self._lookup.is_by_xattr(one, attributes, private)
                or not self._lookup.goes_on(one.child(name, key), private)
                or (last is not None and not continues(last, key))
            ):
                return Shown.HIDDEN
            if xattrs.REDIRECT in private:
                return self._by_redirect(directory, here, name)
            if last is None:
                is_ghost = self._lookup.would_be_ghost(one.child(name, key), private)
            last = key
        if last is None:
            return Shown.TOP
        found = self._layers.find(here, name)
        if found is not None and not continues(last, found[0]) and not self._was_merged(last, directory, here, name):
            return Shown.HIDDEN
        return Shown.TOP if is_ghost and not self._is_held_up(directory, here, name) else Shown.MERGED

    def _by_redirect(self, directory: Entry, here: Real, name: bytes) -> Shown:
        """Something above says where the layers below have the rest. That may be this very place."""
        found = self._lookup.find(directory, name)
        if found is not None:
            for one in found.lowers:
                if one.layer == here.layer and one.name == name and one.parent is not None:
                    return Shown.MERGED if one.parent.key == here.key else Shown.HIDDEN
        return Shown.HIDDEN

    def _was_merged(self, above: RealKey, directory: Entry, here: Real, name: bytes) -> bool:
        """Is the directory known as made of this layer's part, or of those below, which what is here now hides?"""
        entry = self._lookup.identities.made_of(above)
        return entry is not None and is_at(entry, directory, name) and entry.reals[-1].layer >= here.layer

    def _is_held_up(self, directory: Entry, here: Real, name: bytes) -> bool:
        """Does another lower layer keep a directory from being a ghost?"""
        others = (self._layers.find(one, name) for one in directory.lowers if one is not here)
        return any(seen is not None and is_directory(seen[0]) for seen in others)

    def covered(self, directory: Entry, layer: int, name: bytes) -> int:
        """As tree.Tree.covered."""
        below = tuple(one for one in directory.reals if one.layer > layer)
        try:
            found = self._lookup.shown_by(directory, name, below)
        except OSError:
            return stat.S_IFREG  # what is damaged is there, too
        return stat.S_IFMT(found.attributes.mode) if found is not None else 0

    def lists_anew(self, entry: Entry) -> bool:
        """As tree.Tree.lists_anew."""
        layers = self._layers.layers
        return any(one.key[0] in layers[one.layer].pseudo | layers[one.layer].remote for one in entry.reals)

    def lists(self, directory: Entry) -> None:
        """The directory is about to be listed."""
        directory.listed = self._times(directory)

    def listing_changed(self, entry: Entry) -> bool:
        """As tree.Tree.listing_changed."""
        if entry.listed is None or entry.listed == self._times(entry):
            return False
        entry.listed = None
        return True

    def _times(self, directory: Entry) -> tuple[Any, ...]:
        """What tells of names that come and go in the parts of a directory, but for the times of the topmost."""
        times: list[Any] = []
        for one in directory.reals:
            try:
                a = self._layers.attributes(one) if times else None
            except OSError:
                a = None
            times.append((one.key, one.is_marked, a and (a.mtime, a.mtimensec, a.nlink)))
        return tuple(times)

    def concerns(self, name: bytes) -> bytes | None:
        """As tree.Tree.concerns."""
        if not name.startswith(whiteout.PREFIX):
            return name
        if name == whiteout.OPAQUE_NAME:
            return b""
        hidden = name[len(whiteout.PREFIX) :]
        return None if hidden in _DOTS or hidden.startswith(whiteout.PREFIX) else hidden


def _place(entry: Entry, one: Real) -> tuple[int, bytes]:
    if one.parent is None or entry.removed:
        return one.fd, b""
    return one.parent.fd, one.name
