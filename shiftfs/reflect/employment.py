"""Owns the agent's life on a mount: it is given a clone before anybody is told that the mount serves, lets go of that
when the mount is gone, and ends with the process.

Where there can be no agent, changes of the layers are seen on the mount, and nobody is told of them. Loop thread.
"""

import os
from collections.abc import Callable
from typing import Any

from ..loop import Loop
from .agent import Agent
from .ending import Ending
from .reflection import Reflection


class Employment:
    """Of one agent, which has been started."""

    def __init__(
        self, loop: Loop, agent: Agent, reflection: Reflection, log: Callable[[str], None], note: Callable[[str], None]
    ) -> None:  # fmt: skip
        """`note` takes what only those want to know who look for the cause of something."""
        self._loop = loop
        self._agent: Agent | None = agent
        self._reflection = reflection
        self._log = log
        self._note = note
        self._ending: Ending | None = None

    def begin(self, clone: Callable[[], int], device: str, done: Callable[[], None]) -> None:
        """Let `clone` make a descriptor of the mount, whose `device` is "major:minor", on a worker; then call `done`,
        whatever came of it."""
        def cloned(fd: Any, error: BaseException | None) -> None:
            if error is None:
                self._begin(fd, device)
            else:
                self._fail(error)
            done()

        self._loop.submit(clone, cloned)

    def _begin(self, clone: int, device: str) -> None:
        agent = self._agent
        try:
            if agent is None:  # the process ends already
                return
            agent.meet()
            agent.give(clone)
            self._loop.add(agent.fd, self._has_ended)
            self._reflection.employ(agent, self._has_ended)
            self._ending = Ending(self._loop, device, self._gone_from_here)
        except OSError as error:
            self._fail(error)
        finally:
            os.close(clone)

    def _fail(self, error: BaseException) -> None:
        self._note(f"changes of the layers will raise no events: {error}")
        self.end()

    def _gone_from_here(self) -> None:
        """The agent's is the last mount that we know of. What others have of it elsewhere goes on without events."""
        if self._agent is not None:
            self._reflection.dismiss(self._agent)
            self._agent.drop()

    def _has_ended(self) -> None:
        self._log("the agent has ended: changes of the layers will raise no events")
        self.end()

    def look(self, now: float) -> bool:
        """Is the mount gone? True if it is not time yet to look; `now` is time.monotonic()."""
        return self._ending is not None and self._ending.look(now)

    def end(self) -> None:
        """End the agent; after the connection, if the process ends."""
        agent, self._agent = self._agent, None
        if self._ending is not None:
            self._ending.close()
        if agent is not None:
            self._loop.remove(agent.fd)
            self._reflection.dismiss(agent)
            agent.close()
