"""Sees when nobody in this mount namespace has the mount any more.

Owns a descriptor of the table of mounts, which tells of each change in it, but not of which. Loop thread.
"""

import os
import time
from collections.abc import Callable
from typing import Final

from ..loop import Loop

_CHUNK: Final = 1 << 16
_SHARE: Final = 20
"""Looking may take one part in so many of the processor's time: where there are thousands of mounts, and they come and
go, what is ours may end a little later."""


class Ending:
    """For the mounts of the filesystem with a device number, which is nobody else's as long as we hold that. `gone` is
    called once, when there are none."""

    def __init__(self, loop: Loop, device: str, gone: Callable[[], None]) -> None:
        self._loop = loop
        self._wanted = f" {device} ".encode()  # no other field of a line looks like that (proc(5))
        self._gone = gone
        self._due = 0.0
        self._is_stale = False
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        loop.add(self._fd, self._changed, Loop.URGENT)
        self._changed()  # since there was a mount

    def _changed(self) -> None:
        self._is_stale = True
        self.look(time.monotonic())

    def look(self, now: float) -> bool:
        """Look, if there is a reason to, and it is time; True if it is not time yet."""
        if self._is_stale and now >= self._due and self._fd >= 0:
            self._is_stale = False
            began = time.thread_time()  # others' turns, on a busy machine, are not what it costs
            is_there = self._is_there()
            self._due = now + (time.thread_time() - began) * _SHARE
            if not is_there:
                self.close()
                self._gone()
        return self._is_stale

    def _is_there(self) -> bool:
        os.lseek(self._fd, 0, os.SEEK_SET)
        rest = b""
        while chunk := os.read(self._fd, _CHUNK):
            lines = rest + chunk
            if self._wanted in lines:
                return True
            rest = lines[lines.rfind(b"\n") + 1 :]
        return False

    def close(self) -> None:
        """Look no more."""
        self._is_stale = False
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
