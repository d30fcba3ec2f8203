"""Owns the requests that wait: each goes on when the call that its handler has made is done, hears of signals, and is
let go of when its caller is killed.

Never decodes a request, nor answers one by itself. Loop thread, but for the calls that it hands to workers.
"""

import errno
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .loop import Call, Done, Loop
from .ops.context import Context, Later, Payload
from .reads import Reads
from .tree import Gate
from .wire.requests import Header

_SIGKILL_BIT: Final = 1 << 8

Answer = Callable[[Header, int, Payload], None]
Fail = Callable[[Header, int, BaseException], None]
"""With when it began, in nanoseconds."""


class Waiting(NamedTuple):
    """A request whose handler waits for a worker."""

    header: Header
    began: int
    steps: Later


class Underway:
    """Of one connection. `reads` are those that wait natively."""

    def __init__(
        self, context: Context, reads: Reads, loop: Loop, submit: Callable[[Call, Done], None], answer: Answer,
        fail: Fail, is_foreign: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`is_foreign`: callers may be numbered in another pid namespace than ours."""
        self._context = context
        self._reads = reads
        self._loop = loop
        self._submit = submit
        self._answer = answer
        self._fail = fail
        self._is_foreign = is_foreign
        self._waiting: dict[int, Waiting] = {}

    @property
    def count(self) -> int:
        """Without those that wait natively."""
        return len(self._waiting)

    def begin(self, header: Header, began: int, steps: Later) -> None:
        """Go through a handler's steps, and answer with what it returns."""
        self._waiting[header.unique] = waiting = Waiting(header, began, steps)
        self._step(waiting, None, None)

    def _step(self, waiting: Waiting, result: Any, error: BaseException | None) -> None:
        """Go on with a handler, with what its call gave or raised, until it calls again or answers."""
        header = waiting.header
        if self._waiting.get(header.unique) is not waiting:
            self._let_go_ended(header.unique)
            waiting.steps.close()  # its caller was killed: nothing more is done for it
            return
        try:
            call = waiting.steps.throw(error) if error is not None else waiting.steps.send(result)
        except StopIteration as answer:
            self._finish(header)
            self._answer(header, waiting.began, answer.value)
        except Exception as failure:
            self._finish(header)
            self._fail(header, waiting.began, failure)
            # One that was thrown in refers through its frames to itself, and to all that its call held; collections
            # are rare here.
            failure.__traceback__ = None
        else:
            if isinstance(call, Gate):
                call.wait(lambda: self._step(waiting, None, None))
                return
            self._submit(
                lambda: call() if self._waiting.get(header.unique) is waiting else None,
                lambda result, error: self._step(waiting, result, error),
            )

    def _let_go_ended(self, unique: int) -> None:
        self._context.interrupted.discard(unique)
        if unique in self._context.let_go:
            self._context.let_go.remove(unique)
            self._loop.regained()

    def _finish(self, header: Header) -> None:
        self._context.interrupted.discard(header.unique)
        del self._waiting[header.unique]

    def interrupt(self, unique: int) -> None:
        """A signal has come for whoever waits. A copy stops early by itself. All else goes on, as on a local disk,
        unless the caller is being killed: then it is let go, and its handler goes no further than the call it is at."""
        waiting = self._waiting.get(unique)
        if waiting is None:
            if self._reads.interrupt(unique):
                self._reads.let_go_killed(is_being_killed)
            return
        self._context.interrupted.add(unique)  # copies look for it
        waker = self._context.when_interrupted.get(unique)
        if waker is not None:
            waker()
        if unique in self._waiting:
            self._let_go_if_killed(unique, waiting)

    def look_for_killed(self) -> bool:
        """Let those go who have been killed after another signal: the kernel tells of the first alone
        (fuse_dev_queue_interrupt). True if there are any left to look at again."""
        for unique in self._context.interrupted & self._waiting.keys():
            self._let_go_if_killed(unique, self._waiting[unique])
        is_any_left = self._reads.let_go_killed(is_being_killed)
        return is_any_left or bool(self._context.interrupted & self._waiting.keys())

    def _let_go_if_killed(self, unique: int, waiting: Waiting) -> None:
        if not self._is_foreign() and is_being_killed(waiting.header.pid):
            del self._waiting[unique]
            self._context.let_go.add(unique)
            self._loop.lost()
            self._fail(waiting.header, waiting.began, InterruptedError(errno.EINTR, "killed"))


def is_being_killed(pid: int) -> bool:
    """Has the thread a SIGKILL pending (proc(5), SigPnd and ShdPnd)? 0 is one outside our pid namespace: not known."""
    if pid == 0:
        return False
    try:
        with open(f"/proc/{pid}/status", "rb") as lines:
            for line in lines:
                if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & _SIGKILL_BIT:
                    return True
    except (FileNotFoundError, ProcessLookupError):
        return True  # it is gone
    except OSError:
        return False  # not ours to see (hidepid), or out of descriptors: not known
    return False
