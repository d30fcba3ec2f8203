"""Which requests of a mount are served natively (shiftfs/native/lane.c), and with what.

Owns the choice, once for each mount. The lane does a part of what the handlers do, so whatever makes a mount's requests
special to them turns it off as a whole, or leaves reading or writing to them; what makes a single request special it
sees for itself. Loop thread.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Protocol

from . import native
from .channel import Buffers
from .ops import HANDLERS, LAYERED_HANDLERS, Handler, attributes, directories, files, locks, namespace, xattrs
from .ops.context import Context
from .reads import Reads
from .sys import groups
from .tree import Names, PlainCopies
from .wire.abi import Opcode

_SERVED: Final[dict[int, Handler]] = {
    Opcode.LOOKUP: namespace.lookup,
    Opcode.FORGET: namespace.forget,
    Opcode.BATCH_FORGET: namespace.batch_forget,
    Opcode.GETATTR: attributes.getattr,
    Opcode.GETXATTR: xattrs.getxattr,
    Opcode.READDIR: directories.readdir,
    Opcode.READDIRPLUS: directories.readdirplus,
}
_CHANGES: Final = (
    Opcode.SETATTR, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.UNLINK, Opcode.RENAME, Opcode.RENAME2
)  # fmt: skip


class Lane(Protocol):
    """What shiftfs._native.Lane does."""

    def serve(self) -> int:
        """Serve requests while there is nothing else to do. The size of one that is left to the handlers, in the
        present buffer; 0 for none, or a negative errno."""

    def answered(self) -> bool:
        """The request that was left has been answered. Is it the lane's turn again: is there another, and nothing else
        to do?"""

    def others(self) -> list[int]:
        """The descriptors that it has found ready, and that are not its own: whoever they belong to is to be told, as
        some are ready but once."""

    def pack(self, directory: Any, rows: Sequence[Any], start: int, room: int) -> bytearray:
        """READDIRPLUS of the rows (cookie, name, st_ino, DT_ type) from `start` on that there is room for."""

    def counts(self) -> list[tuple[int, int, int, int, int]]:
        """Opcode, requests, errors, nanoseconds in all and at most, since it was last asked."""


def of(
    ctx: Context, fd: int, poll: int, handlers: dict[int, Handler], buffers: Buffers, agents: dict[int, Any],
    reads: Reads, syncs_directories: bool,
) -> Lane | None:  # fmt: skip
    """The lane of a mount; None where there is none, or all of its requests are special. `poll`: the loop's descriptor;
    `agents`: the threads whose requests are; `reads`: those that wait; `syncs_directories`: changes are not
    answered before they are on disk."""
    plain = ctx.tree.plain()
    if native.Lane is None or plain is None or ctx.live is None or ctx.inside is not None:
        return None
    if any(handlers.get(opcode) is not handler for opcode, handler in _SERVED.items()):
        return None  # somebody listens
    contents = native.Contents(
        handles=ctx.handles, at_work=ctx.at_work, slow_until=ctx.slow_until, writers=plain.writers, keep=plain.keep,
        before=ctx.times and ctx.times.before, written=ctx.times and ctx.times.written, ahead=ctx.collected.ahead,
        elsewhere=partial(files.appended_elsewhere, ctx), aside=reads.native, scratch=ctx.scratch,
        noatime=plain.noatime,
        reads=handlers.get(Opcode.READ) is files.read, writes=handlers.get(Opcode.WRITE) is files.write,
    )  # fmt: skip
    made: Lane = native.Lane(
        fd=fd, poll=poll, store=ctx.inodes, buffers=buffers, agents=agents, viewed=ctx.live.viewed,
        readers=ctx.live.readers,
        came_from=plain.came_from, made_of=plain.made_of, uids=ctx.uids.shown, gids=ctx.gids.shown,
        adopt=ctx.adopt_directory, forget=partial(namespace.drop, ctx), let_go=partial(namespace.let_go, ctx),
        devices=plain.devices, is_layered=ctx.tree.layered, first_lower=plain.first_lower, last_layer=plain.last_layer,
        spins=groups.processors() >= 2,  # else it would take the time that the others need
        changes=None if syncs_directories else _changes(ctx, handlers, plain.names), contents=contents,
        locks=_locks(ctx, handlers), open=plain.open,
        listings=(ctx.listings, partial(directories.with_attributes, ctx), plain.drops, plain.noatime_of_directories),
        copies=_copies(plain.copies),
        pipe=tuple(end.fd for end in buffers.pipe) if buffers.pipe is not None else None,
    )  # fmt: skip
    return made


def _locks(ctx: Context, handlers: dict[int, Handler]) -> tuple[Any, ...] | None:
    """The locks of each inode, and whether all that was heard has been told."""
    files = ctx.locks.unlimited if ctx.locks is not None else None
    are_plain = handlers.get(Opcode.SETLK) is locks.setlk and handlers.get(Opcode.SETLKW) is locks.setlkw
    return (files, ctx.live.is_told) if ctx.live is not None and files is not None and are_plain else None


def _copies(copies: PlainCopies | None) -> Any:
    if copies is None:
        return None
    uid, gid = copies.nobody or (-1, -1)
    return native.Copies(
        work=copies.work, attribute=copies.attribute, uuids=copies.uuids, nobody_uid=uid, nobody_gid=gid,
        syncs=copies.syncs, on_copy=copies.on_copy, came_up=copies.came_up,
    )  # fmt: skip


def _changes(ctx: Context, handlers: dict[int, Handler], names: Names | None) -> tuple[Any, ...] | None:
    """Those whose handlers are nobody else's either, as a bit for each opcode, and what they need: the real ids of
    shown ones, and what is left to Python of those that are served. None for none. What is served is up already, so
    that a handler that brings things up at first would not have done so."""
    if names is None or ctx.credentials.squashes or not ctx.kernel_strips_set_gid:
        return None
    own = LAYERED_HANDLERS if ctx.tree.layered else HANDLERS
    opcodes = sum(1 << opcode for opcode in _CHANGES if handlers.get(opcode) is own[opcode])
    return (
        opcodes, ctx.uids.real, ctx.gids.real, partial(namespace.made_natively, ctx),
        *names,
    )  # fmt: skip
