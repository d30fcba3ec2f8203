"""Metadata that comes up alone, and the content that follows it: what shows meanwhile, and what is kept."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Layers, errno_of
from harness.overlaid import Fill, Overlay, finish, never, overlaid
from shiftfs.tree import Gate

pytestmark = pytest.mark.root
BIG = b"content" * 40_000
PAST = (10**18 + 1, 10**18 + 2)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.fixture
def layers(fill: Fill) -> Layers:
    made = fill({"d": {"e": {"f": b"content", "big": BIG}}})
    os.utime(made.lower / "d/e/big", ns=PAST)
    return made


def times(path: Path) -> tuple[int, int]:
    return path.lstat().st_atime_ns, path.lstat().st_mtime_ns


@pytest.fixture
def sparing(layers: Layers) -> Iterator[Overlay]:
    with overlaid(layers, metacopy=True) as made:
        yield made


def is_metadata(path: Path) -> bool:
    return "trusted.overlay.metacopy" in os.listxattr(path)


def test_metadata_comes_up_without_content(sparing: Overlay, layers: Layers) -> None:
    before = sparing.attributes(b"d/e/big")
    entry = sparing.up(b"d/e/big", None, True)
    upper = layers.upper / "d/e/big"
    assert is_metadata(upper) and upper.stat().st_blocks * 512 <= 4096, "no more than attributes"
    assert (sparing.tree.is_up(entry, True), sparing.tree.is_up(entry)) == (True, False)
    assert sparing.attributes(b"d/e/big")[:6] == before[:6]
    assert sparing.read(b"d/e/big") == BIG


def test_content_follows_at_the_first_write(sparing: Overlay, layers: Layers) -> None:
    entry = sparing.up(b"d/e/big", None, True)
    os.utime(layers.upper / "d/e/big", ns=PAST)
    steps = sparing.tree.copy_up(entry, None, False, never)
    call = next(steps)
    assert sparing.read(b"d/e/big") == BIG, "while it is copied, too"
    finish(steps, call)
    upper = layers.upper / "d/e/big"
    assert not is_metadata(upper)
    assert (times(upper), upper.read_bytes()) == (PAST, BIG)
    assert entry.lowers == ()
    sparing.write(b"d/e/big", b"C")
    assert sparing.read(b"d/e/big") == b"C" + BIG[1:]


def test_content_that_does_not_come_leaves_the_metadata(sparing: Overlay, layers: Layers) -> None:
    entry = sparing.up(b"d/e/big", None, True)
    assert errno_of(lambda: sparing.up_entry(entry, stopped=lambda: True)) == errno.EINTR
    assert is_metadata(layers.upper / "d/e/big")
    assert (sparing.read(b"d/e/big"), entry.gate) == (BIG, None)
    sparing.up_entry(entry)
    assert (layers.upper / "d/e/big").read_bytes() == BIG


def test_an_empty_file_has_no_content_to_wait_for(sparing: Overlay, layers: Layers) -> None:
    (layers.lower / "empty").touch()
    entry = sparing.up(b"empty", None, True)
    assert sparing.tree.is_up(entry)
    assert not is_metadata(layers.upper / "empty")


def test_renamed_metadata_finds_its_content_over_a_remount(layers: Layers) -> None:
    with overlaid(layers, metacopy=True) as overlay:
        overlay.mkdir(b"new")
        overlay.rename(b"d/e/big", b"new/name")
        assert is_metadata(layers.upper / "new/name")
    for metacopy in (True, False):
        with overlaid(layers, metacopy=metacopy) as overlay:
            assert overlay.read(b"new/name") == BIG


def test_nothing_changes_the_inode_while_its_content_is_copied(sparing: Overlay, layers: Layers) -> None:
    entry = sparing.up(b"d/e/big", None, True)
    content = sparing.tree.copy_up(entry, None, False, never)
    call = next(content)
    times_set = sparing.tree.copy_up(entry, None, True, never)
    gate = next(times_set)
    assert isinstance(gate, Gate)
    finish(content, call)
    assert list(times_set) == []
    os.utime(layers.upper / "d/e/big", ns=PAST)
    sparing.up(b"d/e/big")
    assert times(layers.upper / "d/e/big") == PAST


@pytest.mark.parametrize("size", [None, 7, 0])
def test_capabilities_and_set_id_bits_outlive_the_copying(layers: Layers, size: int | None) -> None:
    (layers.lower / "d/e/big").chmod(0o6755)
    os.setxattr(layers.lower / "d/e/big", "security.capability", CAPABILITY)
    with overlaid(layers, metacopy=True) as overlay:
        overlay.up(b"d/e/big", None, True)
        overlay.up(b"d/e/big", size)
    upper = layers.upper / "d/e/big"
    assert upper.read_bytes() == BIG[:size]
    assert os.getxattr(upper, "security.capability") == CAPABILITY
    assert stat.S_IMODE(upper.stat().st_mode) == 0o6755


@pytest.mark.parametrize("size", [None, 7, 0])
def test_the_mark_goes_last(layers: Layers, monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    """Whoever dies before has not begun, and a mark without a redirect would have no content under a new name."""
    order: list[str] = []

    def noting(name: str, of: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            order.append(os.fsdecode(args[1]) if name == "removexattr" else name)
            return of(*args)

        return noted

    with overlaid(layers, metacopy=True) as overlay:
        overlay.up(b"d/e/big", None, True)
        for name in ("removexattr", "ftruncate", "utime"):
            monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
        overlay.up(b"d/e/big", size)
    metacopy = order.index("trusted.overlay.metacopy")
    assert metacopy > max(index for index, call in enumerate(order) if call == "ftruncate")
    assert "trusted.overlay.redirect" not in order[:metacopy]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_content_that_fails_on_the_way_leaves_times_and_room_as_they_were(
    sparing: Overlay, layers: Layers, number: int
) -> None:
    entry = sparing.up(b"d/e/big", None, True)
    upper = layers.upper / "d/e/big"
    blocks = upper.stat().st_blocks
    steps = sparing.tree.copy_up(entry, None, False, never)
    copy = next(steps)
    assert not isinstance(copy, Gate)
    copy()
    assert upper.stat().st_blocks > blocks
    assert errno_of(lambda: steps.throw(OSError(number, ""))) == number
    assert (times(upper), upper.stat().st_blocks, upper.stat().st_size) == (PAST, blocks, len(BIG))
    assert sparing.read(b"d/e/big") == BIG
