"""Locks on ranges of bytes and on whole files: taken and released, and handed from one process to another."""

import fcntl
import os
from collections.abc import Callable

from ..jobs import Job, Mounted, Scale, Work, repeat
from .clients import Clients
from .files import WORKSPACE


def _free(lock: Callable[[int, int], object]) -> Callable[[Mounted, None, Scale], Work]:
    def prepare(mounted: Mounted, _: None, scale: Scale) -> Work:
        fd = os.open(f"{mounted.at}/locked", os.O_RDWR | os.O_CREAT, 0o644)

        def both(_: int) -> None:
            lock(fd, fcntl.LOCK_EX)
            lock(fd, fcntl.LOCK_UN)

        return repeat(both, range(scale.small))._replace(after=lambda: os.close(fd))

    return prepare


def _contended(mounted: Mounted, _: None, scale: Scale) -> Work:
    """Two processes want the same lock all the time."""
    path = f"{mounted.at}/contended"

    def share() -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        for _ in range(scale.small):
            fcntl.lockf(fd, fcntl.LOCK_EX)
            fcntl.lockf(fd, fcntl.LOCK_UN)
        os.close(fd)

    processes = Clients([share, share])
    return Work(processes.run, 2 * scale.small, processes.end)


def jobs(scale: Scale) -> tuple[Job, ...]:
    return (
        Job("range lock+unlock", WORKSPACE, _free(fcntl.lockf), writes=True, exact=True),
        Job("flock+unlock", WORKSPACE, _free(fcntl.flock), writes=True, exact=True),
        Job("range lock+unlock, two processes", WORKSPACE, _contended, writes=True),
    )
