"""A stage for locks that the mount serves (`locks=layers`): what is held is asked of the mount, not of /proc/locks.

In such a mount's report a process's lock and that of an open file description are the same. Owns what a Stage owns.
"""

import json
import re
from pathlib import Path
from typing import Any

from harness.commands import wait_until
from harness.lockable import SERVED, Ground
from harness.lockers import LIMIT, Locker, Stage
from shiftfs.asking import ask

OUTSIDE = frozenset("HIUS")
SOON = 0.2  # seconds
_KIND_AND_HOLDER = re.compile(r"\b(?:posix|ofd) | by \w+")


class ServedStage(Stage):
    """On a file of the mount with this root. Those of OUTSIDE are not on the mount."""

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path)
        self._root = root
        self._number = path.stat().st_ino

    def play(self, script: str) -> None:
        lines = script.splitlines()
        super().play("\n".join(
            _KIND_AND_HOLDER.sub("", line) if line.strip().startswith("held:") else line for line in lines
        ))  # fmt: skip

    def held(self) -> list[str]:
        return sorted(map(_words, (one for one in self.report()["locks"] if one["number"] == self._number)))

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ask(str(self._root), "locks"))
        return found

    def _wait(self, locker: Locker, verb: str, *words: str) -> str:
        if verb in ("opens", "truncates", "lease"):
            return super()._wait(locker, verb, *words)
        if next(name for name, one in self._lockers.items() if one is locker) in OUTSIDE:
            locker.tell(*self._call(verb, list(words), waits=True))
            return f"{locker.answer()[0]}, at once" if locker.answered(SOON) else "it"
        before = self.report()["waiting"]
        locker.tell(*self._call(verb, list(words), waits=True))
        wait_until(lambda: locker.answered() or self.report()["waiting"] > before, f"{verb} {words} that waits", LIMIT)
        return f"{locker.answer()[0]}, at once" if locker.answered() else "it"


def stage_on(place: Ground, path: Path) -> Stage:
    """For whatever keeps the locks there."""
    return ServedStage(path, place.path) if place.kind in SERVED else Stage(path)


def _words(lock: dict[str, Any]) -> str:
    if lock["kind"] == "flock":
        return f"flock {'exclusive' if lock['type'] == 'write' else 'shared'}"
    return f"{lock['type']} {lock['start']}-{'end' if lock['end'] is None else lock['end']}"
