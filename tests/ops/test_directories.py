"""Listings: read in parts of any size, while the directory changes, each name comes once."""

import errno
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.device import Served, served
from harness.memory import MemoryTree, Node
from shiftfs.ops import context, directories
from shiftfs.tree import Listed
from shiftfs.wire.abi import ROOT_ID, Opcode

DIRENT = struct.Struct("@QQII")
ENTRY_SIZE = 128
REGULAR, DIRECTORY = 0o100644, 0o040755
COUNT = 60


class Row(NamedTuple):
    name: bytes
    number: int
    cookie: int
    kind: int
    nodeid: int  # 0 without attributes


@pytest.fixture
def tree() -> Iterator[MemoryTree]:
    made = MemoryTree()
    for number in range(COUNT):
        made.add(made.root, b"n" * (number % 17) + b"%d" % number, 0o010644)
    yield made
    made.close()


@pytest.fixture
def mount(tree: MemoryTree) -> Iterator[Served]:
    with served(tree) as running:
        yield running


def read(mount: Served, offset: int, size: int, plus: bool = False, nodeid: int = ROOT_ID) -> list[Row]:
    opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
    answer = mount.device.ask(opcode, struct.pack("@QqIIQII", 0, offset, size, 0, 0, 0, 0), nodeid)
    assert answer.errno == 0 and len(answer.payload) <= size
    rows, position = [], 0
    while position < len(answer.payload):
        nodeid = struct.unpack_from("@Q", answer.payload, position)[0] if plus else 0
        position += ENTRY_SIZE if plus else 0
        number, cookie, length, kind = DIRENT.unpack_from(answer.payload, position)
        position += DIRENT.size
        rows.append(Row(answer.payload[position : position + length], number, cookie, kind, nodeid))
        position += length + 7 & ~7 if (position + length) % 8 else length
    return rows


def read_all(
    mount: Served, sizes: Iterator[int] | None = None, plus: bool = False, offset: int = 0, nodeid: int = ROOT_ID
) -> list[Row]:
    found: list[Row] = []
    while rows := read(mount, offset, next(sizes) if sizes else 600, plus, nodeid):
        found += rows
        offset = rows[-1].cookie
    return found


def names(rows: list[Row]) -> list[bytes]:
    return [row.name for row in rows]


@pytest.mark.parametrize("plus", [False, True])
def test_all_names_once_with_what_they_are(mount: Served, tree: MemoryTree, plus: bool) -> None:
    rows = read_all(mount, plus=plus)
    assert names(rows[:2]) == [b".", b".."]
    assert {row.number for row in rows[:2]} == {tree.root.number}, "the root's parent is the root"
    expected = {(name, node.number, node.mode >> 12) for name, node in tree.root.children.items()}
    assert {(row.name, row.number, row.kind) for row in rows[2:]} == expected
    assert len(rows) == COUNT + 2
    cookies = [row.cookie for row in rows]
    assert cookies == sorted(set(cookies)) and cookies[0] > 0 and cookies[-1] < 2**63
    assert [bool(row.nodeid) for row in rows] == [False] * 2 + [plus] * COUNT, "`.` and `..` carry no lookup count"


@settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(sizes=st.lists(st.integers(48, 400), min_size=1, max_size=9), plus=st.booleans())
def test_parts_of_any_size_make_the_whole(mount: Served, sizes: list[int], plus: bool) -> None:
    def forever() -> Iterator[int]:
        while True:
            yield from (size + (ENTRY_SIZE if plus else 0) for size in sizes)

    assert names(read_all(mount, forever(), plus)) == names(read_all(mount, plus=plus))


@pytest.mark.parametrize("remade", [False, True])
def test_who_is_in_the_middle_misses_nothing_and_sees_nothing_twice(
    mount: Served, tree: MemoryTree, remade: bool
) -> None:
    whole = read_all(mount)
    half = whole[: COUNT // 2]
    kept = set(tree.root.children)
    gone = {half[-1].name, half[5].name, whole[-1].name, whole[COUNT // 2].name}
    for name in gone:
        del tree.root.children[name]
    for number in range(30):
        tree.add(tree.root, b"new-%d" % number, REGULAR)
    if remade:
        read_all(mount)  # somebody else begins anew, and makes another snapshot
    else:
        mount.session.context.listings.clear()  # it was evicted
    rest = names(read_all(mount, offset=half[-1].cookie))
    seen = names(half) + rest
    assert len(seen) == len(set(seen))
    assert kept - gone <= set(seen) <= kept | set(tree.root.children) | {b".", b".."}
    assert not gone & set(rest)


def test_reading_from_the_start_is_fresh(mount: Served, tree: MemoryTree) -> None:
    read_all(mount)
    tree.add(tree.root, b"new", REGULAR)
    assert b"new" in names(read_all(mount))


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_within_the_dots(mount: Served, offset: int) -> None:
    assert names(read(mount, offset, 64))[: 2 - offset] == [b".", b".."][offset:]
    assert len(read_all(mount, offset=offset)) == COUNT + 2 - offset


def test_what_does_not_fit_is_not_adopted(mount: Served) -> None:
    inodes = mount.session.context.inodes
    for size in range(0, 2000, 100):
        read(mount, 2, size)
        assert len(inodes) == 1, "READDIR adopts nothing"
    adopted: set[int] = set()
    for size in range(0, 2000, 100):
        adopted |= {row.nodeid for row in read(mount, 2, size, plus=True)}
        assert len(inodes) == 1 + len(adopted)
    for nodeid in adopted:
        count = inodes.get(nodeid).nlookup
        mount.device.send(Opcode.FORGET, struct.pack("@Q", count), nodeid)
    mount.device.expect_nothing()
    assert len(inodes) == 1


def test_a_name_that_went_since_the_snapshot_is_left_out(mount: Served, tree: MemoryTree) -> None:
    first = read(mount, 0, 600, plus=True)
    gone = next(name for name in tree.root.children if name not in names(first))
    del tree.root.children[gone]
    found = names(first) + names(read_all(mount, plus=True, offset=first[-1].cookie))
    assert gone not in found and len(found) == COUNT + 1


@pytest.mark.parametrize(
    ("number", "told"), [(errno.ENOENT, False), (errno.ESTALE, False), (errno.EIO, True), (errno.ENOTCONN, True)]
)
def test_a_name_that_cannot_be_looked_at_is_told_all_the_same(
    mount: Served, tree: MemoryTree, number: int, told: bool
) -> None:
    plain = read_all(mount)
    tree.failing["lookup"] = OSError(number, "of the layer")
    found = read_all(mount, plus=True)
    assert found == (plain if told else plain[:2])
    assert len(mount.session.context.inodes) == 1


def test_listings_are_bounded_by_their_names(tree: MemoryTree, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    listing = tree.listing

    def counted(held: Node) -> list[Listed]:
        made.append(held.target)
        return listing(held)

    monkeypatch.setattr(tree, "listing", counted)
    monkeypatch.setattr(context, "_LISTED_NAMES", 100)
    for name, count in ((b"empty", 0), (b"small", 30), (b"large", 200)):
        directory = tree.add(tree.root, name, DIRECTORY)
        directory.target = name
        for number in range(count):
            tree.add(directory, b"%d" % number, REGULAR)
    with served(tree) as mount:
        kept = mount.session.context.listings
        nodeids = {name: mount.device.look(name) for name in (b"empty", b"small", b"large")}

        def sizes() -> list[int]:
            return sorted(len(rows) for rows in kept.values())

        read(mount, 0, 600)
        read(mount, 0, 600, nodeid=nodeids[b"small"])
        assert sizes() == [30, COUNT + 3]
        read(mount, 0, 600, nodeid=nodeids[b"empty"])
        assert sizes() == [0, 30, COUNT + 3]
        made.clear()
        assert len(read_all(mount, nodeid=nodeids[b"large"])) == 202
        assert made == [b"large"], "one that is too large is kept all the same, and not made anew for each part"
        assert sizes() == [], "once read to the end it is let go; the others had to go for it"


def test_a_large_directory_is_listed_on_a_worker(
    mount: Served, tree: MemoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "_LARGE", 0)
    assert len(read_all(mount)) == COUNT + 2
    assert mount.loop.workers == 1
    tree.failing["listing"] = OSError(5, "of the layer")
    assert mount.device.ask(Opcode.READDIR, struct.pack("@QqIIQII", 0, 0, 600, 0, 0, 0, 0)).errno == 5


def test_cookies_depend_on_the_name_alone() -> None:
    names_ = [b"%d" % number for number in range(1000)]
    some = directories._sorted([Listed(name, 1, 8) for name in names_])
    others = directories._sorted([Listed(name, 2, 4) for name in reversed(names_[::3])])
    cookies = {row[1]: row[0] for row in some}
    assert len(set(cookies.values())) == 1000
    assert all(cookies[row[1]] == row[0] for row in others)
    assert min(cookies.values()) > 2 and [row[0] for row in some] == sorted(cookies.values())
