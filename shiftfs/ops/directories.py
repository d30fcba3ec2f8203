"""Handlers of listings: readdir, readdirplus, fsyncdir.

A listing is a snapshot, made anew whenever somebody reads from the start, sorted by a keyed hash of the names. The
hash is a name's cookie: it stays the same when names beside it come and go, and when the snapshot is made again, so
whoever is in the middle misses nothing and sees nothing twice, with no state kept for him.
"""

import errno
import operator
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from .. import native
from ..inodes import Inode
from ..tree import Descriptor, Listed
from ..wire import dirents, requests
from ..wire.requests import Header
from . import files
from .context import Context, Later, Payload, Result

Row = tuple[int, bytes, int, int]
"""Cookie, name, st_ino, DT_ type."""
Pack = Callable[[Row], bytes | None]

_DIRECTORY: Final = 4
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})
_DOTS: Final = 2
_UNKNOWN_NUMBER: Final = 0xFFFFFFFF
"""d_ino of what cannot be looked at (FUSE_UNKNOWN_INO of libfuse); with 0, readdir(3) would leave it out."""
_HASH_MASK: Final = (1 << 62) - 1
_LARGE: Final = 256 * 1024
"""A directory of this size in bytes is listed by a worker."""

_cookie: Callable[[Row], int] = operator.itemgetter(0)


def readdir(ctx: Context, header: Header, request: requests.Read) -> Result:
    return _answer(ctx, ctx.inodes.get(header.nodeid), request, plus=False)


def readdirplus(ctx: Context, header: Header, request: requests.Read) -> Result:
    return _answer(ctx, ctx.inodes.get(header.nodeid), request, plus=True)


def _answer(ctx: Context, inode: Inode, request: requests.Read, plus: bool) -> Result:
    rows: Sequence[Row] | None = ctx.listings.get(inode) if request.offset else None
    if rows is None:
        if ctx.tree.attributes(inode.entry).size >= _LARGE:
            return _list_later(ctx, inode, request, plus)
        rows = _rows(ctx, ctx.tree.held(inode.entry))
        ctx.listings.keep(inode, rows)
    packed = _pack(ctx, inode, rows, request, plus)
    if not packed:
        ctx.listings.drop(inode)  # read to the end; who is in the middle makes it anew
    return packed


def _list_later(ctx: Context, inode: Inode, request: requests.Read, plus: bool) -> Later:
    held = ctx.tree.held(inode.entry)  # found and checked here; the worker holds it, whatever is evicted meanwhile
    rows: Sequence[Row] = yield partial(_rows, ctx, held)
    ctx.listings.keep(inode, rows)
    return _pack(ctx, inode, rows, request, plus)


def _rows(ctx: Context, held: Any) -> Sequence[Row]:
    """What is listed, sorted. Any thread."""
    parts = ctx.tree.plain_parts(held) if native.rows is not None else None
    rows: Sequence[Row] | None = native.rows(*parts) if parts is not None else None
    return rows if rows is not None else _sorted(ctx.tree.listing(held))


def _sorted(names: list[Listed]) -> list[Row]:
    """`.` and `..` have the cookies 1 and 2. Python's hash of bytes is keyed anew in each process (SipHash), so nobody
    can choose names that collide."""
    rows = [((hash(name) & _HASH_MASK) + _DOTS + 1, name, number, kind) for name, number, kind in names]
    rows.sort()
    return rows


def _pack(ctx: Context, inode: Inode, rows: Sequence[Row], request: requests.Read, plus: bool) -> Payload:
    """As many entries as fit behind the offset. One that does not fit is not adopted."""
    room = min(request.size, len(ctx.scratch))
    parts: list[Payload] = []
    for row in _dots(ctx, inode, request.offset):
        packed = _dot(row) if plus else _bare(row)
        if len(packed) > room:
            return b"".join(parts)
        room -= len(packed)
        parts.append(packed)
    start = bisect_right(rows, request.offset, key=_cookie)
    try:
        if plus and ctx.lane is not None:
            parts.append(ctx.lane.pack(inode, rows, start, room))
        else:
            _pack_rows(partial(with_attributes if plus else _numbered, ctx, inode), rows, start, room, plus, parts)
    except OSError:
        if not parts:
            raise
        # What has been adopted is to be told; whoever asks for what comes behind is told of the error.
    return b"".join(parts)


def _pack_rows(
    pack: Pack, rows: Sequence[Row], start: int, room: int, plus: bool, parts: list[Payload]
) -> None:  # fmt: skip
    size_of = dirents.direntplus_size if plus else dirents.dirent_size
    for index in range(start, len(rows)):
        row = rows[index]
        size = size_of(len(row[1]))
        if size > room:
            break
        found = pack(row)
        if found is not None:
            parts.append(found)
            room -= size


def _dots(ctx: Context, inode: Inode, offset: int) -> list[Row]:
    if offset >= _DOTS:
        return []
    own = ctx.tree.numbers(ctx.tree.attributes(inode.entry))
    dots = [(1, b".", own, _DIRECTORY), (2, b"..", ctx.tree.parent_number(inode.entry), _DIRECTORY)]
    return dots[offset:]


def _numbered(ctx: Context, inode: Inode, row: Row) -> bytes | None:
    """None for a name that has gone since the snapshot, if its number had to be looked up."""
    cookie, name, number, kind = row
    if number == 0:
        try:
            number = ctx.tree.numbers(ctx.tree.lookup(inode.entry, name)[1])
        except OSError as error:
            if error.errno in _GONE:
                return None
            number = _UNKNOWN_NUMBER
    return dirents.dirent(number, cookie, kind, name)


def _bare(row: Row) -> bytes:
    return dirents.dirent(row[2], row[0], row[3], row[1])


def _dot(row: Row) -> bytes:
    """`.` and `..` carry no lookup count."""
    return dirents.direntplus(dirents.NO_ENTRY, row[2], row[0], row[3], row[1])


def with_attributes(ctx: Context, inode: Inode, row: Row) -> bytes | None:
    """None for a name that has gone since the snapshot. One that cannot be looked at is still there: it is told
    without attributes, so who asks for them learns why not."""
    cookie, name, number, kind = row
    try:
        key, attributes, place = ctx.tree.lookup(inode.entry, name)
    except OSError as error:
        if error.errno in _GONE:
            return None
        return dirents.direntplus(dirents.NO_ENTRY, number or _UNKNOWN_NUMBER, cookie, kind, name)
    entry = ctx.adopt(inode, name, key, attributes, place)
    return dirents.direntplus(entry, ctx.tree.numbers(attributes), cookie, attributes.mode >> 12, name)


def synced(ctx: Context, nodeids: set[int], payload: Payload) -> Later:
    """The answer to a change of directories, once they are on disk (mount(8), dirsync)."""
    for nodeid in nodeids:
        held = ctx.tree.path(ctx.inodes.get(nodeid).entry)
        opened: Descriptor = yield partial(ctx.tree.open_waiting, held, os.O_RDONLY | os.O_DIRECTORY)
        yield partial(files.flush_to_disk, opened, False)
    return payload


def fsyncdir(ctx: Context, header: Header, request: requests.Fsync) -> Later:
    inode = ctx.inodes.get(header.nodeid)
    held = ctx.tree.path(inode.entry)
    opened: Descriptor = yield partial(ctx.tree.open_waiting, held, os.O_RDONLY | os.O_DIRECTORY)
    return (yield from files.sync_descriptor(ctx, header, opened, inode, request))
