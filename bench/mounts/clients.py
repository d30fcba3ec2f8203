"""Several processes at once, each with names of its own: stat of what is not cached, and of what is.

Each is a fork that waits for a byte, so that nothing but the loop is measured.
"""

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial

from ..jobs import Job, Mounted, Scale, Work, picked, write_file
from .files import WORKSPACE
from .lookup import TREE


class Clients:
    """Processes that do their share when told to. Ended by `end` in any case."""

    def __init__(self, shares: Sequence[Callable[[], None]]) -> None:
        self._read, self._write = os.pipe()
        self._children: list[int] = []
        for share in shares:
            self._children.append(self._fork(share))
        os.close(self._read)

    def _fork(self, share: Callable[[], None]) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.close(self._write)
            os.read(self._read, 1)
            share()
            status = 0
        finally:
            os._exit(status)

    def run(self) -> None:
        """All of them, to their end."""
        os.close(self._write)
        self._write = -1
        failed = 0
        while self._children:
            _, status = os.waitpid(self._children[-1], 0)
            self._children.pop()
            failed += status != 0
        if failed:
            raise RuntimeError(f"{failed} clients failed")

    def end(self) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if self._write >= 0:
            os.close(self._write)


def shared(call: Callable[[str], object], paths: Sequence[str], clients: int, passes: int = 1) -> Work:
    """Each client calls `call` with its share of the paths."""

    def share(mine: Sequence[str]) -> None:
        for _ in range(passes):
            for path in mine:
                call(path)

    processes = Clients([partial(share, paths[number::clients]) for number in range(clients)])
    return Work(lambda: processes.run(), len(paths) * passes, processes.end)


def _cold_stat(clients: int) -> Callable[[Mounted, list[str], Scale], Work]:
    return lambda mounted, tree, scale: shared(os.stat, picked(mounted, tree, scale.files), clients)


def _hot_stat(clients: int) -> Callable[[Mounted, list[str], Scale], Work]:
    def prepare(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
        paths = picked(mounted, tree, scale.hot * clients)
        for path in paths:
            os.stat(path)
        return shared(os.stat, paths, clients, scale.passes)

    return prepare


def _create(clients: int) -> Callable[[Mounted, None, Scale], Work]:
    def prepare(mounted: Mounted, _: None, scale: Scale) -> Work:
        paths = []
        for number in range(scale.small):
            directory = f"{mounted.at}/client{number % clients}"
            os.makedirs(directory, exist_ok=True)
            paths.append(f"{directory}/new{number}")
        return shared(lambda path: write_file(path, b"x" * 100), paths, clients)

    return prepare


def jobs(scale: Scale) -> tuple[Job, ...]:
    found = []
    for clients in scale.clients:
        what = f"{clients} client{'s' if clients > 1 else ''}"
        found += [
            Job(f"cold stat, {what}", TREE, _cold_stat(clients), "cold", series="cold stat by clients", x=clients),
            Job(f"hot stat, {what}", TREE, _hot_stat(clients), series="hot stat by clients", x=clients),
            Job(f"create, {what}", WORKSPACE, _create(clients), writes=True, series="create by clients", x=clients),
        ]
    return tuple(found)
