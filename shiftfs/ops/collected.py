"""What the kernel has collected for files that can only be appended to (chattr +a).

It sends whole pages, of what was there before and what has been added, in their order but without waiting for one
before it sends the next. Owns nothing. Any thread.
"""

import errno
import fcntl
import os
import time
from typing import Final

from ..tree import Descriptor
from ..wire import requests

_PATIENCE: Final = 5.0
"""Seconds within which what comes before in the file has been written too, or never will."""
_LOOK: Final = 0.005


def appends_alone(descriptor: Descriptor) -> bool:
    """Can what it is open for only be appended to?"""
    return bool(fcntl.fcntl(descriptor.fd, fcntl.F_GETFL) & os.O_APPEND)


def append(descriptor: Descriptor, request: requests.Write) -> int:
    """Append what is beyond the end; all before that has to be as it is (EPERM). EIO where the end is not reached."""
    fd, data, offset = descriptor.fd, request.data, request.offset
    until = time.monotonic() + _PATIENCE
    while (end := os.fstat(fd).st_size) < offset:
        if time.monotonic() > until:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        time.sleep(_LOOK)
    before = min(end - offset, len(data))
    if before and _content(fd, before, offset) != data[:before]:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    done = before
    while done < len(data):
        done += os.write(fd, data[done:])
    return done


def _content(fd: int, size: int, offset: int) -> bytes:
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(reading, size, offset)
    finally:
        os.close(reading)
