"""rename(2) over layers: what moves takes its lower parts along, and what it leaves hides what is below."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from harness import Layers, errno_of
from harness.layered import Tree
from harness.overlaid import Fill, is_whiteout, mark, nothing_in_work, overlaid
from shiftfs.sys import files

pytestmark = pytest.mark.root
LOWER: Tree = {
    "f": b"f", "g": b"g", "d": {"inside": b"d", "sub": {"deep": b""}}, "e": {"in-e": b""}, "empty": {}, "l": Path("x")
}  # fmt: skip


@pytest.fixture
def layers(fill: Fill) -> Layers:
    return fill(LOWER)


# --- files ---


@pytest.mark.parametrize("name", [b"f", b"l"])
def test_a_lower_files_old_name_is_hidden(layers: Layers, name: bytes) -> None:
    with overlaid(layers) as overlay:
        number = overlay.number(name)
        overlay.rename(name, b"e/new")
        assert is_whiteout(layers.upper / os.fsdecode(name))
        assert (overlay.exists(name), overlay.number(b"e/new")) == (False, number)
        assert mark(layers.upper / "e", "impure") == b"y"
    assert nothing_in_work(layers)
    with overlaid(layers) as overlay:
        assert (overlay.exists(name), overlay.number(b"e/new")) == (False, number)


def test_a_file_of_the_upper_alone_leaves_nothing(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.create(b"new", b"new")
        overlay.rename(b"new", b"newer")
        assert os.listdir(layers.upper) == ["newer"]
        assert overlay.read(b"newer") == b"new"


def test_a_file_replaces_another(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        replaced = overlay.at(b"g")
        assert overlay.rename(b"f", b"g"), "the last name of what was there"
        assert overlay.read(b"g") == b"f"
        assert replaced.removed
        assert os.pread(overlay.tree.data(replaced, False).fd, 9, 0) == b"g"
        assert overlay.names() == [b"d", b"e", b"empty", b"g", b"l"]


def test_a_file_takes_the_place_of_a_whiteout(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.unlink(b"g")
        overlay.rename(b"f", b"g")
        assert overlay.read(b"g") == b"f"
        assert is_whiteout(layers.upper / "f")
    assert nothing_in_work(layers)


def test_two_names_trade_places(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.rename(b"f", b"d/inside", files.RENAME_EXCHANGE)
        assert (overlay.read(b"f"), overlay.read(b"d/inside")) == (b"d", b"f")
        overlay.rename(b"f", b"d/sub", files.RENAME_EXCHANGE)
        assert overlay.contents(b"f") == {"deep": b""}
        assert overlay.read(b"d/sub") == b"d"
    with overlaid(layers) as overlay:
        assert overlay.contents(b"f") == {"deep": b""}
        assert overlay.contents(b"d") == {"inside": b"f", "sub": b"d"}


# --- directories ---


@pytest.mark.parametrize(
    "new, redirect", [(b"new", b"d"), (b"e/new", b"/d"), (b"empty", b"d")], ids=["beside", "elsewhere", "over another"]
)
def test_a_directory_takes_its_lower_parts_along(layers: Layers, new: bytes, redirect: bytes) -> None:
    with overlaid(layers) as overlay:
        before, number = overlay.contents(b"d"), overlay.number(b"d")
        overlay.rename(b"d", new)
        assert mark(layers.upper / os.fsdecode(new), "redirect") == redirect
        assert is_whiteout(layers.upper / "d")
        for _ in range(2):
            assert (overlay.contents(new), overlay.exists(b"d")) == (before, False)
    assert nothing_in_work(layers)
    with overlaid(layers) as overlay:
        assert (overlay.contents(new), overlay.exists(b"d"), overlay.number(new)) == (before, False, number)


def test_a_redirect_stays_true_however_often_it_is_moved(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        before = overlay.contents(b"d")
        for old, new in ((b"d", b"a"), (b"a", b"b"), (b"b", b"e/c"), (b"e/c", b"e/d"), (b"e/d", b"d")):
            overlay.rename(old, new)
            assert overlay.contents(new) == before
            assert not overlay.exists(old)
    with overlaid(layers) as overlay:
        assert overlay.contents(b"d") == before
        assert overlay.contents(b"e") == {"in-e": b""}


def test_what_is_in_a_moved_directory_moves_on_by_where_the_layers_have_it(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.rename(b"d", b"new")
        overlay.rename(b"new/sub", b"e/sub")
        assert mark(layers.upper / "e/sub", "redirect") == b"/d/sub"
        assert overlay.contents(b"e/sub") == {"deep": b""}
    with overlaid(layers) as overlay:
        assert overlay.contents(b"e/sub") == {"deep": b""}
        assert overlay.contents(b"new") == {"inside": b"d"}


def test_a_directory_of_the_upper_alone_hides_what_it_comes_to_lie_over(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.mkdir(b"new")
        overlay.create(b"new/file")
        overlay.unlink(b"e/in-e")
        overlay.rename(b"new", b"e")
        assert mark(layers.upper / "e", "opaque") == b"y"
        assert overlay.contents(b"e") == {"file": b""}
    assert nothing_in_work(layers)
    with overlaid(layers) as overlay:
        assert overlay.contents(b"e") == {"file": b""}


def test_a_rename_into_what_has_left_it_behind_the_mount_makes_no_circle(layers: Layers) -> None:
    """By what is known of it the directory is still in the one that is moved into it."""
    with overlaid(layers) as overlay:
        overlay.mkdir(b"outer")
        overlay.mkdir(b"outer/inner")
        outer, inner = overlay.at(b"outer"), overlay.at(b"outer/inner")
        overlay.tree.path(inner)
        (layers.upper / "outer/inner").rename(layers.upper / "inner")
        overlay.tree.rename(overlay.tree.root, b"outer", inner, b"outer", 0, outer, None)
        assert outer.upper is not None and inner.upper is not None
        for one, other in ((outer, inner), (outer.upper, inner.upper)):
            assert one.parent is other
            assert not leads_to(other, one)
        assert overlay.tree.path_of(outer) == b"/inner/outer"


def leads_to(entry: Any, above: Any) -> bool:
    for _ in range(9):
        if entry is above:
            return True
        entry = entry.parent if entry is not None else None
    return False


@pytest.mark.parametrize("moved", [b"d", b"new"])
def test_a_directory_takes_the_place_of_a_whiteout(layers: Layers, moved: bytes) -> None:
    with overlaid(layers) as overlay:
        overlay.mkdir(b"new")
        overlay.rmdir(b"empty")
        before = overlay.contents(moved)
        overlay.rename(moved, b"empty")
        assert (overlay.contents(b"empty"), overlay.exists(moved)) == (before, False)
    assert (layers.upper / "new").exists() == (moved != b"new"), "there is nothing to hide"
    with overlaid(layers) as overlay:
        assert (overlay.contents(b"empty"), overlay.exists(moved)) == (before, False)


def test_only_what_shows_as_empty_is_replaced(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.mkdir(b"new")
        assert errno_of(lambda: overlay.rename(b"new", b"d")) == errno.ENOTEMPTY
        assert errno_of(lambda: overlay.rename(b"new", b"f")) == errno.ENOTDIR
        assert errno_of(lambda: overlay.rename(b"f", b"new")) == errno.EISDIR
        assert overlay.contents(b"new") == {}
        assert sorted(overlay.contents(b"d")) == ["inside", "sub"]


@pytest.mark.parametrize("redirect_dir", ["off", "follow", "nofollow"])
def test_without_redirects_only_directories_of_the_upper_move(layers: Layers, redirect_dir: str) -> None:
    with overlaid(layers, redirect_dir=redirect_dir) as overlay:
        overlay.mkdir(b"new")
        overlay.rename(b"new", b"newer")
        overlay.rename(b"f", b"newer/f")
        assert errno_of(lambda: overlay.rename(b"d", b"elsewhere")) == errno.EXDEV
        assert errno_of(lambda: overlay.rename(b"newer", b"d", files.RENAME_EXCHANGE)) == errno.EXDEV
        assert sorted(overlay.contents()) == ["d", "e", "empty", "g", "l", "newer"]
    assert not (layers.upper / "d").exists(), "nothing was done for it"


# --- flags ---


def test_what_users_may_not_ask_for_is_refused(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        assert errno_of(lambda: overlay.rename(b"f", b"g", files.RENAME_NOREPLACE)) == errno.EEXIST
        assert errno_of(lambda: overlay.rename(b"f", b"new", files.RENAME_WHITEOUT)) == errno.EINVAL
        assert errno_of(lambda: overlay.rename(b"f", b".wh.g")) == errno.EINVAL
        assert (overlay.read(b"f"), overlay.read(b"g")) == (b"f", b"g")


def test_a_name_that_only_a_whiteout_has_is_free(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.unlink(b"g")
        overlay.rename(b"f", b"g", files.RENAME_NOREPLACE)
        assert overlay.read(b"g") == b"f"


# --- hard links ---


def test_a_renamed_link_is_counted_once(fill: Fill) -> None:
    layers = fill({"a": b"content", "b": lambda path: os.link(path.parent / "a", path), "other": b""})
    with overlaid(layers) as overlay:
        overlay.rename(b"b", b"c")
        assert [overlay.attributes(name).nlink for name in (b"a", b"c")] == [2, 2]
        assert not overlay.rename(b"other", b"a"), "a name is left"
        assert overlay.attributes(b"c").nlink == 1
    with overlaid(layers) as overlay:
        assert (overlay.attributes(b"c").nlink, overlay.read(b"c")) == (1, b"content")
        assert overlay.rename(b"a", b"c")
    assert os.listdir(layers.work / "index") == []


# --- where it takes two steps ---


def test_a_filesystem_that_leaves_no_whiteouts_gets_one_afterwards(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = files.rename

    def renamed(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
        if flags & files.RENAME_WHITEOUT:
            raise OSError(errno.EINVAL, "")
        rename(old_directory, old, new_directory, new, flags)

    monkeypatch.setattr(files, "rename", renamed)
    with overlaid(layers) as overlay:
        overlay.rename(b"f", b"e/f")
        overlay.rename(b"d", b"e/d")
        assert is_whiteout(layers.upper / "f") and is_whiteout(layers.upper / "d")
        assert overlay.contents(b"e")["d"] == {"inside": b"d", "sub": {"deep": b""}}
    assert nothing_in_work(layers)
