"""The tree over layers: what it says of inodes, and which real inode each call is about."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from harness import Layers, errno_of
from harness.layered import Tree
from harness.overlaid import Fill, Overlay, overlaid
from shiftfs.tree import Change, Listed

pytestmark = pytest.mark.root
TOP: Tree = {"d": {"top": b""}, "only-top": {"x": {}, "y": {}}, "f": b"top"}
BOTTOM: Tree = {"d": {"bottom": b""}, "only-bottom": {}, "f": b"bottom", "l": Path("target")}


@pytest.fixture
def layers(fill: Fill) -> Layers:
    return fill(TOP, BOTTOM)


@pytest.fixture
def overlay(layers: Layers) -> Iterator[Overlay]:
    with overlaid(layers) as made:
        yield made


def held(overlay: Overlay) -> int:
    found = overlay.tree.descriptors()
    return found["paths"] + found["data"] + found["unlinked"]


# --- attributes ---


def test_files_are_as_in_their_layer(overlay: Overlay, layers: Layers) -> None:
    for path in ("f", "l", "d/bottom"):
        real = next(layer / path for layer in layers.lowers if os.path.lexists(layer / path)).lstat()
        seen = overlay.attributes(path.encode())
        assert (seen.ino, seen.mode, seen.nlink, seen.size) == (
            real.st_ino, real.st_mode, real.st_nlink, real.st_size
        )  # fmt: skip


def test_merged_directories_have_one_link_and_others_as_many_as_they_have(overlay: Overlay) -> None:
    assert overlay.attributes(b"d").nlink == 1
    assert overlay.attributes(b"only-top").nlink == 4
    overlay.up(b"only-top")
    assert overlay.attributes(b"only-top").nlink == 1
    overlay.mkdir(b"new")
    overlay.mkdir(b"new/inside")
    assert overlay.attributes(b"new").nlink == 3


def test_a_merged_directory_has_the_number_of_its_topmost_lower(overlay: Overlay, layers: Layers) -> None:
    number = (layers.lowers[0] / "d").stat().st_ino
    assert overlay.number(b"d") == number
    overlay.up(b"d")
    assert overlay.number(b"d") == number
    assert overlay.tree.parent_number(overlay.at(b"d/top")) == number


def test_the_root_is_the_topmost_lowers(overlay: Overlay, layers: Layers) -> None:
    assert overlay.tree.root_attributes()[1].ino == layers.lowers[0].stat().st_ino
    assert overlay.tree.parent_number(overlay.tree.root) == layers.lowers[0].stat().st_ino


def test_numbers_in_a_listing_are_those_of_the_inodes_or_left_open(overlay: Overlay) -> None:
    overlay.up(b"f")
    overlay.create(b"new")
    overlay.up(b"d/bottom")
    for path in (b"", b"d", b"only-top"):
        listed = overlay.tree.listing(overlay.tree.held(overlay.at(path)))
        for name, number, kind in listed:
            inside = b"%s/%s" % (path, name)
            assert number in (0, overlay.number(inside))
            assert kind == overlay.attributes(inside).mode >> 12
    assert Listed(b"f", 0, stat.S_IFREG >> 12) in overlay.tree.listing(overlay.tree.held(overlay.tree.root))


def test_space_is_the_topmost_layers(overlay: Overlay, layers: Layers) -> None:
    assert overlay.tree.space(overlay.tree.root).blocks == os.statvfs(layers.upper).f_blocks


def test_all_layers_are_described(overlay: Overlay, layers: Layers) -> None:
    described = [(one["path"], one["role"]) for one in overlay.tree.describe()]
    assert described == [(str(layers.upper), "upper"), *((str(path), "lower") for path in layers.lowers)]


# --- found again ---


def test_a_known_inode_found_again_keeps_what_it_holds(overlay: Overlay) -> None:
    entry = overlay.at(b"f")
    before, data = entry.top, overlay.tree.data(entry, False)
    assert overlay.at(b"f") is entry
    assert entry.top is before
    assert overlay.tree.data(entry, False) is data


def test_what_came_up_is_the_same_inode_and_lets_go_of_the_lower_one(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"f")
    lower, old = entry.top, overlay.tree.data(entry, False)
    overlay.up(b"f")
    assert overlay.at(b"f") is entry
    assert (lower.path, lower.data, entry.lowers) == (None, None, ())
    assert os.pread(old.fd, 9, 0) == b"top", "who still reads the old one, can"
    found = os.fstat(overlay.tree.data(entry, True).fd)
    assert found.st_ino == (layers.upper / "f").stat().st_ino


def test_a_directory_found_in_more_layers_is_merged_with_them(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"only-top")
    overlay.tree.path(entry)
    top = entry.top
    (layers.lowers[1] / "only-top").mkdir()
    (layers.lowers[1] / "only-top/late").touch()
    assert overlay.at(b"only-top") is entry
    assert entry.top is top and len(entry.lowers) == 2
    assert overlay.names(b"only-top") == [b"late", b"x", b"y"]


def test_a_directory_gone_from_a_layer_lets_go_of_it(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"d")
    overlay.names(b"d")
    before = held(overlay)
    shutil.rmtree(layers.lowers[1] / "d")
    assert overlay.at(b"d") is entry
    assert len(entry.lowers) == 1
    assert held(overlay) < before
    assert overlay.names(b"d") == [b"top"]


def test_no_rename_behind_the_mount_makes_a_circle(overlay: Overlay, layers: Layers) -> None:
    outer, inner = overlay.at(b"only-top"), overlay.at(b"only-top/x")
    overlay.tree.path(inner)
    lower = layers.lowers[0]
    (lower / "only-top/x").rename(lower / "x")
    (lower / "only-top").rename(lower / "x/only-top")
    key, _, place = overlay.tree.lookup(inner, b"only-top")
    assert key == outer.key
    overlay.tree.found_at(outer, inner, b"only-top", place)
    above, steps = outer, 0
    while above.parent is not None and steps < 9:
        above, steps = above.parent, steps + 1
    assert above is overlay.tree.root
    assert overlay.tree.path_of(outer) == b"/x/only-top", "where it was seen last"


def test_while_it_is_copied_it_stays_where_it_is(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"d/top")
    overlay.up(b"d")
    os.truncate(layers.lowers[0] / "d/top", 1)
    steps = overlay.tree.copy_up(entry, None, False, lambda: False)
    next(steps)
    above, name = entry.parent, entry.name
    os.link(layers.lowers[0] / "d/top", layers.lowers[0] / "second")
    overlay.at(b"second")
    assert (entry.parent, entry.name) == (above, name)
    steps.close()


# --- what is held ---


def test_a_forgotten_inode_holds_nothing(overlay: Overlay) -> None:
    before = held(overlay)
    for path in (b"f", b"d", b"l"):
        entry = overlay.at(path)
        overlay.tree.path(entry)
    overlay.read(b"f")
    overlay.names(b"d")
    assert held(overlay) > before
    for path in (b"f", b"d", b"l"):
        overlay.forget(path)
    assert held(overlay) == before


def test_a_descriptor_of_the_old_inode_is_not_kept_for_the_new(overlay: Overlay) -> None:
    entry = overlay.at(b"f")
    opened = overlay.tree.open_waiting(overlay.tree.content(entry), os.O_RDONLY)
    overlay.tree.keep_data(entry, opened)
    assert overlay.tree.data(entry, False) is opened
    overlay.up(b"f")
    up = overlay.tree.data(entry, False)
    overlay.tree.keep_data(entry, opened)  # by a worker that had begun before the copy
    assert overlay.tree.data(entry, False) is up
    assert os.fstat(up.fd).st_ino != os.fstat(opened.fd).st_ino


def test_writing_waits_for_the_copy(overlay: Overlay) -> None:
    entry = overlay.at(b"f")
    assert errno_of(lambda: overlay.tree.data(entry, True)) == errno.EWOULDBLOCK
    overlay.up(b"f")
    assert overlay.tree.data(entry, True).writable


# --- a read-only mount ---


def test_without_an_upper_nothing_changes(layers: Layers) -> None:
    with overlaid(layers, writable=False) as overlay:
        tree, root, f = overlay.tree, overlay.tree.root, overlay.at(b"f")
        for call in (
            lambda: tree.mkdir(root, b"new", 0o755),
            lambda: tree.create(root, b"new", 0o644),
            lambda: tree.mknod(root, b"new", stat.S_IFIFO, 0),
            lambda: tree.symlink(root, b"new", b"x"),
            lambda: tree.tmpfile(root, 0o600),
            lambda: tree.link(f, root, b"new"),
            lambda: tree.unlink(root, b"f", f),
            lambda: tree.rmdir(root, b"d", None),
            lambda: tree.rename(root, b"f", root, b"g", 0, f, None),
            lambda: tree.change(f, Change(0o600, None, None, None, None)),
            lambda: tree.setxattr(f, b"user.x", b"", 0),
            lambda: tree.removexattr(f, b"user.x"),
            lambda: tree.is_up(f),
            lambda: tree.data(f, True),
        ):
            assert errno_of(call) == errno.EROFS
        assert overlay.contents()["f"] == b"top"
        assert (tree.volatile, tree.progress()) == (False, [])


def test_a_lower_inode_is_never_changed(overlay: Overlay) -> None:
    f = overlay.at(b"f")
    assert errno_of(lambda: overlay.tree.change(f, Change(0o600, None, None, None, None))) == errno.EROFS
    assert errno_of(lambda: overlay.tree.setxattr(f, b"user.x", b"", 0)) == errno.EROFS


# --- extended attributes ---


@pytest.mark.parametrize(
    "name", [b"user.plain", b"trusted.overlay.opaque", b"user.overlay.x", b"user.overlay.overlay.x"]
)
def test_users_get_back_what_they_set(overlay: Overlay, layers: Layers, name: bytes) -> None:
    entry = overlay.up(b"d")
    overlay.tree.setxattr(entry, name, b"value", 0)
    assert overlay.tree.getxattr(entry, name) == b"value"
    assert overlay.tree.listxattr(entry) == [name]
    assert overlay.names(b"d") == [b"bottom", b"top"], "it is no mark"
    overlay.tree.removexattr(entry, name)
    assert errno_of(lambda: overlay.tree.getxattr(entry, name)) == errno.ENODATA


def test_marks_are_not_shown(overlay: Overlay, layers: Layers) -> None:
    os.setxattr(layers.lowers[0] / "d", "user.fuseoverlayfs.origin", b"x")
    os.setxattr(layers.lowers[0] / "d", "user.shown", b"x")
    overlay.up(b"f")
    overlay.up(b"d/bottom")
    for path, names in ((b"d", [b"user.shown"]), (b"f", [])):
        entry = overlay.at(path)
        assert overlay.tree.listxattr(entry) == names
        for mark in (b"trusted.overlay.origin", b"trusted.overlay.impure", b"user.fuseoverlayfs.origin"):
            assert errno_of(partial(overlay.tree.getxattr, entry, mark)) == errno.ENODATA


@pytest.mark.parametrize("gone", ["d", "only-top"])
def test_a_directory_that_has_left_the_upper_just_now_is_looked_up_anew(overlay: Overlay, gone: str) -> None:
    """By whoever renames between the two: one has been brought up, the other is up no longer."""
    overlay.up(b"d/top")
    overlay.up(b"d" if gone != "d" else b"only-top")
    entries = {name: overlay.at(name.encode()) for name in ("d", "only-top", "d/top")}
    if gone == "d":
        entries["d"].upper = None
    moved = entries["d/top"]
    rename = partial(overlay.tree.rename, entries["d"], b"top", entries["only-top"], b"new", 0, moved, None)
    assert errno_of(rename) == errno.ESTALE
