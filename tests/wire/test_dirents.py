"""Directory entries: layout, padding, and that sizes told are sizes packed."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftfs.wire import replies
from shiftfs.wire.dirents import NO_ENTRY, dirent, dirent_size, direntplus, direntplus_size

DIRECTORY, REGULAR = 4, 8  # DT_DIR, DT_REG
ENTRY = replies.entry(5, 1, (1, 0), (1, 0), (0,) * 16)


def entries(listing: bytes, before: int) -> list[tuple[bytes, int, int, int, bytes]]:
    """As the kernel walks a listing: (what stands before the dirent, ino, cookie, kind, name)."""
    found, place = [], 0
    while place < len(listing):
        start = place + before
        ino, cookie, length, kind = struct.unpack_from("@QQII", listing, start)
        end = start + 24 + length
        found.append((listing[place:start], ino, cookie, kind, listing[start + 24 : end]))
        place = end + -end % 8
        assert listing[end:place] == bytes(place - end)
    assert place == len(listing)
    return found


@pytest.mark.parametrize(("length", "size"), [(1, 32), (7, 32), (8, 32), (9, 40), (16, 40), (255, 280)])
def test_sizes_are_padded_to_eight(length: int, size: int) -> None:
    assert dirent_size(length) == size
    assert direntplus_size(length) == size + 128


def test_told_sizes_are_packed_sizes() -> None:
    for length in range(1, 1025):
        name = b"n" * length
        assert len(dirent(1, 2, REGULAR, name)) == dirent_size(length)
        assert len(direntplus(ENTRY, 1, 2, REGULAR, name)) == direntplus_size(length)


names = st.binary(min_size=1, max_size=40)
numbers = st.integers(0, 2**64 - 1)
listings = st.lists(st.tuples(numbers, numbers, st.integers(0, 15), names), max_size=8)


@settings(deadline=None)
@given(listings)
def test_a_listing_is_read_back(listing: list[tuple[int, int, int, bytes]]) -> None:
    plain = b"".join(dirent(*one) for one in listing)
    assert entries(plain, 0) == [(b"", *one) for one in listing]
    plus = b"".join(direntplus(ENTRY, *one) for one in listing)
    assert entries(plus, 128) == [(ENTRY, *one) for one in listing]


def test_no_entry_is_nodeid_0_and_nothing_else() -> None:
    packed = direntplus(NO_ENTRY, 1, 2, DIRECTORY, b"..")
    assert packed[:128] == bytes(128)
    assert packed[128:] == dirent(1, 2, DIRECTORY, b"..")
