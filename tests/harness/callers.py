"""Single calls as somebody else: other ids, or the root of a user namespace, without starting a program.

A call runs in a forked child that has become the caller; what it returns or raises comes back through a pipe. So a
test can tell one errno from another, and ask for what no command does.
"""

import ctypes
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.commands import open_directory
from harness.namespaces import UserNamespace
from harness.shifted import Mount, mounted

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Caller:
    """Somebody's ids: as the host numbers them or, with a namespace, as that does. Ids other than 0 have no
    capabilities; 0 has those of its namespace."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    namespace: UserNamespace | None = None

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call as this one; raises what the call raises."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                with os.fdopen(writing, "wb") as pipe:
                    pipe.write(pickle.dumps(self._outcome(function, args, options)))
            finally:
                os._exit(0)
        os.close(writing)
        try:
            with os.fdopen(reading, "rb") as pipe:
                said = pipe.read()
        finally:
            os.waitpid(child, 0)
        result, error = pickle.loads(said)
        if error is not None:
            raise error
        return result

    def _outcome(
        self, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[Any, Exception | None]:
        try:
            self._become()
            return function(*args, **options), None
        except Exception as error:
            return None, error

    def _become(self) -> None:
        if self.namespace is not None:
            with open(self.namespace.path) as file:
                if _libc.setns(file.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            # Only whoever leaves the namespace's own root loses its capabilities (capabilities(7)); we come in as
            # someone who has no number there.
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


def errno_of(call: Callable[[], Any]) -> int:
    """The errno that a call ends with; 0 if it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


@contextmanager
def shifted_directory(*options: str) -> Iterator[Mount]:
    """A mount of a new directory that is removed with it."""
    source = open_directory("layer-")
    try:
        with mounted(source, None, *options) as mount:
            yield mount
    finally:
        shutil.rmtree(source)
