"""Puts together what follows the layers of one mount: watchers, what is made of their news, and the agent that acts.

Owns the parts and their descriptors in the loop; decides nothing. Loop thread.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from ..loop import Loop
from ..ops.own import OwnChanges
from ..session import Session
from .agent import AgentThread
from .hub import Branch, Hub
from .journal import Journal
from .live import Live
from .performing import Performing
from .watchers import Watchers, new_source


class HasThreads(Protocol):
    """An agent, whosever child it is."""

    threads: list[AgentThread]


def _hear(heard: Callable[[], None], thread: AgentThread, failed: Callable[[], None]) -> None:
    heard()
    if thread.ended:
        failed()


class Reflection:
    """Of one mount. Without an agent the kernel is told of changes, but nobody else is."""

    def __init__(
        self, loop: Loop, session: Session, watch: str, journal: Journal, log: Callable[[str], None],
        hub: Hub | None = None,
    ) -> None:  # fmt: skip
        """`watch` as the option; `hub` where the process has several mounts, which are to hear of each other."""
        self._loop = loop
        self._session = session
        context = session.context
        self._performing = Performing(context, session.notify)
        self._own = OwnChanges()
        self._notes_own = False
        self.branches: list[Branch] = []
        """What is heard by the hub."""
        if hub is not None:
            self._watchers = Watchers(watch, on_descriptor=self._listen, new=partial(self._branch, hub))
        else:
            new = partial(new_source, inodes=context.inodes)
            self._watchers = Watchers(watch, on_descriptor=self._listen, new=new)
        self.live = Live(
            context, self._watchers, self._performing, journal, log, self._own,
            run=session.run_aside, closing=loop.remove,
        )  # fmt: skip
        context.live = self.live
        context.disregard = lambda fd, mount, device: self._watchers.disregard(device, fd)

    def employ(self, agent: HasThreads, failed: Callable[[], None]) -> None:
        """It has a mount to work on from now on. `failed` is called if one of its threads has ended."""
        for thread, (fd, heard) in zip(agent.threads, self._performing.employ(agent.threads), strict=True):
            self._loop.add(fd, partial(_hear, heard, thread, failed))
        for thread in agent.threads:
            self._session.agents[thread.tid] = self._performing.answer

    def dismiss(self, agent: HasThreads) -> None:
        """It has none any more."""
        for thread in agent.threads:
            self._loop.remove(thread.fd)
            self._session.agents.pop(thread.tid, None)
        self._performing.dismiss()

    def _branch(self, hub: Hub, kind: str) -> Branch:
        branch = hub.branch(kind)
        self.branches.append(branch)
        return branch

    def _listen(self, fd: int) -> None:
        self._loop.add(fd, lambda: self.live.ready(fd))
        if not self._watchers.tells_who(fd) and not self._notes_own:
            self._notes_own = True
            self._session.wrap(self._own.noting)

    def close(self) -> None:
        """The mount has gone, and the process stays."""
        for fd in self._watchers.descriptors:
            self._loop.remove(fd)
        self._watchers.close()

    def progress(self) -> tuple[int, int]:
        """How much waits for the agent, and how much has been done by it or without it."""
        return self._performing.progress()

    def describe(self) -> dict[str, object]:
        """For `status`."""
        return {**self.live.describe(), **self._performing.describe()}
