"""Handlers of attributes: getattr, statx, setattr, statfs, syncfs. Loop thread; a large truncation and syncfs wait."""

import errno
import os
import time
from collections.abc import Generator
from functools import partial
from typing import Final

from ..inodes import Inode
from ..shift.idmap import UNMAPPED
from ..sys import files
from ..tree import Attributes, Change
from ..wire import replies, requests
from ..wire.abi import Fattr
from ..wire.requests import Header
from . import files as data
from .context import DONE, Context, Later, Payload, Result, without_set_ids

_SIZE: Final = int(Fattr.SIZE)
_MODE: Final = int(Fattr.MODE)
_UID: Final = int(Fattr.UID)
_GID: Final = int(Fattr.GID)
_ATIME: Final = int(Fattr.ATIME)
_MTIME: Final = int(Fattr.MTIME)
_ATIME_NOW: Final = int(Fattr.ATIME_NOW)
_MTIME_NOW: Final = int(Fattr.MTIME_NOW)
_KILL_SUIDGID: Final = int(Fattr.KILL_SUIDGID)
_OWNER: Final = _UID | _GID
_TIMES: Final = _ATIME | _MTIME | _ATIME_NOW | _MTIME_NOW
_WITHOUT_MEANING: Final = int(Fattr.FH | Fattr.LOCKOWNER | Fattr.CTIME)
_ANYTHING: Final = _SIZE | _MODE | _OWNER | _TIMES

_LARGE: Final = 8192
"""Blocks of 512 bytes from which on a truncation is left to a worker."""

_PATIENCE: Final = 30.0
_LOOK: Final = 0.002
"""Seconds between two looks at whether workers are still writing."""

_STATX_BASIC: Final = files.STATX_BASIC_STATS
_UNCHANGED: Final = 0xFFFFFFFF
"""The id that chown(2) takes for `as it is`."""


def getattr(ctx: Context, header: Header, request: requests.Getattr) -> Payload:
    inode = ctx.inodes.get(header.nodeid)
    if inode.is_directory:
        ctx.check_listing(inode)
    a = ctx.tree.attributes(inode.entry)
    ctx.check_links(inode, a)
    return replies.attr(ctx.valid(inode), ctx.shown(a))


def statx(ctx: Context, header: Header, request: requests.Statx) -> Payload:
    """The kernel asks by STATX where a user wants the birth time (Linux 6.6)."""
    inode = ctx.inodes.get(header.nodeid)
    a = ctx.tree.attributes(inode.entry)
    shown = replies.Attr(*ctx.shown(a))
    mask = _STATX_BASIC | (files.STATX_BTIME if a.has_btime else 0)
    fields = replies.StatxFields(
        mask, a.blksize, a.statx_attributes, shown.nlink, shown.uid, shown.gid, a.mode, shown.ino, a.size, a.blocks,
        a.statx_attributes_mask, a.atime, a.atimensec, a.btime, a.btimensec, a.ctime, a.ctimensec, a.mtime,
        a.mtimensec, os.major(a.rdev), os.minor(a.rdev), 0, 0,
    )  # fmt: skip
    return replies.statx(ctx.valid(inode), 0, fields)


def setattr(ctx: Context, header: Header, request: requests.Setattr) -> Result:
    inode = ctx.to_change(header.nodeid)
    return _set_later(ctx, header, inode, request) if inode in ctx.at_work else _set(ctx, header, inode, request)


def _set_later(ctx: Context, header: Header, inode: Inode, request: requests.Setattr) -> Later:
    """Once what is being written has been: a disk may be busy, and a time told before is not to be another then."""
    yield partial(ctx.all_written, header.nodeid)
    until = time.monotonic() + _PATIENCE
    while ctx.lane is None and inode in ctx.at_work and time.monotonic() < until:
        yield partial(time.sleep, _LOOK)
    result = _set(ctx, header, inode, request)
    if isinstance(result, Generator):
        result = yield from result
    assert result is not None
    return result


def _set(ctx: Context, header: Header, inode: Inode, request: requests.Setattr) -> Result:
    if inode in ctx.written and not request.valid & _ANYTHING:
        # It comes of a write that the kernel passes on, and that nobody else tells us of; or of chown(-1, -1).
        data.kill_set_ids(ctx, inode)
        return _apply(ctx, inode, None)
    before = ctx.tree.attributes(inode.entry)
    change = _change(ctx, header, request, before)
    if request.valid & _SIZE:
        return _truncate(ctx, header, inode, request, before, change)
    return _apply(ctx, inode, change, request.valid)


def _change(ctx: Context, header: Header, request: requests.Setattr, before: Attributes) -> Change | None:
    """What to do besides truncating, in real ids; None for nothing. EOVERFLOW and EPERM before anything is done."""
    valid = request.valid
    if valid & (_OWNER | _MODE):
        ctx.refuse_unmapped_owner(before)
    mode = request.mode if valid & _MODE else None
    if valid & _KILL_SUIDGID and mode is None:
        mode = without_set_ids(before.mode)
    uid = ctx.uids.real[request.uid] if valid & _UID else None
    gid = ctx.gids.real[request.gid] if valid & _GID else None
    if UNMAPPED in (uid, gid):
        if not ctx.credentials.squashes:
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
        uid, gid = (None if number == UNMAPPED else number for number in (uid, gid))
    if not valid & _ANYTHING:
        uid = gid = _no_attribute_given(ctx, header, before)
    atime = mtime = None
    if valid & _TIMES:
        atime = _time(valid & _ATIME_NOW, valid & _ATIME, request.atime, request.atimensec)
        mtime = _time(valid & _MTIME_NOW, valid & _MTIME, request.mtime, request.mtimensec)
    change = Change(mode, uid, gid, atime, mtime)
    return change if any(value is not None for value in change) else None


def _no_attribute_given(ctx: Context, header: Header, before: Attributes) -> int | None:
    """The ids with which the layer's own chown(2) does what a SETATTR of nothing asks for; None for nothing to do.

    It comes of chown(-1, -1), and of a write that takes set-id bits and file capabilities away (fs/fuse/dir.c,
    fuse_setattr, leaves ATTR_MODE out). Nobody has checked the caller's right to the first, and the second is not to
    fail: so to what is somebody else's, or an unmapped id's, nothing is done here. Its bits go with the WRITE itself.
    """
    if UNMAPPED in (ctx.uids.shown[before.uid], ctx.gids.shown[before.gid]):
        return None
    return _UNCHANGED if ctx.caller(header)[0] in (0, ctx.uids.shown[before.uid]) else None


def _time(now: int, given: int, seconds: int, nanoseconds: int) -> tuple[int, int] | None:
    if now:
        return (0, files.UTIME_NOW)
    return (seconds, nanoseconds) if given else None


def _truncate(
    ctx: Context, header: Header, inode: Inode, request: requests.Setattr, before: Attributes, change: Change | None
) -> Result:
    if ctx.tree.is_made_up(inode.entry):
        return _apply(ctx, inode, change)  # as procfs and kernfs take O_TRUNC: there is nothing to cut off
    if before.blocks > _LARGE or ctx.tree.may_block(inode.entry):
        return _truncate_later(ctx, header, inode, request.size, change)
    try:
        os.ftruncate(ctx.tree.data(inode.entry, True).fd, request.size)
    except BlockingIOError:
        return _truncate_later(ctx, header, inode, request.size, change)
    data.drop_capability(ctx, inode)
    return _apply(ctx, inode, change)


def _truncate_later(ctx: Context, header: Header, inode: Inode, size: int, change: Change | None) -> Later:
    opened = yield from data.opened(ctx, header, inode, writable=True)
    yield partial(os.ftruncate, opened.fd, size)
    data.drop_capability(ctx, inode)
    return _apply(ctx, inode, change)


def _apply(ctx: Context, inode: Inode, change: Change | None, valid: int = 0) -> Payload:
    if change is not None:
        if ctx.credentials.squashes:
            change = _without_owner(ctx, inode, change)
        try:
            ctx.tree.change(inode.entry, change)
        except PermissionError:
            # The kernel tells the time of what it has written to a file whose times may not be set (chattr +a).
            if ctx.times is None or valid & ~_WITHOUT_MEANING != _MTIME:
                raise
        if ctx.times is not None and change.mtime is not None:
            ctx.times.told(inode)
    return replies.attr(ctx.valid(inode), ctx.shown(ctx.tree.attributes(inode.entry)))


def _without_owner(ctx: Context, inode: Inode, change: Change) -> Change:
    """What is left once the owner is stored, as far as we may: it shows as everything else in any case."""
    if change.uid is not None or change.gid is not None:
        try:
            ctx.tree.change(inode.entry, Change(None, change.uid, change.gid, None, None))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):  # EINVAL: nobody in our user namespace
                raise
    return change._replace(uid=None, gid=None)


def statfs(ctx: Context, header: Header, request: requests.Statfs) -> Payload:
    return replies.statfs(*ctx.tree.space(ctx.inodes.get(header.nodeid).entry))


def syncfs(ctx: Context, header: Header, request: requests.Syncfs) -> Later:
    if not ctx.tree.volatile:
        yield ctx.tree.sync
    return DONE
