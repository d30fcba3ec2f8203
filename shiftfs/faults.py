"""Errors that nobody expected: what they say of where they came from, and how many a mount survives.

Owns what has gone wrong on a mount lately. Loop thread, but for `told`.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

_MOST: Final = 100
_WITHIN: Final = 10.0
"""Seconds."""


def told(error: BaseException) -> str:
    """Lines for the log."""
    import traceback  # with all that reads source files, for what is not to happen

    return "".join(traceback.format_exception(error))


class Faults:
    """Those of a mount that are about nobody's request. They are logged, and everything else goes on: whoever has his
    root filesystem on the mount would lose more. Unless they do not end: then it is of no use to anybody."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.total = 0
        self._log = log
        self._lately: deque[float] = deque(maxlen=_MOST)

    def survive(self, error: Exception) -> None:
        """Raises it if there have been too many."""
        now = time.monotonic()
        if len(self._lately) == _MOST and now - self._lately[0] < _WITHIN:
            raise error
        self._lately.append(now)
        self.total += 1
        self._log(f"something went wrong that nobody expected; the mount goes on:\n{told(error)}")
