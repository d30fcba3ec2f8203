"""Changes made in a layer, behind the mount: until as many events have come to whoever watches the directory on it.

Only for the native directory and shiftfs: the others tell of no change in a layer.
"""

import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from harness.events import new_watches, parse

from ..jobs import Job, Mounted, Scale, Work, write_file
from .files import WORKSPACE

_LIMIT = 60.0
_ROOM = 1 << 16


def _wait(fd: int, what: str, count: int) -> None:
    """Read events until so many have said `what`."""
    end = time.monotonic() + _LIMIT
    while count > 0:
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            raise RuntimeError(f"{count} events of {what} have not come in {_LIMIT:g} s")
        count -= sum(event.what == what for _, event in parse(os.read(fd, _ROOM)))


def _events(what: str, before: Callable[[str], None] | None, change: Callable[[str], None]) -> Job:
    def prepare(mounted: Mounted, _: None, scale: Scale) -> Work:
        directory = Path(mkdtemp(dir=mounted.layer))
        paths = [f"{directory}/file{number}" for number in range(scale.small)]
        if before:
            for path in paths:
                before(path)
            os.listdir(mounted.at / directory.name)
        fd, _watches = new_watches([mounted.at / directory.name])

        def run() -> None:
            for path in paths:
                change(path)
            _wait(fd, what, len(paths))

        return Work(run, len(paths), lambda: os.close(fd))

    return Job(f"{what} in a layer, until it is told", WORKSPACE, prepare, writes=True, tells=True)


def _new(path: str) -> None:
    write_file(path, b"")


def jobs(scale: Scale) -> tuple[Job, ...]:
    return _events("CREATE", None, _new), _events("DELETE", _new, os.unlink)
