"""What the overlay knows of an inode: data only, no system call.

A Real is one real inode in one layer; an Entry is an inode of the mount, made of the reals that contribute to it.
Loop thread.
"""

from typing import Any, NamedTuple

from shiftfs.descriptors import Descriptors
from shiftfs.descriptors import Entry as LayerEntry
from shiftfs.tree import Attributes, Gate, RealKey


class Real(LayerEntry):
    """Where a real inode was last seen in its layer. `held` keeps that layer's descriptors, `layer` is its index.
    `is_marked`: a directory that may have whiteouts by attribute in it (`overlay.opaque` is x); `is_impure`: one of the
    upper with things that came from elsewhere."""

    __slots__ = ("held", "is_impure", "is_marked", "layer")
    parent: "Real | None"

    def __init__(self, layer: int, held: Descriptors, parent: "Real | None", name: bytes, key: RealKey) -> None:
        super().__init__(parent, name, key)
        self.layer = layer
        self.held = held
        self.is_marked = False
        self.is_impure = False

    @property
    def fd(self) -> int:
        """An O_PATH descriptor of the inode, valid until the next call. ESTALE if it is not to be found any more."""
        return (self.path or self.held.path(self)).fd

    def child(self, name: bytes, key: RealKey) -> "Real":
        """What a name beneath this directory leads to."""
        return Real(self.layer, self.held, self, name, key)

    def entry_of(self, directory: "Entry", name: bytes, key: RealKey) -> "Entry":
        """The entry of a file that nothing is special about: all of it is in this layer."""
        entry = Entry(directory, name, key)
        if directory.upper is not None and self.layer == directory.upper.layer:
            entry.upper = self.child(name, key)
        else:
            entry.lowers = (self.child(name, key),)
        return entry


class Links(NamedTuple):
    """The link count of an inode that has an index: its upper inode's and `offset`."""

    offset: int


class Entry:
    """An inode of the mount, while the kernel knows it.

    Directories: `upper` and all `lowers` that are merged, top to bottom. Others: `upper`, or the topmost of `lowers`,
    is what they are; the last of `lowers` has the content where there is one (without an upper, or with one that has
    metadata only). `key` never changes; it is the origin's. `links` is kept for those that have an index, `gate` while
    it is being copied up; `removed` once it has no name on the mount any more. `has_other_numbers`: directories in it
    may have other numbers on the mount than in their layers. `listed`: the merged parts, and their times, when the
    directory was last listed. `redirected`: the layers below have the rest of it elsewhere.
    """

    __slots__ = (
        *("gate", "has_other_numbers", "key", "links", "listed", "lowers", "name", "parent", "redirected", "removed"),
        "upper",
    )

    def __init__(self, parent: "Entry | None", name: bytes, key: RealKey) -> None:
        self.parent = parent
        self.name = name
        self.key = key
        self.upper: Real | None = None
        self.lowers: tuple[Real, ...] = ()
        self.links: Links | None = None
        self.gate: Gate | None = None
        self.removed = False
        self.has_other_numbers = False
        self.redirected = False
        self.listed: tuple[Any, ...] | None = None

    @property
    def top(self) -> Real:
        """The real inode that the entry's attributes are of."""
        return self.upper or self.lowers[0]

    @property
    def reals(self) -> tuple[Real, ...]:
        """All that contribute, top to bottom."""
        return (self.upper, *self.lowers) if self.upper is not None else self.lowers


class Found(NamedTuple):
    """What a name leads to: as `Entry`, before there is one. `attributes` are those of the topmost real inode."""

    key: RealKey
    attributes: Attributes
    upper: Real | None
    lowers: tuple[Real, ...]
    links: Links | None
    redirected: bool = False
