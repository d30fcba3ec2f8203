"""The agent as its parent sees it: a child process that changes a private clone of the mount, so that the kernel raises
there what a change of a layer is to raise.

Owns the child and the sockets to it, one for each of its threads and one for the clone. What the child does is in
`agent_child`; it holds no descriptor of the daemon's, /dev/fuse above all: whatever becomes of the daemon, the
connection ends with it, and so do the calls that the child is at. It is forked before there are threads. Loop thread.
"""

import array
import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Final

from . import agent_child
from .agent_child import JOB, LONGEST_JOB, OUTCOME, REFUSED, STARTED

_THREADS: Final = 8
_OUTCOMES: Final = 256
_START_SECONDS: Final = 5.0
_END_SECONDS: Final = 2.0
"""How long the child may take."""
_BLOCKED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class AgentThread:
    """One thread of the child, which does its jobs one after another. `tid` is its id as the kernel tells it in
    requests, `fd` readable when there are outcomes, or the child has ended."""

    __slots__ = ("_socket", "ended", "fd", "tid")

    def __init__(self, own: socket.socket) -> None:
        self._socket = own
        self.fd = own.fileno()
        self.tid = 0
        self.ended = False

    def meet(self) -> None:
        """Wait for the thread, and learn its id. Raises OSError."""
        self._socket.settimeout(_START_SECONDS)
        said = self._socket.recv(STARTED.size)
        if not said:
            raise OSError(errno.ECHILD, "the agent has ended")
        (self.tid,) = STARTED.unpack(said)
        self._socket.setblocking(False)

    def has_started(self) -> bool:
        """Has it told its id? For one that is not waited for. Raises OSError for one that has ended, or says something
        else."""
        self._socket.setblocking(False)
        try:
            said = self._socket.recv(STARTED.size + 1)
        except BlockingIOError:
            return False
        if len(said) != STARTED.size:
            raise OSError(errno.ECHILD, "the agent has ended")
        (self.tid,) = STARTED.unpack(said)
        return True

    def send(self, job: int, verb: int, *paths: bytes, mode: int = 0) -> bool:
        """Give it a job: paths relative to the root of the mount; b"" is the root itself. False if the thread has more
        before it than its socket takes, or has ended."""
        message = JOB.pack(job, verb, mode) + b"\0".join(paths)
        if len(message) > LONGEST_JOB:  # its turn is to come all the same
            message = JOB.pack(job, REFUSED, errno.ENAMETOOLONG)
        try:
            os.write(self.fd, message)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self) -> list[tuple[int, int]]:
        """Which jobs have been done since: job and errno (0 for success), in the order in which they were given."""
        outcomes: list[tuple[int, int]] = []
        try:
            while len(outcomes) < _OUTCOMES:  # those of others have their turn
                said = os.read(self.fd, OUTCOME.size)
                if len(said) != OUTCOME.size:
                    self.ended = True
                    break
                outcomes.append(OUTCOME.unpack(said))
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True
        return outcomes

    def close(self) -> None:
        self._socket.close()


class Agent:
    """The child. `fd` becomes readable when it has ended, and not before."""

    def __init__(self, pid: int, control: socket.socket, threads: list[AgentThread]) -> None:
        self.pid = pid
        self.threads = threads
        self.fd = control.fileno()
        self._control = control

    @classmethod
    def start(cls, threads: int = _THREADS, drop: Callable[[], None] | None = None) -> "Agent":
        """Fork. For a process that has one thread yet. `drop` is called in the child, to give up rights. Raises
        OSError."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(threads + 1)]
        # The child must not end as its parent would until it has said that it will not.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            pid = os.fork()
            if pid == 0:
                agent_child.run([child.fileno() for _, child in pairs], before, drop=drop)
        except OSError:
            for pair in pairs:
                for end in pair:
                    end.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for _, child in pairs:
            child.close()
        control, *others = (own for own, _ in pairs)
        return cls(pid, control, [AgentThread(own) for own in others])

    def meet(self) -> None:
        """Wait until it has started, which it does meanwhile: `tid` of the threads is known from here on. Raises
        OSError."""
        for thread in self.threads:
            thread.meet()
        self._control.setblocking(False)

    def give(self, clone: int) -> None:
        """Let it work on this mount, and on none from before; jobs sent from here on find it. The descriptor stays the
        caller's. Raises OSError."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [clone]))]
        self._control.sendmsg([agent_child.GIVEN], rights)

    def drop(self) -> None:
        """Let go of the mount, which may end then: jobs from here on fail with ENODEV."""
        with contextlib.suppress(OSError):  # if it has ended, so has its hold on the mount
            self._control.send(agent_child.DROPPED)

    def close(self) -> bool:
        """End it, by SIGKILL if it must be; False if even that did not end it in time. What it is at may wait for the
        mount: whoever serves that on this thread has to have ended the connection before."""
        for thread in self.threads:
            thread.close()
        self._control.close()
        if self._has_ended():
            return True
        os.kill(self.pid, signal.SIGKILL)  # nobody else can have its number as long as we have not waited for it
        return self._has_ended()

    def _has_ended(self) -> bool:
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll(_END_SECONDS * 1000)
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True
        finally:
            os.close(handle)
