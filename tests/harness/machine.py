"""What there is one of on a machine, however many processes run tests there."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path("/var/cache/shiftfs")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock at a path; who asks meanwhile, in another process, waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        # Whoever holds it gives up by itself at its own limit.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
