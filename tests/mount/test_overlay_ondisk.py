"""Upper and work directory are as the kernel's overlayfs has them: what either writes, the other goes on with."""

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import (
    CommandFailed,
    Layers,
    Merged,
    loop_filesystem,
    make_whiteout,
    read_tree,
    run,
    write_tree,
)
from harness.calls import RENAME_EXCHANGE, opened, renameat2
from harness.kinds import make_socket, make_tmpfile
from harness.layered import Tree, litter

TREE: Tree = {
    "dir": {"one": b"1", "sub": {"deep": b"deep", "er": b""}, "gone": None},
    "file": b"content",
    "again": {"old": b""},
    "exchanged": {"a": b""},
    "removed": {"in": {"side": b""}},
    "copied": b"x" * 100_000,
    "link": Path("dir"),
    "socket": make_socket,
    "a": b"linked",
    "x": b"two",
}
BELOW: Tree = {"dir": {"two": b"2", "gone": b"", "sub": {"below": b""}}, "file": b"hidden", "removed": {"low": b""}}


def fill(layers: Layers) -> None:
    write_tree(layers.lower, TREE)
    for name in ("b", "dir/c", "again/d"):
        os.link(layers.lower / "a", layers.lower / name)
    os.link(layers.lower / "x", layers.lower / "y")
    layers.add_lower(BELOW)


def first_work(path: Path) -> None:
    """Something of everything: each leaves another mark in the upper."""
    run(["rm", "-r", path / "removed"])
    (path / "dir/two").unlink()
    run(["rm", "-r", path / "again"])
    (path / "again").mkdir()
    (path / "again/new").write_bytes(b"new")
    (path / "dir").rename(path / "renamed")
    (path / "renamed/sub").rename(path / "again/moved")
    renameat2(path / "file", path / "exchanged", RENAME_EXCHANGE)
    os.setxattr(path / "copied", "user.name", b"value")
    os.setxattr(path / "renamed", "trusted.overlay.opaque", b"y")
    (path / "copied").chmod(0o640)
    os.chown(path / "link", 33, 34, follow_symlinks=False)
    os.chown(path / "socket", 33, 34)
    with (path / "b").open("ab") as file:
        file.write(b"!")
    (path / "y").unlink()
    make_tmpfile(path / "tmpfile")
    os.link(path / "tmpfile", path / "again/tmpfile")


def second_work(path: Path) -> None:
    """What meets the marks of the first."""
    (path / "removed").mkdir()
    (path / "removed/in").write_bytes(b"")
    (path / "renamed").rename(path / "again/once more")
    (path / "again/moved/deep").unlink()
    (path / "again/moved/below").write_bytes(b"changed")
    run(["rm", "-r", path / "again/once more/one"])
    (path / "again/new").rename(path / "dir")
    (path / "a").unlink()
    os.link(path / "b", path / "e")
    with (path / "x").open("ab") as file:
        file.write(b"!")
    (path / "copied").chmod(0o644)
    (path / "tmpfile").unlink()


def snapshot(path: Path, inodes: bool = True) -> dict[str, dict[str, Any]]:
    """All that can be seen of a tree, but how its directories are stored."""
    found = {}
    for place, directories, files in os.walk(path):
        for name in sorted((*directories, *files)):
            one = Path(place, name)
            status = one.lstat()
            shown: dict[str, Any] = {
                field: getattr(status, f"st_{field}") for field in ("mode", "uid", "gid", "rdev", "mtime_ns")
            }
            if not stat.S_ISDIR(status.st_mode):
                shown |= {"nlink": status.st_nlink, "size": status.st_size}
            if inodes:
                shown["ino"] = status.st_ino
            if stat.S_ISREG(status.st_mode):
                shown["content"] = one.read_bytes()
            names = os.listxattr(one, follow_symlinks=False)
            shown["xattrs"] = {name: os.getxattr(one, name, follow_symlinks=False) for name in names}
            found[str(one.relative_to(path))] = shown
    return found


@pytest.mark.parametrize("options", [[], ["metacopy=on"]], ids=["", "metacopy"])
@pytest.mark.parametrize("filesystem", ["", "xfs", "btrfs", "tmpfs"])
@pytest.mark.parametrize(("one", "other"), [("shiftfs", "kernel"), ("kernel", "shiftfs")])
def test_each_goes_on_with_what_the_other_left(
    tmp_path: Path, filesystem: str, one: str, other: str, options: list[str]
) -> None:
    layers = Layers(tmp_path)
    fill(layers)
    same = not filesystem  # inode numbers over several devices are numbered apart by each in its own way
    with upper_on(layers, filesystem):
        with layers.mount(*options, kind=one) as mount:
            first_work(mount.path)
            first = snapshot(mount.path, same)
        with layers.mount(*options, kind=other) as mount:
            assert snapshot(mount.path, same) == first
            second_work(mount.path)
            second = snapshot(mount.path, same)
        with layers.mount(*options, kind=one) as mount:
            assert snapshot(mount.path, same) == second
            run(["rm", "-r", *mount.path.iterdir()])
        with layers.mount(*options, kind=other) as mount:
            assert snapshot(mount.path, same) == {}


@contextmanager
def upper_on(layers: Layers, filesystem: str) -> Iterator[None]:
    """Upper and work directory on a filesystem of their own, if it is named."""
    if not filesystem:
        yield
        return
    with loop_filesystem("ext4" if filesystem == "tmpfs" else filesystem, 320) as path:
        if filesystem == "tmpfs":
            run(["mount", "-t", "tmpfs", "tmpfs", path])
        try:
            layers.upper, layers.work = path / "upper", path / "work"
            layers.upper.mkdir()
            layers.work.mkdir()
            yield
        finally:
            if filesystem == "tmpfs":
                run(["umount", path])


# --- marks ---


def mark(path: Path, name: str) -> bytes | None:
    """An xattr of the overlay's, on a layer."""
    full = f"trusted.overlay.{name}"
    return os.getxattr(path, full, follow_symlinks=False) if full in os.listxattr(path, follow_symlinks=False) else None


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def test_removal_leaves_a_whiteout_where_something_is_beneath(merged: Merged) -> None:
    path = merged.write({"dir": {"file": b"", "sub": {"in": b""}}}, upper={"dir": {"upper": b""}})
    for name in ("file", "upper"):
        (path / "dir" / name).unlink()
    run(["rm", "-r", path / "dir/sub"])
    assert sorted(os.listdir(merged.upper / "dir")) == ["file", "sub"]
    assert is_whiteout(merged.upper / "dir/file") and is_whiteout(merged.upper / "dir/sub")


def test_a_directory_made_anew_is_opaque(merged: Merged) -> None:
    path = merged.write({"dir": {"in": b""}})
    run(["rm", "-r", path / "dir"])
    (path / "dir").mkdir()
    assert mark(merged.upper / "dir", "opaque") == b"y"


def test_a_moved_directory_tells_where_it_was(merged: Merged) -> None:
    """By its name within one directory, by its path from the layer's root elsewhere. What is beneath it needs none."""
    place = merged.path.name
    path = merged.write({"near": {"sub": {"in": b""}}, "far": {"in": b""}, "other": {}, "first": {}})
    (path / "near").rename(path / "here")
    assert mark(merged.upper / "here", "redirect") == b"near"
    (path / "here").rename(path / "again")
    assert mark(merged.upper / "again", "redirect") == b"near"
    (path / "far").rename(path / "other/there")
    assert mark(merged.upper / "other/there", "redirect") == f"/{place}/far".encode()
    (path / "again/sub/in").write_bytes(b"")
    assert mark(merged.upper / "again/sub", "redirect") is None
    (path / "again/sub").rename(path / "other/sub")
    assert mark(merged.upper / "other/sub", "redirect") == f"/{place}/near/sub".encode()
    assert is_whiteout(merged.upper / "near") and is_whiteout(merged.upper / "again/sub")
    (path / "first").rename(path / "second")
    (path / "other").rename(path / "first")
    assert [mark(merged.upper / name, "redirect") for name in ("first", "second")] == [b"other", b"first"]


def test_directories_that_hold_copies_are_impure(merged: Merged) -> None:
    path = merged.write({"dir": {"file": b""}, "moved": b""})
    (path / "dir/file").write_bytes(b"x")
    (path / "new").mkdir()
    assert mark(merged.upper / "dir", "impure") == b"y"
    assert mark(merged.upper / "new", "impure") is None
    (path / "moved").rename(path / "new/moved")
    assert mark(merged.upper / "new", "impure") == b"y"


def test_origin_and_index_are_those_of_the_kernel(tmp_path: Path) -> None:
    """To the byte: both name the lower file by its handle."""
    layers = Layers(tmp_path)
    fill(layers)
    names = ("dir", "dir/one", "link", "socket", "file", "a")
    found = []
    for kind in ("kernel", "shiftfs"):
        with layers.mount(kind=kind) as mount:
            for name in names:
                os.setxattr(mount.path / name, "trusted.mark", b"", follow_symlinks=False)
        origins = {name: mark(layers.upper / name, "origin") for name in names}
        found.append((origins, os.listdir(layers.work / "index")))
        run(["rm", "-rf", layers.upper, layers.work])
        layers.upper.mkdir()
        layers.work.mkdir()
    assert found[0] == found[1]
    origin, (name,) = found[0][0]["a"], found[0][1]
    assert origin is not None and name == origin.hex()
    version, magic, length, flags, _ = struct.unpack_from("5B", origin)
    assert (version, magic, length, flags & 1) == (0, 0xFB, len(origin), 0)


def indexed(layers: Layers) -> list[str]:
    """But for the whiteout that the kernel keeps there to link others from."""
    return [name for name in os.listdir(layers.work / "index") if not name.startswith("#")]


def test_the_index_holds_linked_files_until_their_last_name_is_gone(layers: Layers) -> None:
    fill(layers)
    with layers.mount() as mount:
        (mount.path / "a").write_bytes(b"new")
        (name,) = indexed(layers)
        assert (layers.work / "index" / name).samefile(layers.upper / "a")
        (mount.path / "b").write_bytes(b"newer")
        assert (layers.work / "index" / name).read_bytes() == b"newer"
        for path in ("a", "b", "dir/c", "again/d"):
            assert indexed(layers) == [name]
            (mount.path / path).unlink()
        assert indexed(layers) == []
    with layers.mount() as mount:
        assert not (mount.path / "a").exists()


# --- the work directory ---


def test_nothing_is_left_in_the_work_directory(layers: Layers) -> None:
    fill(layers)
    with layers.mount() as mount:
        first_work(mount.path)
        second_work(mount.path)
        assert litter(layers.work) == []
    assert litter(layers.work) == []
    assert sorted(os.listdir(layers.work)) == ["index", "work"]


LITTER: Tree = {
    "#1": b"half a copy",
    "#2": {"gone": make_whiteout, "file": b""},
    "#3": make_whiteout,
    "#a": Path("nowhere"),
    "#b": {},
}


def test_the_work_directory_is_cleaned_at_the_next_mount(layers: Layers) -> None:
    write_tree(layers.lower, {"file": b"content"})
    with layers.mount() as mount:
        (mount.path / "file").write_bytes(b"new")
    write_tree(layers.work / "work", LITTER)
    with layers.mount() as mount:
        assert os.listdir(layers.work / "work") == []
        assert read_tree(mount.path) == {"file": b"new"}


def test_a_volatile_mount_leaves_a_mark_that_is_heeded(layers: Layers) -> None:
    write_tree(layers.lower, {"file": b"content"})
    with layers.mount("volatile") as mount:
        with opened(mount.path / "file", os.O_WRONLY) as fd:
            os.write(fd, b"C")
            os.fsync(fd)
        assert (layers.work / "work/incompat/volatile").is_dir()
    assert (layers.work / "work/incompat/volatile").is_dir()
    for kind in ("kernel", "shiftfs"):
        with pytest.raises(CommandFailed) as failure, layers.mount(kind=kind):
            pass
        assert kind == "kernel" or ("volatile" in str(failure.value) and str(layers.work) in str(failure.value))
    run(["rm", "-r", layers.work / "work/incompat"])
    with layers.mount() as mount:
        assert (mount.path / "file").read_bytes() == b"Content"


CHANGES: dict[str, Callable[[Path], object]] = {
    "copy-up": lambda path: (path / "file").write_bytes(b""),
    "whiteout": lambda path: (path / "file").unlink(),
    "rename": lambda path: (path / "dir").rename(path / "new"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_user_can_look_into_the_work_directory(layers: Layers, change: Callable[[Path], object]) -> None:
    write_tree(layers.lower, {"file": b"content", "dir": {}})
    with layers.mount() as mount:
        change(mount.path)
        for name in ("work", "index"):
            assert stat.S_IMODE((layers.work / name).stat().st_mode) & 0o077 == 0
