"""Keeps what belongs to somebody who is not inside from whoever has mounted.

The kernel checks rights by the attributes that it has been told on a connection, and whoever has mounted has that too:
he can take its questions away from us, and tell it that all is his. So for inodes of ids that are not inside it is
checked here once more, as the kernel has it: nobody there changes them, and they are read by those whom mode or ACL let
in. With those of ids that are inside he may do what he likes anyway, being their root.

Owns nothing. Loop thread.
"""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..inodes import Inode
from ..ops import Handler
from ..ops.context import Context, Result
from ..shift.idmap import UNMAPPED
from ..tree import Attributes
from ..wire.abi import Fattr, Opcode
from ..wire.requests import Header

_ACL: Final = b"system.posix_acl_access"
_SET: Final = int(Fattr.MODE | Fattr.UID | Fattr.GID | Fattr.SIZE | Fattr.ATIME | Fattr.MTIME)
_Check = Callable[[Context, Header, Any], None]


def are_outside(ctx: Context, attributes: Attributes) -> bool:
    """Is the owner or the group nobody's inside?"""
    return UNMAPPED in ctx.ids_inside(attributes)


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def _keep(ctx: Context, inode: Inode, number: int = errno.EACCES) -> None:
    """Nobody inside changes it."""
    if inode.nodeid in ctx.inodes.outsiders:
        _refuse(number)


def _let_in(ctx: Context, inode: Inode, wanted: int) -> None:
    """EACCES if nobody inside may do any of what is `wanted` (S_IROTH, S_IXOTH)."""
    if inode.nodeid in ctx.inodes.outsiders and not _open_to_insiders(ctx, inode) & wanted:
        _refuse(errno.EACCES)


def _open_to_insiders(ctx: Context, inode: Inode) -> int:
    """What its mode lets anybody do who may be inside."""
    attributes = ctx.tree.attributes(inode.entry)
    uid, gid = ctx.ids_inside(attributes)
    bits = attributes.mode
    if uid != UNMAPPED:
        bits |= attributes.mode >> 6
    if gid != UNMAPPED or _has_acl(ctx, inode):
        bits |= attributes.mode >> 3
    return bits


def _has_acl(ctx: Context, inode: Inode) -> bool:
    """One may name somebody who is inside, up to what the group's bits allow (acl(5), the mask)."""
    try:
        return bool(ctx.tree.getxattr(inode.entry, _ACL))
    except OSError:
        return False


def _keep_name(ctx: Context, directory: Inode, name: bytes) -> None:
    """What is at a name is not removed or replaced: whoever asks need not have had it looked up."""
    try:
        attributes = ctx.tree.lookup(directory.entry, name)[1]
    except OSError:
        return
    if are_outside(ctx, attributes):
        _refuse(errno.EOVERFLOW)


def _changes(ctx: Context, header: Header, request: Any) -> None:
    _keep(ctx, ctx.inodes.get(header.nodeid))


def _is_the_owners(ctx: Context, header: Header, request: Any) -> None:
    _keep(ctx, ctx.inodes.get(header.nodeid), errno.EPERM)


def _sets(ctx: Context, header: Header, request: Any) -> None:
    """If it is anything: chown(-1, -1) is everybody's."""
    if request.valid & _SET:
        _is_the_owners(ctx, header, request)


def _removes(ctx: Context, header: Header, request: Any) -> None:
    _changes(ctx, header, request)
    _keep_name(ctx, ctx.inodes.get(header.nodeid), request.name)


def _renames(ctx: Context, header: Header, request: Any) -> None:
    source, target = ctx.inodes.get(header.nodeid), ctx.inodes.get(request.newdir)
    _keep(ctx, source)
    _keep(ctx, target)
    _keep_name(ctx, source, request.oldname)
    _keep_name(ctx, target, request.newname)


def _links(ctx: Context, header: Header, request: Any) -> None:
    _changes(ctx, header, request)
    _keep(ctx, ctx.inodes.get(request.oldnodeid), errno.EPERM)


def _looks_up(ctx: Context, header: Header, request: Any) -> None:
    _let_in(ctx, ctx.inodes.get(header.nodeid), stat.S_IXOTH)


def _lists(ctx: Context, header: Header, request: Any) -> None:
    _let_in(ctx, ctx.inodes.get(header.nodeid), stat.S_IROTH)


def _reads(ctx: Context, header: Header, request: Any) -> None:
    """Or executes."""
    _let_in(ctx, ctx.inodes.get(header.nodeid), stat.S_IROTH | stat.S_IXOTH)


def _opens(ctx: Context, header: Header, request: Any) -> None:
    _reads(ctx, header, request)
    if request.flags & (os.O_ACCMODE | os.O_TRUNC):
        _changes(ctx, header, request)


def _copies(ctx: Context, header: Header, request: Any) -> None:
    _reads(ctx, header, request)
    _keep(ctx, ctx.inodes.get(request.nodeid_out))


_CHECKS: Final[Mapping[int, _Check]] = {
    Opcode.LOOKUP: _looks_up,
    Opcode.OPEN: _opens,
    **dict.fromkeys((Opcode.READ, Opcode.GETXATTR, Opcode.LSEEK), _reads),
    **dict.fromkeys((Opcode.READDIR, Opcode.READDIRPLUS), _lists),
    **dict.fromkeys((Opcode.WRITE, Opcode.FALLOCATE, Opcode.CREATE, Opcode.TMPFILE), _changes),
    **dict.fromkeys((Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK), _changes),
    Opcode.SETATTR: _sets,
    **dict.fromkeys((Opcode.SETXATTR, Opcode.REMOVEXATTR), _is_the_owners),
    **dict.fromkeys((Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64), _copies),
    **dict.fromkeys((Opcode.UNLINK, Opcode.RMDIR), _removes),
    **dict.fromkeys((Opcode.RENAME, Opcode.RENAME2), _renames),
    Opcode.LINK: _links,
}


def keeping_out(handlers: Mapping[int, Handler]) -> dict[int, Handler]:
    """The same handlers, those that have to do with rights checking them first."""
    return {
        opcode: _checked(handler, _CHECKS[opcode]) if opcode in _CHECKS else handler
        for opcode, handler in handlers.items()
    }


def _checked(handler: Handler, check: _Check) -> Handler:
    def served(ctx: Context, header: Header, request: Any) -> Result:
        check(ctx, header, request)
        return handler(ctx, header, request)

    return served
