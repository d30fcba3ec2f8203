"""A directory that the command line named as a layer or for the work, before it is one.

Owns what is wrong with it by itself and beside the others, and the words for that. Its path is resolved once, by the
kernel; all else goes by the descriptor. Never writes. Main thread, before the mount.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from shiftfs.layer import magic_link
from shiftfs.sys import files
from shiftfs.sys.mountinfo import MountInfo
from shiftfs.tree import Descriptor


class LayerError(Exception):
    """Why directories cannot be stacked: one line that says what, why and what to do."""


class Directory:
    """One directory, open to be read. Raises LayerError where it cannot be."""

    __slots__ = ("filesystem", "held", "identity", "mount", "named", "place", "real")

    def __init__(self, role: str, given: bytes, mounts: dict[int, MountInfo]) -> None:
        """`role`: the option that named it; `mounts`: all that there are, by their ids."""
        self.named = f"{role} {os.fsdecode(given)}"
        try:
            fd = os.open(given, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LayerError(f"{self.named}: {error.strerror}; give an existing directory that you may read") from None
        self.held = Descriptor(fd, os.close)
        found = os.fstat(fd)
        self.identity = found.st_dev, found.st_ino
        self.real = os.readlink(magic_link(fd))
        self.mount = files.StatxBuffer().at(fd, b"")[23]
        info = mounts.get(self.mount)
        self.filesystem = info.device if info else f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
        """As /proc/locks and mountinfo number it."""
        self.place = None if info is None else os.path.join(info.root, os.path.relpath(self.real, info.path))
        """Where on its filesystem, whatever it is bound to."""
        if self.place is not None:
            self.place = os.path.normpath(self.place)
        self._check_access(os.R_OK | os.X_OK, "read and enter")

    def check_writable(self) -> None:
        """It is to be an upper or a work directory. Raises LayerError."""
        if os.fstatvfs(self.held.fd).f_flag & os.ST_RDONLY:
            advice = "make that writable, or leave out upperdir and workdir for a read-only mount"
            raise LayerError(f"{self.named}: lies on a read-only filesystem; {advice}")
        self._check_access(os.R_OK | os.W_OK | os.X_OK, "write to")

    def _check_access(self, mode: int, what: str) -> None:
        if not os.access(magic_link(self.held.fd), mode, effective_ids=True):
            raise LayerError(f"{self.named}: Permission denied; give a directory that you may {what}")

    def identities_above(self) -> Iterator[tuple[int, int]]:
        """Device and inode of each directory above it, as far as we may go up."""
        here, identity = self.held, self.identity
        while True:
            try:
                here = Descriptor(os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here.fd), os.close)
            except PermissionError:
                return
            found = os.fstat(here.fd)
            if (found.st_dev, found.st_ino) == identity:
                return
            identity = found.st_dev, found.st_ino
            yield identity

    def places_above(self) -> Iterator[tuple[str, bytes]]:
        """Its filesystem, and the path there of each directory above it, above what is mounted too."""
        place = self.place
        while place is not None and place.strip(b"/"):
            place = os.path.dirname(place)
            yield self.filesystem, place


def refuse_overlaps(directories: Sequence[Directory]) -> None:
    """Each may be given once, and none may lie inside another. Raises LayerError."""
    _refuse(directories, lambda one: one.identity, Directory.identities_above)
    # A bind mount has other directories above it.
    _refuse([one for one in directories if one.place], lambda one: (one.filesystem, one.place), Directory.places_above)


def _refuse(
    directories: Sequence[Directory],
    itself: Callable[[Directory], Hashable],
    above: Callable[[Directory], Iterable[Hashable]],
) -> None:
    known: dict[Hashable, Directory] = {}
    for one in directories:
        other = known.setdefault(itself(one), one)
        if other is not one:
            raise LayerError(f"{one.named}: is the same directory as {other.named}; give each directory once")
    for one in directories:
        for step in above(one):
            if step in known:
                raise LayerError(
                    f"{one.named}: lies inside {known[step].named}, and would be part of it; give directories of which"
                    " none contains another"
                )
