"""Every decoder: whole, cut at every length, too long, byte by byte, and with whatever hypothesis thinks of.

The bytes are made here with the C compiler's own alignment ("@"), not with the layouts under test.
"""

import re
import struct
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shiftfs.wire import requests as r
from shiftfs.wire.abi import EINVAL, ENOSYS, Opcode
from shiftfs.wire.requests import DECODERS, ProtocolError, decode, decode_header, decoders

BIG = 2**63 + 5  # a handle or owner of all 64 bits
UNIQUE = 2**63 + 12345


def message(opcode: int, body: bytes, extensions: bytes = b"", length: int | None = None) -> memoryview:
    total = 40 + len(body) + len(extensions) if length is None else length
    header = struct.pack("@IIQQIIIHH", total, opcode, UNIQUE, 7, 1000, 1001, 4242, len(extensions) // 8, 0)
    return memoryview(header + body + extensions)


def body_of(fields: str, *values: int) -> bytes:
    return struct.pack("@" + fields, *values)


RENAME_NAMES = b"old\0new name\0"
READ = (
    body_of("QqIIQII", BIG, 2**40, 131072, 2, BIG - 1, 0o100000, 0),
    r.Read(BIG, 2**40, 131072, 2, BIG - 1, 0o100000),
)
OPEN = (body_of("II", 0o2, 1), r.Open(0o2, 1))
RELEASE = (body_of("QIIQ", BIG, 0o1, 2, 99), r.Release(BIG, 0o1, 2, 99))
FSYNC = (body_of("QII", BIG, 1, 0), r.Fsync(BIG, 1))
LK = (
    body_of("QQQQIIII", BIG, BIG + 1, 10, 2**63 - 1, 1, 4242, 1, 0),
    r.Lk(BIG, BIG + 1, 10, 2**63 - 1, 1, 4242, 1),
)
COPY = (body_of("QQQQQQQ", 1, 2, 3, 4, 5, 2**64 - 1, 0), r.CopyFileRange(1, 2, 3, 4, 5, 2**64 - 1, 0))

SAMPLES: dict[Opcode, tuple[bytes, tuple[Any, ...]]] = {
    Opcode.LOOKUP: (b"n\xff\xfe me\0", r.Lookup(b"n\xff\xfe me")),
    Opcode.FORGET: (body_of("Q", BIG), r.Forget(BIG)),
    Opcode.GETATTR: (body_of("IIQ", 1, 0, BIG), r.Getattr(1, BIG)),
    Opcode.SETATTR: (
        body_of("IIQQQqqqIIIIIIII", 2047, 0, BIG, 2**40, 9, -1, -(2**40), 3, 4, 5, 6, 0o777, 0, 100, 101, 0),
        r.Setattr(2047, BIG, 2**40, 9, -1, -(2**40), 3, 4, 5, 6, 0o777, 100, 101),
    ),
    Opcode.READLINK: (b"", r.Readlink()),
    Opcode.SYMLINK: (b"link\0../a/target\0", r.Symlink(b"link", b"../a/target")),
    Opcode.MKNOD: (body_of("IIII", 0o20644, 0x103, 0o22, 0) + b"x\0", r.Mknod(0o20644, 0x103, 0o22, b"x")),
    Opcode.MKDIR: (body_of("II", 0o755, 0o22) + b"d\0", r.Mkdir(0o755, 0o22, b"d")),
    Opcode.UNLINK: (b"...\0", r.Unlink(b"...")),
    Opcode.RMDIR: (b".d\0", r.Rmdir(b".d")),
    Opcode.RENAME: (body_of("Q", BIG) + RENAME_NAMES, r.Rename(BIG, 0, b"old", b"new name")),
    Opcode.LINK: (body_of("Q", BIG) + b"l\0", r.Link(BIG, b"l")),
    Opcode.OPEN: OPEN,
    Opcode.READ: READ,
    Opcode.WRITE: (
        body_of("QqIIQII", BIG, 2**40, 5, 4, BIG - 1, 0o2001, 0) + b"d\0a/a",
        r.Write(BIG, 2**40, 4, BIG - 1, 0o2001, memoryview(b"d\0a/a")),
    ),
    Opcode.STATFS: (b"", r.Statfs()),
    Opcode.RELEASE: RELEASE,
    Opcode.FSYNC: FSYNC,
    Opcode.SETXATTR: (
        body_of("IIII", 4, 2, 1, 0) + b"user.a/.\0v\0/\xff", r.Setxattr(2, 1, b"user.a/.", b"v\0/\xff")
    ),
    Opcode.GETXATTR: (body_of("II", 65536, 0) + b"user.a\0", r.Getxattr(65536, b"user.a")),
    Opcode.LISTXATTR: (body_of("II", 65536, 0), r.Listxattr(65536)),
    Opcode.REMOVEXATTR: (b"user.a\0", r.Removexattr(b"user.a")),
    Opcode.FLUSH: (body_of("QIIQ", BIG, 0, 0, 99), r.Flush(BIG, 99)),
    Opcode.INIT: (
        body_of("IIIII11I", 7, 45, 131072, 1 << 30 | 5, 9, *[0] * 11),
        r.Init(7, 45, 131072, 9 << 32 | 1 << 30 | 5),
    ),
    Opcode.OPENDIR: OPEN,
    Opcode.READDIR: READ,
    Opcode.RELEASEDIR: RELEASE,
    Opcode.FSYNCDIR: FSYNC,
    Opcode.GETLK: LK,
    Opcode.SETLK: LK,
    Opcode.SETLKW: LK,
    Opcode.ACCESS: (body_of("II", 4, 0), r.Access(4)),
    Opcode.CREATE: (body_of("IIII", 0o102, 0o644, 0o22, 1) + b"f\0", r.Create(0o102, 0o644, 0o22, 1, b"f")),
    Opcode.INTERRUPT: (body_of("Q", BIG), r.Interrupt(BIG)),
    Opcode.BMAP: (body_of("QII", BIG, 512, 0), r.Bmap(BIG, 512)),
    Opcode.DESTROY: (b"", r.Destroy()),
    Opcode.IOCTL: (
        body_of("QIIQII", BIG, 16, 0x40086602, BIG + 2, 3, 8) + b"a\0b",
        r.Ioctl(BIG, 16, 0x40086602, BIG + 2, 3, 8, b"a\0b"),
    ),
    Opcode.POLL: (body_of("QQII", BIG, BIG + 1, 1, 5), r.Poll(BIG, BIG + 1, 1, 5)),
    Opcode.NOTIFY_REPLY: (body_of("QQIIQQ", 0, 8192, 3, 0, 0, 0) + b"a\0b", r.NotifyReply(8192, 3, b"a\0b")),
    Opcode.BATCH_FORGET: (body_of("IIQQQQ", 2, 0, 5, 1, BIG, 9), r.BatchForget(((5, 1), (BIG, 9)))),
    Opcode.FALLOCATE: (body_of("QQQII", BIG, 4096, 2**40, 3, 0), r.Fallocate(BIG, 4096, 2**40, 3)),
    Opcode.READDIRPLUS: READ,
    Opcode.RENAME2: (body_of("QII", BIG, 1, 0) + RENAME_NAMES, r.Rename(BIG, 1, b"old", b"new name")),
    Opcode.LSEEK: (body_of("QqII", BIG, -1, 3, 0), r.Lseek(BIG, -1, 3)),
    Opcode.COPY_FILE_RANGE: COPY,
    Opcode.SYNCFS: (body_of("Q", 0), r.Syncfs()),
    Opcode.TMPFILE: (
        body_of("IIII", 0o20200002, 0o600, 0o77, 1) + b"/\0",
        r.Create(0o20200002, 0o600, 0o77, 1, b""),
    ),
    Opcode.STATX: (body_of("IIQII", 1, 0, BIG, 0x2000, 0xFFF), r.Statx(1, BIG, 0x2000, 0xFFF)),
    Opcode.COPY_FILE_RANGE_64: COPY,
}
INIT_COMPAT = 16

every_opcode = pytest.mark.parametrize("opcode", SAMPLES, ids=lambda opcode: opcode.name)


def refusal(view: memoryview, table: dict[int, r.Decoder] | None = None) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode(view, table)
    return caught.value


def test_every_opcode_has_a_sample() -> None:
    """SETUPMAPPING and REMOVEMAPPING are virtiofs's alone."""
    assert set(SAMPLES) == set(DECODERS) == set(Opcode) - {Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING}


@every_opcode
def test_whole(opcode: Opcode) -> None:
    body, expected = SAMPLES[opcode]
    header, request = decode(message(opcode, body))
    assert header == (40 + len(body), opcode, UNIQUE, 7, 1000, 1001, 4242, 0)
    assert type(request) is type(expected)
    assert request == expected


@every_opcode
def test_extensions_are_cut_off(opcode: Opcode) -> None:
    body, expected = SAMPLES[opcode]
    header, request = decode(message(opcode, body, b"e" * 24))
    assert header.extlen == 24
    assert request == expected


@every_opcode
def test_every_prefix_of_a_message_is_refused(opcode: Opcode) -> None:
    whole = message(opcode, SAMPLES[opcode][0])
    for length in range(len(whole)):
        assert refusal(whole[:length]).unique == (UNIQUE if length >= 40 else 0)


@every_opcode
def test_every_shorter_body_is_refused(opcode: Opcode) -> None:
    body = SAMPLES[opcode][0]
    for length in range(len(body)):
        if (opcode, length) != (Opcode.INIT, INIT_COMPAT):
            error = refusal(message(opcode, body[:length]))
            assert (error.unique, error.errno) == (UNIQUE, EINVAL)


@every_opcode
@pytest.mark.parametrize("fill", [b"\0", b"x"])
def test_every_longer_body_is_refused(opcode: Opcode, fill: bytes) -> None:
    body = SAMPLES[opcode][0]
    for more in (*range(1, 17), 4096):
        assert refusal(message(opcode, body + fill * more)).unique == UNIQUE
        assert refusal(message(opcode, body + fill * more, length=40 + len(body))).unique == UNIQUE


@every_opcode
def test_any_one_byte_changed_gives_a_request_or_a_refusal(opcode: Opcode) -> None:
    whole = bytearray(message(opcode, SAMPLES[opcode][0]))
    for place, was in enumerate(whole):
        for other in (0, 1, was ^ 1, ord("/"), 0x80, 0xFF):
            whole[place] = other
            request_or_refusal(memoryview(whole))
        whole[place] = was


def request_or_refusal(view: memoryview) -> None:
    for table in (decoders(setxattr_ext=True), decoders(setxattr_ext=False)):
        try:
            _, request = decode(view, table)
        except ProtocolError as error:
            assert error.errno in (EINVAL, ENOSYS)
        else:
            assert isinstance(request, tuple)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_a_refusal(data: bytes) -> None:
    request_or_refusal(memoryview(data))


opcodes = st.sampled_from([int(opcode) for opcode in Opcode]) | st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=500)
@given(opcodes, st.binary(max_size=120), st.integers(0, 3) | st.integers(0, 2**16 - 1))
def test_any_bytes_behind_a_header_give_one_of_both(opcode: int, body: bytes, extensions: int) -> None:
    whole = bytearray(message(opcode, body))
    struct.pack_into("@H", whole, 36, extensions)
    request_or_refusal(memoryview(whole))


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(sorted(SAMPLES)), st.integers(0, 90), st.binary(max_size=20))
def test_any_bytes_behind_a_good_beginning_give_one_of_both(opcode: Opcode, keep: int, tail: bytes) -> None:
    request_or_refusal(message(opcode, SAMPLES[opcode][0][:keep] + tail))


NAME = re.compile(rb"(?!\.\.?\0)[^\0/]+\0", re.DOTALL)
NAMED: dict[Opcode, Callable[[bytes], bytes]] = {
    Opcode.LOOKUP: lambda name: name,
    Opcode.MKNOD: lambda name: bytes(16) + name,
    Opcode.MKDIR: lambda name: bytes(8) + name,
    Opcode.UNLINK: lambda name: name,
    Opcode.RMDIR: lambda name: name,
    Opcode.LINK: lambda name: bytes(8) + name,
    Opcode.CREATE: lambda name: bytes(16) + name,
}
NAMED_TWICE: dict[Opcode, Callable[[bytes], bytes]] = {
    Opcode.SYMLINK: lambda name: name + b"target\0",
    Opcode.RENAME: lambda name: bytes(8) + b"old\0" + name,
    Opcode.RENAME2: lambda name: bytes(16) + name + b"new\0",
}
NO_NAMES = [b"", b"\0", b".\0", b"..\0", b"/\0", b"a/b\0", b"a\0b\0", b"a\0\0", b"a", b"\0a\0"]


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(sorted(NAMED)), st.lists(st.sampled_from([b".", b"/", b"\0", b"a", b"\n", b"\xff"])))
@example(Opcode.LOOKUP, [b"a" * 256, b"\0"])
@example(Opcode.LOOKUP, [b"."])
def test_a_name_is_what_a_directory_can_hold(opcode: Opcode, parts: list[bytes]) -> None:
    terminated = b"".join(parts)
    view = message(opcode, NAMED[opcode](terminated))
    if NAME.fullmatch(terminated):
        assert terminated[:-1] in cast(tuple[Any, ...], decode(view)[1])
    else:
        assert refusal(view).errno == EINVAL


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_name(name: bytes) -> None:
    for opcode, body in {**NAMED, **NAMED_TWICE}.items():
        refusal(message(opcode, body(name)))


@pytest.mark.parametrize("target", [b"\0", b"", b"t", b"t\0\0", b"a\0b\0"])
def test_no_target(target: bytes) -> None:
    refusal(message(Opcode.SYMLINK, b"link\0" + target))


@pytest.mark.parametrize("name", [b"\0", b"", b"user.a", b"user.a\0\0", b"\0user.a\0"])
def test_no_attribute_name(name: bytes) -> None:
    refusal(message(Opcode.REMOVEXATTR, name))
    refusal(message(Opcode.GETXATTR, bytes(8) + name))
    if name.count(b"\0") < 2:  # what follows the first one is the value
        refusal(message(Opcode.SETXATTR, bytes(16) + name))


def test_a_tmpfile_has_no_name_of_its_own_but_a_placeholder() -> None:
    for name in (b"", b"/", b"\0", b"/\0\0", b"a\0b\0"):
        refusal(message(Opcode.TMPFILE, bytes(16) + name))
    assert decode(message(Opcode.TMPFILE, bytes(16) + b"anything\0"))[1] == r.Create(0, 0, 0, 0, b"")


def test_what_counts_do_not_say() -> None:
    for count in (0, 1, 3, 2**32 - 1):
        refusal(message(Opcode.BATCH_FORGET, body_of("IIQQQQ", count, 0, 5, 1, 6, 1)))
    for size in (0, 2, 4, 2**32 - 1):
        refusal(message(Opcode.WRITE, body_of("QqIIQII", 1, 0, size, 0, 0, 0, 0) + b"abc"))
        refusal(message(Opcode.IOCTL, body_of("QIIQII", 1, 0, 0, 0, size, 0) + b"abc"))
        refusal(message(Opcode.NOTIFY_REPLY, body_of("QQIIQQ", 0, 0, size, 0, 0, 0) + b"abc"))
        refusal(message(Opcode.SETXATTR, body_of("IIII", size, 0, 0, 0) + b"user.a\0abc"))


def test_nothing_to_forget_nothing_to_write() -> None:
    assert decode(message(Opcode.BATCH_FORGET, bytes(8)))[1] == r.BatchForget(())
    assert decode(message(Opcode.WRITE, bytes(40)))[1] == r.Write(0, 0, 0, 0, 0, memoryview(b""))
    assert decode(message(Opcode.SETXATTR, bytes(16) + b"user.a\0"))[1] == r.Setxattr(0, 0, b"user.a", b"")


def test_written_data_is_not_copied() -> None:
    buffer = bytearray(message(Opcode.WRITE, SAMPLES[Opcode.WRITE][0]))
    request = cast(r.Write, decode(memoryview(buffer))[1])
    buffer[-1] = ord("Z")
    assert request.data.tobytes() == b"d\0a/Z"


def test_what_outlives_the_buffer_is_copied() -> None:
    for opcode, (body, expected) in SAMPLES.items():
        if opcode != Opcode.WRITE:
            buffer = bytearray(message(opcode, body))
            request = decode(memoryview(buffer))[1]
            buffer[:] = b"\xff" * len(buffer)
            assert request == expected


def test_unknown_opcodes() -> None:
    for opcode in (0, 7, 19, 48, 49, 54, 4096, 26 << 24, 2**32 - 1):
        error = refusal(message(opcode, b"whatever"))
        assert (error.unique, error.errno) == (UNIQUE, ENOSYS)


@pytest.mark.parametrize("length", [0, 39, 40, 47, 49, 2**32 - 1])
def test_a_length_that_is_not_the_messages(length: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_header(message(Opcode.FORGET, bytes(8), length=length))
    assert (caught.value.unique, caught.value.errno) == (UNIQUE, EINVAL)


def test_more_extensions_than_message() -> None:
    for opcode, (body, _) in SAMPLES.items():
        whole = bytearray(message(opcode, body))
        struct.pack_into("@H", whole, 36, len(body) // 8 + 1)
        assert refusal(memoryview(whole)).unique == UNIQUE


def test_the_short_form_of_setxattr() -> None:
    view = message(Opcode.SETXATTR, body_of("II", 3, 1) + b"user.a\0abc")
    assert decode(view, decoders(setxattr_ext=False))[1] == r.Setxattr(1, 0, b"user.a", b"abc")
    for length in range(len(view) - 40):
        refusal(message(Opcode.SETXATTR, bytes(view[40 : 40 + length])), decoders(setxattr_ext=False))
    refusal(view, decoders(setxattr_ext=True))
    assert decoders(setxattr_ext=True) == DECODERS


def test_init_of_old_kernels_and_of_unknown_ones() -> None:
    old = body_of("IIII", 7, 34, 131072, 0x3FFFFFFF)
    assert decode(message(Opcode.INIT, old))[1] == r.Init(7, 34, 131072, 0x3FFFFFFF)
    without_ext = body_of("IIIII11I", 7, 36, 0, 5, 9, *[0] * 11)
    assert decode(message(Opcode.INIT, without_ext))[1] == r.Init(7, 36, 0, 5)
    later = body_of("IIIII20I", 8, 1, 0, 0, 0, *[1] * 20)
    assert cast(r.Init, decode(message(Opcode.INIT, later))[1])[:2] == (8, 1)
