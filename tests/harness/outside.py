"""A directory that a mount has no business in, and the proof that it had none.

What counts as touched is any event of inotify's, opening and reading included.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.calls import watching
from harness.layered import write_tree

_ALL_EVENTS = 0xFFF
REFUSED = {errno.EIO, errno.EINVAL, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ESTALE, errno.ENOENT, errno.ENOTDIR}
"""What a name may be refused with that somebody has tampered with."""


def new_outside(above: Path) -> Path:
    path = above / "outside"
    path.mkdir()
    write_tree(path, {"secret": b"secret", "sub": {"in": b""}, "victim": b"victim"})
    return path


@contextmanager
def untouched(outside: Path) -> Iterator[None]:
    """Nothing there is opened, read or changed meanwhile."""
    paths = [outside, *sorted(outside.rglob("*"))]
    before = [path.lstat() for path in paths]
    with watching(outside, _ALL_EVENTS) as above, watching(outside / "sub", _ALL_EVENTS) as sub:
        yield
        assert above.events(0.0) == sub.events(0.0) == []
    assert [outside, *sorted(outside.rglob("*"))] == paths
    assert [path.lstat() for path in paths] == before


def attempt(call: Callable[[], object]) -> object:
    """What a call returns, or the errno that it is refused with, which must be one of REFUSED."""
    try:
        return call()
    except OSError as error:
        assert error.errno in REFUSED, error
        return error.errno
