"""Modification times of files whose writes the kernel collects (writeback).

They are the kernel's own then, which tells them in a SETATTR after the writes. It tells none where the file was made,
or written to before, within the same tick of its clock, and does not wait for all its writes before it tells unless
somebody waits for it (fs/inode.c, file_update_time; fs/fuse/inode.c, fuse_write_inode). Such a file is to keep the time
that it had. Owns what times files had before what has been collected was written to them; what is written natively, and
told there, is noted in the same two dictionaries (shiftfs/native/storing.c). Loop thread.
"""

import contextlib
from typing import Final

from ..inodes import Inode
from ..tree import Change, Tree

_QUIET: Final = 1.0
"""Seconds without a write after which none is under way, nor a time."""


class Times:
    """Of one mount."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.before: dict[Inode, tuple[int, int]] = {}
        """In seconds and nanoseconds."""
        self.written: dict[Inode, float] = {}
        """When each of these was written to last (time.monotonic())."""

    def writing(self, inode: Inode, now: float) -> None:
        """Something that the kernel has collected is about to be written."""
        if inode not in self.before:
            attributes = self._tree.attributes(inode.entry)
            self.before[inode] = attributes.mtime, attributes.mtimensec
        self.written[inode] = now

    def told(self, inode: Inode) -> None:
        """The kernel has set it."""
        self.before.pop(inode, None)
        self.written.pop(inode, None)

    def tidy(self, now: float) -> bool:
        """Settle what has been left alone for a while. True if some are still being written to."""
        for inode in [inode for inode, since in self.written.items() if now - since >= _QUIET]:
            self.settle(inode)
        return bool(self.written)

    def settle_all(self) -> None:
        """Nothing comes any more."""
        for inode in list(self.before):
            self.settle(inode)

    def settle(self, inode: Inode) -> None:
        """All that was collected has been written, and the time been told, if it is to be another."""
        self.written.pop(inode, None)
        mtime = self.before.pop(inode, None)
        if mtime is None:
            return
        with contextlib.suppress(OSError):  # it is gone, or nobody may change it any more
            attributes = self._tree.attributes(inode.entry)
            if (attributes.mtime, attributes.mtimensec) != mtime:
                self._tree.change(inode.entry, Change(None, None, None, None, mtime))
