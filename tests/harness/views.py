"""Where a mount is seen from: here, or from within a user namespace that has mounts of its own.

Owns the process that lives in there, from `inside` to the end of its `with`.
"""

import ctypes
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol

from harness.callers import Caller
from harness.calls import unshare_mounts
from harness.commands import EXIT_LIMIT
from harness.namespaces import UserNamespace
from harness.shifted import Mount

_libc = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = 438
_START_LIMIT = 40.0


class View(Protocol):
    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call where the mount is seen. What goes there and comes back is pickled if need be."""

    def descriptor(self, function: Callable[..., tuple[int, Any]], *args: Any) -> tuple[int, Any]:
        """A descriptor that `function` makes there, for use here, with what else it returns; the caller closes it."""


class _Directly:
    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    def descriptor(self, function: Callable[..., tuple[int, Any]], *args: Any) -> tuple[int, Any]:
        return function(*args)


directly: View = _Directly()


class _Inside:
    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self.mount: Mount = self._answer(_START_LIMIT)
        self._pid: int = self(os.getpid)

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        self._connection.send((function, args))
        return self._answer(_START_LIMIT)

    def descriptor(self, function: Callable[..., tuple[int, Any]], *args: Any) -> tuple[int, Any]:
        there, rest = self(function, *args)
        process = os.pidfd_open(self._pid)
        try:
            found: int = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), process, there, 0)
            if found < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            return found, rest
        finally:
            os.close(process)
            self(os.close, there)

    def _answer(self, limit: float) -> Any:
        if not self._connection.poll(limit):
            raise AssertionError(f"no answer from within the namespace in {limit:g} s")
        result, error = self._connection.recv()
        if error is not None:
            raise error
        return result


@contextmanager
def inside(
    namespace: UserNamespace, mounting: Callable[[], AbstractContextManager[Mount]]
) -> Iterator[tuple[View, Mount]]:
    """What root of a namespace mounts, in a mount namespace of its own, and the view of it; unmounted at the end."""
    here, there = multiprocessing.Pipe()
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            Caller(0, 0, namespace=namespace)(_serve, there, here, mounting)
        except BaseException as error:
            outcome.append(error)

    # The call lasts as long as the mount. It forks before it does anything else.
    thread = threading.Thread(target=work)
    thread.start()
    try:
        view = _Inside(here)
        yield view, view.mount
    finally:
        try:
            here.send(None)
        except OSError:
            pass  # it has ended: the outcome says why
        thread.join(EXIT_LIMIT * 4)
        here.close()
        there.close()
    if thread.is_alive():
        raise AssertionError("the process within the namespace does not end")
    if outcome:
        raise outcome[0]


def _serve(
    connection: "Connection[Any, Any]",
    other_end: "Connection[Any, Any]",
    mounting: Callable[[], AbstractContextManager[Mount]],
) -> None:
    other_end.close()
    try:
        unshare_mounts()
        with mounting() as mount:
            connection.send((mount, None))
            while (call := connection.recv()) is not None:
                connection.send(_outcome(*call))
    except EOFError:
        pass  # nobody is left to ask
    except Exception as error:
        connection.send((None, error))
        raise


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return function(*args), None
    except Exception as error:
        return None, error
