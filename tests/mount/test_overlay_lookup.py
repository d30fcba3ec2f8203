"""What an overlay shows of its layers: merged directories, whiteouts, redirects, and nothing of its own doing."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Layers, Merged, layered, make_whiteout, read_tree, run, write_tree
from harness.calls import all_dirents, opened, refuses
from harness.kinds import make_socket
from harness.layered import Tree

# --- merged directories ---


def test_a_directory_shows_the_names_of_all_layers(merged: Merged) -> None:
    path = merged.write(
        {"dir": {"a": b"0", "b": b"0", "c": b"0"}},
        {"dir": {"b": b"1", "d": b"1"}},
        {"dir": {"a": b"2", "e": b"2", "deep": {"er": b"2"}}},
        upper={"dir": {"a": b"upper", "deep": {}}},
    )
    shown = {"a": b"upper", "b": b"0", "c": b"0", "d": b"1", "deep": {"er": b"2"}, "e": b"2"}
    assert read_tree(path) == {"dir": shown}
    with opened(path / "dir") as fd:
        entries = all_dirents(fd)
    assert sorted(entry.name for entry in entries) == sorted([b".", b"..", *map(str.encode, shown)])
    assert {entry.name for entry in entries if entry.kind == 4} == {b".", b"..", b"deep"}


def test_a_directory_has_the_attributes_of_its_topmost(merged: Merged) -> None:
    path = merged.write({"dir": {}}, {"dir": {"in": b""}})
    merged.lowers[0].joinpath("dir").chmod(0o2751)
    os.chown(merged.lowers[0] / "dir", 33, 34)
    os.utime(merged.lowers[0] / "dir", ns=(1, 1234567890123456789))
    merged.settled()
    seen = (path / "dir").stat()
    assert (stat.S_IMODE(seen.st_mode), seen.st_mtime_ns) == (0o2751, 1234567890123456789)
    assert (seen.st_uid, seen.st_gid) == (33, 34)


@pytest.mark.parametrize("between", [b"a file", Path("dir"), os.mkfifo, make_socket])
def test_what_is_no_directory_ends_the_merge(merged: Merged, between: bytes | Path | Callable[[Path], object]) -> None:
    path = merged.write({"x": {"top": b""}}, {"x": between}, {"x": {"bottom": b""}})
    assert os.listdir(path / "x") == ["top"]
    refuses(errno.ENOENT, (path / "x/bottom").stat)


@pytest.mark.parametrize("top", [b"a file", Path("elsewhere")])
def test_what_is_no_directory_hides_one(merged: Merged, top: bytes | Path) -> None:
    path = merged.write({"x": top}, {"x": {"in": b""}, "elsewhere": {"out": b""}})
    if isinstance(top, bytes):
        assert (path / "x").read_bytes() == top
        refuses(errno.ENOTDIR, (path / "x/in").stat)
    else:
        assert (path / "x").readlink() == top
        assert os.listdir(path / "x") == ["out"]


def test_a_long_listing_has_each_name_once(merged: Merged) -> None:
    names = {f"a rather long name {number}" for number in range(700)}
    trees = [{name: b"" for number, name in enumerate(sorted(names)) if number % step == 0} for step in (2, 3, 1)]
    path = merged.write(*({"dir": tree} for tree in trees))
    with opened(path / "dir") as fd:
        first = [entry.name.decode() for entry in all_dirents(fd, 512)]
        assert sorted(first) == sorted([*names, ".", ".."])
        os.lseek(fd, 0, os.SEEK_SET)
        assert [entry.name.decode() for entry in all_dirents(fd, 512)] == first


def test_a_listing_goes_on_where_it_was_told_to(merged: Merged) -> None:
    path = merged.write(*({"dir": {f"{layer}-{number}": b"" for number in range(40)}} for layer in range(3)))
    with opened(path / "dir") as fd:
        entries = all_dirents(fd)
        for index in (0, 1, 50, 121):
            os.lseek(fd, entries[index].cookie, os.SEEK_SET)
            assert [entry.name for entry in all_dirents(fd)] == [entry.name for entry in entries[index + 1 :]]


def test_a_listing_started_anew_shows_what_has_changed(merged: Merged) -> None:
    path = merged.write({"dir": {"one": b""}}, {"dir": {"two": b""}})
    with opened(path / "dir") as fd:
        all_dirents(fd)
        (path / "dir/two").unlink()
        (path / "dir/three").touch()
        os.lseek(fd, 0, os.SEEK_SET)
        assert sorted(entry.name for entry in all_dirents(fd)) == [b".", b"..", b"one", b"three"]


# --- whiteouts and opaque directories ---


def by_xattr(prefix: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.touch()
        os.setxattr(path, f"{prefix}overlay.whiteout", b"")
        os.setxattr(path.parent, f"{prefix}overlay.opaque", b"x")

    return make


def by_name(path: Path) -> None:
    path.with_name(f".wh.{path.name}").touch()


KERNEL_WHITEOUTS = {"device": make_whiteout, "trusted": by_xattr("trusted.")}
OUR_WHITEOUTS = {"user": by_xattr("user."), "name": by_name}


@pytest.mark.parametrize("make", KERNEL_WHITEOUTS.values(), ids=KERNEL_WHITEOUTS)
def test_a_whiteout_hides_what_is_beneath(merged: Merged, make: Callable[[Path], object]) -> None:
    hides(merged, make)


@pytest.mark.parametrize("make", OUR_WHITEOUTS.values(), ids=OUR_WHITEOUTS)
def test_whiteouts_of_other_dialects(ours: Merged, make: Callable[[Path], object]) -> None:
    hides(ours, make)


def hides(merged: Merged, make: Callable[[Path], object]) -> None:
    path = merged.write(
        {"dir": {"file": make, "sub": make, "lost": make, "above": b"0"}},
        {"dir": {"file": b"1", "sub": {"in": b"1"}, "low": make, "above": make}},
        {"dir": {"file": b"2", "sub": {"in": b"2"}, "low": b"2", "kept": b"2"}},
    )
    for name in ("file", "sub", "lost", "low", "sub/in"):
        refuses(errno.ENOENT, (path / "dir" / name).lstat)
    assert read_tree(path) == {"dir": {"above": b"0", "kept": b"2"}}


def test_a_file_marked_as_whiteout_is_one_only_where_the_directory_says_so(ours: Merged) -> None:
    """The kernel's overlay lists it, and finds it until it has seen any such directory of the layer."""
    path = ours.write({"dir": {"file": by_xattr("trusted.")}}, {"dir": {"file": b"content"}})
    os.removexattr(ours.lower / "dir", "trusted.overlay.opaque")
    assert read_tree(path) == {"dir": {"file": b""}}


def test_a_directory_above_a_whiteout_is_not_merged(merged: Merged) -> None:
    path = merged.write({"dir": {"0": b""}}, {"dir": None}, {"dir": {"2": b""}})
    assert os.listdir(path / "dir") == ["0"]


def opaque_by(name: str) -> Callable[[Path], None]:
    return lambda path: os.setxattr(path, name, b"y")


OUR_OPAQUES = {
    "user": opaque_by("user.overlay.opaque"),
    "fuse-overlayfs": opaque_by("user.fuseoverlayfs.opaque"),
    "name": lambda path: (path / ".wh..wh..opq").touch(),
}


def test_an_opaque_directory_hides_what_is_beneath(merged: Merged) -> None:
    is_opaque(merged, opaque_by("trusted.overlay.opaque"))


@pytest.mark.parametrize("make", OUR_OPAQUES.values(), ids=OUR_OPAQUES)
def test_opaque_directories_of_other_dialects(ours: Merged, make: Callable[[Path], object]) -> None:
    is_opaque(ours, make)


def is_opaque(merged: Merged, make: Callable[[Path], object]) -> None:
    path = merged.write({"dir": {"0": b""}}, {"dir": {"1": b"", "sub": {"1": b""}}}, {"dir": {"2": b"", "sub": {}}})
    make(merged.lowers[1] / "dir")
    assert read_tree(path) == {"dir": {"0": b"", "1": b"", "sub": {"1": b""}}}


@pytest.mark.parametrize("name", [".wh.", ".wh.some", ".wh..wh..opq", ".wh..wh.plnk"])
def test_names_of_whiteouts_are_hidden_and_refused(ours: Merged, name: str) -> None:
    path = ours.write({"dir": {name: b"", "kept": b""}})
    assert os.listdir(path / "dir") == ["kept"]
    refuses(errno.ENOENT, (path / "dir" / name).lstat)
    refuses(errno.EINVAL, (path / "dir" / name).write_bytes, b"")
    refuses(errno.EINVAL, (path / "dir" / name).mkdir)
    refuses(errno.EINVAL, (path / "dir/kept").rename, path / "dir" / name)
    refuses(errno.EINVAL, os.link, path / "dir/kept", path / "dir" / name)


# --- redirects ---


@pytest.mark.parametrize("prefix", ["trusted.", "user."])
def test_redirects_lead_through_the_layers(merged: Merged, prefix: str) -> None:
    """An absolute one starts at the layer's root; each layer's holds for those beneath."""
    if prefix == "user." and merged.kind == "kernel":
        prefix = "trusted."  # it reads those of one prefix, as it is told
    path = merged.write(
        {"new": {"0": b""}, "old": None},
        {"sub": {"middle": {"1": b""}, "last": None}},
        {"sub": {"last": {"2": b""}}, "new": {"never": b""}},
    )
    place = path.name
    os.setxattr(merged.lowers[0] / "new", f"{prefix}overlay.redirect", f"/{place}/sub/middle".encode())
    os.setxattr(merged.lowers[1] / "sub/middle", f"{prefix}overlay.redirect", b"last")
    merged.settled()
    assert sorted(os.listdir(path / "new")) == ["0", "1", "2"]
    assert (path / "new/2").read_bytes() == b""
    refuses(errno.ENOENT, (path / "new/never").stat)


def test_a_redirect_passes_layers_that_lack_its_target(merged: Merged) -> None:
    path = merged.write({"new": {"0": b""}}, {"new": {"never": b""}}, {"old": {"2": b""}})
    os.setxattr(merged.lowers[0] / "new", "trusted.overlay.redirect", b"old")
    assert sorted(os.listdir(path / "new")) == ["0", "2"]


@pytest.mark.parametrize("stop", [None, b"a file"], ids=["whiteout", "file"])
def test_a_redirect_ends_where_its_target_does(merged: Merged, stop: bytes | None) -> None:
    path = merged.write({"new": {"0": b""}}, {"old": stop}, {"old": {"never": b""}})
    os.setxattr(merged.lowers[0] / "new", "trusted.overlay.redirect", b"old")
    assert os.listdir(path / "new") == ["0"]


def test_children_of_a_redirected_directory_are_found_through_it(merged: Merged) -> None:
    path = merged.write({"new": {"sub": {"0": b""}}}, {"old": {"sub": {"1": b""}}, "new": {"sub": {"never": b""}}})
    os.setxattr(merged.lowers[0] / "new", "trusted.overlay.redirect", b"old")
    assert sorted(os.listdir(path / "new/sub")) == ["0", "1"]


# --- metacopy ---


def test_files_of_metadata_alone_show_the_data_beneath(layers: Layers) -> None:
    """Made by the kernel, in two layers above that of the data; one renamed, one linked."""
    write_tree(layers.lower, {"twice": b"twice", "moved": b"moved", "linked": b"linked", "sub": {}})
    above = [layers.base / "above0", layers.base / "above1"]
    for number, upper in enumerate(reversed(above)):
        (layers.base / f"work-{number}").mkdir()
        upper.mkdir()
        lowers = [*above[2 - number :], layers.lower]
        with layered(lowers, upper, layers.base / f"work-{number}", "metacopy=on", kind="kernel") as mount:
            (mount.path / "twice").chmod(0o600 + number)
            if number:
                (mount.path / "moved").chmod(0o640)
                (mount.path / "moved").rename(mount.path / "sub/here")
                (mount.path / "linked").chmod(0o604)
                os.link(mount.path / "linked", mount.path / "sub/link")
    for name in ("sub/here", "sub/link", "twice"):
        assert "trusted.overlay.metacopy" in os.listxattr(above[0] / name)
    layers.lowers[:0] = above
    with layers.mount("metacopy=on") as mount:
        shown = {"twice": b"twice", "linked": b"linked", "sub": {"here": b"moved", "link": b"linked"}}
        assert read_tree(mount.path) == shown
        modes = [stat.S_IMODE((mount.path / name).stat().st_mode) for name in ("twice", "sub/here", "linked")]
        assert modes == [0o601, 0o640, 0o604]
        with (mount.path / "twice").open("ab") as file:
            file.write(b" and more")
        assert (mount.path / "twice").read_bytes() == b"twice and more"
    assert (layers.upper / "twice").read_bytes() == b"twice and more"


# --- layers ---


def test_five_hundred_layers(layers: Layers) -> None:
    layers.lowers.pop().rmdir()
    for number in range(500):
        path = layers.base / str(number)
        path.mkdir()
        write_tree(path, {f"only{number}": b"", "all": str(number).encode(), "dir": {f"in{number}": b""}})
        layers.lowers.append(path)
    with layers.mount() as mount:
        assert len(os.listdir(mount.path)) == 502
        assert set(os.listdir(mount.path / "dir")) == {f"in{number}" for number in range(500)}
        assert (mount.path / "all").read_bytes() == b"0"
        (mount.path / "dir/in499").unlink()
        assert len(os.listdir(mount.path / "dir")) == 499


def test_layers_named_by_dots_and_symlinks(layers: Layers) -> None:
    write_tree(layers.lower, {"file": b"", "sub": {}})
    (layers.base / "link").symlink_to("lower0/sub")
    upper, work = layers.base / "lower0/../upper", layers.base / "upper-link/../work"
    (layers.base / "upper-link").symlink_to("upper")
    layers.add_lower()
    with layered([layers.base / "link/..", layers.lowers[1]], upper, work, kind=layers.kind) as mount:
        assert sorted(os.listdir(mount.path)) == ["file", "sub"]
        (mount.path / "new").touch()
    assert os.listdir(layers.upper) == ["new"]


def test_two_overlays_share_a_lower_layer(layers: Layers, tmp_path: Path) -> None:
    write_tree(layers.lower, {"file": b"lower"})
    (tmp_path / "other").mkdir()
    other = Layers(tmp_path / "other")
    other.lowers, other.kind = layers.lowers, layers.kind
    with layers.mount() as one, other.mount() as two:
        (one.path / "file").write_bytes(b"changed")
        assert (two.path / "file").read_bytes() == b"lower"
        (two.path / "file").unlink()
        assert (one.path / "file").read_bytes() == b"changed"


def test_without_an_upper_nothing_can_be_changed(layers: Layers) -> None:
    write_tree(layers.lower, {"file": b"0", "gone": None})
    layers.add_lower({"file": b"1", "gone": b"1", "dir": {"in": b"1"}})
    with layers.mount_lowers() as mount:
        assert read_tree(mount.path) == {"file": b"0", "dir": {"in": b"1"}}
        refuses(errno.EROFS, (mount.path / "file").write_bytes, b"")
        refuses(errno.EROFS, (mount.path / "new").mkdir)
        refuses(errno.EROFS, (mount.path / "file").chmod, 0o600)
        refuses(errno.EROFS, (mount.path / "file").unlink)


# --- xattrs of its own ---


def test_marks_are_hidden(merged: Merged) -> None:
    path = merged.write({"dir": {"file": b""}}, {"dir": {"below": b""}}, upper={"opaque": {}})
    os.setxattr(merged.upper / "opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(merged.lower / "dir", "trusted.overlay.impure", b"y")
    with (path / "dir/file").open("ab") as file:
        file.write(b"copied up")
    assert "trusted.overlay.origin" in os.listxattr(merged.upper / "dir/file")
    for name in ("dir", "dir/file", "opaque"):
        assert os.listxattr(path / name) == []
    refuses(errno.ENODATA, os.getxattr, path / "opaque", "trusted.overlay.opaque")
    refuses(errno.ENODATA, os.getxattr, path / "dir/file", "trusted.overlay.origin")
    refuses(errno.ENODATA, os.removexattr, path / "dir/file", "trusted.overlay.origin")


@pytest.mark.parametrize("name", ["user.overlay.opaque", "user.overlay.redirect", "user.fuseoverlayfs.opaque"])
def test_marks_of_other_dialects_are_hidden(ours: Merged, name: str) -> None:
    path = ours.write({"dir": {}})
    os.setxattr(ours.lower / "dir", name, b"y")
    assert os.listxattr(path / "dir") == []
    refuses(errno.ENODATA, os.getxattr, path / "dir", name)


def test_a_users_own_marks_are_escaped(merged: Merged) -> None:
    is_escaped(merged, "trusted.")


def test_a_users_own_marks_of_the_other_prefix_are_escaped(ours: Merged) -> None:
    is_escaped(ours, "user.")
    refuses(errno.EPERM, os.setxattr, ours.path / "dir", "user.fuseoverlayfs.opaque", b"y")


def is_escaped(merged: Merged, prefix: str) -> None:
    path = merged.write({"dir": {"0": b""}}, {"dir": {"1": b""}})
    name = f"{prefix}overlay.opaque"
    os.setxattr(path / "dir", name, b"y")
    assert (os.listxattr(path / "dir"), os.getxattr(path / "dir", name)) == ([name], b"y")
    assert os.getxattr(merged.upper / "dir", f"{prefix}overlay.overlay.opaque") == b"y"
    assert sorted(os.listdir(path / "dir")) == ["0", "1"]
    os.setxattr(path / "dir", f"{prefix}overlay.overlay.x", b"twice")
    assert os.getxattr(merged.upper / "dir", f"{prefix}overlay.overlay.overlay.x") == b"twice"
    refuses(errno.EEXIST, os.setxattr, path / "dir", name, b"y", os.XATTR_CREATE)
    os.removexattr(path / "dir", name)
    assert os.listxattr(path / "dir") == [f"{prefix}overlay.overlay.x"]


def test_an_overlay_holds_the_layers_of_another(merged: Merged) -> None:
    """Made through it, and read by the kernel's overlay on top of it."""
    path = merged.write({}, {"bottom": {"gone": b"", "opaque": {"gone": b""}, "old": {"in": b""}, "kept": b""}})
    write_tree(path, {"top": {"gone": b"", "opaque": {"own": b""}, "new": {}}})
    os.setxattr(path / "top", "trusted.overlay.opaque", b"x")
    os.setxattr(path / "top/gone", "trusted.overlay.whiteout", b"")
    os.setxattr(path / "top/opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(path / "top/new", "trusted.overlay.redirect", b"/old")
    refuses(errno.EPERM, make_whiteout, path / "top/old")
    assert sorted(os.listdir(path / "top")) == ["gone", "new", "opaque"]
    with layered([path / "top", path / "bottom"], kind="kernel") as mount:
        shown = {"opaque": {"own": b""}, "new": {"in": b""}, "old": {"in": b""}, "kept": b""}
        assert read_tree(mount.path) == shown
    run(["cp", "-a", path / "top", path / "copy"])
    assert os.getxattr(path / "copy/new", "trusted.overlay.redirect") == b"/old"


def test_an_overlay_holds_the_upper_of_another(merged: Merged) -> None:
    """Where no whiteout device can be made: ours marks files instead."""
    tree: Tree = {"gone": b"", "dir": {"in": b""}, "again": {"old": b""}, "file": b"content"}
    path = merged.write({"lower": tree, "upper": {}, "work": {}})
    for _ in range(2):
        with layered([path / "lower"], path / "upper", path / "work") as mount:
            if (mount.path / "gone").exists():
                (mount.path / "gone").unlink()
                (mount.path / "dir").rename(mount.path / "moved")
                run(["rm", "-r", mount.path / "again"])
                (mount.path / "again").mkdir()
                (mount.path / "file").write_bytes(b"new")
            assert read_tree(mount.path) == {"again": {}, "file": b"new", "moved": {"in": b""}}
    assert read_tree(path / "lower") == tree
