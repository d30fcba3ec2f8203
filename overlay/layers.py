"""The layers of a mount: their roots, their descriptors, and what is asked of them by name.

Owns the layers and all descriptors held in them, bounded together. Decides nothing of how layers hide each other. Loop
thread.
"""

import errno
import os
from typing import Final

from shiftfs.descriptors import Descriptors
from shiftfs.sys import privileges
from shiftfs.sys import xattrs as user_attributes
from shiftfs.tree import Attributes, Descriptor, RealKey

from . import xattrs
from .entry import Real
from .stack import Stack
from .whiteout import MARKED, PREFIX
from .workdir import WorkDirectory
from .xattrs import Private

LOST: Final = frozenset({errno.ESTALE, errno.ENOENT, errno.ENOTDIR})
"""What a layer says of something that is not there any more."""
_LONGEST_HIDDEN: Final = 255 - len(PREFIX)


class Layers:
    """Top to bottom; the first is the upper where there is a work directory."""

    def __init__(self, stack: Stack, bound: int, unlinked: int, noatime: bool) -> None:
        self.layers = stack.layers
        self.work: WorkDirectory | None = stack.work
        self.held: list[Descriptors] = []
        for layer in stack.layers:
            beside = self.held[0] if self.held else None
            self.held.append(Descriptors(layer, bound, unlinked, noatime, beside))
        self.first_lower = 1 if stack.work else 0
        self.roots = [self._known(index, layer.root) for index, layer in enumerate(stack.layers)]
        self._own = os.geteuid()
        self._is_cautious = stack.work.prefix == xattrs.TRUSTED if stack.work else is_root_of_all()
        index = stack.work.index if stack.work else None
        self.index = self._known(0, index) if index is not None else None
        self.refresh_roots()

    def _known(self, layer: int, opened: Descriptor) -> Real:
        """A directory that stays open for good."""
        real = Real(layer, self.held[layer], None, b"", self.layers[layer].look(opened.fd, b"")[0])
        real.path = opened
        return real

    def find(self, directory: Real, name: bytes) -> tuple[RealKey, Attributes] | None:
        """Key and attributes of a name; None where the layer has none, or has lost the directory."""
        try:
            return self.layers[directory.layer].find((directory.path or directory.held.path(directory)).fd, name)
        except OSError as error:
            # ESTALE and the others: the directory has been removed or replaced behind the mount.
            if error.errno in LOST and (directory.parent is not None or directory.layer >= self.first_lower):
                return None
            raise

    def refresh_roots(self) -> None:
        """Read the marks on the layers' root directories, which nobody looks up."""
        for root in self.roots:
            private = self.private(root)
            root.is_marked = private.get(xattrs.OPAQUE) == MARKED
            root.is_impure = root.is_impure or xattrs.IMPURE in private

    def hides(self, directory: Real, name: bytes) -> bool:
        """Has the layer a file that hides the name in those below (`.wh.NAME`)?"""
        return len(name) <= _LONGEST_HIDDEN and self.find(directory, PREFIX + name) is not None

    def believes(self, attributes: Attributes) -> bool:
        """May the inode's user.* attributes say where things are? Where ours are trusted.*, only those of root's and
        our own inodes: anybody else could show himself what he may not read."""
        if not self._is_cautious:
            return True
        return user_attributes.are_of(attributes.uid, self._own, attributes.mode)

    def private(self, real: Real) -> Private:
        """The overlay's own attributes of a real inode."""
        return xattrs.private(real.fd, b"", self.believes(self.attributes(real)))

    def attributes(self, real: Real) -> Attributes:
        """What the layer says of the very inode. ESTALE if it is not to be found any more."""
        return real.held.attributes(real)

    def attributes_of(self, directories: tuple[Real, ...]) -> Attributes:
        """Those of the first that has not been removed; ESTALE, or those of a removed one, if all have been."""
        gone: Attributes | None = None
        for one in directories:
            try:
                a = self.attributes(one)
            except OSError as error:
                if error.errno not in LOST or (one is directories[-1] and gone is None):
                    raise
            else:
                if a.nlink or one.key[0] in self.layers[one.layer].remote:  # some FUSE filesystems never count
                    return a
                gone = gone or a
        assert gone is not None
        return gone


def is_root_of_all() -> bool:
    """Are we root, and in no user namespace?"""
    return os.geteuid() == 0 and privileges.in_initial_namespace()
