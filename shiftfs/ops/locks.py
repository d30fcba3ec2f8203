"""Handlers of locks, on mounts whose locks go to the layers: getlk, setlk, setlkw; on others they stay with the kernel.

A lock of a process and one of an open file description look the same in a request, and are told apart by how they end:
FLUSH names the process, RELEASE the open file. Loop thread.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..inodes import Inode
from ..locks.table import Locks, Waiter, Wanted
from ..sys.locks import END, NONE, READ, WRITE
from ..tree import Steps
from ..wire import notices, replies
from ..wire.abi import LkFlag
from ..wire.bodies import Lk
from ..wire.requests import Header
from .context import DONE, FOREVER, Context, Later, Payload, Result, not_supported

_FLOCK: Final = int(LkFlag.FLOCK)
_KINDS: Final = (READ, WRITE, NONE)
_new = tuple.__new__
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})


def getlk(ctx: Context, header: Header, request: Lk) -> Payload:
    found = _locks(ctx).in_the_way(_wanted(ctx, header, request))
    return replies.lk(*found) if found is not None else replies.lk(request.start, request.end, NONE, 0)


def _as_lock_error(error: OSError) -> OSError:
    """As fcntl(2) has it."""
    return OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) if error.errno in _NO_DESCRIPTOR else error


def setlk(ctx: Context, header: Header, request: Lk) -> Result:
    wanted = _wanted(ctx, header, request)
    try:
        is_taken = _locks(ctx).take(wanted)
    except OSError as error:
        raise _as_lock_error(error) from None
    if not is_taken:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _caught_up(ctx, wanted)


def setlkw(ctx: Context, header: Header, request: Lk) -> Result:
    locks = _locks(ctx)
    wanted = _wanted(ctx, header, request)
    try:
        if locks.take(wanted):
            return _caught_up(ctx, wanted)
        waiter = locks.wait(wanted)
    except OSError as error:
        raise _as_lock_error(error) from None
    return _caught_up(ctx, wanted) if waiter.is_granted else _granted(ctx, header, locks, waiter)


def _caught_up(ctx: Context, wanted: Wanted) -> Result:
    """Whoever has a lock sees what was done under the one before, by whomever, as on a local filesystem: also what the
    kernel remembers of the file, and of names beside it."""
    if wanted.kind == NONE:
        return DONE
    missing = _missing(ctx, wanted.inode)
    return DONE if missing is None else _later(missing)


def _missing(ctx: Context, inode: Inode) -> Steps | None:
    # What is passed on is read from the layer's own pages, and of its attributes nothing is trusted.
    if ctx.live is not None and (inode in ctx.written or ctx.valid(inode) == FOREVER):
        return ctx.live.catch_up(inode)
    return _forgotten(ctx, inode)


def _forgotten(ctx: Context, inode: Inode) -> Steps:
    """Nobody tells us."""
    yield ctx.tell([notices.inval_inode(inode.nodeid, 0, 0)])


def _later(steps: Steps) -> Later:
    yield from steps
    return DONE


def _granted(ctx: Context, header: Header, locks: Locks, waiter: Waiter) -> Later:
    with _woken_by_signals(ctx, header.unique, waiter):
        try:
            yield waiter.gate
        finally:
            locks.give_up(waiter)  # unless it is granted: its caller has been killed, or called by a signal
    if waiter.failure is not None:
        raise waiter.failure
    if not waiter.is_granted:
        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
    missing = _missing(ctx, waiter.wanted.inode)
    if missing is not None:
        yield from missing
    return DONE


@contextmanager
def _woken_by_signals(ctx: Context, unique: int, waiter: Waiter) -> Iterator[None]:
    ctx.when_interrupted[unique] = waiter.gate.open
    try:
        yield
    finally:
        del ctx.when_interrupted[unique]


def _locks(ctx: Context) -> Locks:
    if ctx.locks is None:
        raise not_supported()
    return ctx.locks


def _wanted(ctx: Context, header: Header, request: Lk) -> Wanted:
    inode = ctx.inodes.get(header.nodeid)
    whole = bool(request.lk_flags & _FLOCK)
    start, end = (0, END) if whole else (request.start, request.end)
    if not 0 <= start <= end <= END or request.type not in _KINDS:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    # The kernel's word for an open file may be another's as soon as that is closed, and its RELEASE comes later.
    owner = request.fh if whole else request.owner
    return _new(Wanted, (inode, owner, request.pid, request.fh, start, end, request.type, whole))
