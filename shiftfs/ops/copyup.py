"""What has to be in the upper layer before a request can be served, on mounts that have layers: one table.

Only asks the tree to bring inodes up, and then runs the request's own handler, which knows nothing of it. Changes of
contents are not here: they come up when the file is opened for them (files.opened). Loop thread.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, NamedTuple

from ..inodes import Inode
from ..sys import files
from ..wire.abi import Fattr, Opcode
from ..wire.requests import Header
from . import control, xattrs
from .context import Context, Later, Result, stale

_SIZE: Final = int(Fattr.SIZE)
_OWNER_AND_MODE: Final = int(Fattr.UID | Fattr.GID | Fattr.MODE)


class Need(NamedTuple):
    """An inode that has to be up, with so many bytes of content (None: all of it), or none of it if `metadata_only`
    will do. `name_only`: only its names change, and the kernel holds their directories as long as that takes."""

    inode: Inode
    size: int | None = None
    metadata_only: bool = True
    name_only: bool = False


Needs = Callable[[Context, Header, Any], Iterator[Need]]


def first(needs: Needs, handler: Callable[[Context, Header, Any], Result]) -> Callable[[Context, Header, Any], Result]:
    """The handler, once all that it needs is up."""

    def served(ctx: Context, header: Header, request: Any) -> Result:
        try:
            missing = [need for need in needs(ctx, header, request) if not _is_up(ctx, need)]
            if not missing:
                return handler(ctx, header, request)
        finally:
            ctx.just_found.clear()
        return _later(ctx, header, request, handler, needs, missing)

    return served


def _is_up(ctx: Context, need: Need) -> bool:
    return ctx.tree.is_up(need.inode.entry, need.metadata_only, need.name_only)


def _later(
    ctx: Context, header: Header, request: Any, handler: Callable[[Context, Header, Any], Result], needs: Needs,
    missing: list[Need],
) -> Later:  # fmt: skip
    for inode, size, metadata_only, name_only in missing:
        yield from ctx.tree.copy_up(inode.entry, size, metadata_only, ctx.stopped(header.unique), name_only)
        ctx.is_up_now(inode)
    try:
        if not all(_is_up(ctx, need) for need in needs(ctx, header, request)):
            raise stale()  # what was up has gone, or another is there, behind the mount: the kernel looks anew
        result = handler(ctx, header, request)
    finally:
        ctx.just_found.clear()
    if isinstance(result, Generator):
        result = yield from result
    assert result is not None
    return result


def _set_attribute(ctx: Context, header: Header, request: Any) -> Iterator[Need]:
    xattrs.refuse_the_hosts(ctx, request.name)  # before anything is copied for it
    yield Need(ctx.inodes.get(header.nodeid))


def _removed_attribute(ctx: Context, header: Header, request: Any) -> Iterator[Need]:
    xattrs.refuse_the_hosts(ctx, request.name)
    inode = ctx.inodes.get(header.nodeid)
    if not ctx.tree.is_up(inode.entry, True):
        ctx.tree.getxattr(inode.entry, request.name)  # ENODATA is no reason to copy anything
    yield Need(inode)


def _itself(ctx: Context, header: Header, request: Any) -> Iterator[Need]:
    yield Need(ctx.inodes.get(header.nodeid))


def _attributes(ctx: Context, header: Header, request: Any) -> Iterator[Need]:
    inode = ctx.inodes.get(header.nodeid)
    if request.valid & _OWNER_AND_MODE:
        ctx.refuse_unmapped_owner(ctx.tree.attributes(inode.entry))
    size = request.size if request.valid & _SIZE else None
    yield Need(inode, size, metadata_only=size is None)


def _flags(ctx: Context, header: Header, request: Any) -> Iterator[Need]:
    if request.cmd in control.SETTERS:
        yield Need(ctx.inodes.get(header.nodeid), metadata_only=False)


def _removed(ctx: Context, header: Header, request: Any) -> Iterator[Need]:
    parent = ctx.inodes.get(header.nodeid)
    yield Need(parent)
    yield from _counted(ctx, parent, request.name)


def _counted(ctx: Context, parent: Inode, name: bytes) -> Iterator[Need]:
    """A name of an inode goes. If it has others, how many are left has to be written down with the inode."""
    inode = _found(ctx, parent, name)
    if inode is None:
        return
    ctx.tree.may_remove(inode.entry)
    if ctx.tree.counts_names(inode.entry):
        yield Need(inode, name_only=True)


def _found(ctx: Context, parent: Inode, name: bytes) -> Inode | None:
    """What is at a name, which the handler need not look up again."""
    found = ctx.just_found[parent, name] = ctx.known_at(parent, name)
    return found


def _moved(ctx: Context, header: Header, request: Any) -> Iterator[Need]:
    parent, target = ctx.inodes.get(header.nodeid), ctx.inodes.get(request.newdir)
    yield Need(parent)
    yield Need(target)
    moved = _found(ctx, parent, request.oldname)
    if moved is not None:
        ctx.tree.may_rename(moved.entry)
        yield Need(moved, name_only=True)
    if not request.flags & files.RENAME_EXCHANGE:
        yield from _counted(ctx, target, request.newname)
        return
    replaced = _found(ctx, target, request.newname)
    if replaced is not None:
        ctx.tree.may_rename(replaced.entry)
        yield Need(replaced, name_only=True)


def _linked(ctx: Context, header: Header, request: Any) -> Iterator[Need]:
    yield Need(ctx.inodes.get(header.nodeid))
    yield Need(ctx.inodes.get(request.oldnodeid), name_only=True)


NEEDS: Final[dict[int, Needs]] = {
    Opcode.SETATTR: _attributes,
    Opcode.SETXATTR: _set_attribute,
    Opcode.REMOVEXATTR: _removed_attribute,
    Opcode.IOCTL: _flags,
    Opcode.MKNOD: _itself,
    Opcode.MKDIR: _itself,
    Opcode.SYMLINK: _itself,
    Opcode.CREATE: _itself,
    Opcode.TMPFILE: _itself,
    Opcode.UNLINK: _removed,
    Opcode.RMDIR: _removed,
    Opcode.RENAME: _moved,
    Opcode.RENAME2: _moved,
    Opcode.LINK: _linked,
}
"""Where the request's own nodeid is a directory, that is what has to be up."""
