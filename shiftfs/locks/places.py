"""Where mounts of one host lock what a lower file cannot be told, and how the real files of an inode are opened.

A lower file that cannot be opened for writing takes no lock for writing; so each lower inode has a file of its own in a
directory that all mounts of one user share (root's is /run/shiftfs/locks), as long as somebody has it open. Owns the
descriptor of that directory. Loop thread.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from .. import runtime
from ..layer import reopen
from ..tree import Descriptor, RealKey, Tree
from .real import RealFile

_FLAGS: Final = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PLACE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | _FLAGS
_LAST_LOOKS: Final = 3
_ATTEMPTS: Final = 100
_PAUSE: Final = 0.001


class Places:
    """Of all mounts of this user. Where there can be none, mounts that share a lower see no more of each other's locks
    than the lower file can be told."""

    def __init__(self, directory: int) -> None:
        self._directory = directory

    @classmethod
    def find(cls) -> "Places | None":
        """The user's own directory, which nobody else may write."""
        try:
            return cls(runtime.directory("locks"))
        except OSError:
            return None

    def open(self, key: RealKey) -> RealFile:
        """The place of a lower inode."""
        name = b"%x-%x-%x" % key[:3]
        anchor = self._open(name)
        return RealFile("place", lambda flags: reopen(anchor, os.O_RDWR | _FLAGS), partial(self._done, name, anchor))

    def _open(self, name: bytes) -> int:
        """Not one that is just going: whoever removes it has a lease on it, so that it cannot be opened."""
        for _ in range(_ATTEMPTS):
            try:
                fd = os.open(name, _PLACE, 0o600, dir_fd=self._directory)
            except BlockingIOError:
                time.sleep(_PAUSE)
                continue
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def _done(self, name: bytes, anchor: int) -> None:
        """The last one removes it. Two who go at the same moment may each take the other for one that stays, so it is
        looked at again without a hand on it; what is left all the same is empty, and goes with the next who use it."""
        os.close(anchor)
        for _ in range(_LAST_LOOKS):
            try:
                fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | _FLAGS, dir_fd=self._directory)
            except OSError:
                return  # somebody is just removing it, or has
            if self._removes(name, fd):
                return

    def _removes(self, name: bytes, fd: int) -> bool:
        """A lease for writing is for who alone has a file open (fcntl(2), F_SETLEASE)."""
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            os.unlink(name, dir_fd=self._directory)
            return True
        except OSError:
            return False
        finally:
            os.close(fd)


def files_of(tree: Tree, places: Places | None, entry: Any) -> Iterator[RealFile]:
    """The real files of an inode, in the order in which all mounts lock them."""
    for one in tree.lock_files(entry):
        if one.role == "lower" and places is not None:
            yield places.open(one.key)
        yield RealFile(one.role, opener(one.path))


def opener(path: Descriptor) -> Callable[[int], int]:
    """Opens again what a descriptor names."""
    return lambda flags: reopen(path.fd, flags | _FLAGS)
