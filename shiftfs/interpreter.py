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
"""Seconds between looks at all, at most."""
_PART: Final = 100
"""A look at all may take this part of the time, where that allows more of them."""
_SWITCH: Final = 0.0005


class Interpreter:
    """Nothing here is meant to make cycles of references; exceptions do, where a frame that they went through keeps
    one, and such a cycle holds descriptors of what has been deleted. So what is young is collected at each tick. What
    is known for long is not: a look at a million inodes would stop the mount.
    """

    def __init__(self) -> None:
        gc.freeze()
        gc.enable()  # what is imported at a start is no garbage: __main__ does not look for any
        gc.set_threshold(100_000, 1_000_000, 1_000_000)
        sys.setswitchinterval(_SWITCH)
        self._ticks = 0
        self._is_due = False
        self._next = 0.0

    def tick(self) -> bool:
        """Now and then, after activity; True if it is to be called again."""
        self._ticks += 1
        if self._is_due and time.monotonic() >= self._next:
            self.look_at_all()
        else:
            gc.collect(0 if self._ticks % _TICKS else 1)
        return self._is_due

    def look_at_all(self) -> None:
        """Now."""
        self._is_due = False
        begun = time.monotonic()
        gc.collect()
        ended = time.monotonic()
        self._next = ended + min(_PAUSE, _PART * (ended - begun))

    def much_has_gone(self) -> None:
        """Of what was known for long: it is worth a look at all, when there was none for a while. Mounts of a mark are
        such: they refer to their tree, it to them, and it holds descriptors."""
        self._is_due = True
