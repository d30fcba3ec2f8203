"""A name over the layers: what it leads to, and which real inodes contribute.

Owns no state but the origins that it remembers. Follows redirects one name at a time from a layer's root, so none leads
out of its layer. Loop thread.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cachetools import LRUCache

from shiftfs.descriptors import is_directory
from shiftfs.tree import Attributes, RealKey

from . import origin, whiteout, xattrs
from .entry import Entry, Found, Links, Real
from .identity import Identities
from .layers import LOST, Layers
from .origin import Origins
from .xattrs import Private

_DIRECTORY: Final = 4
_REGULAR: Final = 8
_SYMLINK: Final = 10
_REMEMBERED: Final = 65536
_RACED: Final = LOST | {errno.ENODATA}
Place = tuple[Real, bytes]
"""A directory of a layer and a name in it."""


class Lookup:
    """`known` gives the entry of an inode that the kernel knows. `follows`: redirects are obeyed, not refused. `drops`:
    directories of the upper whose lower ones have disappeared do not show (`ghost=drop`)."""

    def __init__(self, layers: Layers, follows: bool, drops: bool = False) -> None:
        self._layers = layers
        self._follows = follows
        self.drops = drops
        self._first_lower = layers.first_lower
        self.origins = Origins(layers.layers[self._first_lower :])
        self.identities = Identities(self._is_there)
        self.known: Callable[[RealKey], Entry | None] = lambda key: None
        self.came_from: LRUCache[RealKey, RealKey] = LRUCache(_REMEMBERED)
        """Origins of upper inodes that cannot say theirs themselves, as long as this mount lasts."""

    def find(self, directory: Entry, name: bytes) -> Found | None:
        """What the name leads to on the mount; None for nothing."""
        if name[:4] == whiteout.PREFIX:
            return None
        try:
            return self._find(directory, name)
        except OSError as error:
            if error.errno not in _RACED:
                raise
        return self._find(directory, name)  # it has gone between two looks: what is below may show

    def _find(self, directory: Entry, name: bytes) -> Found | None:
        reals = directory.reals
        find = self._layers.find
        for depth, real in enumerate(reals):
            seen = find(real, name)
            if seen is not None:
                return self._plain(directory, reals, depth, name, seen) or self._over(
                    directory, name, [(real, name) for real in reals[depth:]], [(real, name) for real in reals[:depth]]
                )
        return None

    def _plain(
        self, directory: Entry, reals: tuple[Real, ...], depth: int, name: bytes, seen: tuple[RealKey, Attributes]
    ) -> Found | None:
        """A file that has nothing special: nearly all that is looked up. None for all else."""
        parent = reals[depth]
        key, attributes = seen
        if attributes.mode >> 12 not in (_REGULAR, _SYMLINK) or self.private(parent, name, attributes):
            return None
        if parent.layer < self._first_lower:
            real = parent.child(name, key)
            own = self._own_if_taken(self.came_from.get(key, key), real, directory, name, False)
            return Found(own, attributes, real, (), None)
        if attributes.nlink > 1 and self._layers.index is not None:
            return None
        for above in reals[:depth]:
            if self._layers.hides(above, name):
                return None
        return self._lower_alone(directory, attributes, (parent.child(name, key),))

    def _is_there(self, real: Real) -> bool:
        seen = self._layers.find(real.parent, real.name) if real.parent is not None else None
        return seen is not None and seen[0] == real.key

    def covered(self, directory: Entry, name: bytes) -> bool:
        """Is there anything of that name in the lower layers, which a whiteout has to hide?"""
        return self.shown_by(directory, name, directory.lowers) is not None

    def shown_by(self, directory: Entry, name: bytes, layers: tuple[Real, ...]) -> Found | None:
        """What there would be of that name if the directory were made of no more than these."""
        return self._over(directory, name, [(real, name) for real in layers], [])

    def _over(
        self, directory: Entry, name: bytes, places: Iterable[Place], unchecked: list[Place]
    ) -> Found | None:  # fmt: skip
        """What some places have together; the `unchecked` ones above do not have the name, but may hide it."""
        hits: list[tuple[Real, Attributes, Private]] = []
        remaining = iter(places)
        while (place := next(remaining, None)) is not None:
            parent, wanted = place
            seen = self._layers.find(parent, wanted)
            if seen is None:
                unchecked.append(place)
                continue
            key, attributes = seen
            if whiteout.is_device(attributes) or self._hidden(unchecked):
                break
            unchecked = [place]
            private = self.private(parent, wanted, attributes, bool(hits))
            if self.is_by_xattr(parent, attributes, private):
                break
            if hits and not continues(hits[-1][0].key, key):
                break
            real = parent.child(wanted, key)
            real.is_marked = private.get(xattrs.OPAQUE) == whiteout.MARKED
            real.is_impure = xattrs.IMPURE in private
            hits.append((real, attributes, private))
            if not self.goes_on(real, private):
                break
            redirect = whiteout.redirect_of(private)
            if redirect is not None:
                if not self._follows:
                    raise OSError(errno.EPERM, "redirects are not followed (redirect_dir=nofollow)")
                remaining = self._redirected(parent, redirect, remaining)
                unchecked = []  # what hides the name here hides something else
        return self._found(directory, name, hits) if hits else None

    def private(self, parent: Real, name: bytes, attributes: Attributes, is_below: bool = False) -> Private:
        """The overlay's own attributes of what has been found, as far as there can be any that matter. `is_below`: it
        is to go with something above."""
        kind = attributes.mode >> 12
        if (
            is_below
            or kind == _DIRECTORY
            or parent.layer < self._first_lower
            or parent.is_marked
            or (kind == _REGULAR and parent.layer < len(self._layers.layers) - 1)  # content in a layer below, perhaps
        ):
            return xattrs.private(parent.fd, name, self._layers.believes(attributes))
        return {}

    def is_by_xattr(self, parent: Real, attributes: Attributes, private: Private) -> bool:
        """Is what was found beneath `parent` a whiteout by attribute?"""
        return xattrs.WHITEOUT in private and parent.is_marked and whiteout.may_be_by_xattr(attributes)

    def _hidden(self, places: list[Place]) -> bool:
        """Has one of the layers above a file that says so?"""
        return any(self._layers.hides(real, name) for real, name in places)

    def goes_on(self, real: Real, private: Private) -> bool:
        """Do the layers below have a part in it?"""
        if real.layer == len(self._layers.layers) - 1:
            return False
        if is_directory(real.key):
            parent = real.parent
            assert parent is not None
            return not whiteout.is_opaque(parent.fd, real.name, private)
        return real.key[3] == _REGULAR and xattrs.METACOPY in private

    def _redirected(self, parent: Real, redirect: list[bytes], remaining: Iterator[Place]) -> Iterator[Place]:
        if redirect[0]:
            return ((real, redirect[0]) for real, _ in remaining)
        return self._by_path(parent.layer + 1, redirect[1:])

    def _by_path(self, layer: int, path: list[bytes]) -> Iterator[Place]:
        """The places of an absolute path in the layers from `layer` on, each as far as the one above lets it show."""
        for root in self._layers.roots[layer:]:
            above: Real | None = root
            last = False
            below: list[bytes] = []
            for depth, name in enumerate(path[:-1]):
                assert above is not None
                seen = self._layers.find(above, name)
                if seen is None or not is_directory(seen[0]):
                    last = last or seen is not None or self._hidden([(above, name)])
                    above = None
                    below += path[depth:]
                    break
                private = self.private(above, name, seen[1])
                last = last or whiteout.is_opaque(above.fd, name, private)
                redirect = whiteout.redirect_of(private) or [name]
                below = redirect[1:] if not redirect[0] else [*below, redirect[0]]
                above = above.child(name, seen[0])
                above.is_marked = private.get(xattrs.OPAQUE) == whiteout.MARKED
            if above is not None:
                yield above, path[-1]
                below = [*below, path[-1]]
            if last:
                return
            path = below

    def _found(self, directory: Entry, name: bytes, hits: list[tuple[Real, Attributes, Private]]) -> Found | None:
        top, attributes, private = hits[0]
        if xattrs.METACOPY in hits[-1][2] and hits[-1][0].key[3] == _REGULAR:
            raise OSError(errno.EIO, os.strerror(errno.EIO))  # as the kernel: metadata whose content is nowhere
        reals = tuple(real for real, _, _ in hits)
        is_redirected = any(xattrs.REDIRECT in private for _, _, private in hits)
        if top.layer >= self._first_lower:
            if is_directory(top.key):
                key = self.identities.of_directory(directory, name, None, reals)
                return Found(key, attributes, None, reals, None, is_redirected)
            if attributes.nlink > 1 and self._layers.index is not None:
                return self._by_index(directory, top, attributes, reals)
            return self._lower_alone(directory, attributes, reals)
        if is_directory(top.key):
            if len(reals) == 1 and self.would_be_ghost(top, private) and self.goes_on(top, private):
                return None
            key = self.identities.of_directory(directory, name, top, reals[1:])
            return Found(key, attributes, top, reals[1:], None, is_redirected)
        key = self._origin(top, private, attributes)
        links = self._links(private, attributes)
        return Found(
            self._own_if_taken(key, top, directory, name, links is not None), attributes, top, reals[1:], links
        )

    def would_be_ghost(self, upper: Real, private: Private) -> bool:
        """Is it a directory that is not to show without a lower one: has it come up from one, rather than been made in
        the upper?"""
        return (
            self.drops
            and upper.layer < self._first_lower
            and (xattrs.ORIGIN in private or xattrs.OWN_ORIGIN in private or upper.key in self.came_from)
        )

    def _by_index(self, directory: Entry, lower: Real, attributes: Attributes, reals: tuple[Real, ...]) -> Found:
        """One of several names of a lower file: another of them may have been copied up."""
        index = self._layers.index
        assert index is not None and lower.parent is not None
        name = self.origins.index_name(lower.layer - self._first_lower, lower.parent.fd, lower.name)
        seen = self._layers.find(index, name) if name is not None else None
        is_same_kind = seen is not None and (seen[0][3] == lower.key[3] or seen[1].mode >> 12 == lower.key[3])
        if name is None or seen is None or not is_same_kind:
            return self._lower_alone(directory, attributes, reals)
        private = xattrs.private(index.fd, name, True)
        links = origin.links(private, seen[1].nlink, attributes.nlink)
        content = reals if xattrs.METACOPY in private else ()
        return Found(lower.key, seen[1], index.child(name, seen[0]), content, links or Links(0))

    def _links(self, private: Private, attributes: Attributes) -> Links | None:
        if xattrs.NLINK not in private:
            return None
        lower = 0
        if private[xattrs.NLINK].startswith(b"L"):  # the process was killed between writing that and the link
            lower = self.origins.link_count(private) or 1
        return origin.links(private, attributes.nlink, lower)

    def _origin(self, top: Real, private: Private, attributes: Attributes) -> RealKey:
        """The inode that an upper file came from, for it to keep its number. A regular file may stand for what it came
        from: a device, a fifo."""
        if not private:
            return self.came_from.get(top.key, top.key)
        kind = attributes.mode >> 12
        found = self.origins.key(private, top.key[3])
        if found is None and kind != top.key[3]:
            found = self.origins.key(private, kind)
        return found or top.key

    def _lower_alone(self, directory: Entry, attributes: Attributes, reals: tuple[Real, ...]) -> Found:
        """What is not up. If its inode was the origin of one that is, and has another name now (moved behind the mount,
        or a hard link without an index), it is another file."""
        top = reals[0]
        known = self.known(top.key)
        if known is None or known.upper is None or known.gate is not None:
            return Found(top.key, attributes, None, reals, None)
        if known.parent is directory and known.name == top.name:  # its upper has been removed behind the mount
            return Found(top.key, attributes, None, reals, None)
        device, number, born, kind = top.key
        return Found((device, number, ~born, kind), attributes, None, reals, None)

    def _own_if_taken(self, key: RealKey, upper: Real, directory: Entry, name: bytes, has_index: bool) -> RealKey:
        """Two upper inodes that claim one origin (a copy made with all its attributes) are two inodes all the same."""
        if key == upper.key:
            return key
        known = self.known(key)
        if known is None or known.gate is not None or (known.parent is directory and known.name == name):
            return key
        if known.upper is None:
            return key if has_index else upper.key
        return key if known.upper.key == upper.key else upper.key

    def lower_path(self, entry: Entry) -> bytes:
        """The absolute path of an inode as the layers below the upper know it, for a redirect."""
        names: list[bytes] = []
        above = entry
        while above.parent is not None:
            redirect = whiteout.redirect_of(self._layers.private(above.upper)) if above.upper is not None else None
            if redirect is not None and not redirect[0]:
                return b"/" + b"/".join([*redirect[1:], *reversed(names)])
            names.append(redirect[0] if redirect is not None else above.name)
            above = above.parent
        return b"/" + b"/".join(reversed(names))


def continues(above: RealKey, below: RealKey) -> bool:
    """Does it go with what the layers above have: a directory with a directory, content with metadata?"""
    return is_directory(below) if is_directory(above) else below[3] == _REGULAR
