"""What the kernel has collected for files that can only be appended to (chattr +a).

It sends whole pages, of what was there before and what has been added, and not always in their order: a page that has
been added to while it was on its way comes again after those behind it. These cannot wait for it unanswered, for
somebody may wait for them before he sends it (mm/page-writeback.c, folio_prepare_writeback). So they are answered, and
kept until all before them is there. Owns what is kept, under a lock. Workers, and any thread that asks what there is.
"""

import contextlib
import errno
import fcntl
import os
import threading
from typing import Final

from ..inodes import Inode
from ..tree import Descriptor

_MOST: Final = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 50
"""Bytes that are kept, and that may be missing. Of one mount the kernel has a tenth of that under way, as a rule."""
_STEP: Final = 1 << 20

Parts = dict[tuple[int, int], bytes]
"""By where they begin, and their size."""


def appends_alone(descriptor: Descriptor) -> bool:
    """Can what it is open for only be appended to?"""
    return bool(fcntl.fcntl(descriptor.fd, fcntl.F_GETFL) & os.O_APPEND)


class Collected:
    """Of one mount."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ahead: dict[Inode, tuple[Descriptor, Parts]] = {}
        """Inodes that have not all in the layer that has been answered."""

    def append(self, inode: Inode, descriptor: Descriptor, offset: int, data: memoryview) -> int:
        """Append what is beyond the end, and what has waited for it; all before has to be as it is (EPERM). What there
        is no room for is an error, and kept as well: nothing behind it could ever be appended without."""
        with self._lock:
            missing = offset - os.fstat(descriptor.fd).st_size
            kept = sum(len(part) for _, parts in self.ahead.values() for part in parts.values())
            if missing > 0 and max(missing, kept + len(data)) > _MOST:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            _, parts = self.ahead.setdefault(inode, (descriptor, {}))
            parts[offset, len(data)] = bytes(data)
            self._append(inode)
            return len(data)

    def settle(self, inode: Inode) -> None:
        """The kernel has sent all, and somebody wants it to be there: EIO where something before it has never come."""
        with self._lock:
            if inode in self.ahead:
                self._append(inode)
            if inode in self.ahead:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def finish(self, inode: Inode) -> None:
        """Nothing comes any more, nor can anybody be told: what is missing is a hole, as in any other file."""
        with self._lock, contextlib.suppress(OSError):
            if inode in self.ahead:
                try:
                    self._append(inode, fills=True)
                finally:
                    self.ahead.pop(inode, None)

    def finish_all(self) -> None:
        for inode in list(self.ahead):
            self.finish(inode)

    def read(self, inode: Inode, descriptor: Descriptor, size: int, offset: int) -> bytes:
        """The content as it has been answered."""
        with self._lock:
            _, parts = self.ahead.get(inode, (descriptor, {}))
            content = bytearray(os.pread(descriptor.fd, size, offset))
            there = os.fstat(descriptor.fd).st_size  # what the layer has is no older
            shown = max((start + length for start, length in parts), default=0) - offset
            content += bytes(max(min(shown, size) - len(content), 0))
            for (start, length), part in parts.items():
                begin, end = max(start, offset, there), min(start + length, offset + size)
                if begin < end:
                    content[begin - offset : end - offset] = part[begin - start : end - start]
            return bytes(content)

    def _append(self, inode: Inode, fills: bool = False) -> None:
        """All that can be, with the lock."""
        descriptor, parts = self.ahead[inode]
        try:
            while parts and _append_first(descriptor.fd, parts, fills):
                pass
        finally:
            if not parts:
                del self.ahead[inode]


def _append_first(fd: int, parts: Parts, fills: bool) -> bool:
    """False if something before it is missing."""
    at = offset, size = min(parts)
    while (end := os.fstat(fd).st_size) < offset:
        if not fills:
            return False
        os.write(fd, bytes(min(offset - end, _STEP)))
    data, before = parts[at], min(end - offset, size)
    if before and _content(fd, before, offset) != data[:before]:
        del parts[at]
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    while before < size:
        before += os.write(fd, data[before:])
    del parts[at]
    return True


def _content(fd: int, size: int, offset: int) -> bytes:
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(reading, size, offset)
    finally:
        os.close(reading)
