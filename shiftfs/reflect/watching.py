"""Owns which real inodes are watched for which inodes of the mount.

All directories that the kernel knows are watched, in each layer that contributes to them, and files of several names,
since those are also changed through directories that nobody knows. Loop thread.
"""

import contextlib

from ..inodes import Inode, Watch
from ..ops.context import Context
from ..tree import Attributes, RealKey
from .happening import Token
from .watchers import FILESYSTEM, NOTHING, Watchers


class Watching:
    """Of one mount."""

    def __init__(self, ctx: Context, watchers: Watchers) -> None:
        self._inodes = ctx.inodes
        self._tree = ctx.tree
        self._watchers = watchers
        self._of: dict[Token, tuple[tuple[Inode, int], ...]] = {}

    def of(self, token: Token | None) -> tuple[tuple[Inode, int], ...]:
        """The inodes that something watched is part of, and in which layer."""
        return self._of.get(token, ()) if token is not None else ()

    def added(self, inode: Inode, attributes: Attributes) -> Attributes:
        """Watch it; its attributes from then on."""
        return self._tree.attributes(inode.entry) if self.watch(inode) else attributes

    def watch(self, inode: Inode) -> bool:
        """Watch it. True if what changed before that may not have been heard of."""
        tokens, keys, steady, again = [], [], True, False
        for one in self._tree.contributors(inode.entry):
            keys.append(one.key)
            token = None
            if self._tree.tells_changes(one):
                token = self._watchers.add(one.device, *one.place(), inode.is_directory)
            if token is None:
                steady = False
                continue
            tokens.append(token)
            self._of[token] = (*self._of.get(token, ()), (inode, one.layer))
            again = again or self._watchers.kind(one.device) != FILESYSTEM
        inode.watch = Watch(tuple(tokens), tuple(keys), steady)
        if again and not inode.is_directory:
            self._tree.path(inode.entry)  # no handle will come with news of it: its names may go, and it stays
        return again

    def begin(self) -> None:
        """Watch the root."""
        self.watch(self._inodes.root)
        self._disregard_writes()

    def _disregard_writes(self) -> None:
        """What is written through our own copy of a layer's mounts we have written, or the kernel for us: to hear of it
        would cost each write an event."""
        root = self._inodes.root.entry
        if self._tree.stays(root):
            top = self._tree.contributors(root)[0]
            self._watchers.disregard(top.device, top.place()[0])

    def renew(self, inode: Inode) -> tuple[RealKey, ...] | None:
        """Watch what an inode is made of now; what it was made of before, if that is something else."""
        watch = inode.watch
        if watch is None or not self._tree.layered:
            return None
        try:
            if tuple(one.key for one in self._tree.contributors(inode.entry)) == watch.keys:
                return None
            self.forgotten(inode)
            self.added(inode, self._tree.attributes(inode.entry))
        except OSError:  # it is gone, which will be heard of
            return None
        return watch.keys

    def forgotten(self, inode: Inode) -> None:
        """Watch it no more."""
        watch = inode.watch
        if watch is None:
            return
        inode.watch = None
        for token in watch.tokens:
            left = self._of.pop(token, ())
            if len(left) > 1 or (left and left[0][0] is not inode):
                left = tuple(one for one in left if one[0] is not inode)
                if left:
                    self._of[token] = left
                    continue
            self._remove(inode, token)

    def _remove(self, inode: Inode, token: Token) -> None:
        """A mark is removed by a way to what is marked, which is one of those, if it is still there."""
        if self._watchers.needs_way(token):
            with contextlib.suppress(OSError):
                for one in self._tree.contributors(inode.entry):
                    if self._watchers.remove(token, *one.place()):
                        return
        self._watchers.remove(token, -1, b"")

    def again(self) -> None:
        """A watcher has failed, and forgotten all that it watched."""
        self._of.clear()
        for inode in self._inodes.watched():
            try:
                self.added(inode, self._tree.attributes(inode.entry))
            except OSError:  # it is gone, which will be noticed
                inode.watch = Watch((), (), False)
        self._disregard_writes()

    def identify(self, parent: Inode, name: bytes, device: int) -> Token | None:
        """What a watcher calls what is at a name of the topmost layer that has the directory."""
        return self._watchers.identify(device, self._tree.path(parent.entry).fd, name)

    def ways(self) -> dict[int, str]:
        """How each layer is watched."""
        root = self._inodes.root.entry
        return {
            one.layer: self._watchers.kind(one.device) if self._tree.tells_changes(one) else NOTHING
            for one in self._tree.contributors(root)
        }
