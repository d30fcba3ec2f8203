"""Notices: what is told to the kernel without being asked. Each function gives a complete message.

Owns their layouts. Never decides when one is due, and never writes it: a write may block on the directory's
lock, so that is for the notice threads. Any thread.
"""

import struct

from shiftfs.wire import abi
from shiftfs.wire.abi import InvalEntryFlag, NoticeCode

_ABOUT = struct.Struct("@Q")

EXPIRE_ONLY = int(InvalEntryFlag.EXPIRE_ONLY)


def message(code: NoticeCode, payload: bytes = b"") -> bytes:
    """A notice is a reply to request 0 with its code in place of the error."""
    return abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(payload), code, 0) + payload


def inval_inode(nodeid: int, offset: int, length: int) -> bytes:
    """Drops the attributes, and the pages from offset on: length bytes, or with 0 or less all to the end. A
    negative offset leaves the pages alone."""
    return message(NoticeCode.INVAL_INODE, abi.NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length))


def inval_entry(parent: int, name: bytes, flags: int = 0) -> bytes:
    """Without EXPIRE_ONLY (only where HAS_EXPIRE_ONLY was offered) this detaches mounts below the name."""
    return message(
        NoticeCode.INVAL_ENTRY, abi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags) + name + b"\0"
    )


def about(notice: bytes) -> int:
    """The nodeid of an inode's notice, or of the directory that a name's is about."""
    (nodeid,) = _ABOUT.unpack_from(notice, abi.OUT_HEADER.size)
    return int(nodeid)


def expiring(notice: bytes) -> bytes:
    """The same, but that mounts below a name stay where they are."""
    start = abi.OUT_HEADER.size
    if abi.OUT_HEADER.unpack_from(notice)[1] != NoticeCode.INVAL_ENTRY:
        return notice
    parent, length, flags = abi.NOTIFY_INVAL_ENTRY_OUT.unpack_from(notice, start)
    end = start + abi.NOTIFY_INVAL_ENTRY_OUT.size
    return notice[:start] + abi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, length, flags | EXPIRE_ONLY) + notice[end:]


def delete(parent: int, child: int, name: bytes) -> bytes:
    """The name is gone, if it still leads to child."""
    return message(NoticeCode.DELETE, abi.NOTIFY_DELETE_OUT.pack(parent, child, len(name)) + name + b"\0")


def poll_wakeup(kh: int) -> bytes:
    return message(NoticeCode.POLL, abi.NOTIFY_POLL_WAKEUP_OUT.pack(kh))


def resend() -> bytes:
    """Asks for all requests that were read and not answered, once more, with abi.UNIQUE_RESEND set."""
    return message(NoticeCode.RESEND)
