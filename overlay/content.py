"""Copying a file's content: by reflink where the filesystem can, else what is allocated, with its holes.

Owns nothing but the copy under way. On a worker, or on the loop for what is small.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from typing import Final

from shiftfs.layer import reopen
from shiftfs.sys import files
from shiftfs.tree import Descriptor

_FICLONE: Final = 0x40049409
"""ioctl_ficlonerange(2)."""
_STEP: Final = 16 * 1024 * 1024
"""Bytes between two looks at whether anybody still waits for the copy."""
_BUFFER: Final = 1024 * 1024
_NOT_HERE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EBADF})
"""What copy_file_range(2) says where it cannot copy between two files at all."""


class Copy:
    """A copy under way: `size` bytes wanted, `done` so far, `began` by time.monotonic()."""

    __slots__ = ("began", "done", "size", "stopped")

    def __init__(self, size: int, stopped: Callable[[], bool]) -> None:
        self.size = size
        self.done = 0
        self.began = time.monotonic()
        self.stopped = stopped

    def run(self, source: Descriptor, target: int, sync: bool) -> None:
        """Copy the first `size` bytes of the file behind the O_PATH descriptor `source`, up to its end; if `sync`, have
        them on disk before any name can be that leads to them. EINTR once `stopped`."""
        reading = _open(source.fd)
        try:
            end = min(self.size, os.fstat(reading).st_size)
            if not self._cloned(reading, target, end):
                self._copy(reading, target, end)
        finally:
            os.close(reading)
        if sync and not self.stopped():
            files.write_out(target)  # the name comes with the same journal, or a later one; fsync would cost it all

    def clone(self, source: Descriptor, target: int) -> bool:
        """Share the file's content with it, if the filesystem can."""
        reading = _open(source.fd)
        try:
            return self._cloned(reading, target, os.fstat(reading).st_size)
        finally:
            os.close(reading)

    def _cloned(self, reading: int, target: int, end: int) -> bool:
        if end < os.fstat(reading).st_size:
            return False
        try:
            fcntl.ioctl(target, _FICLONE, reading)
        except OSError:
            return False
        self.done = end
        return True

    def _copy(self, reading: int, target: int, end: int) -> None:
        copy = _by_range
        position = 0
        while position < end:
            try:
                start = os.lseek(reading, position, os.SEEK_DATA)
                stop = min(os.lseek(reading, start, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno != errno.ENXIO:  # a hole up to the end, or an end that has come nearer
                    raise
                break
            position = start
            while position < stop:
                if self.stopped():
                    raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                try:
                    count = copy(reading, target, position, min(_STEP, stop - position))
                except OSError as error:
                    if copy is _by_buffer or error.errno not in _NOT_HERE:
                        raise
                    copy = _by_buffer
                    continue
                if count == 0:
                    break  # it has become shorter meanwhile
                position += count
                self.done = position
            if position < stop:
                break
        os.ftruncate(target, end)


def _open(path: int) -> int:
    try:
        return reopen(path, os.O_RDONLY | os.O_NOATIME)
    except PermissionError:  # O_NOATIME is for owners
        return reopen(path, os.O_RDONLY)


def _by_range(reading: int, target: int, position: int, count: int) -> int:
    return os.copy_file_range(reading, target, count, position, position)


def _by_buffer(reading: int, target: int, position: int, count: int) -> int:
    part = os.pread(reading, min(count, _BUFFER), position)
    view = memoryview(part)
    done = 0
    while done < len(part):
        done += os.pwrite(target, view[done:], position + done)
    return done
