"""Changes of names on uppers that cannot hold what is usually written: devices, renames that leave a whiteout,
attributes."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Layers, errno_of
from harness.layered import Tree
from harness.overlaid import Fill, mark, nothing_in_work, overlaid, without_attributes
from overlay import workdir
from shiftfs.sys import files

pytestmark = pytest.mark.root
LOWER: Tree = {"f": b"lower", "l": Path("x"), "d": {"inside": b"lower"}, "empty": {}}


@pytest.fixture
def layers(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> Layers:
    """Whose upper takes no devices."""
    monkeypatch.setattr(workdir, "_takes_devices", lambda work: False)
    return fill(LOWER)


@pytest.fixture
def bare(layers: Layers) -> Iterator[Layers]:
    """Whose upper takes no attributes either."""
    with without_attributes(layers):
        yield layers


# --- without devices ---


def test_whiteouts_are_attributes(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.unlink(b"f")
        overlay.unlink(b"d/inside")
        overlay.create(b"other")
        assert overlay.names() == [b"d", b"empty", b"l", b"other"]
    assert (mark(layers.upper, "opaque"), mark(layers.upper / "f", "whiteout")) == (b"x", b"y")
    assert not any(stat.S_ISCHR(path.lstat().st_mode) for path in layers.upper.rglob("*"))
    with overlaid(layers) as overlay:
        assert (overlay.exists(b"f"), overlay.names(b"d")) == (False, [])
        overlay.create(b"f", b"again")
        overlay.rmdir(b"d")
        overlay.mkdir(b"d")
        assert overlay.read(b"f") == b"again"
        assert overlay.names(b"d") == []
    assert nothing_in_work(layers)


def test_a_directory_that_trades_places_with_a_whiteout_leaves_it_where_it_was(layers: Layers) -> None:
    (layers.lower / "p/q").mkdir(parents=True)
    (layers.lower / "p/a").mkdir()
    (layers.lower / "p/a/f").write_bytes(b"")
    with overlaid(layers) as overlay:
        overlay.rmdir(b"p/q")
        overlay.rename(b"p/a", b"p/q")
        assert overlay.contents(b"p") == {"q": {"f": b""}}
        overlay.mkdir(b"top")
        overlay.rename(b"p/q", b"top/q")
        overlay.rename(b"d", b"p/q")
        assert (overlay.contents(b"p"), overlay.exists(b"d")) == ({"q": {"inside": b"lower"}}, False)
    with overlaid(layers) as overlay:
        assert (overlay.contents(b"p"), overlay.exists(b"d")) == ({"q": {"inside": b"lower"}}, False)
        assert overlay.contents(b"top") == {"q": {"f": b""}}
    assert nothing_in_work(layers)


# --- without attributes ---


def test_whiteouts_are_names(bare: Layers) -> None:
    with overlaid(bare) as overlay:
        overlay.unlink(b"f")
        overlay.unlink(b"d/inside")
        overlay.rmdir(b"d")
        assert sorted(os.listdir(bare.upper)) == [".wh.d", ".wh.f"]
        assert overlay.names() == [b"empty", b"l"]
        overlay.mkdir(b"d")
        overlay.create(b"f", b"again")
        assert sorted(os.listdir(bare.upper)) == ["d", "f"]
        assert os.listdir(bare.upper / "d") == [".wh..wh..opq"]
        assert (overlay.names(b"d"), overlay.read(b"f")) == ([], b"again")
    with overlaid(bare) as overlay:
        assert overlay.names(b"d") == []


def test_a_directory_that_shows_as_empty_is_replaced(bare: Layers) -> None:
    with overlaid(bare) as overlay:
        overlay.unlink(b"d/inside")
        overlay.mkdir(b"new")
        overlay.create(b"new/file")
        overlay.rename(b"new", b"d")
        assert overlay.contents(b"d") == {"file": b""}
    with overlaid(bare) as overlay:
        assert overlay.contents(b"d") == {"file": b""}
    assert nothing_in_work(bare)


def test_listed_numbers_are_those_of_the_inodes(bare: Layers) -> None:
    with overlaid(bare) as overlay:
        for name in (b"f", b"l", b"d"):
            overlay.up(name)
        listed = {one.name: one.number for one in overlay.tree.listing(overlay.tree.held(overlay.tree.root))}
        assert sorted(listed) == [b"d", b"empty", b"f", b"l"]
        for name, number in listed.items():
            assert number in (0, overlay.number(name)), name


def test_a_directory_of_a_lower_layer_stays_where_it_is(bare: Layers) -> None:
    with overlaid(bare) as overlay:
        assert errno_of(lambda: overlay.rename(b"d", b"new")) == errno.EXDEV
        overlay.rename(b"f", b"empty/f")
        assert overlay.contents(b"empty") == {"f": b"lower"}
    with overlaid(bare) as overlay:
        assert (overlay.contents(b"empty"), overlay.exists(b"f")) == ({"f": b"lower"}, False)


# --- killed between two steps ---


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Right after its first rename."""
    rename = files.rename

    def killed_after(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
        rename(old_directory, old, new_directory, new, flags)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "rename", killed_after)
        yield


def test_a_new_directory_beside_the_whiteout_of_its_name_shows_what_is_in_it(bare: Layers, killed: None) -> None:
    with overlaid(bare) as overlay:
        overlay.rmdir(b"empty")
        overlay.mkdir(b"new")
        overlay.create(b"new/file", b"content")
        with pytest.raises(KeyboardInterrupt):
            overlay.rename(b"new", b"empty")
    assert sorted(os.listdir(bare.upper)) == [".wh.empty", "empty"]
    with overlaid(bare) as overlay:
        assert (overlay.contents(b"empty"), overlay.exists(b"new")) == ({"file": b"content"}, False)


@pytest.mark.parametrize("new", ["gone", "p/gone"])
def test_a_moved_directory_beside_the_whiteout_of_its_name_shows_what_is_below(
    fill: Fill, killed: None, new: str
) -> None:
    """Such a whiteout is another program's."""
    lower: Tree = {"d": {"inside": b"lower"}, "gone": {"not": b""}, "p": {"gone": {"not": b""}}}
    layers = fill(lower, upper={".wh.gone": b"", "p": {".wh.gone": b""}, "d": {}})
    with overlaid(layers) as overlay:
        assert not overlay.exists(new.encode())
        with pytest.raises(KeyboardInterrupt):
            overlay.rename(b"d", new.encode())
    assert (layers.upper / new).with_name(".wh.gone").exists()
    with overlaid(layers) as overlay:
        assert (overlay.contents(new.encode()), overlay.exists(b"d")) == ({"inside": b"lower"}, False)
