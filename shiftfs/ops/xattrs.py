"""Handlers of extended attributes, with the ids inside their values shifted. Loop thread."""

import errno
import os
import stat
from typing import Any, Final

from ..shift import embedded
from ..tree import Change
from ..wire import replies, requests
from ..wire.abi import SetxattrFlag
from ..wire.requests import Header
from .context import DONE, Context, Payload

_CAPABILITY: Final = b"security.capability"
_ACLS: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
_OWNERS: Final = b".override_stat"
"""On a tree's root directory it would say of the next mount where all owners live (shiftfs.override)."""
_KILL_SGID: Final = int(SetxattrFlag.ACL_KILL_SGID)


def getxattr(ctx: Context, header: Header, request: requests.Getxattr) -> Payload:
    entry = ctx.inodes.get(header.nodeid).entry
    name = request.name
    if name in _ACLS:
        refuse_acls(ctx)
        return _sized(embedded.acl_to_shown(_acl(ctx, entry, name), ctx.uids, ctx.gids), request.size)
    if _is_the_hosts(ctx, name):
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    value: bytes | None = ctx.tree.getxattr(entry, name)
    assert value is not None
    if name == _CAPABILITY:
        value = _capability(ctx, value)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    return _sized(value, request.size)


def _capability(ctx: Context, value: bytes) -> bytes | None:
    if ctx.inside is not None:
        return embedded.capability_to_inside(value, ctx.uids, ctx.inside.uids)
    return embedded.capability_to_shown(value, ctx.uids)


def _is_the_hosts(ctx: Context, name: bytes) -> bool:
    """In a user namespace of somebody else: what security modules and overlays of the host go by (trusted.*,
    security.*). The kernel lets the namespace's root set the latter."""
    return ctx.inside is not None and name.startswith((b"trusted.", b"security.")) and name != _CAPABILITY


def _acl(ctx: Context, entry: Any, name: bytes) -> bytes:
    """An ACL of the layer, or ENODATA. A layer that has no ACLs at all says EOPNOTSUPP; the kernel, which asks for one
    before each check of rights, would hand that to whoever opens the file (fuse_get_acl)."""
    try:
        value: bytes = ctx.tree.getxattr(entry, name)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None
    return value


def listxattr(ctx: Context, header: Header, request: requests.Listxattr) -> Payload:
    entry = ctx.inodes.get(header.nodeid).entry
    names = ctx.tree.listxattr(entry)
    if ctx.inside is not None:
        names = [name for name in names if not _is_the_hosts(ctx, name)]
    elif any(name.startswith(b"trusted.") for name in names) and ctx.caller(header)[0] != 0:
        # As filesystems do themselves (kernel fs/xattr.c): trusted.* is not even listed to the unprivileged.
        names = [name for name in names if not name.startswith(b"trusted.")]
    if not ctx.shows_acls:
        names = [name for name in names if name not in _ACLS]
    if _CAPABILITY in names and _capability(ctx, ctx.tree.getxattr(entry, _CAPABILITY)) is None:
        names.remove(_CAPABILITY)
    return _sized(b"".join(name + b"\0" for name in names), request.size)


def _sized(value: bytes, room: int) -> Payload:
    if room == 0:
        return replies.xattr_size(len(value))
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def setxattr(ctx: Context, header: Header, request: requests.Setxattr) -> Payload:
    entry = ctx.to_change(header.nodeid).entry
    name, value = request.name, request.value
    refuse_the_hosts(ctx, name)
    if ctx.inside is not None and entry is ctx.tree.root and name.endswith(_OWNERS):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    if name in _ACLS:
        refuse_acls(ctx)
        ctx.refuse_unmapped_owner(ctx.tree.attributes(entry))
        value = embedded.acl_to_real(value, ctx.uids, ctx.gids)
    elif name == _CAPABILITY:
        ctx.refuse_unmapped_owner(ctx.tree.attributes(entry))
        if ctx.inside is not None:
            value = embedded.capability_from_inside(value, ctx.inside.uids)
        else:
            value = embedded.capability_to_real(value, ctx.uids)
    ctx.tree.setxattr(entry, name, value, request.flags)
    if request.setxattr_flags & _KILL_SGID:
        mode = ctx.tree.attributes(entry).mode
        if mode & stat.S_ISGID:
            ctx.tree.change(entry, Change(mode & ~stat.S_ISGID, None, None, None, None))
    return DONE


def refuse_acls(ctx: Context) -> None:
    """EOPNOTSUPP where nobody goes by ACLs (`noacl`): as on a local filesystem, none is shown that does nothing."""
    if not ctx.shows_acls:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def refuse_the_hosts(ctx: Context, name: bytes) -> None:
    """EPERM for what is not for a namespace to set."""
    if _is_the_hosts(ctx, name):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def removexattr(ctx: Context, header: Header, request: requests.Removexattr) -> Payload:
    entry = ctx.to_change(header.nodeid).entry
    refuse_the_hosts(ctx, request.name)
    if request.name in _ACLS:
        refuse_acls(ctx)
    if request.name in _ACLS or request.name == _CAPABILITY:
        ctx.refuse_unmapped_owner(ctx.tree.attributes(entry))
    ctx.tree.removexattr(entry, request.name)
    return DONE
