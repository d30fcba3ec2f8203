"""Handlers of names: lookup and forget, creation, removal, rename, links. Loop thread; none of them waits."""

import contextlib
import errno
import stat
from functools import partial
from typing import Final

from ..inodes import Inode
from ..sys import files
from ..tree import Descriptor
from ..wire import notices, replies, requests
from ..wire.requests import Header
from .context import DONE, Context, Payload, stale

_LARGE: Final = 8192
"""Blocks of 512 bytes from which on freeing an unlinked file is left to a worker: it can take a second."""


def lookup(ctx: Context, header: Header, request: requests.Lookup) -> Payload:
    parent = ctx.inodes.get(header.nodeid)
    if request.name == ctx.inner_root and parent is ctx.inodes.root:
        return _inner_root(ctx)
    try:
        found = ctx.tree.lookup(parent.entry, request.name)
    except FileNotFoundError:
        return ctx.absent_in(parent)
    return ctx.adopt(parent, request.name, *found)


def _inner_root(ctx: Context) -> Payload:
    ctx.inner_root = None
    attributes = ctx.tree.root_attributes()[1]
    outer, root = ctx.inodes.root, ctx.inodes.second_root()
    if ctx.live is not None:
        ctx.live.forgotten(outer)
        attributes = ctx.live.added(root, attributes)
    valid = ctx.valid(root)
    return replies.entry(root.nodeid, 0, valid, valid, ctx.shown(attributes))


def forget(ctx: Context, header: Header, request: requests.Forget) -> None:
    drop(ctx, header.nodeid, request.nlookup)


def batch_forget(ctx: Context, header: Header, request: requests.BatchForget) -> None:
    for nodeid, count in request.items:
        drop(ctx, nodeid, count)


def drop(ctx: Context, nodeid: int, count: int) -> None:
    """The kernel has that many references less."""
    for inode in ctx.inodes.forget(nodeid, count):
        ctx.listings.drop(inode)
        if inode.watch is not None and ctx.live is not None:
            ctx.live.forgotten(inode)
        let_go(ctx, inode)


def let_go(ctx: Context, inode: Inode, may_be_large: bool = True) -> None:
    """Close what is held for an inode that is known no more."""
    if inode.has_no_entry_yet:
        return
    if ctx.backings is not None:
        ctx.backings.forgotten(inode)
    if ctx.times is not None:
        ctx.times.settle(inode)
    if inode in ctx.collected.ahead:
        ctx.aside(partial(ctx.collected.finish, inode))
    held = _large(ctx, inode) if may_be_large and inode.unlinked else []
    ctx.tree.release(inode.entry)
    if held:
        ctx.aside(held.clear)  # the last reference goes on the worker, and with it the file's blocks


def _large(ctx: Context, inode: Inode) -> list[Descriptor]:
    with contextlib.suppress(OSError):  # whatever the layer says, the rest of a batch is to be forgotten too
        if ctx.tree.attributes(inode.entry).blocks > _LARGE:
            return [ctx.tree.path(inode.entry)]
    return []


def readlink(ctx: Context, header: Header, request: requests.Readlink) -> Payload:
    return ctx.tree.readlink(ctx.inodes.get(header.nodeid).entry)


def mknod(ctx: Context, header: Header, request: requests.Mknod) -> Payload:
    parent = ctx.to_change(header.nodeid)
    mode = creation_mode(ctx, header, parent, request.mode)
    with ctx.credentials.acting_as(header.uid, header.gid, request.umask):
        try:
            ctx.tree.mknod(parent.entry, request.name, mode, request.rdev)
        except FileExistsError:
            # The kernel did not know of it. It may be an open with O_CREAT, for which existing is no error: looking
            # again, the kernel finds the file, checks the caller's rights to it, and says EEXIST where that is right.
            raise stale() from None
    return ctx.adopt(parent, request.name, *ctx.made(parent, request.name, mode if stat.S_IFMT(mode) else stat.S_IFREG))


def mkdir(ctx: Context, header: Header, request: requests.Mkdir) -> Payload:
    parent = ctx.to_change(header.nodeid)
    with ctx.credentials.acting_as(header.uid, header.gid, request.umask):
        ctx.tree.mkdir(parent.entry, request.name, request.mode)
    return ctx.adopt(parent, request.name, *ctx.made(parent, request.name, stat.S_IFDIR))


def symlink(ctx: Context, header: Header, request: requests.Symlink) -> Payload:
    parent = ctx.to_change(header.nodeid)
    with ctx.credentials.acting_as(header.uid, header.gid, 0o022):
        ctx.tree.symlink(parent.entry, request.name, request.target)
    return ctx.adopt(parent, request.name, *ctx.made(parent, request.name, stat.S_IFLNK))


def unnamed(ctx: Context, header: Header, request: requests.Create) -> tuple[Inode, bytes]:
    """A new file without a name (O_TMPFILE), and its entry reply."""
    parent = ctx.to_change(header.nodeid)
    mode = creation_mode(ctx, header, parent, request.mode)
    with ctx.credentials.acting_as(header.uid, header.gid, request.umask):
        key, attributes, entry = ctx.tree.tmpfile(parent.entry, mode)
    inode = ctx.inodes.add(key, entry)
    inode.nlookup += 1
    ctx.inodes.bury(inode)
    return inode, replies.entry(inode.nodeid, 0, ctx.timeout, ctx.timeout, ctx.shown(attributes))


def creation_mode(ctx: Context, header: Header, parent: Inode, mode: int) -> int:
    """The mode to create a file with. Our CAP_FSETID would let set-gid through where the directory's group is
    inherited and the caller may not be in it (inode(7), S_ISGID). The kernel sees to that since 6.0, and knows all of
    the caller's groups; before, whoever is not in it by his own group is taken not to be in it."""
    if ctx.kernel_strips_set_gid:
        return mode
    if mode & stat.S_ISGID and mode & stat.S_IXGRP and header.uid != 0:
        above = ctx.tree.attributes(parent.entry)
        if above.mode & stat.S_ISGID and ctx.gids.shown[above.gid] != header.gid:
            return mode & ~stat.S_ISGID
    return mode


def link(ctx: Context, header: Header, request: requests.Link) -> Payload:
    inode = ctx.inodes.get(request.oldnodeid)
    parent = ctx.to_change(header.nodeid)
    ctx.tree.link(inode.entry, parent.entry, request.name)
    if inode.unlinked:
        ctx.inodes.revive(inode)
    return ctx.adopt(parent, request.name, *ctx.made(parent, request.name, ctx.tree.attributes(inode.entry).mode))


def unlink(ctx: Context, header: Header, request: requests.Unlink) -> Payload:
    parent = ctx.to_change(header.nodeid)
    inode = ctx.known_at(parent, request.name)
    gone = ctx.tree.unlink(parent.entry, request.name, inode and inode.entry)
    ctx.inodes.untell(parent, request.name)
    if gone:
        _gone(ctx, inode)
    return DONE


def rmdir(ctx: Context, header: Header, request: requests.Rmdir) -> Payload:
    parent = ctx.to_change(header.nodeid)
    inode = ctx.known_at(parent, request.name)
    ctx.tree.rmdir(parent.entry, request.name, inode and inode.entry)
    ctx.inodes.untell(parent, request.name)
    _gone(ctx, inode)
    return DONE


def _gone(ctx: Context, inode: Inode | None) -> None:
    """The last name of an inode has been removed; a reused number is another inode from now on."""
    if inode is not None:
        ctx.inodes.bury(inode)


# What is left to be done where a lane has seen to all else (shiftfs/native/creating.c, removing.c). An errno where that
# fails.


def made_natively(ctx: Context, parent: Inode, name: bytes, type_: int) -> Payload | int:
    """Adopt what has just been made, of that S_IFMT type."""
    try:
        return ctx.adopt(parent, name, *ctx.made(parent, name, type_))
    except OSError as error:
        return error.errno or errno.EIO


def rename(ctx: Context, header: Header, request: requests.Rename) -> Payload:
    parent = ctx.to_change(header.nodeid)
    target = ctx.to_change(request.newdir)
    moved = ctx.known_at(parent, request.oldname)
    replaced = None if request.flags & files.RENAME_NOREPLACE else ctx.known_at(target, request.newname)
    arguments = (
        parent.entry, request.oldname, target.entry, request.newname, request.flags,
        moved and moved.entry, replaced and replaced.entry,
    )  # fmt: skip
    if request.flags & files.RENAME_WHITEOUT:
        # The whiteout left behind is created, so it belongs to the caller.
        with ctx.credentials.acting_as(header.uid, header.gid, 0o022):
            gone = ctx.tree.rename(*arguments)
    else:
        gone = ctx.tree.rename(*arguments)
    exchanged = bool(request.flags & files.RENAME_EXCHANGE)
    ctx.inodes.renamed(parent, request.oldname, target, request.newname, exchanged)
    _trust_no_longer(ctx, target, request.newname, moved)
    if exchanged:
        _trust_no_longer(ctx, parent, request.oldname, replaced)
    if gone:
        _gone(ctx, replaced)
    return DONE


def _trust_no_longer(ctx: Context, parent: Inode, name: bytes, moved: Inode | None) -> None:
    """The kernel trusts a name that it moves for as long as it was told of the old one."""
    if ctx.live is not None and moved is not None and moved.is_directory and ctx.tree.may_change_unheard(moved.entry):
        ctx.notify(notices.inval_entry(parent.nodeid, name, notices.EXPIRE_ONLY))
