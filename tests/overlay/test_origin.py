"""Where a file was copied up from, and how many names it has: byte by byte as the kernel's overlayfs writes it."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import Layers
from overlay import origin, xattrs
from overlay.origin import Origins
from shiftfs.layer import Layer
from shiftfs.tree import Descriptor

pytestmark = pytest.mark.root
KINDS = ["file", "directory", "link", "fifo", "device"]
COUNTS = st.integers(0, 100_000)


@contextmanager
def origins_of(*lowers: Path) -> Iterator[tuple[Origins, list[Layer]]]:
    layers = [Layer(os.fsencode(path)) for path in lowers]
    made = Origins(layers)
    try:
        yield made, layers
    finally:
        for part in (made, *layers):
            vars(part).clear()


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    made = Layers(tmp_path)
    (made.lower / "file").write_bytes(b"content")
    (made.lower / "directory").mkdir()
    (made.lower / "link").symlink_to("file")
    os.mkfifo(made.lower / "fifo")
    os.mknod(made.lower / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return made


def encoded(path: Path) -> bytes | None:
    held = Descriptor(os.open(path, os.O_PATH | os.O_NOFOLLOW), os.close)
    with origins_of(path.parent) as (made, _):
        return made.encode(0, held.fd)


# --- against the kernel ---


def test_an_origin_is_what_the_kernel_writes(layers: Layers) -> None:
    with layers.mount(kind="kernel") as mount:
        for name in KINDS:
            os.chown(mount.path / name, 1, 1, follow_symlinks=False)
    for name in KINDS:
        theirs = os.getxattr(layers.upper / name, "trusted.overlay.origin", follow_symlinks=False)
        assert encoded(layers.lower / name) == theirs, name


def test_an_index_name_is_the_kernels(layers: Layers) -> None:
    os.link(layers.lower / "file", layers.lower / "directory/second")
    with layers.mount(kind="kernel") as mount:
        os.chmod(mount.path / "file", 0o600)
    with origins_of(layers.lower) as (made, (lower,)):
        ours = made.index_name(0, lower.root.fd, b"file")
    assert ours is not None
    assert os.listdir(layers.work / "index") == [ours.decode()]


def test_the_kernels_origins_lead_to_the_lower_inodes(layers: Layers) -> None:
    with layers.mount(kind="kernel") as mount:
        for name in KINDS:
            os.chown(mount.path / name, 1, 1, follow_symlinks=False)
    with origins_of(layers.lower) as (made, (lower,)):
        for name in KINDS:
            there = os.getxattr(layers.upper / name, "trusted.overlay.origin", follow_symlinks=False)
            key = lower.look(lower.root.fd, os.fsencode(name))[0]
            assert made.key({xattrs.ORIGIN: there}, key[3] & 0xF) == key


def test_link_counts_are_the_kernels(layers: Layers) -> None:
    os.link(layers.lower / "file", layers.lower / "second")
    os.link(layers.lower / "file", layers.lower / "third")
    with layers.mount(kind="kernel") as mount:
        os.chmod(mount.path / "file", 0o600)
        counts = [counted(layers)]
        os.link(mount.path / "file", mount.path / "fourth")
        counts.append(counted(layers))
        os.unlink(mount.path / "second")
        counts.append(counted(layers))
        assert os.stat(mount.path / "file").st_nlink == 3
    assert counts == [3, 4, 3]


def counted(layers: Layers) -> int:
    """What we take the kernel's overlay.nlink for."""
    upper = (layers.upper / "file").stat().st_nlink
    value = os.getxattr(layers.upper / "file", "trusted.overlay.nlink")
    links = origin.links({xattrs.NLINK: value}, upper, (layers.lower / "file").stat().st_nlink)
    assert links is not None
    return upper + links.offset


# --- found again ---


def test_an_origin_is_looked_for_in_all_layers_of_its_filesystem(tmp_path: Path) -> None:
    top, bottom = Layers(tmp_path, lowers=2).lowers
    (bottom / "file").touch()
    value = encoded(bottom / "file")
    assert value is not None
    with origins_of(top, bottom) as (made, _):
        found = made.key({xattrs.ORIGIN: value}, stat.S_IFREG >> 12)
    assert found is not None and found[1] == (bottom / "file").stat().st_ino


def test_an_origin_that_is_gone_or_of_another_kind_is_none(layers: Layers) -> None:
    value = encoded(layers.lower / "file")
    assert value is not None
    with origins_of(layers.lower) as (made, _):
        assert made.key({xattrs.ORIGIN: value}, stat.S_IFDIR >> 12) is None
    (layers.lower / "file").unlink()
    with origins_of(layers.lower) as (made, _):
        assert made.key({xattrs.ORIGIN: value}, stat.S_IFREG >> 12) is None


def test_a_damaged_origin_is_none(layers: Layers) -> None:
    value = encoded(layers.lower / "file")
    assert value is not None
    damaged = [value[:length] for length in range(len(value))] + [value + b"\0"]
    for position in range(21):  # all before the handle; of that, the filesystem is the judge
        if position != 4:
            damaged.append(value[:position] + bytes([value[position] ^ 0x41]) + value[position + 1 :])
    with origins_of(layers.lower) as (made, _):
        for one in damaged:
            assert made.key({xattrs.ORIGIN: one}, stat.S_IFREG >> 12) is None, one.hex()
        assert made.key({xattrs.ORIGIN: value}, stat.S_IFREG >> 12) is not None


@given(st.binary(max_size=64))
def test_no_bytes_at_all_are_an_error(value: bytes) -> None:
    with origins_of(Path("/")) as (made, _):
        for name in (xattrs.ORIGIN, xattrs.OWN_ORIGIN):
            made.key({name: value}, stat.S_IFREG >> 12)
        made.link_count({xattrs.ORIGIN: value})


# --- in our own terms ---


def test_whoever_may_open_handles_writes_no_origin_of_our_own(layers: Layers) -> None:
    with origins_of(layers.lower) as (made, (lower,)):
        assert made.encode_own(0, lower.look(lower.root.fd, b"file")[0]) is None


def test_whoever_may_not_finds_the_number_by_our_own(layers: Layers) -> None:
    with origins_of(layers.lower) as (made, (lower,)):
        lower.opens_by_handle = False
        key = lower.look(lower.root.fd, b"file")[0]
        value = made.encode_own(0, key)
        handle = encoded(layers.lower / "file")
        assert value is not None and len(value) == 24 and handle is not None
        assert made.key({xattrs.OWN_ORIGIN: value, xattrs.ORIGIN: handle}, key[3]) == key
        assert made.key({xattrs.ORIGIN: handle}, key[3]) is None
        assert made.key({xattrs.OWN_ORIGIN: value[:-1]}, key[3]) is None
        assert made.key({xattrs.OWN_ORIGIN: bytes([value[0] ^ 1]) + value[1:]}, key[3]) is None


# --- how many names ---


@given(COUNTS, COUNTS, COUNTS)
def test_a_count_comes_back_whichever_way_it_is_written(count: int, upper: int, lower: int) -> None:
    for value in (origin.relative_to_upper(count, upper), origin.relative_to_lower(count, lower)):
        links = origin.links({xattrs.NLINK: value}, upper, lower)
        assert links is not None and upper + links.offset == count


@given(COUNTS, COUNTS, COUNTS, st.integers(-9, 9))
def test_only_a_count_by_the_upper_moves_with_the_upper(count: int, upper: int, lower: int, more: int) -> None:
    moving = origin.links({xattrs.NLINK: origin.relative_to_upper(count, upper)}, upper + more, lower)
    staying = origin.links({xattrs.NLINK: origin.relative_to_lower(count, lower)}, upper + more, lower)
    assert moving is not None and upper + more + moving.offset == count + more
    assert staying is not None and upper + more + staying.offset == count


def test_counts_are_written_with_their_sign() -> None:
    assert origin.relative_to_upper(3, 1) == b"U+2"
    assert origin.relative_to_upper(1, 2) == b"U-1"
    assert origin.relative_to_lower(3, 3) == b"L+0"


@pytest.mark.parametrize("value", [None, b"", b"U", b"+1", b"X+1", b"U+", b"U+x", b"3"])
def test_a_damaged_count_is_none(value: bytes | None) -> None:
    assert origin.links({} if value is None else {xattrs.NLINK: value}, 1, 1) is None
