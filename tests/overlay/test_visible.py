"""What a change in one layer has to do with the mount: contributors, what hides them, what they cover."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Layers, make_whiteout, write_tree
from harness.layered import Tree
from harness.overlaid import Fill, Overlay, marked, overlaid
from overlay.entry import Entry
from shiftfs.tree import Shown

pytestmark = pytest.mark.root
HIDDEN, MERGED, TOP = Shown.HIDDEN, Shown.MERGED, Shown.TOP


def by_xattr(path: Path) -> None:
    path.touch()
    os.setxattr(path, "trusted.overlay.whiteout", b"y")
    os.setxattr(path.parent, "trusted.overlay.opaque", b"x")


def by_name(path: Path) -> None:
    (path.parent / f".wh.{path.name}").touch()


def opaque_by_name(path: Path) -> None:
    path.mkdir()
    (path / ".wh..wh..opq").touch()


def renamed(to: bytes) -> Callable[[Path], None]:
    return marked("redirect", to, {})


def metadata_of(path: bytes) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        marked("metacopy", b"", b"")(file)
        os.setxattr(file, "trusted.overlay.redirect", path)

    return make


# What the upper has at `x`, what the first lower has there, what the second: what of the upper's, the first lower's
# and the second's shows there.
Layered = Callable[[Path], None] | Tree | bytes | str | None
NOTHING = "nothing"
TABLE: dict[str, tuple[tuple[Layered, Layered, Layered], tuple[Shown, Shown, Shown]]] = {
    "nothing anywhere": ((NOTHING, NOTHING, NOTHING), (TOP, TOP, TOP)),
    "a file at the bottom": ((NOTHING, NOTHING, b""), (TOP, TOP, TOP)),
    "a file above a file": ((NOTHING, b"", b""), (TOP, TOP, HIDDEN)),
    "a file above all": ((b"", b"", {}), (TOP, HIDDEN, HIDDEN)),
    "a file above nothing": ((b"", NOTHING, NOTHING), (TOP, HIDDEN, HIDDEN)),
    "a device whiteout": ((make_whiteout, b"", {}), (TOP, HIDDEN, HIDDEN)),
    "a device whiteout between": ((NOTHING, make_whiteout, {}), (TOP, TOP, HIDDEN)),
    "a whiteout by attribute": ((by_xattr, b"", b""), (TOP, HIDDEN, HIDDEN)),
    "a whiteout by name": ((by_name, b"", {}), (TOP, HIDDEN, HIDDEN)),
    "a whiteout by name between": ((NOTHING, by_name, b""), (TOP, TOP, HIDDEN)),
    "merged directories": (({}, {}, {}), (TOP, MERGED, MERGED)),
    "merged with nothing between": (({}, NOTHING, {}), (TOP, MERGED, MERGED)),
    "of a lower alone, merged": ((NOTHING, {}, {}), (TOP, TOP, MERGED)),
    "a file beneath a directory": (({}, b"", {}), (TOP, HIDDEN, HIDDEN)),
    "a directory above a whiteout": (({}, make_whiteout, {}), (TOP, HIDDEN, HIDDEN)),
    "an opaque directory": ((marked("opaque", b"y", {}), {}, {}), (TOP, HIDDEN, HIDDEN)),
    "an opaque directory by name": ((opaque_by_name, {}, b""), (TOP, HIDDEN, HIDDEN)),
    "an opaque directory between": (({}, marked("opaque", b"y", {}), {}), (TOP, MERGED, HIDDEN)),
    "a directory from elsewhere": ((renamed(b"other"), {}, {}), (TOP, HIDDEN, HIDDEN)),
    "a directory from this very place": ((renamed(b"/x"), {}, {}), (TOP, MERGED, MERGED)),
    "metadata with content here": ((metadata_of(b"/x"), b"content", b""), (TOP, MERGED, HIDDEN)),
    "metadata with content elsewhere": ((metadata_of(b"/content"), b"x", b"x"), (TOP, HIDDEN, HIDDEN)),
}  # fmt: skip

ABSOLUTE = ("a directory from this very place", "metadata with content here", "metadata with content elsewhere")


def one(what: Layered, **rest: Tree | bytes) -> Tree:
    return {**({} if what == NOTHING else {"x": what}), **rest}  # type: ignore[dict-item]


@pytest.mark.parametrize("where", ["", "inside"])
@pytest.mark.parametrize("case", TABLE)
def test_what_of_each_layer_shows(fill: Fill, case: str, where: str) -> None:
    (upper, first, second), expected = TABLE[case]
    trees = one(upper), one(first, other={}, content=b"c"), one(second)
    if where:
        if case in ABSOLUTE:
            pytest.skip("what is written there is the path in the root")
        trees = ({where: trees[0]}, {where: trees[1]}, {where: trees[2]})
    with overlaid(fill(trees[1], trees[2], upper=trees[0])) as overlay:
        directory = overlay.at(where.encode())
        assert tuple(overlay.tree.hidden(directory, layer, b"x") for layer in range(3)) == expected


@pytest.mark.parametrize("what", [make_whiteout, b"file"], ids=["whiteout", "file"])
def test_what_ends_a_merge_that_is_known_concerns_it(fill: Fill, what: Layered) -> None:
    layers = fill({}, {"x": {"2": b""}}, upper={"x": {}})
    with overlaid(layers) as overlay:
        assert overlay.names(b"x") == [b"2"]
        write_tree(layers.lower, one(what))
        assert overlay.tree.hidden(overlay.tree.root, 1, b"x") is MERGED
        assert overlay.names(b"x") == []
        assert overlay.tree.hidden(overlay.tree.root, 1, b"x") is HIDDEN


def test_what_hides_need_not_be_readable(fill: Fill) -> None:
    """Whoever looks the name up learns what is wrong."""
    with overlaid(fill({"d": {}}, upper={"d": marked("redirect", b"../damaged", {})})) as overlay:
        assert overlay.tree.hidden(overlay.tree.root, 1, b"d") is MERGED
        assert overlay.tree.covered(overlay.tree.root, 0, b"d") == stat.S_IFDIR


def test_a_layer_that_does_not_contribute_shows_nothing(fill: Fill) -> None:
    trees: Tree = {"d": {"f": b""}}
    with overlaid(fill(trees, trees, upper={"d": marked("opaque", b"y", {})})) as overlay:
        d = overlay.at(b"d")
        assert [overlay.tree.hidden(d, layer, b"f") for layer in range(3)] == [TOP, HIDDEN, HIDDEN]
        assert [overlay.tree.hidden(d, layer, b"") for layer in range(3)] == [TOP, HIDDEN, HIDDEN]


def test_a_directorys_own_attributes_are_its_topmost_parts(fill: Fill) -> None:
    with overlaid(fill({"d": {}}, {"d": {}})) as overlay:
        d = overlay.at(b"d")
        assert [overlay.tree.hidden(d, layer, b"") for layer in range(3)] == [HIDDEN, TOP, MERGED]
        overlay.up(b"d")
        assert [overlay.tree.hidden(d, layer, b"") for layer in range(3)] == [TOP, MERGED, MERGED]


FILE, DIRECTORY = stat.S_IFREG, stat.S_IFDIR
COVERED: dict[str, tuple[tuple[Layered, Layered, Layered], tuple[int, int]]] = {
    "nothing": ((b"", NOTHING, NOTHING), (0, 0)),
    "a file": ((b"", NOTHING, b""), (FILE, FILE)),
    "a directory": (({}, {}, NOTHING), (DIRECTORY, 0)),
    "a whiteout": ((b"", make_whiteout, b""), (0, FILE)),
    "a whiteout by name": ((b"", by_name, b""), (0, FILE)),
    "its own whiteouts do not count": ((by_name, b"", b""), (FILE, FILE)),
}


@pytest.mark.parametrize("case", COVERED)
def test_what_a_layer_covers(fill: Fill, case: str) -> None:
    (upper, first, second), expected = COVERED[case]
    with overlaid(fill(one(first), one(second), upper=one(upper))) as overlay:
        root = overlay.tree.root
        assert tuple(overlay.tree.covered(root, layer, b"x") for layer in range(3)) == (*expected, 0)


@pytest.mark.parametrize(
    "name, concerned",
    [
        (b"f", b"f"), (b".wh.f", b"f"), (b".wh..wh..opq", b""), (b".wh.", None), (b".wh..", None), (b".wh...", None),
        (b".wh..wh.f", None), (b".w", b".w"), (b".wh", b".wh"),
    ],
)  # fmt: skip
def test_which_name_of_the_mount_a_layers_name_is_about(fill: Fill, name: bytes, concerned: bytes | None) -> None:
    with overlaid(fill({})) as overlay:
        assert overlay.tree.concerns(name) == concerned


# --- contributors ---


def places(overlay: Overlay, path: bytes) -> list[tuple[int, str]]:
    """Layer and the path there of each contributor, which is the inode that it says."""
    found = []
    for each in overlay.tree.contributors(overlay.at(path)):
        fd, name = each.place()
        real = os.stat(name, dir_fd=fd, follow_symlinks=False) if name else os.fstat(fd)
        assert real.st_ino == each.key[1]
        assert each.device == each.key[0] == os.major(real.st_dev) << 20 | os.minor(real.st_dev)
        at = Path(os.readlink(f"/proc/self/fd/{fd}")) / os.fsdecode(name)
        found.append((each.layer, str(at).rpartition("/")[2]))
    return found


def test_contributors_are_all_parts_of_a_directory_and_what_a_file_is_made_of(fill: Fill) -> None:
    layers = fill({"d": {"f": b"1"}, "m": b"x"}, {"d": {}, "g": b""}, {"d": {}}, upper={"m": metadata_of(b"/m")})
    with overlaid(layers) as overlay:
        assert [layer for layer, _ in places(overlay, b"")] == [0, 1, 2, 3]
        assert places(overlay, b"d") == [(1, "d"), (2, "d"), (3, "d")]
        assert places(overlay, b"d/f") == [(1, "f")]
        assert places(overlay, b"g") == [(2, "g")]
        assert places(overlay, b"m") == [(0, "m"), (1, "m")]
        overlay.up(b"d/f")
        assert places(overlay, b"d") == [(0, "d"), (1, "d"), (2, "d"), (3, "d")]
        assert places(overlay, b"d/f") == [(0, "f")]


def test_what_has_no_name_any_more_is_known_by_its_descriptor(fill: Fill) -> None:
    with overlaid(fill({})) as overlay:
        made = overlay.create(b"f")
        overlay.unlink(b"f")
        (only,) = overlay.tree.contributors(made)
        fd, name = only.place()
        assert name == b"" and os.fstat(fd).st_ino == made.key[1]


def test_contributors_cost_nothing_where_nothing_is_asked(fill: Fill) -> None:
    with overlaid(fill({"d": {"e": {}}})) as overlay:
        entry = overlay.at(b"d/e")
        shutil.rmtree(overlay.tree._layers.layers[1].path)
        assert [each.key for each in overlay.tree.contributors(entry)] == [entry.key]


# --- a known directory that is made of others by now ---


def parts(overlay: Overlay, path: bytes) -> list[int]:
    return [real.layer for real in overlay.at(path).reals]


def keep(overlay: Overlay, path: bytes, expected: list[int]) -> None:
    """It is still the same inode, made of these layers' directories."""
    before = overlay.at(path)
    assert overlay.known[before.key] is before
    assert parts(overlay, path) == expected


@pytest.fixture
def three(fill: Fill) -> Layers:
    return fill({"d": {"1": b"1"}}, {"d": {"2": b"2"}}, {"d": {"3": b"3"}}, upper={"d": {"0": b"0"}})


@pytest.mark.parametrize("gone", [1, 2, 3])
@pytest.mark.parametrize("how", ["removed", "renamed", "replaced by a file", "replaced by another", "opaque above"])
def test_a_directory_stays_what_it_is_when_a_lower_part_changes(three: Layers, gone: int, how: str) -> None:
    lower = three.lowers[gone - 1] / "d"
    with overlaid(three) as overlay:
        before = overlay.at(b"d")
        key, number = before.key, overlay.number(b"d")
        for name in (b"d/0", b"d/1", b"d/2", b"d/3"):
            overlay.tree.path(overlay.at(name))
        expected = [0, 1, 2, 3]
        expected.remove(gone)
        if how == "opaque above":
            os.setxattr((three.upper if gone == 1 else three.lowers[gone - 2]) / "d", "trusted.overlay.opaque", b"y")
            expected = list(range(gone))
        else:
            lower.rename(lower.with_name("away"))
        if how == "replaced by a file":
            lower.touch()
            expected = list(range(gone))
        elif how == "replaced by another":
            lower.mkdir()
            (lower / "new").touch()
            expected = [0, 1, 2, 3]
        elif how == "removed":
            shutil.rmtree(lower.with_name("away"))
        assert overlay.at(b"d") is before and before.key == key and overlay.number(b"d") == number
        assert parts(overlay, b"d") == expected
        shown = [b"%d" % layer for layer in expected if how != "replaced by another" or layer != gone]
        assert overlay.names(b"d") == [*shown, *([b"new"] if how == "replaced by another" else [])]
        # And back again.
        if how == "replaced by a file":
            lower.unlink()
        elif how == "replaced by another":
            shutil.rmtree(lower)
        if how == "opaque above":
            os.removexattr((three.upper if gone == 1 else three.lowers[gone - 2]) / "d", "trusted.overlay.opaque")
        elif how == "removed":
            lower.mkdir()
            (lower / str(gone)).touch()
        else:
            lower.with_name("away").rename(lower)
        assert overlay.at(b"d") is before and before.key == key
        assert parts(overlay, b"d") == [0, 1, 2, 3]
        assert overlay.names(b"d") == [b"0", b"1", b"2", b"3"]


def test_a_directory_of_lowers_alone_outlives_its_topmost_part(fill: Fill) -> None:
    layers = fill({"d": {"1": b""}}, {"d": {"2": b""}})
    with overlaid(layers) as overlay:
        before = overlay.at(b"d")
        shutil.rmtree(layers.lowers[0] / "d")
        (layers.lowers[1] / "d").chmod(0o711)
        assert overlay.tree.attributes(before).mode & 0o777 == 0o711, "before it is looked up"
        assert overlay.names(b"d") == [b"2"]
        assert overlay.at(b"d") is before
        assert overlay.attributes(b"d").mode & 0o777 == 0o711
        (layers.lowers[0] / "d").mkdir(0o700)
        assert overlay.at(b"d") is before
        assert overlay.attributes(b"d").mode & 0o777 == 0o700


def test_a_directory_outlives_its_upper_part(fill: Fill) -> None:
    layers = fill({"d": {"1": b""}}, upper={"d": {"0": b""}})
    with overlaid(layers) as overlay:
        before = overlay.at(b"d")
        shutil.rmtree(layers.upper / "d")
        assert overlay.tree.attributes(before).nlink == 1
        assert overlay.at(b"d") is before and parts(overlay, b"d") == [1]
        overlay.create(b"d/new")
        assert (layers.upper / "d/new").exists()


def test_a_lower_directory_that_appears_is_merged_with_the_same_inode(fill: Fill) -> None:
    layers = fill({}, {})
    with overlaid(layers) as overlay:
        made = overlay.mkdir(b"d")
        number = overlay.number(b"d")
        for lower in reversed(layers.lowers):
            (lower / "d").mkdir()
            (lower / "d" / lower.name).touch()
        assert overlay.at(b"d") is made and overlay.number(b"d") == number
        assert overlay.names(b"d") == [b"lower0", b"lower1"]
        listed = overlay.tree.listing(overlay.tree.held(overlay.tree.root))
        assert [(row.name, row.number) for row in listed] == [(b"d", 0)], "another number: to be looked up"


def test_a_part_that_moves_away_is_another_directory(fill: Fill) -> None:
    """Whichever of the two names is looked up first: two directories never share an inode."""
    for first, second in ((b"d", b"e"), (b"e", b"d")):
        layers = fill({first.decode(): {"1": b""}}, {first.decode(): {"2": b""}})
        with overlaid(layers) as overlay:
            before = overlay.at(first)
            (layers.lowers[0] / first.decode()).rename(layers.lowers[0] / second.decode())
            for name in (b"d", b"e"):
                overlay.at(name)
            assert overlay.at(first) is before is not overlay.at(second)
            assert (overlay.names(first), overlay.names(second)) == ([b"2"], [b"1"])
        shutil.rmtree(layers.base)
        layers.base.mkdir()


def test_a_directory_moved_behind_the_mount_is_the_same(fill: Fill) -> None:
    layers = fill({"d": {"f": b""}}, upper={"u": {}})
    with overlaid(layers) as overlay:
        d, u = overlay.at(b"d"), overlay.at(b"u")
        (layers.lower / "d").rename(layers.lower / "e")
        (layers.upper / "u").rename(layers.upper / "v")
        assert overlay.at(b"e") is d and overlay.at(b"v") is u


def test_what_is_known_is_forgotten_with_the_inode(fill: Fill) -> None:
    layers = fill({"d": {}}, {"d": {}})
    with overlaid(layers) as overlay:
        overlay.up(b"d")
        overlay.forget(b"d")
        assert not overlay.tree._identities.by_part and not overlay.tree._identities._before


def test_who_has_a_directory_open_keeps_it_known(fill: Fill) -> None:
    """The kernel may have another inode of it by now, and forget that."""
    layers = fill({"d": {}}, {"d": {}})
    with overlaid(layers) as overlay:
        overlay.up(b"d")
        identities = overlay.tree._identities
        ((key, opened), *_) = identities.by_part.items()
        later = Entry(opened.parent, opened.name, opened.key)
        later.upper, later.lowers = opened.upper, opened.lowers
        identities.add(later)
        assert identities.made_of(key) is later
        identities.remove(later)
        assert identities.made_of(key) is opened
        identities.add(later)
        identities.remove(opened)
        assert identities.made_of(key) is later
        identities.remove(later)
        assert not identities.by_part and not identities._before
        overlay.forget(b"d")


# --- marks ---


def test_a_mark_that_appears_counts_for_a_known_directory(fill: Fill) -> None:
    layers = fill({"d": {"f": b"1"}}, upper={"d": {}})
    with overlaid(layers) as overlay:
        assert overlay.names(b"d") == [b"f"]
        by_xattr(layers.upper / "d/f")
        assert overlay.names(b"d") == []
        assert not overlay.exists(b"d/f")
        os.removexattr(layers.upper / "d", "trusted.overlay.opaque")
        assert overlay.names(b"d") == [b"f"]
        assert overlay.read(b"d/f") == b""


def test_the_roots_marks_are_read_again(fill: Fill) -> None:
    layers = fill({"f": b"1"})
    with overlaid(layers) as overlay:
        by_xattr(layers.upper / "f")
        assert overlay.names() == [b"f"]
        overlay.tree.refresh_root()
        assert overlay.names() == []
        assert not overlay.exists(b"f")


def test_a_vanished_layer_fails_nothing(fill: Fill) -> None:
    """Its root, too."""
    layers = fill({"d": {"1": b""}}, {"d": {"2": b"2"}, "f": b"x"})
    with overlaid(layers) as overlay:
        overlay.at(b"d")
        shutil.rmtree(layers.lowers[0])
        assert overlay.names() == [b"d", b"f"]
        assert overlay.names(b"d") == [b"2"]
        assert overlay.read(b"d/2") == b"2"
        overlay.create(b"new")
        assert overlay.names() == [b"d", b"f", b"new"]
        assert overlay.tree.attributes(overlay.tree.root).nlink == 1


# --- listings that the kernel keeps ---


def test_a_listing_has_changed_when_a_lower_part_has(fill: Fill) -> None:
    """The topmost part's own changes the kernel sees by its times."""
    layers = fill({"d": {"1": b""}}, upper={"d": {"0": b""}})
    with overlaid(layers) as overlay:
        d = overlay.at(b"d")
        assert not overlay.tree.listing_changed(d), "it has not been listed"
        overlay.names(b"d")
        (layers.upper / "d/new").touch()
        assert not overlay.tree.listing_changed(d)
        (layers.lower / "d/new").touch()
        assert overlay.tree.listing_changed(d)
        assert not overlay.tree.listing_changed(d), "told once"
        overlay.names(b"d")
        assert not overlay.tree.listing_changed(d)


@pytest.mark.parametrize("merged", [True, False])
def test_a_listing_has_changed_with_what_the_directory_is_made_of(fill: Fill, merged: bool) -> None:
    layers = fill({"d": {}} if merged else {}, upper={"d": {}})
    with overlaid(layers) as overlay:
        d = overlay.at(b"d")
        overlay.names(b"d")
        (layers.lower / "d").rmdir() if merged else (layers.lower / "d").mkdir()
        assert overlay.at(b"d") is d
        assert overlay.tree.listing_changed(d)


def test_directories_whose_times_tell_nothing_are_listed_anew(fill: Fill) -> None:
    layers = fill({"1": {}}, upper={"d": {}})
    layers.lowers[0] = Path("/proc")
    with overlaid(layers) as overlay:
        assert overlay.tree.lists_anew(overlay.tree.root)
        assert overlay.tree.lists_anew(overlay.at(b"1"))
        assert not overlay.tree.lists_anew(overlay.at(b"d"))
