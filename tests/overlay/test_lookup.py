"""A name over layers: which of them it leads to, what is merged, hidden, followed and refused."""

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import errno_of, make_whiteout, run
from harness.layered import Tree
from harness.overlaid import Fill, by_kernel, marked, overlaid

pytestmark = pytest.mark.root
PREFIXES = ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."]


# --- merging ---


def test_the_topmost_counts_and_directories_are_merged(fill: Fill) -> None:
    layers = fill(
        {"d": {"both": b"middle", "middle": b""}, "f": b"middle"},
        {"d": {"both": b"bottom", "bottom": b""}, "f": b"bottom"},
        upper={"d": {"upper": b""}},
    )
    with overlaid(layers) as overlay:
        assert overlay.contents() == by_kernel(layers) == {
            "d": {"both": b"middle", "bottom": b"", "middle": b"", "upper": b""}, "f": b"middle"
        }  # fmt: skip
        d = overlay.at(b"d")
        assert (d.upper is not None, [one.layer for one in d.lowers]) == (True, [1, 2])


@pytest.mark.parametrize("between", [b"a file", Path("target"), None], ids=["file", "symlink", "whiteout"])
def test_what_is_no_directory_ends_the_merge(fill: Fill, between: bytes | Path | None) -> None:
    layers = fill({"d": {"top": b""}}, {"d": between}, {"d": {"bottom": b""}})
    with overlaid(layers) as overlay:
        assert overlay.contents() == by_kernel(layers) == {"d": {"top": b""}}
        assert len(overlay.at(b"d").lowers) == 1


def test_a_layer_that_lacks_a_directory_is_passed_over(fill: Fill) -> None:
    layers = fill({}, {"d": {"middle": b""}}, {}, {"d": {"bottom": b""}})
    with overlaid(layers) as overlay:
        assert overlay.names(b"d") == [b"bottom", b"middle"]
        assert [one.layer for one in overlay.at(b"d").lowers] == [2, 4]


def test_a_name_that_is_nowhere_is_none(fill: Fill) -> None:
    with overlaid(fill({"d": {}, "f": b""}, {"d": {}})) as overlay:
        for path, number in ((b"absent", errno.ENOENT), (b"d/absent", errno.ENOENT), (b"n" * 256, errno.ENAMETOOLONG)):
            assert errno_of(partial(overlay.at, path)) == number


# --- whiteouts and opaque directories ---


def by_xattr(prefix: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.touch()
        os.setxattr(path, prefix + "whiteout", b"y")
        os.setxattr(path.parent, prefix + "opaque", b"x")

    return make


def by_name(path: Path) -> None:
    (path.parent / f".wh.{path.name}").touch()


WHITEOUTS: dict[str, Callable[[Path], None]] = {
    "device": make_whiteout, "name": by_name, **{prefix: by_xattr(prefix) for prefix in PREFIXES}
}  # fmt: skip


@pytest.mark.parametrize("kind", WHITEOUTS)
@pytest.mark.parametrize("where", ["", "d"])
def test_a_whiteout_hides_a_name_in_the_layers_below(fill: Fill, kind: str, where: str) -> None:
    hidden: Tree = {"file": b"hidden", "directory": {"f": b""}, "link": Path("x"), "other": b"shown"}
    here: Tree = {name: WHITEOUTS[kind] for name in ("file", "directory", "link", "nothing")}
    layers = fill({"d": {}}, {where: here} if where else here, {where: hidden} if where else hidden)
    with overlaid(layers) as overlay:
        inside = where.encode()
        assert overlay.names(inside) == ([b"other"] if where else [b"d", b"other"])
        assert [overlay.exists(b"%s/%s" % (inside, os.fsencode(name))) for name in here] == [False] * 4


@pytest.mark.parametrize("kind", WHITEOUTS)
def test_a_whiteout_hides_nothing_above_it(fill: Fill, kind: str) -> None:
    layers = fill({"d": {"f": b"top"}, "f": b"top"}, {"d": WHITEOUTS[kind], "f": WHITEOUTS[kind]}, {"d": {"g": b""}})
    with overlaid(layers) as overlay:
        assert overlay.contents() == {"d": {"f": b"top"}, "f": b"top"}


def test_a_file_beside_the_whiteout_of_its_name_hides_by_itself(fill: Fill) -> None:
    layers = fill({"f": b"top", ".wh.f": b"", "d": {"top": b""}, ".wh.d": b""}, {"f": b"bottom", "d": {"bottom": b""}})
    with overlaid(layers) as overlay:
        assert overlay.contents() == {"d": {"top": b""}, "f": b"top"}


def test_a_marked_file_is_a_whiteout_only_in_a_marked_directory_and_if_empty(fill: Fill) -> None:
    def with_content(path: Path) -> None:
        by_xattr("trusted.overlay.")(path)
        path.write_bytes(b"x")

    def without_mark(path: Path) -> None:
        by_xattr("trusted.overlay.")(path)
        os.removexattr(path.parent, "trusted.overlay.opaque")

    layers = fill({"d": {"f": with_content}, "e": {"f": without_mark}}, {"d": {"f": b"hidden"}, "e": {"f": b"hidden"}})
    with overlaid(layers) as overlay:
        assert overlay.contents() == {"d": {"f": b"x"}, "e": {"f": b""}}


@pytest.mark.parametrize("name", [b".wh.f", b".wh.", b".wh..wh..opq", b".wh.other"])
def test_names_of_whiteouts_are_neither_shown_nor_found(fill: Fill, name: bytes) -> None:
    with overlaid(fill({os.fsdecode(name): b"", "shown": b""})) as overlay:
        assert overlay.names() == [b"shown"]
        assert not overlay.exists(name)


@pytest.mark.parametrize("how", [*PREFIXES, "name"])
def test_an_opaque_directory_hides_those_below(fill: Fill, how: str) -> None:
    top = {"top": b"", ".wh..wh..opq": b""} if how == "name" else marked("opaque", b"y", {"top": b""}, how)
    with overlaid(fill({"d": {"above": b""}}, {"d": top}, {"d": {"below": b""}})) as overlay:
        assert overlay.names(b"d") == [b"above", b"top"]
        assert not overlay.exists(b"d/below")


# --- redirects ---

ROOT: Tree = {"old": {"f": b"old"}, "x": {"y": {"z": {"f": b"deep"}}}, "new": {"f": b"not this"}}


def redirected(to: bytes, prefix: str = "trusted.overlay.") -> Callable[[Path], None]:
    return marked("redirect", to, {"here": b""}, prefix)


@pytest.mark.parametrize("prefix", PREFIXES[:2])
@pytest.mark.parametrize(
    "to, content", [(b"old", b"old"), (b"/old", b"old"), (b"/x/y/z", b"deep"), (b"//x//y/z/", b"deep")]
)
def test_a_redirect_says_where_the_layers_below_have_it(fill: Fill, to: bytes, content: bytes, prefix: str) -> None:
    with overlaid(fill({}, ROOT, upper={"new": redirected(to, prefix)})) as overlay:
        assert overlay.contents(b"new") == {"f": content, "here": b""}


CHAINS: dict[str, list[Tree]] = {
    "relative over relative": [{"c": redirected(b"b")}, {"b": redirected(b"a")}, {"a": {"f": b""}, "b": {"no": b""}}],
    "absolute over relative": [{"c": redirected(b"/d/b")}, {"d": {"b": redirected(b"a")}}, {"d": {"a": {"f": b""}}}],
    "relative over absolute": [{"c": redirected(b"b")}, {"b": redirected(b"/d/a")}, {"d": {"a": {"f": b""}}}],
    "through a renamed parent": [
        {"c": redirected(b"/p/b")}, {"p": marked("redirect", b"q", {"b": {"m": b""}})}, {"q": {"b": {"f": b""}}}
    ],
    "through a moved parent": [
        {"c": redirected(b"/p/b")},
        {"p": marked("redirect", b"/q/r", {"b": {"m": b""}})},
        {"q": {"r": {"b": {"f": b""}}}},
    ],
    "absolute beneath absolute": [
        {"c": redirected(b"/p/b")},
        {"p": marked("redirect", b"/no", {"b": redirected(b"/q/a")})},
        {"no": {"b": {"no": b""}}, "q": {"a": {"f": b""}}},
    ],
    "relative at the end of a renamed parent": [
        {"c": redirected(b"/p/b")},
        {"p": marked("redirect", b"q", {"b": redirected(b"a")})},
        {"q": {"a": {"f": b""}}, "p": {"a": {"no": b""}}},
    ],
    "through two renamed parents": [
        {"c": redirected(b"/p/q/a")},
        {"p": marked("redirect", b"x", {"q": marked("redirect", b"y", {"a": {"m": b""}})})},
        {"x": {"y": {"a": {"f": b""}}}, "p": {"y": {"a": {"no": b""}}}},
    ],
    "through a renamed parent that lacks the rest": [
        {"c": redirected(b"/p/q/a")},
        {"p": marked("redirect", b"x", {})},
        {"x": {"q": {"a": {"f": b""}}}, "p": {"q": {"a": {"no": b""}}}},
    ],
    "past a layer that lacks it": [{"c": redirected(b"/d/a")}, {"d": {}}, {"d": {"a": {"f": b""}}}],
    "past a layer that lacks the parent": [{"c": redirected(b"/d/a")}, {}, {"d": {"a": {"f": b""}}}],
    "whiteout in the way": [{"c": redirected(b"/d/a")}, {"d": None}, {"d": {"a": {"no": b""}}}],
    "file in the way": [{"c": redirected(b"/d/a")}, {"d": b""}, {"d": {"a": {"no": b""}}}],
    "opaque parent": [
        {"c": redirected(b"/d/a")}, {"d": marked("opaque", b"y", {"a": {"f": b""}})}, {"d": {"a": {"no": b""}}}
    ],
    "opaque parent that lacks it": [
        {"c": redirected(b"/d/a")}, {"d": marked("opaque", b"y")}, {"d": {"a": {"no": b""}}}
    ],
    "opaque target": [{"c": redirected(b"a")}, {"a": marked("opaque", b"y", {"f": b""})}, {"a": {"no": b""}}],
    "to nowhere": [{"c": redirected(b"/d/a")}, {}, {"c": {"no": b""}}],
    "in a circle": [{"c": redirected(b"d"), "d": redirected(b"c")}, {"c": redirected(b"d"), "d": redirected(b"c")},
                    {"c": {"in-c": b""}, "d": {"in-d": b""}}],
    "to itself": [{"c": redirected(b"c")}, {"c": redirected(b"/c")}, {"c": {"f": b""}}],
    "into itself": [{"c": redirected(b"/c/c")}, {"c": {"c": {"f": b""}}}],
    "to a symlink": [{"c": redirected(b"l")}, {"l": Path("d"), "d": {"no": b""}}, {"l": {"no": b""}}],
    "through a symlink": [
        {"c": redirected(b"/l/a")}, {"l": Path("d"), "d": {"a": {"no": b""}}}, {"l": {"a": {"no": b""}}}
    ],
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_redirects_lead_where_the_kernel_has_them_lead(fill: Fill, chain: str) -> None:
    top, *below = CHAINS[chain]
    layers = fill(*below, upper=top)
    with overlaid(layers) as overlay:
        ours = overlay.contents(b"c")
        assert "no" not in ours
        assert ours == by_kernel(layers, "redirect_dir=follow")["c"]


@pytest.mark.parametrize("value", [b"", b"/", b"..", b"/../d", b"a/b", b"/d/./e"])
def test_a_damaged_redirect_is_an_error_of_that_name_alone(fill: Fill, value: bytes) -> None:
    with overlaid(fill({"d": {"inside": b""}, "c": {}}, upper={"c": redirected(value), "other": b""})) as overlay:
        assert errno_of(lambda: overlay.at(b"c")) == errno.EINVAL
        assert overlay.names() == [b"c", b"d", b"other"]
        assert overlay.read(b"other") == b""


def test_redirects_are_refused_where_they_are_not_to_be_followed(fill: Fill) -> None:
    layers = fill(ROOT, upper={"new": redirected(b"old"), "other": {}})
    with overlaid(layers, redirect_dir="nofollow") as overlay:
        assert errno_of(lambda: overlay.at(b"new")) == errno.EPERM
        assert overlay.exists(b"other")


# --- content elsewhere ---

METADATA = marked("metacopy", b"", b"\0\0\0\0")


@pytest.mark.parametrize(
    "trees",
    [
        [{"f": METADATA}, {"f": b"data"}],
        [{"f": METADATA}, {}, {"f": b"data"}],
        [{"f": METADATA}, {"f": METADATA}, {"f": b"data"}],
        [{"f": METADATA}, {"f": b"data"}, {"f": b"not this"}],
    ],
)
def test_metadata_shows_the_content_of_the_layers_below(fill: Fill, trees: list[Tree]) -> None:
    layers = fill(*trees[1:], upper=trees[0])
    with overlaid(layers) as overlay:
        assert overlay.contents() == by_kernel(layers, "metacopy=on") == {"f": b"data"}


def moved_metadata(to: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        METADATA(path)
        os.setxattr(path, "trusted.overlay.redirect", to)

    return make


@pytest.mark.parametrize("to", [b"old", b"/d/old"])
def test_metadata_follows_a_redirect(fill: Fill, to: bytes) -> None:
    layers = fill({"old": b"data", "d": {"old": b"data"}}, upper={"f": moved_metadata(to)})
    with overlaid(layers) as overlay:
        assert overlay.read(b"f") == by_kernel(layers, "metacopy=on", "redirect_dir=follow")["f"] == b"data"


NO_CONTENT: dict[str, list[Tree]] = {
    "nothing": [{}], "directory": [{"f": {}}], "whiteout": [{"f": None}], "symlink": [{"f": Path("x")}],
    "more of it, then nothing": [{"f": METADATA}, {}], "more of it at the bottom": [{}, {"f": METADATA}],
    "more of it, then a symlink": [{"f": METADATA}, {"f": Path("x")}],
}  # fmt: skip


@pytest.mark.parametrize("below", NO_CONTENT)
def test_metadata_whose_content_is_nowhere_is_an_error(fill: Fill, below: str) -> None:
    layers = fill(*NO_CONTENT[below], upper={"f": METADATA})
    with overlaid(layers) as overlay:
        assert errno_of(lambda: overlay.at(b"f")) == errno.EIO
    if len(layers.lowers) > 1:
        assert errno_of(lambda: by_kernel(layers, "metacopy=on")) == errno.EIO


# --- which inode it is ---


def test_names_of_a_lower_file_share_what_the_index_has(fill: Fill) -> None:
    layers = fill({"a": b"content", "b": lambda path: os.link(path.parent / "a", path)})
    with overlaid(layers) as overlay:
        number = overlay.number(b"a")
        overlay.write(b"a", b"C")
    with overlaid(layers) as overlay:  # b itself has not been copied up
        assert overlay.at(b"a") is overlay.at(b"b")
        assert overlay.read(b"b") == b"Content"
        assert (overlay.number(b"b"), overlay.attributes(b"b").nlink) == (number, 2)


def test_two_uppers_that_claim_one_origin_are_two_inodes(fill: Fill) -> None:
    layers = fill({"a": b"lower", "d": {}})
    with overlaid(layers) as overlay:
        overlay.write(b"a", b"LOWER")
    run(["cp", "-a", layers.upper / "a", layers.upper / "b"])
    (layers.upper / "b").write_bytes(b"other")
    with overlaid(layers) as overlay:
        assert overlay.at(b"a") is not overlay.at(b"b")
        assert (overlay.read(b"a"), overlay.read(b"b")) == (b"LOWER", b"other")
        assert overlay.number(b"a") != overlay.number(b"b")


@pytest.mark.parametrize("layer", ["lower0", "upper"])
def test_a_copy_and_its_origin_under_two_names_are_two_files(fill: Fill, layer: str) -> None:
    layers = fill({"a": b"lower", "d": {}})
    with overlaid(layers) as overlay:
        overlay.write(b"a", b"LOWER")
    os.rename(layers.base / layer / "a", layers.base / layer / "b")
    lower, upper = (b"b", b"a") if layer == "lower0" else (b"a", b"b")
    with overlaid(layers) as overlay:
        assert (overlay.read(upper), overlay.read(lower)) == (b"LOWER", b"lower")
        overlay.write(lower, b"other")
        assert (overlay.read(upper), overlay.read(lower)) == (b"LOWER", b"other")
    with overlaid(layers) as overlay:
        assert (overlay.read(upper), overlay.read(lower)) == (b"LOWER", b"other")
        assert overlay.number(lower) != overlay.number(upper)


def test_an_origin_renamed_during_the_mount_is_another_file(fill: Fill) -> None:
    layers = fill({"a": b"lower", "d": {}})
    with overlaid(layers) as overlay:
        overlay.write(b"a", b"LOWER")
        number = overlay.number(b"a")
        os.rename(layers.lower / "a", layers.lower / "d/b")
        overlay.write(b"d/b", b"other")
        assert (overlay.read(b"a"), overlay.read(b"d/b")) == (b"LOWER", b"other")
        assert overlay.number(b"a") == number


def test_a_file_keeps_its_number_when_it_comes_up_and_over_a_remount(fill: Fill) -> None:
    layers = fill({"d": {"f": b""}, "l": Path("x")})
    paths = (b"d", b"d/f", b"l")
    with overlaid(layers) as overlay:
        before = [overlay.number(path) for path in paths]
        for path in paths:
            overlay.up(path)
        assert [overlay.number(path) for path in paths] == before
    with overlaid(layers) as overlay:
        assert [overlay.number(path) for path in paths] == before


# --- layers that change behind the mount ---


@pytest.mark.parametrize("gone", ["upper", "lower0", "lower1"])
def test_a_directory_gone_from_one_layer_leaves_those_of_the_others(fill: Fill, gone: str) -> None:
    tree: Any = {"d": {"inside": {}}}
    layers = fill({"d": {"in-lower0": b"", **tree["d"]}}, {"d": {"in-lower1": b""}}, upper={"d": {"in-upper": b""}})
    with overlaid(layers) as overlay:
        d = overlay.at(b"d")
        shutil.rmtree(layers.base / gone / "d")
        left = {b"in-lower0", b"in-lower1", b"in-upper"} - {b"in-" + gone.encode()}
        for name in left:
            assert overlay.tree.lookup(d, name)[1].size == 0
        assert errno_of(lambda: overlay.tree.lookup(d, b"in-" + gone.encode())) == errno.ENOENT
        assert {one.name for one in overlay.tree.listing(overlay.tree.held(d))} - {b"inside"} == left
