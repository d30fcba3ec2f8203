"""Bytes from the kernel -> requests: any byte string gives a request or a ProtocolError, nothing else.

Owns the decoder table and every check of lengths and names. Never reads a descriptor, never looks at what a
request means, keeps nothing. Runs on the loop's thread; pure, so any thread will do.

A decoder takes the body: what follows the 40-byte header, extensions cut off. It knows no unique, so
`ProtocolError.unique` is 0 there; `decode` fills it in, and a caller that goes through `DECODERS` itself
knows it already. Mind that FORGET and BATCH_FORGET take no reply, not even an error.

Names over 255 bytes pass: which length is too long is for the layer to say (ENAMETOOLONG).
"""

import struct
from struct import Struct
from typing import Any, NamedTuple, Protocol

from shiftfs.wire import abi
from shiftfs.wire.abi import EINVAL, ENOSYS, HEADER, InitFlag, Opcode

# A name a line, twice, would be a fifth of this file.
# isort: off
from shiftfs.wire.bodies import (
    Access, BatchForget, Bmap, CopyFileRange, Create, Destroy, Fallocate, Flush, Forget, Fsync, Getattr,
    Getxattr, Init, Interrupt, Ioctl, Link, Listxattr, Lk, Lookup, Lseek, Mkdir, Mknod, NotifyReply, Open,
    Poll, Read, Readlink, Release, Removexattr, Rename, Request, Rmdir, Setattr, Setxattr, Statfs, Statx,
    Symlink, Syncfs, Unlink, Write,
)
# isort: on

__all__ = [  # noqa: RUF022
    "DECODERS", "Decoder", "Header", "ProtocolError", "decode", "decode_header", "decoders",
    "Access", "BatchForget", "Bmap", "CopyFileRange", "Create", "Destroy", "Fallocate", "Flush", "Forget",
    "Fsync", "Getattr", "Getxattr", "Init", "Interrupt", "Ioctl", "Link", "Listxattr", "Lk", "Lookup",
    "Lseek", "Mkdir", "Mknod", "NotifyReply", "Open", "Poll", "Read", "Readlink", "Release", "Removexattr",
    "Rename", "Request", "Rmdir", "Setattr", "Setxattr", "Statfs", "Statx", "Symlink", "Syncfs", "Unlink",
    "Write",
]

INIT_EXT = int(InitFlag.INIT_EXT)


class Decoder(Protocol):
    """What a body gives depends on the opcode, which no annotation of a table can say."""

    def __call__(self, body: memoryview, /) -> Any: ...


class ProtocolError(Exception):
    """A message that cannot be what it claims to be. errno is what to answer; unique is 0 where not known."""

    def __init__(self, message: str, unique: int = 0, errno: int = EINVAL) -> None:
        super().__init__(message)
        self.unique = unique
        self.errno = errno


class Header(NamedTuple):
    length: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    extlen: int  # bytes


def length(message: bytearray) -> int:
    """What a message says of its own length, in bytes."""
    return int(HEADER.unpack_from(message)[0])


def decode_header(view: memoryview) -> Header:
    """The header of one whole message, lengths checked. Raises ProtocolError."""
    try:
        length, opcode, unique, nodeid, uid, gid, pid, extensions = HEADER.unpack_from(view)
    except struct.error:
        raise ProtocolError(f"message of {len(view)} bytes where a header has {HEADER.size}") from None
    if length != len(view):
        raise ProtocolError(f"message of {len(view)} bytes says it has {length}", unique)
    if HEADER.size + extensions * 8 > length:
        raise ProtocolError(f"message of {length} bytes says that {extensions * 8} are extensions", unique)
    return Header(length, opcode, unique, nodeid, uid, gid, pid, extensions * 8)


def decode(view: memoryview, table: dict[int, Decoder] | None = None) -> tuple[Header, Request]:
    """One whole message by the given table, or by DECODERS. Raises ProtocolError."""
    header = decode_header(view)
    decoder = (DECODERS if table is None else table).get(header.opcode)
    if decoder is None:
        raise ProtocolError(f"unknown opcode {header.opcode}", header.unique, ENOSYS)
    try:
        return header, decoder(view[HEADER.size : header.length - header.extlen])
    except ProtocolError as error:
        error.unique = header.unique
        raise


def fixed(layout: Struct, body: memoryview) -> tuple[Any, ...]:
    """The fields of a body that is one struct and nothing more."""
    try:
        return layout.unpack(body)
    except struct.error:
        raise wrong_length(layout, body) from None


def leading(layout: Struct, body: memoryview) -> tuple[Any, ...]:
    """The fields of the struct that a body begins with."""
    try:
        return layout.unpack_from(body)
    except struct.error:
        raise wrong_length(layout, body) from None


def wrong_length(layout: Struct, body: memoryview) -> ProtocolError:
    return ProtocolError(f"body of {len(body)} bytes where {layout.size} are needed")


def nothing(body: memoryview) -> tuple[()]:
    if len(body):
        raise ProtocolError(f"body of {len(body)} bytes where there is none")
    return ()


def entry_name(terminated: bytes) -> bytes:
    """A name in a directory, given with its NUL. "." and ".." come only under EXPORT_SUPPORT, never taken."""
    end = len(terminated) - 1
    if end < 1 or terminated.find(b"\0") != end or b"/" in terminated or terminated in (b".\0", b"..\0"):
        raise ProtocolError(f"not a name: {terminated[:64]!r}")
    return terminated[:end]


def xattr_name(terminated: bytes) -> bytes:
    """A name of an extended attribute, given with its NUL; slashes and dots are free."""
    end = len(terminated) - 1
    if end < 1 or terminated.find(b"\0") != end:
        raise ProtocolError(f"not a name of an attribute: {terminated[:64]!r}")
    return terminated[:end]


def two_strings(body: memoryview) -> tuple[bytes, bytes]:
    """Two strings, each with its NUL still on."""
    raw = body.tobytes()
    cut = raw.find(b"\0") + 1
    return raw[:cut], raw[cut:]


def decode_lookup(body: memoryview) -> Lookup:
    return Lookup(entry_name(body.tobytes()))


def decode_forget(body: memoryview) -> Forget:
    try:
        return Forget(*abi.FORGET_IN.unpack(body))
    except struct.error:
        raise wrong_length(abi.FORGET_IN, body) from None


def decode_batch_forget(body: memoryview) -> BatchForget:
    (count,) = leading(abi.BATCH_FORGET_IN, body)
    items = body[abi.BATCH_FORGET_IN.size :]
    if len(items) != count * abi.FORGET_ONE.size:
        raise ProtocolError(f"{len(items)} bytes of items where {count} items are announced")
    return BatchForget(tuple(abi.FORGET_ONE.iter_unpack(items)))


def decode_getattr(body: memoryview) -> Getattr:
    try:
        return Getattr(*abi.GETATTR_IN.unpack(body))
    except struct.error:
        raise wrong_length(abi.GETATTR_IN, body) from None


def decode_symlink(body: memoryview) -> Symlink:
    name, target = two_strings(body)
    if len(target) < 2 or target.find(b"\0") != len(target) - 1:
        raise ProtocolError(f"not a symlink's target: {target[:64]!r}")
    return Symlink(entry_name(name), target[:-1])


def decode_mknod(body: memoryview) -> Mknod:
    mode, rdev, umask = leading(abi.MKNOD_IN, body)
    return Mknod(mode, rdev, umask, entry_name(body[abi.MKNOD_IN.size :].tobytes()))


def decode_mkdir(body: memoryview) -> Mkdir:
    mode, umask = leading(abi.MKDIR_IN, body)
    return Mkdir(mode, umask, entry_name(body[abi.MKDIR_IN.size :].tobytes()))


def decode_unlink(body: memoryview) -> Unlink:
    return Unlink(entry_name(body.tobytes()))


def decode_rmdir(body: memoryview) -> Rmdir:
    return Rmdir(entry_name(body.tobytes()))


def decode_rename(body: memoryview) -> Rename:
    (newdir,) = leading(abi.RENAME_IN, body)
    old, new = two_strings(body[abi.RENAME_IN.size :])
    return Rename(newdir, 0, entry_name(old), entry_name(new))


def decode_rename2(body: memoryview) -> Rename:
    newdir, flags = leading(abi.RENAME2_IN, body)
    old, new = two_strings(body[abi.RENAME2_IN.size :])
    return Rename(newdir, flags, entry_name(old), entry_name(new))


def decode_link(body: memoryview) -> Link:
    (oldnodeid,) = leading(abi.LINK_IN, body)
    return Link(oldnodeid, entry_name(body[abi.LINK_IN.size :].tobytes()))


def decode_read(body: memoryview) -> Read:
    try:
        return Read(*abi.READ_IN.unpack(body))
    except struct.error:
        raise wrong_length(abi.READ_IN, body) from None


def decode_write(body: memoryview) -> Write:
    try:
        fh, offset, size, write_flags, lock_owner, flags = abi.WRITE_IN.unpack_from(body)
    except struct.error:
        raise wrong_length(abi.WRITE_IN, body) from None
    data = body[abi.WRITE_IN.size :]
    if len(data) != size:
        raise ProtocolError(f"{len(data)} bytes of data where {size} are announced")
    return Write(fh, offset, write_flags, lock_owner, flags, data)


def decode_setxattr(body: memoryview) -> Setxattr:
    size, flags, setxattr_flags = leading(abi.SETXATTR_IN, body)
    return Setxattr(flags, setxattr_flags, *name_and_value(body[abi.SETXATTR_IN.size :], size))


def decode_setxattr_compat(body: memoryview) -> Setxattr:
    """The short form, in use until SETXATTR_EXT is negotiated."""
    size, flags = leading(abi.SETXATTR_IN_COMPAT, body)
    return Setxattr(flags, 0, *name_and_value(body[abi.SETXATTR_IN_COMPAT.size :], size))


def name_and_value(rest: memoryview, size: int) -> tuple[bytes, bytes]:
    name, value = two_strings(rest)
    if len(value) != size:
        raise ProtocolError(f"{len(value)} bytes of value where {size} are announced")
    return xattr_name(name), value


def decode_getxattr(body: memoryview) -> Getxattr:
    (size,) = leading(abi.GETXATTR_IN, body)
    return Getxattr(size, xattr_name(body[abi.GETXATTR_IN.size :].tobytes()))


def decode_init(body: memoryview) -> Init:
    if len(body) == abi.INIT_IN_COMPAT.size:
        return Init(*abi.INIT_IN_COMPAT.unpack(body))
    major, minor, max_readahead, flags, flags2 = leading(abi.INIT_IN, body)
    # The rest of what a later major version says is not for us to judge: it is answered with our version.
    if len(body) != abi.INIT_IN.size and major <= abi.MAJOR:
        raise wrong_length(abi.INIT_IN, body)
    return Init(major, minor, max_readahead, flags | flags2 << 32 if flags & INIT_EXT else flags)


def decode_create(body: memoryview) -> Create:
    flags, mode, umask, open_flags = leading(abi.CREATE_IN, body)
    return Create(flags, mode, umask, open_flags, entry_name(body[abi.CREATE_IN.size :].tobytes()))


def decode_tmpfile(body: memoryview) -> Create:
    """The name is the kernel's placeholder "/" (vfs_tmpfile) and means nothing: it is checked and dropped."""
    flags, mode, umask, open_flags = leading(abi.CREATE_IN, body)
    xattr_name(body[abi.CREATE_IN.size :].tobytes())
    return Create(flags, mode, umask, open_flags, b"")


def decode_ioctl(body: memoryview) -> Ioctl:
    fh, flags, cmd, arg, in_size, out_size = leading(abi.IOCTL_IN, body)
    data = body[abi.IOCTL_IN.size :]
    if len(data) != in_size:
        raise ProtocolError(f"{len(data)} bytes of data where {in_size} are announced")
    return Ioctl(fh, flags, cmd, arg, in_size, out_size, data.tobytes())


def decode_notify_reply(body: memoryview) -> NotifyReply:
    offset, size = leading(abi.NOTIFY_RETRIEVE_IN, body)
    data = body[abi.NOTIFY_RETRIEVE_IN.size :]
    if len(data) != size:
        raise ProtocolError(f"{len(data)} bytes of data where {size} are announced")
    return NotifyReply(offset, size, data.tobytes())


BY_OPCODE: dict[Opcode, Decoder] = {
    Opcode.LOOKUP: decode_lookup,
    Opcode.FORGET: decode_forget,
    Opcode.GETATTR: decode_getattr,
    Opcode.SETATTR: lambda body: Setattr(*fixed(abi.SETATTR_IN, body)),
    Opcode.READLINK: lambda body: Readlink(*nothing(body)),
    Opcode.SYMLINK: decode_symlink,
    Opcode.MKNOD: decode_mknod,
    Opcode.MKDIR: decode_mkdir,
    Opcode.UNLINK: decode_unlink,
    Opcode.RMDIR: decode_rmdir,
    Opcode.RENAME: decode_rename,
    Opcode.LINK: decode_link,
    Opcode.OPEN: lambda body: Open(*fixed(abi.OPEN_IN, body)),
    Opcode.READ: decode_read,
    Opcode.WRITE: decode_write,
    Opcode.STATFS: lambda body: Statfs(*nothing(body)),
    Opcode.RELEASE: lambda body: Release(*fixed(abi.RELEASE_IN, body)),
    Opcode.FSYNC: lambda body: Fsync(*fixed(abi.FSYNC_IN, body)),
    Opcode.SETXATTR: decode_setxattr,
    Opcode.GETXATTR: decode_getxattr,
    Opcode.LISTXATTR: lambda body: Listxattr(*fixed(abi.GETXATTR_IN, body)),
    Opcode.REMOVEXATTR: lambda body: Removexattr(xattr_name(body.tobytes())),
    Opcode.FLUSH: lambda body: Flush(*fixed(abi.FLUSH_IN, body)),
    Opcode.INIT: decode_init,
    Opcode.OPENDIR: lambda body: Open(*fixed(abi.OPEN_IN, body)),
    Opcode.READDIR: decode_read,
    Opcode.RELEASEDIR: lambda body: Release(*fixed(abi.RELEASE_IN, body)),
    Opcode.FSYNCDIR: lambda body: Fsync(*fixed(abi.FSYNC_IN, body)),
    Opcode.GETLK: lambda body: Lk(*fixed(abi.LK_IN, body)),
    Opcode.SETLK: lambda body: Lk(*fixed(abi.LK_IN, body)),
    Opcode.SETLKW: lambda body: Lk(*fixed(abi.LK_IN, body)),
    Opcode.ACCESS: lambda body: Access(*fixed(abi.ACCESS_IN, body)),
    Opcode.CREATE: decode_create,
    Opcode.INTERRUPT: lambda body: Interrupt(*fixed(abi.INTERRUPT_IN, body)),
    Opcode.BMAP: lambda body: Bmap(*fixed(abi.BMAP_IN, body)),
    Opcode.DESTROY: lambda body: Destroy(*nothing(body)),
    Opcode.IOCTL: decode_ioctl,
    Opcode.POLL: lambda body: Poll(*fixed(abi.POLL_IN, body)),
    Opcode.NOTIFY_REPLY: decode_notify_reply,
    Opcode.BATCH_FORGET: decode_batch_forget,
    Opcode.FALLOCATE: lambda body: Fallocate(*fixed(abi.FALLOCATE_IN, body)),
    Opcode.READDIRPLUS: decode_read,
    Opcode.RENAME2: decode_rename2,
    Opcode.LSEEK: lambda body: Lseek(*fixed(abi.LSEEK_IN, body)),
    Opcode.COPY_FILE_RANGE: lambda body: CopyFileRange(*fixed(abi.COPY_FILE_RANGE_IN, body)),
    Opcode.SYNCFS: lambda body: Syncfs(*fixed(abi.SYNCFS_IN, body)),
    Opcode.TMPFILE: decode_tmpfile,
    Opcode.STATX: lambda body: Statx(*fixed(abi.STATX_IN, body)),
    Opcode.COPY_FILE_RANGE_64: lambda body: CopyFileRange(*fixed(abi.COPY_FILE_RANGE_IN, body)),
}

# Plain ints as keys: looking one up in a table of IntEnum keys costs a comparison through the enum.
DECODERS: dict[int, Decoder] = {int(opcode): decoder for opcode, decoder in BY_OPCODE.items()}


def decoders(setxattr_ext: bool) -> dict[int, Decoder]:
    """The table to use after negotiation: SETXATTR has its long form only where SETXATTR_EXT was taken."""
    table = dict(DECODERS)
    if not setxattr_ext:
        table[int(Opcode.SETXATTR)] = decode_setxattr_compat
    return table
