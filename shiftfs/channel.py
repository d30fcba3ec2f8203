"""Owns one /dev/fuse descriptor and the buffers that requests arrive in.

Reads a request, writes a reply or a notice; never looks inside one. Requests are read and replies written, and backing
files registered, on the loop thread; notices are written by workers, since the kernel may block them.
"""

import errno
import fcntl
import mmap
import os
import select
import threading
from typing import Final

from .sys import privileges
from .tree import Descriptor

HEADER_ROOM = 4096
"""What the kernel demands beyond max_write (fs/fuse/dev.c, fuse_dev_do_read)."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_NOTHING_YET: Final = frozenset({errno.EAGAIN, errno.ENOENT, errno.EINTR, errno.EIO})
"""ENOENT: the request was interrupted before it was read. EIO: it did not fit and was failed."""
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.ENOTDIR, errno.ENOTEMPTY})
"""What a notice was about, or the mount."""


class Disconnected(Exception):
    """The mount is gone: unmounted, or aborted."""


class Buffers:
    """Where requests are read to, and files, by the connections of one loop, which is at one request at a time.
    `max_write`: the largest write in bytes that will be negotiated. `has_pipe`: large writes may go through a pipe, if
    we have the right to one that is large enough (pipe(7))."""

    def __init__(self, max_write: int, has_pipe: bool = False) -> None:
        # Whole pages: the kernel reads by them, and would take a shorter answer for the end of the file.
        self.max_write = -(-max_write // _PAGE) * _PAGE
        self.size = self.max_write + HEADER_ROOM
        self.present = bytearray(self.size)
        # Pages that nobody has used yet are none.
        self.scratch = memoryview(mmap.mmap(-1, self.max_write, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._spare: list[bytearray] = []
        self.pipe = _pipe(self.size + _PAGE) if has_pipe else None
        """Where data leaves it, and where it enters; empty between two requests."""

    def detach(self) -> bytearray:
        """Give the buffer of the present request away, to be returned with `recycle`; requests go on in another."""
        taken = self.present
        self.present = self._spare.pop() if self._spare else bytearray(self.size)
        return taken

    def recycle(self, buffer: bytearray) -> None:
        """A detached buffer is free again."""
        if len(self._spare) < 4:
            self._spare.append(buffer)


def _pipe(room: int) -> tuple[Descriptor, Descriptor] | None:
    out, enter = (Descriptor(fd, os.close, True) for fd in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        fcntl.fcntl(enter.fd, fcntl.F_SETPIPE_SZ, room)
    except OSError:
        return None
    return out, enter


class Channel:
    """A connection to the kernel."""

    def __init__(self, fd: int, buffers: Buffers) -> None:
        """Takes over `fd`."""
        self.fd = fd
        self.buffers = buffers
        self._lock = threading.Lock()
        self._notifying = 0
        self._unprivileged: privileges.Without | None = None
        os.set_blocking(fd, False)

    def receive(self) -> int:
        """Read one request into the present buffer; its length, or 0 if there is none now. Raises Disconnected."""
        try:
            return os.readv(self.fd, (self.buffers.present,))
        except OSError as error:
            assert error.errno is not None
            return self.received(-error.errno)

    @staticmethod
    def received(size: int) -> int:
        """The same of what somebody else has read: a size, or a negative errno."""
        if size >= 0 or -size in _NOTHING_YET:
            return max(size, 0)
        if -size in (errno.ENODEV, errno.ECONNABORTED):
            raise Disconnected
        raise OSError(-size, os.strerror(-size))

    def send(self, header: bytes, payload: bytes | bytearray | memoryview) -> None:
        """Write one reply. A request that was interrupted meanwhile (ENOENT) and a mount that is gone need none."""
        if self.fd < 0:
            return  # closed while a worker was at the request
        try:
            if payload:
                os.writev(self.fd, (header, payload))
            else:
                os.write(self.fd, header)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED):
                raise

    def notify(self, message: bytes) -> None:
        """Write one notice; the kernel may block. An inode or name that it no longer has (ENOENT) needs none."""
        with self._lock:
            fd = self.fd
            if fd < 0:
                return
            self._notifying += 1
        try:
            os.write(fd, message)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
        finally:
            with self._lock:
                self._notifying -= 1
                if self.fd < 0 and not self._notifying:
                    os.close(fd)

    def open_backing(self, fd: int) -> int:
        """An id by which the kernel passes what it is asked of a file on to the one behind `fd`. Raises OSError.

        The kernel does that with the rights that we have at this moment. With CAP_FSETID set-id bits would outlive
        whatever anybody writes (kernel setattr_should_drop_suidgid).
        """
        from .sys import backing  # most mounts pass nothing through

        if self._unprivileged is None:
            self._unprivileged = privileges.Without(privileges.CAP_FSETID)
        with self._unprivileged:
            return backing.open_backing(self.fd, fd)

    def close_backing(self, number: int) -> None:
        """The id stands for nothing any more; where the connection has gone, it does not anyway."""
        if self.fd >= 0:
            from .sys import backing

            backing.close_backing(self.fd, number)

    def has_ended(self) -> bool:
        """Has the kernel ended the connection, or have we?"""
        if self.fd < 0:
            return True
        poll = select.poll()
        poll.register(self.fd, 0)  # what is left are errors (fs/fuse/dev.c, fuse_dev_poll)
        return bool(poll.poll(0))

    def close(self) -> None:
        """End the connection. The number stays taken as long as somebody writes to it."""
        with self._lock:
            fd, self.fd = self.fd, -1
            if fd >= 0 and not self._notifying:
                os.close(fd)
