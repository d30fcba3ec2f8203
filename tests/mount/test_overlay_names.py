"""Making, removing and renaming on an overlay: as on one filesystem, and the layers tell the same afterwards."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Caller, Layers, Merged, errno_of, layered, make_whiteout, read_tree, run, write_tree
from harness.calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    drop_dentries,
    opened,
    refuses,
    renameat2,
)
from harness.kinds import MAKERS, make_file, make_tmpfile
from harness.layered import Tree


def shows(merged: Merged, tree: Tree) -> None:
    """What is there, now, from scratch, and as the kernel's overlay reads the layers. Empty files unless said."""
    assert read_tree(merged.path) == tree
    drop_dentries()
    assert read_tree(merged.path) == tree
    with layered([merged.upper.parent, *(lower.parent for lower in merged.lowers)], kind="kernel") as again:
        assert read_tree(again.path / merged.path.name) == tree


# --- removal ---


def test_a_removed_name_is_gone(merged: Merged) -> None:
    tree: Tree = {"file": b"", "both": b"", "link": Path("file"), "fifo": os.mkfifo, "kept": b""}
    path = merged.write({"dir": tree}, {"dir": {"both": b""}}, upper={"dir": {"upper": b"", "both": b""}})
    for name in ("file", "both", "link", "fifo", "upper"):
        (path / "dir" / name).unlink()
        refuses(errno.ENOENT, (path / "dir" / name).lstat)
        refuses(errno.ENOENT, (path / "dir" / name).unlink)
    shows(merged, {"dir": {"kept": b""}})


def test_what_is_open_stays_without_a_name(merged: Merged) -> None:
    """In whichever layer it is, and though nothing of it has been read, nor its opening been told."""
    names = [f"file{number}" for number in range(40)]
    tree: Tree = {name: name.encode() for name in names}
    upper: Tree = {f"upper-{name}": name.encode() for name in names}
    path = merged.write({"dir": tree}, upper={"dir": upper})
    for name in names:
        (path / f"dir/new-{name}").write_text(name)
    fds = {name: os.open(path / "dir" / name, os.O_RDONLY) for name in sorted(os.listdir(path / "dir"))}
    try:
        for number, name in enumerate(fds):
            if number % 2:
                (path / "dir" / name).unlink()
            else:
                (path / "dir/temporary").write_text("new")
                (path / "dir/temporary").rename(path / "dir" / name)
        drop_dentries()
        for number in range(60):
            (path / f"dir/again{number}").write_text("another")
        assert {name: os.pread(fd, 100, 0) for name, fd in fds.items()} == {
            name: name.rpartition("-")[2].encode() for name in fds
        }
    finally:
        for fd in fds.values():
            os.close(fd)
    (path / "dir/again0").rename(path / "dir/again1")
    for name in os.listdir(path / "dir"):
        (path / "dir" / name).unlink()
    shows(merged, {"dir": {}})


def test_a_directory_is_removed_once_it_shows_nothing(merged: Merged) -> None:
    path = merged.write({"dir": {"a": b"", "gone": None}}, {"dir": {"b": b"", "gone": b""}, "pure": {}})
    refuses(errno.ENOTEMPTY, (path / "dir").rmdir)
    (path / "dir/a").unlink()
    refuses(errno.ENOTEMPTY, (path / "dir").rmdir)
    (path / "dir/b").unlink()
    (path / "dir").rmdir()
    (path / "pure").rmdir()
    refuses(errno.ENOENT, (path / "dir").stat)
    shows(merged, {})


def test_a_removed_directory_takes_no_more_names(merged: Merged) -> None:
    path = merged.write({"dir": {"sub": {}}})
    with opened(path / "dir/sub") as fd:
        (path / "dir/sub").rmdir()
        assert os.listdir(fd) == []
        refuses(errno.ENOENT, lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        refuses(errno.ENOENT, lambda: os.mkdir("new", dir_fd=fd))


def test_all_of_a_tree_is_removed(merged: Merged) -> None:
    tree: Tree = {"a": {"b": {"c": b"", "d": Path("c")}, "e": b""}, "f": os.mkfifo}
    path = merged.write({"tree": tree}, {"tree": {"a": {"b": {"low": b""}}, "g": {}}}, upper={"tree": {"a": {}}})
    run(["rm", "-r", path / "tree"])
    shows(merged, {})


def test_sticky_directories_protect_what_is_in_them(merged: Merged) -> None:
    path = merged.write({"dir": {"file": b""}})
    (merged.lower / "dir").chmod(0o1777)
    user = 101000 if merged.kind == "shifted" else 1000
    caller = Caller(user, user)
    assert errno_of(lambda: caller((path / "dir/file").unlink)) == errno.EPERM
    assert errno_of(lambda: caller((path / "dir/file").rename, path / "dir/other")) == errno.EPERM
    shows(merged, {"dir": {"file": b""}})


# --- making anew ---

OLD: dict[str, Any] = {"file": b"old", "directory": {"old": b"", "sub": {"old": b""}}, "symlink": Path("old")}
NEW: dict[str, Callable[[Path], object]] = {
    "file": make_file,
    "directory": os.mkdir,
    "symlink": lambda path: path.symlink_to("new"),
    "fifo": os.mkfifo,
    "link": lambda path: os.link(path.with_name("kept"), path),
    "tmpfile": make_tmpfile,
    "moved file": lambda path: path.with_name("kept").rename(path),
    "moved directory": lambda path: path.with_name("sub").rename(path),
}
SHOWN: dict[str, Any] = {
    "file": b"",
    "directory": {},
    "symlink": Path("new"),
    "fifo": stat.S_IFIFO | 0o644,
    "link": b"kept",
    "tmpfile": b"",
    "moved file": b"kept",
    "moved directory": {"in": b""},
}


@pytest.mark.parametrize("new", NEW)
@pytest.mark.parametrize("old", OLD)
def test_a_removed_name_can_be_anything_again(merged: Merged, old: str, new: str) -> None:
    path = merged.write({"x": OLD[old], "kept": b"kept", "sub": {"in": b""}}, {"x": {"lower": b""}})
    run(["rm", "-r", path / "x"])
    NEW[new](path / "x")
    left: dict[str, Any] = {"x": SHOWN[new], "kept": b"kept", "sub": {"in": b""}}
    left.pop({"moved file": "kept", "moved directory": "sub"}.get(new, ""), None)
    shows(merged, left)
    run(["rm", "-r", path / "x"])
    left.pop("x")
    shows(merged, left)


@pytest.mark.parametrize("maker", ["file", "directory", "fifo", "symlink", "tmpfile"])
@pytest.mark.parametrize("over", ["nothing", "whiteout"])
def test_what_is_made_inherits_from_its_directory(merged: Merged, maker: str, over: str) -> None:
    path = merged.write({"dir": {"x": b""} if over == "whiteout" else {}})
    os.chown(merged.lower / "dir", 33, 34)
    (merged.lower / "dir").chmod(0o2777)
    run(["setfacl", "-m", "d:u:5:rwx,d:g::r-x,d:o::---,d:m:rwx", merged.lower / "dir"])
    if over == "whiteout":
        (path / "dir/x").unlink()
    user = 101000 if merged.kind == "shifted" else 1000
    Caller(user, user)(MAKERS[maker], path / "dir/x")
    real, seen = (merged.upper / "dir/x").lstat(), (path / "dir/x").lstat()
    assert (real.st_uid, real.st_gid, seen.st_uid, seen.st_gid) == (1000, 34, user, 34)
    assert seen.st_mode == real.st_mode
    if maker == "symlink":
        return
    acl = run(["getfacl", "-n", "-c", "-E", path / "dir/x"]).stdout.split()
    assert run(["getfacl", "-n", "-c", "-E", merged.upper / "dir/x"]).stdout.split() == acl
    assert {"user:5:rwx", "group::r-x", "other::---"} <= set(acl)
    assert ("default:user:5:rwx" in acl) == bool(seen.st_mode & stat.S_ISGID) == (maker == "directory")


def test_whiteouts_cannot_be_made(merged: Merged) -> None:
    path = merged.write({"kept": b""})
    refuses(errno.EPERM, make_whiteout, path / "x")
    refuses(errno.EEXIST, make_whiteout, path / "kept")
    os.mknod(path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(path / "zero", stat.S_IFBLK | 0o600, os.makedev(0, 0))
    assert sorted(os.listdir(path)) == ["kept", "null", "zero"]


def test_an_unnamed_file_can_be_given_a_name(merged: Merged) -> None:
    path = merged.write({"dir": {"old": b""}})
    with opened(path / "dir", os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        os.write(fd, b"content")
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(path / "dir") == ["old"]
        refuses(errno.EEXIST, lambda: os.link(f"/proc/self/fd/{fd}", path / "dir/old", dst_dir_fd=fd))
        os.link(f"/proc/self/fd/{fd}", path / "dir/new", dst_dir_fd=fd)
        assert os.fstat(fd) == (path / "dir/new").stat()
        os.write(fd, b" and more")
    with opened(path / "dir", os.O_TMPFILE | os.O_EXCL | os.O_WRONLY) as fd:
        refuses(errno.ENOENT, lambda: os.link(f"/proc/self/fd/{fd}", path / "dir/excl", dst_dir_fd=fd))
    shows(merged, {"dir": {"new": b"content and more", "old": b""}})


# --- links ---


def test_a_lower_file_is_linked(merged: Merged) -> None:
    path = merged.write({"dir": {"file": b"content", "link": Path("file"), "sub": {}, "gone": b""}})
    number = (path / "dir/file").stat().st_ino
    os.link(path / "dir/file", path / "dir/sub/new")
    os.link(path / "dir/link", path / "dir/newlink", follow_symlinks=False)
    (path / "dir/gone").unlink()
    os.link(path / "dir/file", path / "dir/gone")
    for name in ("file", "sub/new", "gone"):
        assert ((path / "dir" / name).stat().st_ino, (path / "dir" / name).stat().st_nlink) == (number, 3)
    refuses(errno.EEXIST, os.link, path / "dir/file", path / "dir/link")
    refuses(errno.EPERM, os.link, path / "dir/sub", path / "dir/new")
    (path / "dir/sub/new").write_bytes(b"new")
    both: dict[str, Any] = {"file": b"new", "gone": b"new", "link": Path("file"), "newlink": Path("file")}
    shows(merged, {"dir": {**both, "sub": {"new": b"new"}}})


def test_renaming_one_link_to_another_does_nothing(merged: Merged) -> None:
    path = merged.write({"a": b"one"})
    os.link(merged.lower / "a", merged.lower / "b")
    (path / "a").rename(path / "b")
    shows(merged, {"a": b"one", "b": b"one"})


# --- renaming ---

STACK: tuple[Tree, Tree] = (
    {"dir": {"one": b"1", "sub": {"deep": b""}}, "file": b"file", "other": {}, "empty": {"gone": None}},
    {"dir": {"two": b"2", "sub": {"er": b""}}, "empty": {"gone": b""}, "full": {"in": b""}, "moved": {"hidden": b""}},
)
DIR: dict[str, Any] = {"one": b"1", "sub": {"deep": b"", "er": b""}, "two": b"2"}
REST: dict[str, Any] = {"empty": {}, "file": b"file", "full": {"in": b""}, "moved": {"hidden": b""}, "other": {}}

RENAMES: dict[str, tuple[list[tuple[str, str]], dict[str, Any]]] = {
    "file": ([("file", "new")], {"new": b"file", "file": None}),
    "file into a directory": ([("file", "dir/file")], {"dir": {**DIR, "file": b"file"}, "file": None}),
    "file over file": ([("file", "dir/two")], {"dir": {**DIR, "two": b"file"}, "file": None}),
    "file and back": ([("file", "new"), ("new", "file")], {}),
    "directory": ([("dir", "new")], {"dir": None, "new": DIR}),
    "directory elsewhere": ([("dir", "other/new")], {"dir": None, "other": {"new": DIR}}),
    "directory and back": ([("dir", "new"), ("new", "dir")], {}),
    "directory twice": ([("dir", "other/new"), ("other/new", "last")], {"dir": None, "last": DIR}),
    "what is in it": (
        [("dir", "new"), ("new/sub", "other/sub"), ("new/two", "two")],
        {"dir": None, "new": {"one": b"1"}, "other": {"sub": DIR["sub"]}, "two": b"2"},
    ),
    "parent after child": (
        [("dir/sub", "dir/bus"), ("dir", "new")],
        {"dir": None, "new": {"bus": DIR["sub"], "one": b"1", "two": b"2"}},
    ),
    "over an empty one": ([("dir", "other")], {"dir": None, "other": DIR}),
    "over one that only hides": ([("dir", "empty")], {"dir": None, "empty": DIR}),
    "one that only hides": ([("empty", "new")], {"empty": None, "new": {}}),
}


@pytest.mark.parametrize(("steps", "changed"), RENAMES.values(), ids=RENAMES)
def test_renaming(merged: Merged, steps: list[tuple[str, str]], changed: dict[str, Any]) -> None:
    path = merged.write(*STACK)
    for old, new in steps:
        number = (path / old).stat().st_ino
        (path / old).rename(path / new)
        refuses(errno.ENOENT, (path / old).stat)
        assert (path / new).stat().st_ino == number
    shows(merged, {name: what for name, what in ({"dir": DIR, **REST} | changed).items() if what is not None})


def test_a_name_left_by_a_directory_starts_empty(merged: Merged) -> None:
    path = merged.write(*STACK)
    (path / "dir").rename(path / "new")
    (path / "dir").mkdir()
    (path / "dir/one").write_bytes(b"other")
    shows(merged, {**REST, "dir": {"one": b"other"}, "new": DIR})
    run(["rm", "-r", path / "dir"])
    (path / "new").rename(path / "dir")
    shows(merged, {**REST, "dir": DIR})


REFUSED: dict[str, tuple[str, str, int, int]] = {
    "over a full directory": ("dir", "full", 0, errno.ENOTEMPTY),
    "directory over file": ("dir", "file", 0, errno.ENOTDIR),
    "file over directory": ("file", "other", 0, errno.EISDIR),
    "into itself": ("dir", "dir/sub/new", 0, errno.EINVAL),
    "over its parent": ("dir/sub", "dir", 0, errno.ENOTEMPTY),
    "noreplace": ("file", "other", RENAME_NOREPLACE, errno.EEXIST),
    "exchange with nothing": ("file", "new", RENAME_EXCHANGE, errno.ENOENT),
    "exchange with its parent": ("dir/sub", "dir", RENAME_EXCHANGE, errno.EINVAL),
    "whiteout": ("file", "new", RENAME_WHITEOUT, errno.EINVAL),
    "both": ("file", "other", RENAME_NOREPLACE | RENAME_EXCHANGE, errno.EINVAL),
}


@pytest.mark.parametrize(("old", "new", "flags", "number"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_renamed(merged: Merged, old: str, new: str, flags: int, number: int) -> None:
    path = merged.write(*STACK)
    refuses(number, renameat2, path / old, path / new, flags)
    shows(merged, {"dir": DIR, **REST})


def test_noreplace_takes_a_removed_name(merged: Merged) -> None:
    path = merged.write({"old": b"old", "dir": {"in": b""}, "gone": b"", "gonedir": {}})
    (path / "gone").unlink()
    (path / "gonedir").rmdir()
    renameat2(path / "old", path / "gonedir", RENAME_NOREPLACE)
    renameat2(path / "dir", path / "gone", RENAME_NOREPLACE)
    shows(merged, {"gone": {"in": b""}, "gonedir": b"old"})


@pytest.mark.parametrize("one", ["low", "lowdir", "up", "updir", "merged"])
@pytest.mark.parametrize("two", ["sub/low", "sub/lowdir", "sub/up", "sub/updir"])
def test_exchange_over_layers(merged: Merged, one: str, two: str) -> None:
    tree: dict[str, Any] = {"low": b"1", "lowdir": {"1": b""}, "merged": {"low": b""}}
    below: dict[str, Any] = {"low": b"2", "lowdir": {"2": b""}}
    path = merged.write({**tree, "sub": below})
    write_tree(path, {"up": b"3", "updir": {"3": b""}, "merged": {"up": b""}, "sub": {"up": b"4", "updir": {"4": b""}}})
    before = read_tree(path)
    numbers = [(path / name).stat().st_ino for name in (one, two)]
    renameat2(path / one, path / two, RENAME_EXCHANGE)
    assert [(path / name).stat().st_ino for name in (two, one)] == numbers
    name = two.partition("/")[2]
    before[one], before["sub"][name] = before["sub"][name], before[one]
    shows(merged, before)


@pytest.mark.parametrize("mode", ["off", "follow", "nofollow"])
def test_without_redirects_directories_stay_where_they_are(layers: Layers, mode: str) -> None:
    """All but those of the upper alone. `mv` copies them, then."""
    write_tree(layers.lower, {"dir": {"one": b"1"}, "other": {}})
    layers.add_lower({"dir": {"two": b"2"}})
    with layers.mount(f"redirect_dir={mode}") as mount:
        for name in ("dir", "other"):
            refuses(errno.EXDEV, (mount.path / name).rename, mount.path / "new")
        refuses(errno.EXDEV, renameat2, mount.path / "dir", mount.path / "other", RENAME_EXCHANGE)
        (mount.path / "upper").mkdir()
        (mount.path / "upper").rename(mount.path / "other/moved")
        run(["mv", mount.path / "dir", mount.path / "new"])
        assert read_tree(mount.path) == {"new": {"one": b"1", "two": b"2"}, "other": {"moved": {}}}


@pytest.mark.parametrize(("mode", "follows"), [("on", True), ("follow", True), ("off", True), ("nofollow", False)])
def test_whether_redirects_are_followed(layers: Layers, mode: str, follows: bool) -> None:
    write_tree(layers.lower, {"dir": {"one": b"1"}, "rest": b""})
    with layers.mount() as mount:
        (mount.path / "dir").rename(mount.path / "new")
    with layers.mount(f"redirect_dir={mode}") as mount:
        if follows:
            assert read_tree(mount.path) == {"new": {"one": b"1"}, "rest": b""}
        else:
            refuses(errno.EPERM, (mount.path / "new").stat)
            assert (mount.path / "rest").exists()
