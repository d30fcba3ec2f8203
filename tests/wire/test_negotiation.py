"""INIT with kernels of several ages: what is taken, what never is, and what the reply says."""

import struct

import pytest

from shiftfs.wire import negotiation
from shiftfs.wire.abi import InitFlag
from shiftfs.wire.negotiation import (
    LEFT,
    TAKEN,
    TAKEN_TO_BE_IDMAPPED,
    TAKEN_TO_PASS_THROUGH,
    TAKEN_TO_REFUSE_OPEN,
    TAKEN_TO_SERVE_LOCKS,
    TAKEN_TO_SERVE_OPEN,
    TAKEN_TO_SHOW_ACLS,
    TAKEN_TO_WRITE_BACK,
    Offer,
    negotiate,
)
from shiftfs.wire.requests import ProtocolError

# What the kernels' fuse_new_init offers; the newest one offers everything that has a name.
LINUX_5_4 = Offer(7, 31, 131072, (1 << 26) - 1 & ~InitFlag.FILE_OPS)
LINUX_5_15 = Offer(7, 34, 131072, (1 << 30) - 1 & ~InitFlag.FILE_OPS)
NEWEST = Offer(7, 45, 131072, (1 << 43) - 1)
KERNELS = pytest.mark.parametrize("offer", [LINUX_5_4, LINUX_5_15, NEWEST], ids=["7.31", "7.34", "7.45"])
REFUSING = pytest.mark.parametrize("refuse_open", [False, True])

EXPECTED_OF_5_4 = (
    InitFlag.ASYNC_READ | InitFlag.BIG_WRITES | InitFlag.DONT_MASK | InitFlag.HAS_IOCTL_DIR
    | InitFlag.AUTO_INVAL_DATA | InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS | InitFlag.POSIX_ACL | InitFlag.ABORT_ERROR | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
)  # fmt: skip
EXPECTED_OF_5_15 = EXPECTED_OF_5_4 | InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.SETXATTR_EXT
EXPECTED_OF_NEWEST = EXPECTED_OF_5_15 | InitFlag.INIT_EXT | InitFlag.HAS_EXPIRE_ONLY
TO_SERVE = InitFlag.ATOMIC_O_TRUNC
TO_REFUSE = InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT


@pytest.mark.parametrize(
    ("offer", "expected"),
    [(LINUX_5_4, EXPECTED_OF_5_4), (LINUX_5_15, EXPECTED_OF_5_15), (NEWEST, EXPECTED_OF_NEWEST)],
    ids=["7.31", "7.34", "7.45"],
)
def test_what_is_taken(offer: Offer, expected: InitFlag) -> None:
    assert negotiate(offer, max_write=1 << 20, refuse_open=False).flags == expected | TO_SERVE
    assert negotiate(offer, max_write=1 << 20, refuse_open=True).flags == expected | TO_REFUSE


@KERNELS
@REFUSING
def test_what_is_never_taken(offer: Offer, refuse_open: bool) -> None:
    never = (
        InitFlag.WRITEBACK_CACHE | InitFlag.EXPLICIT_INVAL_DATA
        | InitFlag.EXPORT_SUPPORT | InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
    )  # fmt: skip
    assert not negotiate(offer, max_write=1 << 20, refuse_open=refuse_open).flags & never


def test_nothing_is_taken_that_was_not_offered() -> None:
    for flag in InitFlag:
        offer = NEWEST._replace(flags=NEWEST.flags & ~flag)
        assert flag not in negotiate(offer, max_write=1 << 20, refuse_open=True).flags
    assert negotiate(NEWEST._replace(flags=0), max_write=1 << 20, refuse_open=True).flags == 0


def test_flags_without_a_name_are_left() -> None:
    offer = NEWEST._replace(flags=(1 << 64) - 1)
    assert negotiate(offer, max_write=1 << 20, refuse_open=False).flags == EXPECTED_OF_NEWEST | TO_SERVE


def test_o_trunc_comes_with_open_only_where_open_is_served() -> None:
    """A refused OPEN would take it along, and nobody would truncate anything."""
    refused = negotiate(NEWEST, max_write=1 << 20, refuse_open=True)
    assert InitFlag.ATOMIC_O_TRUNC not in refused.flags


def test_every_flag_is_decided_once_and_has_a_reason() -> None:
    tables = (
        TAKEN, TAKEN_TO_REFUSE_OPEN, TAKEN_TO_SERVE_OPEN, TAKEN_TO_SERVE_LOCKS, TAKEN_TO_SHOW_ACLS,
        TAKEN_TO_BE_IDMAPPED, TAKEN_TO_PASS_THROUGH, TAKEN_TO_WRITE_BACK, LEFT,
    )  # fmt: skip
    assert sorted(flag for table in tables for flag in table) == sorted(InitFlag)
    assert all(reason for table in tables for reason in table.values())


@REFUSING
def test_writes_are_collected_where_set_id_bits_are_safe_from_that(refuse_open: bool) -> None:
    """Linux 5.4 would collect writes to a set-id file as well, and clear nothing."""

    def flags(offer: Offer, write_back: bool) -> InitFlag:
        return negotiate(offer, max_write=1, refuse_open=refuse_open, write_back=write_back).flags

    for offer in (LINUX_5_15, NEWEST):
        assert flags(offer, True) == flags(offer, False) | InitFlag.WRITEBACK_CACHE
    assert flags(LINUX_5_4, True) == flags(LINUX_5_4, False)


@pytest.mark.parametrize("serve_locks", [True, False])
def test_locks_are_served_or_left_to_the_kernel(serve_locks: bool) -> None:
    flags = negotiate(NEWEST, max_write=1, refuse_open=False, serve_locks=serve_locks).flags
    assert (flags & (InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS) != 0) is serve_locks


@pytest.mark.parametrize("allow_idmap", [True, False])
def test_owners_may_be_shifted_again_only_where_that_is_said(allow_idmap: bool) -> None:
    flags = negotiate(NEWEST, max_write=1, refuse_open=False, allow_idmap=allow_idmap).flags
    assert (InitFlag.ALLOW_IDMAP in flags) is allow_idmap


def test_files_are_passed_through_where_that_is_wanted_and_offered() -> None:
    """With a depth of stacking that the kernel sees to, and that is 0 else."""
    wanted = negotiate(NEWEST, max_write=1, refuse_open=False, pass_through=True)
    assert InitFlag.PASSTHROUGH in wanted.flags
    assert wanted.max_stack_depth == 1
    for not_so in (
        negotiate(NEWEST, max_write=1, refuse_open=False),
        negotiate(LINUX_5_15, max_write=1, refuse_open=False, pass_through=True),
    ):
        assert InitFlag.PASSTHROUGH not in not_so.flags
        assert not_so.max_stack_depth == 0


def test_the_depth_of_stacking_is_behind_the_flags() -> None:
    """struct fuse_init_out: flags2 is at 32, max_stack_depth follows."""
    sent = negotiation.encode(7, negotiate(NEWEST, max_write=1, refuse_open=False, pass_through=True))
    assert sent[16 + 36 : 16 + 40] == b"\1\0\0\0"


def test_the_smaller_minor_version_counts() -> None:
    assert negotiate(LINUX_5_15, max_write=1, refuse_open=False).minor == 34
    assert negotiate(NEWEST._replace(minor=99), max_write=1, refuse_open=False).minor == 45


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99), (0, 0)])
def test_older_kernels_are_refused_by_name(major: int, minor: int) -> None:
    with pytest.raises(ProtocolError, match=rf"FUSE {major}\.{minor}; 7\.31") as caught:
        negotiate(Offer(major, minor, 0, 0), max_write=1 << 20, refuse_open=False)
    assert caught.value.errno == 71  # EPROTO


@pytest.mark.parametrize(
    ("wish", "pages", "max_write"),
    [(1 << 20, 256, 1 << 20), (5000, 2, 5000), (1, 1, 4096), (0, 1, 4096), (1 << 30, 65535, 65535 * 4096)],
)
def test_max_write_and_max_pages_agree(wish: int, pages: int, max_write: int) -> None:
    got = negotiate(NEWEST, max_write=wish, refuse_open=False)
    assert (got.max_pages, got.max_write) == (pages, max_write)


def test_larger_pages_are_fewer() -> None:
    got = negotiate(NEWEST, max_write=1 << 20, refuse_open=False, page_size=65536)
    assert (got.max_pages, got.max_write) == (16, 1 << 20)


def test_without_max_pages_a_request_has_32() -> None:
    offer = NEWEST._replace(flags=NEWEST.flags & ~InitFlag.MAX_PAGES)
    got = negotiate(offer, max_write=1 << 20, refuse_open=False)
    assert (got.max_pages, got.max_write) == (32, 131072)


def test_the_receive_buffer_has_room_for_header_struct_and_data() -> None:
    assert negotiate(NEWEST, max_write=1 << 20, refuse_open=False).buffer_size == (1 << 20) + 80
    assert negotiate(NEWEST, max_write=4096, refuse_open=False).buffer_size == 8192


@KERNELS
@REFUSING
def test_the_reply_says_it_all(offer: Offer, refuse_open: bool) -> None:
    got = negotiate(offer, max_write=1 << 20, refuse_open=refuse_open)
    reply = negotiation.encode(77, got)
    assert struct.unpack_from("@IiQ", reply) == (80, 0, 77)
    assert struct.unpack("@IIIIHHIIHHIIH11H", reply[16:]) == (
        7, offer.minor, 131072, got.flags & 0xFFFFFFFF, got.max_background, got.congestion_threshold, 1 << 20,
        1, 256, 0, got.flags >> 32, 0, 0, *[0] * 11,
    )  # fmt: skip
    assert 0 < got.congestion_threshold <= got.max_background


def test_a_later_major_version_hears_ours() -> None:
    reply = negotiation.encode_version_only(77)
    assert struct.unpack_from("@IiQ", reply) == (80, 0, 77)
    assert struct.unpack_from("@II", reply, 16) == (7, 45)
    assert reply[24:] == bytes(56)
