"""Replies, taken apart again with the C compiler's own alignment ("@")."""

import struct

import pytest

from shiftfs.wire import replies
from shiftfs.wire.replies import Attr, StatxFields

BIG = 2**64 - 2
ATTR = Attr(BIG, 2**40, 3, -1, -(2**40), 6, 7, 8, 9, 0o100644, 11, 1000, 0xFFFFFFFF, 0x103, 4096, 1)
C_ATTR = "QQQqqqIIIIIIIIII"
ENTRY = replies.entry(BIG, 5, (1, 500), (2, 600), ATTR)


def apart(fields: str, payload: bytes) -> tuple[int, ...]:
    """The payload has these fields and not a byte more."""
    return struct.unpack("@" + fields, payload)


def test_a_reply_has_its_length_and_unique() -> None:
    assert replies.reply(2**63 + 1, b"payload") == struct.pack("@IiQ", 23, 0, 2**63 + 1) + b"payload"
    assert replies.reply(9) == struct.pack("@IiQ", 16, 0, 9)
    assert replies.header(9, 7) + b"payload" == replies.reply(9, b"payload")


def test_an_error_is_negative() -> None:
    assert apart("IiQ", replies.error(9, 2)) == (16, -2, 9)
    assert apart("IiQ", replies.error(9, 511)) == (16, -511, 9)


@pytest.mark.parametrize("errno", [0, -2, 512, 524, 2**31])
def test_an_error_that_the_kernel_would_not_take_is_eio(errno: int) -> None:
    assert apart("IiQ", replies.error(9, errno)) == (16, -5, 9)


def test_attr_fields_are_the_kernels_in_its_order() -> None:
    assert " ".join(Attr._fields) == (
        "ino size blocks atime mtime ctime atimensec mtimensec ctimensec "
        "mode nlink uid gid rdev blksize flags"
    )


def test_entry() -> None:
    assert len(ENTRY) == 128
    assert apart("QQQQII" + C_ATTR, ENTRY) == (BIG, 5, 1, 2, 500, 600, *ATTR)
    assert replies.entry(BIG, 5, (1, 500), (2, 600), tuple(ATTR)) == ENTRY


def test_attr() -> None:
    assert apart("QII" + C_ATTR, replies.attr((2**40, 999_999_999), ATTR)) == (2**40, 999_999_999, 0, *ATTR)


def test_open_and_create() -> None:
    opened = replies.open(BIG, 0x83, -7)
    assert apart("QIi", opened) == (BIG, 0x83, -7)
    assert apart("QIi", replies.open(1, 2)) == (1, 2, 0)
    assert replies.create(ENTRY, opened) == ENTRY + opened


def test_statfs() -> None:
    payload = replies.statfs(BIG, 2, 3, 4, 5, 4096, 255, 512)
    assert apart("QQQQQIIII6I", payload) == (BIG, 2, 3, 4, 5, 4096, 255, 512, 0, *[0] * 6)


def test_small_ones() -> None:
    assert apart("II", replies.write(131072)) == (131072, 0)
    assert apart("II", replies.xattr_size(65536)) == (65536, 0)
    assert apart("QQII", replies.lk(1, 2**63 - 1, 2, 4242)) == (1, 2**63 - 1, 2, 4242)
    assert apart("II", replies.poll(5)) == (5, 0)
    assert apart("Q", replies.lseek(2**40)) == (2**40,)
    assert apart("Q", replies.copy_file_range_64(2**40)) == (2**40,)


def test_ioctl() -> None:
    payload = replies.ioctl(-1, b"data")
    assert apart("iIII", payload[:16]) == (-1, 0, 0, 0)
    assert payload[16:] == b"data"
    assert len(replies.ioctl(0)) == 16


def test_statx() -> None:
    fields = StatxFields(
        0xFFF, 4096, BIG, 2, 1000, 1001, 0o100644, BIG - 1, 2**40, 8, BIG - 2,
        -1, 11, -2, 12, -3, 13, -(2**40), 14, 15, 16, 17, 18,
    )  # fmt: skip
    payload = replies.statx((1, 2), 3, fields)
    assert len(payload) == 32 + 256
    got = apart("QII2Q" + "IIQIIIHHQQQQ" + "qIi" * 4 + "IIII14Q", payload)
    assert got == (
        1, 2, 3, 0, 0,
        *fields[:7], 0, *fields[7:11],
        -1, 11, 0, -2, 12, 0, -3, 13, 0, -(2**40), 14, 0,
        15, 16, 17, 18, *[0] * 14,
    )  # fmt: skip


def test_init() -> None:
    payload = replies.init(
        7, 45, max_readahead=1, flags=0x1234_89ABCDEF, max_background=3, congestion_threshold=4, max_write=5,
        time_gran=6, max_pages=7,
    )  # fmt: skip
    got = apart("IIIIHHIIHHIIH11H", payload)
    assert got == (7, 45, 1, 0x89ABCDEF, 3, 4, 5, 6, 7, 0, 0x1234, 0, 0, *[0] * 11)
    assert len(payload) == 64


@pytest.mark.parametrize("field", ["ino", "mode", "uid", "mtimensec"])
def test_a_number_that_does_not_fit_is_not_sent(field: str) -> None:
    with pytest.raises(struct.error):
        replies.attr((1, 0), ATTR._replace(**{field: -1}))
