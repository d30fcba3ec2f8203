"""The agent of a mount in somebody else's namespaces: his process, which changes his clone of the mount as it is told.

Owns our ends of the sockets to it. Nothing is believed of what it says: it may be anybody by now, and can do no more
than end itself. Loop thread.
"""

import errno
import os
import socket
from functools import partial
from typing import Final

from ..loop import Loop
from ..reflect.agent import AgentThread
from ..reflect.reflection import Reflection
from .protocol import AGENT_THREADS

_PATIENCE: Final = 10.0
"""Seconds without any of its jobs done."""
_MOST_WAITING: Final = 100_000


class RemoteAgent:
    """From the moment on at which its ends of the sockets can be given away, `given`, which are to be closed then."""

    def __init__(self, loop: Loop, reflection: Reflection) -> None:
        self._loop = loop
        self._reflection = reflection
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(AGENT_THREADS + 1)]
        self.given = [theirs.detach() for _, theirs in pairs]
        self._control, *others = (own for own, _ in pairs)
        self._control.setblocking(False)
        self.threads = [AgentThread(own) for own in others]
        self._starting = set(self.threads)
        self._is_employed = False
        self._done = 0
        self._idle_since = 0.0
        self._has_ended = False
        loop.add(self._control.fileno(), self.end)
        for thread in self.threads:
            loop.add(thread.fd, partial(self._starts, thread))

    def _starts(self, thread: AgentThread) -> None:
        try:
            if not thread.has_started():
                return
            if any(thread.tid == other.tid for other in self.threads if other is not thread) or thread.tid == 0:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # 0 is whoever has no number there
        except OSError:
            self.end()
            return
        self._loop.remove(thread.fd)
        self._starting.remove(thread)
        if not self._starting:
            self._is_employed = True
            self._reflection.employ(self, self.end)

    def look(self, now: float, progress: tuple[int, int]) -> bool:
        """Has it done anything of what it was to do? `progress`: how much waits, and how much has been done. True if
        that is to be looked at again."""
        waiting, done = progress
        if self._has_ended or not waiting or done != self._done:
            self._done, self._idle_since = done, now
        elif now - self._idle_since > _PATIENCE or waiting > _MOST_WAITING:
            self.end()
        return waiting > 0 and not self._has_ended

    def end(self) -> None:
        """It has ended, or is not what it was meant to be: from now on the kernel alone is told of changes."""
        if self._has_ended:
            return
        self._has_ended = True
        self._loop.remove(self._control.fileno())
        for thread in self._starting:
            self._loop.remove(thread.fd)
        if self._is_employed:
            self._reflection.dismiss(self)
        for thread in self.threads:
            thread.close()
        self._control.close()


