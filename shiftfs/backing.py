"""Owns which files of a mount the kernel reads, writes and maps by itself, past us (FUSE passthrough), and their ids.

The kernel lets no two opens of one inode differ in that (fs/fuse/iomode.c: EIO). So it is decided at the first open,
and holds until the last release that we hear of, which is never before the kernel's own. Never opens a file for
anybody: whether and how he may is asked before, since the kernel, which opens the real file for each open anew, turns
whatever goes wrong then into EIO. Loop thread.
"""

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from .inodes import Inode
from .sys import files
from .tree import Descriptor, Tree

WORTH: Final = 256 * 1024
"""Bytes from which on a file is passed on for those who only read it, unless all are to be. Smaller ones are sooner in
the mount's page cache, and what is read past that makes the kernel ask for attributes again (fuse_file_accessed)."""

_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_IDLE: Final = 1.0
"""Seconds for which an id outlives the last release: files are opened again and again."""
_MOST_IDLE: Final = 1024
_NEVER_ON_DEVICE: Final = frozenset({errno.ELOOP, errno.EOPNOTSUPP})
"""What is stacked too deep (an overlay, a FUSE filesystem that passes through itself), all of it."""


class Backing:
    """A real file that an inode's opens are passed on to. `users`: how many of them; `agents`: by our own agent."""

    __slots__ = ("agents", "identity", "number", "users")

    def __init__(self, number: int, identity: tuple[int, int]) -> None:
        self.number = number
        self.identity = identity
        self.users = 0
        self.agents = 0

    @property
    def is_used(self) -> bool:
        """Has the kernel, as far as we know, this one and no other?"""
        return self.users != 0 or self.agents != 0


class Backings:
    """Of one mount. `opened` counts the opens that were passed on, `refused` the files that the kernel did not take,
    `refusal` is the last reason."""

    def __init__(
        self, tree: Tree, written: Counter[Inode], register: Callable[[int], int], unregister: Callable[[int], None],
        disregard: Callable[[int, int, int], bool], worth: int,
    ) -> None:  # fmt: skip
        """`written`: where to keep which inodes are open for writing, and how often. `disregard` makes the watchers
        pass over what is done through the mount that a descriptor is on, with that id and device; False if they cannot.
        `worth`: as WORTH."""
        self._tree = tree
        self._written = written
        self._register = register
        self._unregister = unregister
        self._disregard = disregard
        self._worth = worth
        self._statx = files.StatxBuffer()
        self._of: dict[Inode, Backing] = {}
        self._idle: dict[Inode, float] = {}
        self._cached: Counter[Inode] = Counter()
        self._uncached: set[Inode] = set()
        self._mounts: dict[int, bool] = {}
        self._impossible: set[int] = set()
        self.opened = 0
        self.refused = 0
        self.refusal = ""

    def __len__(self) -> int:
        return len(self._of) - len(self._idle)

    def open(self, inode: Inode, flags: int, writable: bool) -> Backing | None:
        """Somebody opens the file, which he has been found to be able to, and which is up if he writes. What to pass
        that on to; None for the page cache of the mount. Either way it is told to `close` at the end.

        EINVAL for O_DIRECT where the layer has none, and ESTALE where the inode is another real file by now.
        """
        backing = self._of.get(inode)
        if backing is not None:
            backing = self._again(inode, backing, flags)
        if backing is None and inode not in self._cached:
            backing = self._begin(inode, flags, writable)
        if backing is None:
            self._cached[inode] += 1
            return None
        backing.users += 1
        self.opened += 1
        if writable:
            self._written[inode] += 1
        return backing

    def close(self, inode: Inode, backing: Backing | None, writable: bool) -> None:
        """What `open` was told of has been released."""
        if backing is None:
            self._cached[inode] -= 1
            if not self._cached[inode]:
                del self._cached[inode]
            return
        if writable:
            self._written[inode] -= 1
            if not self._written[inode]:
                del self._written[inode]
        backing.users -= 1
        self._rest(inode, backing)

    def may_keep_pages(self, inode: Inode) -> bool:
        """Is what the mount's page cache has of a file, that is opened to be read from there, still good? Told once."""
        if inode not in self._uncached:
            return True
        self._uncached.remove(inode)
        return False

    def open_for_agent(self, inode: Inode) -> Backing | None:
        """What our own agent's open is to be passed on to, as those of others are at present; None for past all caches,
        which goes together with either."""
        backing = self._of.get(inode)
        if backing is None or not backing.is_used:
            return None
        backing.agents += 1
        return backing

    def close_for_agent(self, inode: Inode) -> None:
        """It has been released."""
        backing = self._of.get(inode)
        if backing is not None and backing.agents:
            backing.agents -= 1
            self._rest(inode, backing)

    def forgotten(self, inode: Inode) -> None:
        """The kernel knows the inode no more."""
        self._uncached.discard(inode)
        if inode in self._of:
            self._drop(inode)

    def tidy(self, now: float) -> bool:
        """Let go of what nobody has opened again; True if some is left. `now` is time.monotonic()."""
        for inode in [inode for inode, since in self._idle.items() if now - since >= _IDLE]:
            self._drop(inode)
        return bool(self._idle)

    def watched_anew(self) -> None:
        """Those who disregarded mounts are others now."""
        self._mounts.clear()

    def _rest(self, inode: Inode, backing: Backing) -> None:
        if backing.is_used:
            return
        if inode.unlinked:
            self._drop(inode)  # its blocks are to be free
            return
        self._idle[inode] = time.monotonic()
        if len(self._idle) > _MOST_IDLE:
            self._drop(next(iter(self._idle)))

    def _drop(self, inode: Inode) -> None:
        self._idle.pop(inode, None)
        self._unregister(self._of.pop(inode).number)

    def _again(self, inode: Inode, backing: Backing, flags: int) -> Backing | None:
        """The same, if it fits one more open. If it does not, and nobody has it open, None."""
        path = self._tree.content(inode.entry)
        found = os.fstat(path.fd)
        is_another = (found.st_dev, found.st_ino) != backing.identity
        takes = not flags & os.O_DIRECT or self._takes_direct(path)
        if backing.is_used:
            if is_another:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            if not takes:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return backing
        if is_another or not takes or found.st_mode & _SET_IDS:
            self._drop(inode)
            return None
        del self._idle[inode]
        return backing

    def _begin(self, inode: Inode, flags: int, writable: bool) -> Backing | None:
        """Pass the file on from now on, if that can be."""
        tree, entry = self._tree, inode.entry
        if not tree.stays(entry) or tree.may_block(entry) or tree.is_made_up(entry):
            return None
        path = tree.content(entry)
        f = self._statx.at(path.fd, b"")
        if not writable and f[8] < self._worth:
            return None
        device = f[21] << 20 | f[22]
        # Root's writes leave set-id bits alone, but those that are passed on do not (Channel.open_backing).
        if device in self._impossible or f[6] & _SET_IDS or not self._is_disregarded(path, f[23], device):
            return None
        if flags & os.O_DIRECT and not self._takes_direct(path):
            return None
        try:
            number = self._registered(path)
        except OSError as error:
            self.refused += 1
            self.refusal = os.strerror(error.errno or errno.EIO)
            if error.errno in _NEVER_ON_DEVICE:
                self._impossible.add(device)
            return None
        backing = self._of[inode] = Backing(number, (os.makedev(f[21], f[22]), f[7]))
        self._uncached.add(inode)
        return backing

    def _is_disregarded(self, path: Descriptor, mount: int, device: int) -> bool:
        known = self._mounts.get(mount)
        if known is None:
            known = self._mounts[mount] = self._disregard(path.fd, mount, device)
            if not known:
                self.refused += 1
                self.refusal = "changes in the layer could not be told from what is written through the mount"
        return known

    def _registered(self, path: Descriptor) -> int:
        try:
            return self._register(path.fd)
        except OSError as error:
            if error.errno != errno.EBADF:  # before Linux 6.12 it takes one that can be read
                raise
        readable = self._tree.open_waiting(path, os.O_RDONLY | os.O_NONBLOCK)
        return self._register(readable.fd)

    def _takes_direct(self, path: Descriptor) -> bool:
        """Not every filesystem has O_DIRECT, and FUSE says at first that it has."""
        try:
            self._tree.open_waiting(path, os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK)
        except OSError as error:
            return error.errno != errno.EINVAL
        return True
