"""How Python is set up for a process that serves: when it collects garbage, and how long a thread may run on.

Owns the interpreter's settings, and nothing else. Loop thread.
"""

import gc
import sys
import time
from typing import Final

_TICKS: Final = 4
"""After so many, what has outlived a tick is looked at as well."""
_PAUSE: Final = 60.0
"""Seconds between looks at all."""
_SWITCH: Final = 0.0005


class Interpreter:
    """Nothing here is meant to make cycles of references; exceptions do, where a frame that they went through keeps
    one, and such a cycle holds descriptors of what has been deleted. So what is young is collected at each tick. What
    is known for long is not: a look at a million inodes would stop the mount.
    """

    def __init__(self) -> None:
        gc.freeze()
        gc.set_threshold(100_000, 1_000_000, 1_000_000)
        sys.setswitchinterval(_SWITCH)
        self._ticks = 0
        self._is_due = False
        self._next = 0.0

    def tick(self) -> None:
        """Now and then, after activity."""
        self._ticks += 1
        if self._is_due and time.monotonic() >= self._next:
            self._is_due = False
            gc.collect()
            self._next = time.monotonic() + _PAUSE
        else:
            gc.collect(0 if self._ticks % _TICKS else 1)

    def much_has_gone(self) -> None:
        """Of what was known for long: it is worth a look at all, when there was none for a while."""
        self._is_due = True
