"""Handlers of locks, on mounts whose locks go to the layers: getlk, setlk, setlkw; on others they stay with the kernel.

A lock of a process and one of an open file description look the same in a request, and are told apart by how they end:
FLUSH names the process, RELEASE the open file. Loop thread.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..locks.ranges import END, Kind
from ..locks.table import Locks, Waiter, Wanted
from ..wire import replies
from ..wire.abi import LkFlag
from ..wire.bodies import Lk
from ..wire.requests import Header
from .context import DONE, Context, Later, Payload, Result, not_supported


def getlk(ctx: Context, header: Header, request: Lk) -> Payload:
    found = _locks(ctx).in_the_way(_wanted(ctx, header, request))
    return replies.lk(*found) if found is not None else replies.lk(request.start, request.end, Kind.NONE, 0)


def setlk(ctx: Context, header: Header, request: Lk) -> Payload:
    if not _locks(ctx).take(_wanted(ctx, header, request)):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return DONE


def setlkw(ctx: Context, header: Header, request: Lk) -> Result:
    locks = _locks(ctx)
    waiter = locks.wait(_wanted(ctx, header, request))
    return DONE if waiter.is_granted else _granted(ctx, header, locks, waiter)


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
    whole = bool(request.lk_flags & LkFlag.FLOCK)
    start, end = (0, END) if whole else (request.start, request.end)
    if not 0 <= start <= end <= END or request.type not in tuple(Kind):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return Wanted(inode, request.owner, request.pid, request.fh, start, end, Kind(request.type), whole)
