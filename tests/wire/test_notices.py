"""Notices: complete messages of unique 0, with their code where a reply has its error."""

import struct

from shiftfs.wire import notices
from shiftfs.wire.abi import NoticeCode

BIG = 2**64 - 2


def payload(code: NoticeCode, message: bytes) -> bytes:
    assert struct.unpack_from("@IiQ", message) == (len(message), code, 0)
    return message[16:]


def test_inval_inode() -> None:
    body = payload(NoticeCode.INVAL_INODE, notices.inval_inode(BIG, -1, 0))
    assert struct.unpack("@Qqq", body) == (BIG, -1, 0)
    body = payload(NoticeCode.INVAL_INODE, notices.inval_inode(5, 2**40, 4096))
    assert struct.unpack("@Qqq", body) == (5, 2**40, 4096)


def test_inval_entry() -> None:
    body = payload(NoticeCode.INVAL_ENTRY, notices.inval_entry(BIG, b"n\xff"))
    assert body == struct.pack("@QII", BIG, 2, 0) + b"n\xff\0"


def test_expiring_is_not_invalidating() -> None:
    assert notices.EXPIRE_ONLY == 1
    body = payload(NoticeCode.INVAL_ENTRY, notices.inval_entry(5, b"name", notices.EXPIRE_ONLY))
    assert body == struct.pack("@QII", 5, 4, 1) + b"name\0"


def test_delete() -> None:
    body = payload(NoticeCode.DELETE, notices.delete(5, BIG, b"name"))
    assert body == struct.pack("@QQII", 5, BIG, 4, 0) + b"name\0"


def test_poll_wakeup() -> None:
    assert payload(NoticeCode.POLL, notices.poll_wakeup(BIG)) == struct.pack("@Q", BIG)


def test_resend() -> None:
    assert payload(NoticeCode.RESEND, notices.resend()) == b""
