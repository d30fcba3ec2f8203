"""Layers that nobody changes behind the mount (writeback): what follows changes, where there are none.

Owns nothing but the word of whoever has mounted: every inode that would be watched is taken to be, so that the kernel
may trust what it is told for ever. Loop thread.
"""

from typing import Any, Final

from ..inodes import Inode, Watch
from ..tree import Attributes, Gate, Steps

_AT_REST: Final = Watch((), (), True)


class Resting:
    """Of one mount. As `ops.context.Live`."""

    def __init__(self, root: Inode) -> None:
        root.watch = _AT_REST
        self.viewed: dict[Any, Any] = {}
        self.readers: list[Any] = []

    def added(self, inode: Inode, attributes: Attributes) -> Attributes:
        inode.watch = _AT_REST
        return attributes

    def watch(self, inode: Inode) -> bool:
        inode.watch = _AT_REST
        return False

    def forgotten(self, inode: Inode) -> None:
        inode.watch = None

    def told(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """It has no other."""

    def seen_again(self, inode: Inode) -> None:
        """It is made of what it was made of, or of what has been copied up since."""

    def is_up_now(self, inode: Inode) -> None:
        """There is nothing more to be watched."""

    def catch_up(self, inode: Inode) -> Steps | None:
        return None

    def is_told(self) -> bool:
        return True

    def closing(self, inode: Inode) -> Gate | None:
        return None
