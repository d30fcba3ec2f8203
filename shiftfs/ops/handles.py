"""Handlers of open files, on mounts that serve OPEN: open, create, flush, release, poll.

On the others the kernel opens and closes without us: ENOSYS, once. A handle has a descriptor of its own only where a
file's content is made when it is opened (procfs, cgroupfs); all others share the inode's. Such files look at who opens
them, and are opened with the rights of the caller and not with ours. Loop thread.
"""

import contextlib
import errno
import os
import select
import stat
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..inodes import Inode
from ..tree import Descriptor, Gate, Work
from ..wire import notices, replies, requests
from ..wire.abi import FOpen, OpenInFlag, PollFlag
from ..wire.requests import Header
from . import collected, files
from .context import DONE, NOBODYS, Context, Later, Payload, Result, not_supported, stale
from .namespace import creation_mode, unnamed

if TYPE_CHECKING:
    from ..backing import Backing

_KILL_SUIDGID: Final = int(OpenInFlag.KILL_SUIDGID)
_DIRECT: Final = int(FOpen.DIRECT_IO)
_KEEP_CACHE: Final = int(FOpen.KEEP_CACHE)
_CACHE_DIR: Final = int(FOpen.CACHE_DIR)
_NO_FLUSH: Final = int(FOpen.NOFLUSH)
_PASS_THROUGH: Final = int(FOpen.PASSTHROUGH)
_EXEC: Final = 0x20
"""The kernel's own __FMODE_EXEC, which comes with an open for execve(2) (include/linux/fs.h)."""
_SCHEDULE: Final = int(PollFlag.SCHEDULE_NOTIFY)
_ALWAYS_READY: Final = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
_CHANGED: Final = select.POLLPRI | select.POLLERR
_OWN_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK


class OpenFile:
    """What a file handle stands for. `descriptor` is its own one, if any, and `opener` who reads it, if not ourselves;
    `kept` keeps the inode's alive, so that a file deleted behind the mount stays readable, as long as there are not too
    many of them. `executed` is the inode, if it is being executed; `shared`, if it was opened where opens may be passed
    on, and `backing` what it is passed on to."""

    __slots__ = (
        "backing", "changed", "descriptor", "executed", "kept", "opener", "shared", "stop_watching", "writable",
    )  # fmt: skip

    def __init__(
        self, descriptor: Descriptor | None, kept: Descriptor | None, writable: bool,
        opener: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        self.opener = opener
        self.descriptor = descriptor
        self.kept = kept
        self.writable = writable
        self.changed = False
        self.stop_watching: Callable[[], None] | None = None
        self.executed: Inode | None = None
        self.shared: Inode | None = None
        self.backing: Backing | None = None


def open(ctx: Context, header: Header, request: requests.Open) -> Result:
    if not ctx.serves_open:
        raise not_supported()
    return _open_later(ctx, header, files.regular(ctx, header.nodeid), request)


def _open_later(ctx: Context, header: Header, inode: Inode, request: requests.Open) -> Later:
    fh, answer = yield from _opened(ctx, header, inode, request.flags)
    opened: OpenFile = ctx.handles[fh]
    try:
        if request.flags & _EXEC:
            yield from _executed(ctx, inode, fh)
        if request.flags & os.O_TRUNC and not ctx.tree.is_made_up(inode.entry):
            yield from _truncate(ctx, header, inode, bool(request.open_flags & _KILL_SUIDGID))
    except BaseException:  # its caller has been killed, too: nobody will release it
        _let_go(ctx, ctx.handles.pop(fh))
        raise
    return _reply(fh, answer, opened.backing)


def _reply(fh: int, answer: int, backing: "Backing | None") -> bytes:
    return replies.open(fh, answer, backing.number if backing is not None else 0)


def _executed(ctx: Context, inode: Inode, fh: int) -> Generator[Gate, Any, None]:
    """From here until it is released nothing of ours has the file open for writing on the mount."""
    ctx.handles[fh].executed = inode
    ctx.executed[inode] += 1
    while ctx.live is not None and (gate := ctx.live.closing(inode)) is not None:
        yield gate


def _truncate(ctx: Context, header: Header, inode: Inode, kills_set_ids: bool) -> Generator[Work | Gate, Any, None]:
    """The kernel has left O_TRUNC to us (FUSE_ATOMIC_O_TRUNC)."""
    descriptor = yield from files.opened(ctx, header, inode, writable=True, size=0)
    with ctx.working_on(inode):
        yield partial(os.ftruncate, descriptor.fd, 0)
    files.drop_capability(ctx, inode)
    if kills_set_ids:
        files.kill_set_ids(ctx, inode)


def _opened(ctx: Context, header: Header, inode: Inode, flags: int) -> Generator[Work | Gate, Any, tuple[int, int]]:
    """A handle for the inode and the FOPEN_ flags to answer with."""
    writable = flags & os.O_ACCMODE != os.O_RDONLY
    path = ctx.tree.path(inode.entry)
    own: Descriptor | None = None
    if ctx.tree.may_block(inode.entry):
        ctx.tree.open_anew(inode.entry)
        if not writable:
            own = yield partial(_open_passed_on, ctx, header, path, flags & _OWN_FLAGS)
    elif ctx.tree.is_pseudo(path.fd):
        own = _open_pseudo(ctx, header, path, flags & _OWN_FLAGS)
    if own is not None:
        opener = None if _is_trusted(ctx, header) else ctx.caller(header)
        return _handle(ctx, OpenFile(own, None, writable, opener)), _DIRECT
    try:
        size = 0 if flags & os.O_TRUNC else None
        kept = yield from files.opened(ctx, header, inode, writable, size=size)
    except PermissionError:
        if not (writable and flags & os.O_APPEND and ctx.tree.is_up(inode.entry)):
            raise
        kept = yield from files.opened_to_append(ctx, inode)
    opened = OpenFile(None, kept, writable)
    fh = _handle(ctx, opened)
    try:
        _share(ctx, inode, opened, flags)
    except OSError:
        _let_go(ctx, ctx.handles.pop(fh))
        raise
    return fh, _answer(ctx, inode, flags, opened)


def _share(ctx: Context, inode: Inode, opened: OpenFile, flags: int) -> None:
    """It is one of the opens of an inode that are all passed on, or none of them."""
    if ctx.backings is None:
        return
    try:
        opened.backing = ctx.backings.open(inode, flags, opened.writable)
    except OSError as error:
        if error.errno == errno.ESTALE:  # another file by now, behind the mount: it is to be another inode
            ctx.inodes.bury(inode)
        raise
    opened.shared = inode


def _is_trusted(ctx: Context, header: Header) -> bool:
    """Is the caller, as a pseudo-file would see him, root like ourselves?"""
    return not ctx.credentials.shifts and ctx.caller(header)[0] == 0


def _open_pseudo(ctx: Context, header: Header, path: Descriptor, flags: int) -> Descriptor:
    """Open a pseudo-file as the caller: it is the host's, and tells or changes what the opener may know or change.

    Where ids are shifted nobody is the host's root, whatever the mode says to who is shown as the owner. Nothing is
    written then, and read only what all may read; the mode is asked here, for sysctls ask the effective id, which stays
    ours (kernel fs/proc/proc_sysctl.c, test_perm).
    """
    if ctx.credentials.shifts:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.fstat(path.fd).st_mode & stat.S_IROTH:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    elif _is_trusted(ctx, header):
        return ctx.tree.open_waiting(path, flags)
    with ctx.credentials.powerless(*ctx.caller(header)):
        return ctx.tree.open_waiting(path, flags)


def _open_passed_on(ctx: Context, header: Header, path: Descriptor, flags: int) -> Descriptor | None:
    """Open for reading what another FUSE filesystem may have from procfs: files of size 0 there are to be asked for
    their content. None for all others, and for what the caller himself may not open: it shows as empty. On a worker."""
    if os.fstat(path.fd).st_size != 0:
        return None
    try:
        return _open_pseudo(ctx, header, path, flags)
    except PermissionError:
        return None


def _answer(ctx: Context, inode: Inode, flags: int, opened: OpenFile) -> int:
    """FOPEN_ flags. FLUSH is for locks, and for what close(2) may report of writes to another machine."""
    if opened.backing is not None:
        answer = _PASS_THROUGH
    else:
        answer = _cached(ctx, opened, flags) if opened.writable else _KEEP_CACHE
        if ctx.backings is not None and not ctx.backings.may_keep_pages(inode):
            answer &= ~_KEEP_CACHE
    is_flushed = ctx.locks is not None or (opened.writable and ctx.tree.may_block(inode.entry))
    return answer if is_flushed else answer | _NO_FLUSH


def _cached(ctx: Context, opened: OpenFile, flags: int) -> int:
    """Through the page cache a write that crosses a page may come as two requests, and an appender on the layer may get
    between them. Who opens to append alone neither reads nor maps, and loses nothing by going past the cache. Where
    writes are collected there is no other appender; but whole pages, of what is there already, can only be written to
    what can be opened for more than appending (chattr +a)."""
    if flags & (os.O_ACCMODE | os.O_APPEND) != os.O_WRONLY | os.O_APPEND:
        return _KEEP_CACHE
    if ctx.times is not None and (opened.kept is None or not collected.appends_alone(opened.kept)):
        return _KEEP_CACHE
    return _DIRECT


def _handle(ctx: Context, opened: OpenFile) -> int:
    """ENFILE where it needs a descriptor to itself, and all that there may be are such."""
    if opened.kept is not None or opened.descriptor is not None:
        _take_descriptor(ctx, opened)
    ctx.last_handle += 1
    ctx.handles[ctx.last_handle] = opened
    return ctx.last_handle


def _take_descriptor(ctx: Context, opened: OpenFile) -> None:
    while ctx.kept and not ctx.open_files.has_room:
        oldest = next(iter(ctx.kept))
        del ctx.kept[oldest]
        oldest.kept = None
        ctx.open_files.give_back()
    if ctx.open_files.has_room:
        ctx.open_files.take()
        if opened.kept is not None:
            ctx.kept[opened] = None
    elif opened.kept is None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
    else:
        opened.kept = None


def create(ctx: Context, header: Header, request: requests.Create) -> Result:
    if not ctx.serves_open:
        raise not_supported()
    parent = ctx.inodes.get(header.nodeid)
    mode = creation_mode(ctx, header, parent, request.mode)
    with ctx.credentials.acting_as(header.uid, header.gid, request.umask):
        created = _new_file(ctx, parent, request.name, mode)
    key, attributes, place = ctx.made(parent, request.name, stat.S_IFREG, os.fstat(created.fd).st_ino)
    entry = ctx.adopt(parent, request.name, key, attributes, place)
    inode = ctx.inodes.adopted(key)
    ctx.tree.keep_data(inode.entry, created)
    return replies.create(entry, _open_new(ctx, inode, created, request.flags))


def _open_new(ctx: Context, inode: Inode, made: Descriptor | None, flags: int) -> bytes:
    opened = OpenFile(None, made, writable=True)
    fh = _handle(ctx, opened)
    _share(ctx, inode, opened, flags)
    return _reply(fh, _answer(ctx, inode, flags, opened), opened.backing)


def tmpfile(ctx: Context, header: Header, request: requests.Create) -> Payload:
    inode, entry = unnamed(ctx, header, request)
    if not ctx.serves_open:
        return replies.create(entry, replies.open(NOBODYS, 0))  # which is not released
    # The inode itself keeps its descriptor, opened or not.
    return replies.create(entry, _open_new(ctx, inode, None, request.flags))


def _new_file(ctx: Context, parent: Inode, name: bytes, mode: int) -> Descriptor:
    """One that exists is never opened here: the kernel takes it as made by the caller and checks no rights. ESTALE
    makes it look again, and open what is there."""
    try:
        return ctx.tree.create(parent.entry, name, mode)
    except FileExistsError:
        raise stale() from None


def release(ctx: Context, header: Header, request: requests.Release) -> Payload:
    opened: OpenFile | None = ctx.handles.pop(request.fh, None)
    if opened is not None:
        _let_go(ctx, opened)
    elif request.fh == NOBODYS and ctx.backings is not None:
        with contextlib.suppress(OSError):  # what was made up for the agent
            ctx.backings.close_for_agent(ctx.inodes.get(header.nodeid))
    if ctx.locks is not None:
        ctx.locks.released(ctx.inodes.get(header.nodeid), request.fh)
    return DONE


def _let_go(ctx: Context, opened: OpenFile) -> None:
    if opened.kept is not None:
        del ctx.kept[opened]
    if opened.kept is not None or opened.descriptor is not None:
        ctx.open_files.give_back()
    if opened.shared is not None and ctx.backings is not None:
        ctx.backings.close(opened.shared, opened.backing, opened.writable)
    if opened.executed is not None:
        ctx.executed[opened.executed] -= 1
        if not ctx.executed[opened.executed]:
            del ctx.executed[opened.executed]
    if opened.stop_watching is not None:
        opened.stop_watching()


def flush(ctx: Context, header: Header, request: requests.Flush) -> Result:
    if not ctx.serves_open:
        raise not_supported()
    if ctx.locks is not None:
        ctx.locks.closed(ctx.inodes.get(header.nodeid), request.lock_owner)
    opened: OpenFile | None = ctx.handles.get(request.fh)
    if opened is None or not opened.writable:
        return DONE
    if ctx.times is not None:
        ctx.times.settle(ctx.inodes.get(header.nodeid))
    descriptor = opened.descriptor or opened.kept
    if descriptor is None:
        return DONE
    return _flush(descriptor)


def _flush(descriptor: Descriptor) -> Later:
    yield partial(_close_copy, descriptor)
    return DONE


def _close_copy(descriptor: Descriptor) -> None:
    """close(2) reports what went wrong with writes on network filesystems; a duplicate's does so as well, where there
    is room for one."""
    try:
        copy = os.dup(descriptor.fd)
    except OSError:
        return
    os.close(copy)


def opendir(ctx: Context, header: Header, request: requests.Open) -> Payload:
    if not ctx.serves_opendir:
        raise not_supported()
    # Listings need no handle: see directories.py.
    anew = ctx.tree.lists_anew(ctx.inodes.get(header.nodeid).entry)
    return replies.open(0, 0 if anew else _KEEP_CACHE | _CACHE_DIR)


def releasedir(ctx: Context, header: Header, request: requests.Release) -> Payload:
    return DONE


def poll(ctx: Context, header: Header, request: requests.Poll) -> Payload:
    if not ctx.serves_open:
        raise not_supported()  # the kernel then takes every file as ready
    opened: OpenFile | None = ctx.handles.get(request.fh)
    if opened is None or opened.descriptor is None or ctx.tree.may_block(ctx.inodes.get(header.nodeid).entry):
        return replies.poll(_ALWAYS_READY & request.events)
    waiting = select.poll()
    waiting.register(opened.descriptor.fd, request.events)
    ready = dict(waiting.poll(0)).get(opened.descriptor.fd, 0)
    if opened.changed:
        ready |= _CHANGED & (request.events | select.POLLERR)
        opened.changed = False
    if request.flags & _SCHEDULE and opened.stop_watching is None:
        _wake_later(ctx, opened, opened.descriptor, request.kh)
    return replies.poll(ready)


def _wake_later(ctx: Context, opened: OpenFile, descriptor: Descriptor, kh: int) -> None:
    """Wake the pollers at the next change: for procfs and kernfs that is POLLPRI alone, they are always readable."""

    def happened() -> None:
        stop()
        opened.stop_watching = None
        # /proc/PID/mounts tells of a change once only, and has told our own epoll (kernel fs/proc_namespace.c).
        opened.changed = True
        ctx.notify(notices.poll_wakeup(kh))

    try:
        stop = ctx.watch(descriptor.fd, happened)
    except OSError as error:
        if error.errno != errno.EPERM:  # not to be waited for: always ready (epoll_ctl(2))
            raise
        return
    opened.stop_watching = stop
