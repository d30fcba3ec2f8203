"""Directories of the upper whose lower directories have disappeared: `ghost=keep`, and `ghost=drop`."""

import errno
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from harness import Layers, errno_of, make_whiteout, write_tree
from harness.layered import Tree
from harness.overlaid import Fill, Overlay, mark, nothing_in_work, overlaid, without_attributes
from shiftfs.tree import Shown

pytestmark = pytest.mark.root
LOWER: Tree = {"d": {"l": b"lower", "sub": {"deep": b""}}, "other": {}}


@pytest.fixture
def layers(fill: Fill) -> Layers:
    return fill(LOWER)


def fill_upper(overlay: Overlay) -> None:
    """Children of the upper, at two depths, in a directory that has come up."""
    overlay.create(b"d/u", b"upper")
    overlay.create(b"d/sub/u", b"deep")


def shown(overlay: Overlay) -> list[bytes]:
    """What a listing leaves of the root's names, as the session packs it: numbers that it lacks are looked up."""
    root = overlay.tree.root
    rows = overlay.tree.listing(overlay.tree.held(root))
    return sorted(row.name for row in rows if row.number or overlay.exists(row.name))


def test_kept_by_default(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        fill_upper(overlay)
        before = overlay.at(b"d")
        shutil.rmtree(layers.lower / "d")
        assert overlay.contents() == {"d": {"sub": {"u": b"deep"}, "u": b"upper"}, "other": {}}
        assert overlay.at(b"d") is before
        write_tree(layers.lower, LOWER)
        assert overlay.contents()["d"] == {"l": b"lower", "sub": {"deep": b"", "u": b"deep"}, "u": b"upper"}
        assert overlay.at(b"d") is before


@pytest.mark.parametrize("again", ["anew", "the same"])
def test_dropped_and_back(layers: Layers, again: str) -> None:
    with overlaid(layers, ghost="drop") as overlay:
        fill_upper(overlay)
        whole = overlay.contents()
        (layers.lower / "d").rename(layers.lower / "away")
        assert shown(overlay) == [b"away", b"other"]
        assert not overlay.exists(b"d") and not overlay.exists(b"d/u")
        if again == "anew":
            shutil.rmtree(layers.lower / "away")
            write_tree(layers.lower, LOWER)
        else:
            (layers.lower / "away").rename(layers.lower / "d")
        assert overlay.contents() == whole


def test_dropped_after_a_remount(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        fill_upper(overlay)
    shutil.rmtree(layers.lower / "d")
    with overlaid(layers, ghost="drop") as overlay:
        assert shown(overlay) == [b"other"]
    with overlaid(layers) as overlay:
        assert shown(overlay) == [b"d", b"other"]


def test_a_directory_within_one_that_is_still_there(layers: Layers) -> None:
    with overlaid(layers, ghost="drop") as overlay:
        fill_upper(overlay)
        shutil.rmtree(layers.lower / "d/sub")
        assert not overlay.exists(b"d/sub")
        assert overlay.read(b"d/u") == b"upper"


def test_one_lower_is_enough(fill: Fill) -> None:
    layers = fill(LOWER, {"d": {"below": b""}})
    with overlaid(layers, ghost="drop") as overlay:
        fill_upper(overlay)
        shutil.rmtree(layers.lowers[0] / "d")
        assert overlay.names(b"d") == [b"below", b"sub", b"u"]
        assert not overlay.exists(b"d/sub"), "which the other lower does not have"
        shutil.rmtree(layers.lowers[1] / "d")
        assert not overlay.exists(b"d")


@pytest.mark.parametrize("instead", [b"a file", None], ids=["file", "whiteout"])
def test_what_takes_the_place_of_the_lower_directory_stays_hidden(layers: Layers, instead: bytes | None) -> None:
    with overlaid(layers, ghost="drop") as overlay:
        fill_upper(overlay)
        shutil.rmtree(layers.lower / "d")
        write_tree(layers.lower, {"d": instead})
        assert not overlay.exists(b"d")


def test_what_was_made_in_the_upper_is_never_dropped(layers: Layers) -> None:
    with overlaid(layers, ghost="drop") as overlay:
        overlay.mkdir(b"own")
        overlay.create(b"own/f", b"x")
        (layers.lower / "own").mkdir()
        (layers.lower / "own/l").touch()
        assert overlay.names(b"own") == [b"f", b"l"]
        shutil.rmtree(layers.lower / "own")
        assert overlay.contents(b"own") == {"f": b"x"}
        fill_upper(overlay)
        os.setxattr(layers.upper / "d", "trusted.overlay.opaque", b"y")
        shutil.rmtree(layers.lower / "d")
        assert overlay.names(b"d") == [b"sub", b"u"], "opaque: it is what it is without any lower"


def test_a_renamed_directory_goes_with_the_lower_one_that_it_came_from(layers: Layers) -> None:
    with overlaid(layers, ghost="drop") as overlay:
        fill_upper(overlay)
        overlay.rename(b"d", b"new")
        assert overlay.names(b"new") == [b"l", b"sub", b"u"]
        shutil.rmtree(layers.lower / "d")
        assert shown(overlay) == [b"other"]
        write_tree(layers.lower, LOWER)
        assert overlay.names(b"new") == [b"l", b"sub", b"u"]


@pytest.mark.parametrize("covering", [False, True], ids=["free", "over a file of the lower"])
@pytest.mark.parametrize("what", ["mkdir", "create", "symlink", "rename", "link"])
def test_whatever_takes_the_name_replaces_it_for_good(layers: Layers, what: str, covering: bool) -> None:
    with overlaid(layers, ghost="drop") as overlay:
        fill_upper(overlay)
        overlay.create(b"f", b"file")
        overlay.mkdir(b"empty")
        shutil.rmtree(layers.lower / "d")
        if covering:
            (layers.lower / "d").write_bytes(b"not this")
        root = overlay.tree.root
        if what == "mkdir":
            overlay.mkdir(b"d")
        elif what == "create":
            overlay.create(b"d", b"file")
        elif what == "symlink":
            overlay.tree.symlink(root, b"d", b"file")
        elif what == "rename":
            overlay.rename(b"empty", b"d")
        else:
            overlay.link(b"f", b"d")
        expected = {"mkdir": {}, "rename": {}, "symlink": Path("file")}.get(what, b"file")
        assert overlay.contents()["d"] == expected
        assert nothing_in_work(layers)
        overlay.rename(b"d", b"moved")
        assert not overlay.exists(b"d")


def test_a_directory_with_nothing_but_dropped_ones_is_empty(layers: Layers) -> None:
    with overlaid(layers, ghost="drop") as overlay:
        fill_upper(overlay)
        shutil.rmtree(layers.lower / "d/sub")
        (layers.lower / "d/l").unlink()
        assert errno_of(partial(overlay.rmdir, b"d")) == errno.ENOTEMPTY
        overlay.unlink(b"d/u")
        overlay.rmdir(b"d")
        assert not overlay.exists(b"d") and nothing_in_work(layers)


def test_without_attributes_it_is_known_as_long_as_the_mount_lasts(layers: Layers) -> None:
    with without_attributes(layers):
        with overlaid(layers, ghost="drop") as overlay:
            overlay.create(b"d/u", b"upper")
            (layers.lower / "d").rename(layers.lower / "away")
            assert not overlay.exists(b"d")
            (layers.lower / "away").rename(layers.lower / "d")
            assert overlay.names(b"d") == [b"l", b"sub", b"u"]
        (layers.lower / "d").rename(layers.lower / "away")
        with overlaid(layers, ghost="drop") as overlay:
            assert overlay.names(b"d") == [b"u"]


def test_by_attributes_of_users(fill: Fill) -> None:
    """As in a user namespace."""
    layers = fill(LOWER)
    with overlaid(layers, ghost="drop", userxattr=True) as overlay:
        fill_upper(overlay)
    assert mark(layers.upper / "d", "origin") is None
    shutil.rmtree(layers.lower / "d")
    with overlaid(layers, ghost="drop", userxattr=True) as overlay:
        assert shown(overlay) == [b"other"]


def test_whether_it_shows_is_up_to_the_last_lower(fill: Fill) -> None:
    layers = fill(LOWER, {"d": {}})
    with overlaid(layers, ghost="drop") as overlay:
        root = overlay.tree.root
        overlay.up(b"d")
        assert [overlay.tree.hidden(root, layer, b"d") for layer in (1, 2)] == [Shown.MERGED, Shown.MERGED]
        shutil.rmtree(layers.lowers[0] / "d")
        assert [overlay.tree.hidden(root, layer, b"d") for layer in (1, 2)] == [Shown.MERGED, Shown.TOP]
        shutil.rmtree(layers.lowers[1] / "d")
        assert overlay.tree.hidden(root, 2, b"d") is Shown.TOP
        make_whiteout(layers.lowers[0] / "d")
        assert not overlay.exists(b"d")
