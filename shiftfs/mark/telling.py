"""What a mount tells the others of its mark: what has been changed through it. The watchers leave out whatever our own
process does.

Owns nothing. Loop thread.
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Final

from ..inodes import Inode
from ..ops import Handler
from ..ops.context import NOBODYS, Context, Later, Result
from ..reflect.happening import Happening, Token, What
from ..wire.abi import Fattr, Opcode
from ..wire.requests import Header

Tell = Callable[[Happening], None]
_Happenings = Callable[[Context, Header, Any], Iterator[Happening]]


def _token(inode: Inode) -> Token | None:
    """What watches a directory in the topmost of its layers."""
    return inode.watch.tokens[0] if inode.watch is not None and inode.watch.tokens else None


def _created(ctx: Context, header: Header, request: Any) -> Iterator[Happening]:
    yield Happening(What.CREATED, header.opcode == Opcode.MKDIR, _token(ctx.inodes.get(header.nodeid)), request.name)


def _removed(ctx: Context, header: Header, request: Any) -> Iterator[Happening]:
    yield Happening(What.DELETED, header.opcode == Opcode.RMDIR, _token(ctx.inodes.get(header.nodeid)), request.name)


def _moved(ctx: Context, header: Header, request: Any) -> Iterator[Happening]:
    source, target = ctx.inodes.get(header.nodeid), ctx.inodes.get(request.newdir)
    moved = target.told(request.newname)
    is_directory = moved is not None and moved.is_directory
    yield Happening(What.MOVED, is_directory, _token(source), request.oldname, _token(target), request.newname)


def _changed(inode: Inode, what: What, ctx: Context) -> Iterator[Happening]:
    for parent, name in ctx.inodes.places(inode):
        yield Happening(what, inode.is_directory, _token(parent), name)
    if inode.is_directory:
        yield Happening(what, True, _token(inode), b"")


def _attributes(ctx: Context, header: Header, request: Any) -> Iterator[Happening]:
    is_content = header.opcode == Opcode.SETATTR and request.valid & Fattr.SIZE
    yield from _changed(ctx.inodes.get(header.nodeid), What.MODIFIED if is_content else What.ATTRIBUTES, ctx)


def _content(ctx: Context, header: Header, request: Any) -> Iterator[Happening]:
    yield from _changed(ctx.inodes.get(header.nodeid), What.MODIFIED, ctx)


def _copied(ctx: Context, header: Header, request: Any) -> Iterator[Happening]:
    yield from _changed(ctx.inodes.get(request.nodeid_out), What.MODIFIED, ctx)


def _closed(ctx: Context, header: Header, request: Any) -> Iterator[Happening]:
    if request.flags & os.O_ACCMODE != os.O_RDONLY and request.fh != NOBODYS:
        yield from _changed(ctx.inodes.get(header.nodeid), What.CLOSED, ctx)


_WHAT: Final[Mapping[int, _Happenings]] = {
    **dict.fromkeys((Opcode.MKDIR, Opcode.MKNOD, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE), _created),
    **dict.fromkeys((Opcode.UNLINK, Opcode.RMDIR), _removed),
    **dict.fromkeys((Opcode.RENAME, Opcode.RENAME2), _moved),
    **dict.fromkeys((Opcode.SETATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR), _attributes),
    **dict.fromkeys((Opcode.WRITE, Opcode.FALLOCATE), _content),
    **dict.fromkeys((Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64), _copied),
    Opcode.RELEASE: _closed,
}


def telling(handlers: Mapping[int, Handler], tell: Tell) -> dict[int, Handler]:
    """The same handlers, those of changes telling of them once they have been made."""
    return {
        opcode: _told(handler, _WHAT[opcode], tell) if opcode in _WHAT else handler
        for opcode, handler in handlers.items()
    }


def _told(handler: Handler, what: _Happenings, tell: Tell) -> Handler:
    def served(ctx: Context, header: Header, request: Any) -> Result:
        result = handler(ctx, header, request)
        if isinstance(result, Generator):
            return later(ctx, header, request, result)
        for happening in what(ctx, header, request):
            tell(happening)
        return result

    def later(ctx: Context, header: Header, request: Any, steps: Later) -> Later:
        result = yield from steps
        for happening in what(ctx, header, request):
            tell(happening)
        return result

    return served
