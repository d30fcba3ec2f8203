"""Handlers of file contents: read, write, fsync, fallocate, lseek, copy.

What the page cache of the layer has is read on the loop; what may wait is a call for a worker, which holds nothing but
descriptors. Data descriptors belong to the inode, so whoever has the file open sees the same one.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Generator
from functools import partial
from typing import Any, Final

from ..inodes import Inode
from ..shift.credentials import Credentials
from ..sys import files
from ..tree import Change, Descriptor, Gate, Work
from ..wire import notices, replies, requests
from ..wire.abi import FsyncFlag, WriteFlag
from ..wire.requests import Header
from . import collected
from .context import DONE, Context, Later, Payload, Result, not_supported, without_set_ids

_SMALL_WRITE: Final = 64 * 1024
"""Writes up to here, in bytes, are done on the loop: they go to the layer's page cache as fast as to a worker."""

_SLOW_WRITE: Final = 0.002
"""Seconds after which a write on the loop has been throttled (too many dirty pages) or has waited for the inode."""

_SLOW_DEVICE: Final = 1.0
"""Seconds for which the device's writes then go to workers."""

_COPY_STEP: Final = 16 * 1024 * 1024
"""Bytes copied between two looks at whether the caller has been interrupted."""

_CACHE: Final = int(WriteFlag.CACHE)
_KILL_SUIDGID: Final = int(WriteFlag.KILL_SUIDGID)
_FDATASYNC: Final = int(FsyncFlag.FDATASYNC)
_SYNCHRONOUS_WRITE: Final = os.RWF_SYNC | os.RWF_DSYNC
_SYNCHRONOUS: Final = os.O_SYNC | os.O_DSYNC
_REGULAR: Final = stat.S_IFREG >> 12


def shared(ctx: Context, inode: Inode, fh: int, writable: bool) -> Descriptor:
    """The inode's data descriptor. A file deleted behind the mount, or that its mode keeps from being opened again,
    lives on in whoever has it open."""
    try:
        return ctx.tree.data(inode.entry, writable)
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.EACCES) or fh not in ctx.handles:
            raise
        kept: Descriptor | None = ctx.handles[fh].kept
        if kept is None or (writable and not kept.writable):
            raise
        return kept


def opened(
    ctx: Context, header: Header, inode: Inode, writable: bool, fh: int = 0, size: int | None = None
) -> Generator[Work | Gate, Any, Descriptor]:
    """The same, copying the file up (with `size` bytes of its content, or all) and waiting for a lease on the layer to
    be broken if need be."""
    if writable and not ctx.tree.is_up(inode.entry):
        yield from ctx.tree.copy_up(inode.entry, size, False, ctx.stopped(header.unique))
        ctx.is_up_now(inode)
    try:
        return shared(ctx, inode, fh, writable)
    except BlockingIOError:
        flags = os.O_RDWR if writable else os.O_RDONLY
        found: Descriptor = yield partial(ctx.tree.open_waiting, ctx.tree.content(inode.entry), flags)
        ctx.tree.keep_data(inode.entry, found)
        return found


def regular(ctx: Context, nodeid: int) -> Inode:
    """The inode of a request that only regular files take; EINVAL for another, which would be dangerous to open."""
    inode = ctx.inodes.get(nodeid)
    if inode.key[3] != _REGULAR:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return inode


def own_descriptor(ctx: Context, fh: int) -> Descriptor | None:
    """The descriptor of an open file that has one of its own (handles.py says which do)."""
    return ctx.handles[fh].descriptor if fh in ctx.handles else None


def read(ctx: Context, header: Header, request: requests.Read) -> Result:
    own = own_descriptor(ctx, request.fh)
    inode = regular(ctx, header.nodeid)
    size, offset = min(request.size, len(ctx.scratch)), request.offset
    if own is not None or inode in ctx.collected.ahead:
        return _read_later(ctx, header, inode, own, request, size)
    try:
        fd = shared(ctx, inode, request.fh, False).fd
        room = ctx.scratch[:size]
        count = os.preadv(fd, (room,), offset, os.RWF_NOWAIT)
        # A short answer means the end of the file to the kernel, which would believe it: make sure.
        if count == size or os.preadv(fd, (room[count:],), offset + count, os.RWF_NOWAIT) == 0:
            return room[:count]
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    return _read_later(ctx, header, inode, None, request, size)


def _read_later(
    ctx: Context, header: Header, inode: Inode, own: Descriptor | None, request: requests.Read, size: int
) -> Later:  # fmt: skip
    if own is not None:
        opener = ctx.handles[request.fh].opener
        part: bytes = yield partial(_read_once, own, size, request.offset, ctx.credentials, opener)
        return part
    descriptor = yield from opened(ctx, header, inode, writable=False, fh=request.fh)
    if inode in ctx.collected.ahead:
        content: bytes = yield partial(ctx.collected.read, inode, descriptor, size, request.offset)
    else:
        content = yield partial(_read_fully, descriptor, size, request.offset)
    return content


def _read_once(
    descriptor: Descriptor, size: int, offset: int, credentials: Credentials, opener: tuple[int, int] | None
) -> bytes:
    """As much as there is: where content is made while it is read, asking for more may wait for it. As the shown ids
    `opener`, or ourselves if None: some of procfs is as much as the reader may know."""
    with contextlib.nullcontext() if opener is None else credentials.powerless(*opener):
        try:
            return os.pread(descriptor.fd, size, offset)
        except OSError as error:
            if error.errno != errno.ESPIPE:
                raise
        return os.read(descriptor.fd, size)


def _read_fully(descriptor: Descriptor, size: int, offset: int) -> bytes:
    content = os.pread(descriptor.fd, size, offset)
    if 0 < len(content) < size:
        parts = [content]
        size -= len(content)
        while size:
            offset += len(content)
            content = os.pread(descriptor.fd, size, offset)
            if not content:
                break
            parts.append(content)
            size -= len(content)
        content = b"".join(parts)
    return content


def write(ctx: Context, header: Header, request: requests.Write) -> Result:
    own = own_descriptor(ctx, request.fh)
    inode = regular(ctx, header.nodeid)
    flags = _write_flags(request)
    if ctx.times is not None and request.write_flags & _CACHE:
        ctx.times.writing(inode, time.monotonic())
    if own is None and _is_quick(ctx, inode, request, flags):
        try:
            descriptor = shared(ctx, inode, request.fh, True)
        except (BlockingIOError, PermissionError):
            pass
        else:
            return _written(ctx, inode, request, _write_at_once(ctx, inode, request, descriptor, flags))
    return _write_later(ctx, header, inode, own, request, flags)


def _write_at_once(
    ctx: Context, inode: Inode, request: requests.Write, descriptor: Descriptor, flags: int
) -> int:  # fmt: skip
    """Write on the loop; where that has taken long, the device's next writes are left to workers for a while."""
    began = time.monotonic()
    count = _write_fully(descriptor, request, flags)
    if time.monotonic() - began > _SLOW_WRITE:
        ctx.slow_until[inode.key[0]] = began + _SLOW_DEVICE
    return count


def _is_quick(ctx: Context, inode: Inode, request: requests.Write, flags: int) -> bool:
    """Does a write go to the page cache of a local filesystem, with nobody holding the inode there?"""
    device = inode.key[0]
    if device in ctx.slow_until and time.monotonic() >= ctx.slow_until[device]:
        del ctx.slow_until[device]
    return (
        device not in ctx.slow_until
        and len(request.data) <= _SMALL_WRITE
        and inode not in ctx.at_work
        and not flags & _SYNCHRONOUS_WRITE
        and not ctx.tree.may_block(inode.entry)
    )


def _write_flags(request: requests.Write) -> int:
    flags = 0
    if request.flags & os.O_APPEND and not request.write_flags & _CACHE:
        # The kernel's idea of the end may be stale; the layer knows where it is.
        flags |= os.RWF_APPEND
    if request.flags & _SYNCHRONOUS:
        flags |= os.RWF_SYNC if request.flags & os.O_SYNC == os.O_SYNC else os.RWF_DSYNC
    return flags


def _write_later(
    ctx: Context, header: Header, inode: Inode, own: Descriptor | None, request: requests.Write, flags: int
) -> Later:
    buffer = ctx.detach()  # the data stays where it was received, until it is written
    try:
        descriptor = own or (yield from _opened_to_write(ctx, header, inode, request, flags))
        call = partial(_write_fully, descriptor, request, flags)
        if request.write_flags & _CACHE and collected.appends_alone(descriptor):
            call = partial(ctx.collected.append, inode, descriptor, request.offset, request.data)
        elif own is None and _is_quick(ctx, inode, request, flags):  # the file had to come up first, no more
            return _written(ctx, inode, request, _write_at_once(ctx, inode, request, descriptor, flags))
        with ctx.working_on(inode):
            count: int = yield call
        return _written(ctx, inode, request, count)
    finally:
        request.data.release()
        ctx.recycle(buffer)


def _opened_to_write(
    ctx: Context, header: Header, inode: Inode, request: requests.Write, flags: int
) -> Generator[Work | Gate, Any, Descriptor]:
    try:
        return (yield from opened(ctx, header, inode, writable=True, fh=request.fh))
    except PermissionError:
        may_append = flags & os.RWF_APPEND or request.write_flags & _CACHE
        if not may_append or not ctx.tree.is_up(inode.entry):
            raise
    return (yield from opened_to_append(ctx, inode))


def opened_to_append(ctx: Context, inode: Inode) -> Generator[Work | Gate, Any, Descriptor]:
    """A descriptor of its own for an append-only file (chattr +a), which cannot be opened for more. Of one that is up:
    in a lower it is not to be written to."""
    found: Descriptor = yield partial(ctx.tree.open_waiting, ctx.tree.content(inode.entry), os.O_WRONLY | os.O_APPEND)
    return found


def _write_fully(descriptor: Descriptor, request: requests.Write, flags: int) -> int:
    """Write all; a count that is short only where an error came after part of it. What the kernel has collected is
    written, or the error: it takes any count for all of it (fs/fuse/file.c, fuse_writepage_end)."""
    fd, content, offset = descriptor.fd, request.data, request.offset
    done = os.pwritev(fd, (content,), offset, flags)
    while done < len(content):
        try:
            more = os.pwritev(fd, (content[done:],), offset + done, flags)
        except OSError:
            if request.write_flags & _CACHE:
                raise
            break
        if more == 0:
            break
        done += more
    return done


def _written(ctx: Context, inode: Inode, request: requests.Write, count: int) -> Payload:
    if request.write_flags & _KILL_SUIDGID:
        kill_set_ids(ctx, inode)
    elif ctx.tree.override is not None:
        drop_capability(ctx, inode)
    if request.flags & os.O_APPEND and not request.write_flags & _CACHE:
        end = ctx.tree.attributes(inode.entry).size
        if end != request.offset + count:
            appended_elsewhere(ctx, inode)
    return replies.write(count)


def appended_elsewhere(ctx: Context, inode: Inode) -> None:
    """It landed behind what somebody else had written: the kernel's pages and size are wrong."""
    ctx.notify(notices.inval_inode(inode.nodeid, 0, 0))


def kill_set_ids(ctx: Context, inode: Inode) -> None:
    """Somebody without CAP_FSETID has written (FUSE_HANDLE_KILLPRIV_V2). File capabilities the layer has dropped, where
    it knows of them."""
    drop_capability(ctx, inode)
    mode = without_set_ids(ctx.tree.attributes(inode.entry).mode)
    if mode is not None:
        ctx.tree.change(inode.entry, Change(mode, None, None, None, None))


def drop_capability(ctx: Context, inode: Inode) -> None:
    """The content is another: what was to be had for executing it is not any more."""
    if ctx.tree.override is not None:
        ctx.tree.override.content_changed(ctx.tree.path(inode.entry).fd)


def fsync(ctx: Context, header: Header, request: requests.Fsync) -> Later:
    inode = regular(ctx, header.nodeid)
    if inode in ctx.collected.ahead:
        yield partial(ctx.collected.settle, inode)
    if ctx.times is not None:
        ctx.times.settle(inode)
    return (yield from sync_descriptor(ctx, header, own_descriptor(ctx, request.fh), inode, request))


def sync_descriptor(
    ctx: Context, header: Header, own: Descriptor | None, inode: Inode, request: requests.Fsync
) -> Later:  # fmt: skip
    if ctx.tree.volatile:
        return DONE
    descriptor = own or (yield from opened(ctx, header, inode, writable=False, fh=request.fh))
    yield partial(flush_to_disk, descriptor, bool(request.fsync_flags & _FDATASYNC))
    return DONE


def flush_to_disk(descriptor: Descriptor, data_only: bool) -> None:
    """fsync(2) or fdatasync(2). On a worker."""
    (os.fdatasync if data_only else os.fsync)(descriptor.fd)


def fallocate(ctx: Context, header: Header, request: requests.Fallocate) -> Later:
    inode = regular(ctx, header.nodeid)
    with ctx.working_on(inode):
        descriptor = yield from opened(ctx, header, inode, writable=True)
        yield partial(_fallocate, descriptor, request)
        kill_set_ids(ctx, inode)
        return DONE


def _fallocate(descriptor: Descriptor, request: requests.Fallocate) -> None:
    files.fallocate(descriptor.fd, request.mode, request.offset, request.length)


def lseek(ctx: Context, header: Header, request: requests.Lseek) -> Later:
    """SEEK_DATA and SEEK_HOLE only; the kernel answers the others itself. Where it has written what the layer has not,
    only it knows what is a hole: it then takes all for data."""
    if ctx.times is not None:
        raise not_supported()
    descriptor = yield from opened(ctx, header, regular(ctx, header.nodeid), writable=False)
    position: int = yield partial(_seek, descriptor, request)
    return replies.lseek(position)


def _seek(descriptor: Descriptor, request: requests.Lseek) -> int:
    # The offset of a shared descriptor means nothing: all else is by position.
    return os.lseek(descriptor.fd, request.offset, request.whence)


def copy_file_range(ctx: Context, header: Header, request: requests.CopyFileRange) -> Later:
    # The reply has 32 bits for the count; the kernel asks again for the rest.
    count = yield from _copy(ctx, header, request, min(request.length, 1 << 30))
    return replies.write(count)


def copy_file_range_64(ctx: Context, header: Header, request: requests.CopyFileRange) -> Later:
    count = yield from _copy(ctx, header, request, request.length)
    return replies.copy_file_range_64(count)


def _copy(
    ctx: Context, header: Header, request: requests.CopyFileRange, length: int
) -> Generator[Work | Gate, Any, int]:
    source, target = regular(ctx, header.nodeid), regular(ctx, request.nodeid_out)
    if source in ctx.collected.ahead:
        raise not_supported(errno.EOPNOTSUPP)  # the kernel copies what it has
    with ctx.working_on(target):
        writing = yield from opened(ctx, header, target, writable=True)
        reading = yield from opened(ctx, header, source, writable=False)
        count: int = yield partial(_copy_range, ctx.interrupted, header.unique, reading, writing, request, length)
        kill_set_ids(ctx, target)
        return count


def _copy_range(
    interrupted: set[int], unique: int, reading: Descriptor, writing: Descriptor, request: requests.CopyFileRange,
    length: int,
) -> int:  # fmt: skip
    """Copy in steps, so that an interrupted caller is let go with what has been copied by then. Up to the end as it is
    now: a file copied behind itself would grow for ever."""
    length = min(length, os.fstat(reading.fd).st_size - request.off_in)
    done = 0
    while done < length:
        step = min(_COPY_STEP, length - done)
        try:
            count = os.copy_file_range(reading.fd, writing.fd, step, request.off_in + done, request.off_out + done)
        except OSError:
            if done:
                break
            raise
        if count == 0:
            break
        done += count
        if unique in interrupted:
            break
    return done
