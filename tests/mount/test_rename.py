"""Renames of every kind; on a plain directory and on mounts alike."""

import errno
import os
import stat
from pathlib import Path

import pytest

from harness.calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    drop_dentries,
    opened,
    refuses,
    renameat2,
)
from harness.places import Place


def make(place: Place, name: str) -> Path:
    """`file…`, `dir…` (empty), `full…` (a directory with something in it) or `link…` (a symlink)."""
    path = place.path / name
    if name.startswith(("dir", "full")):
        path.mkdir()
        if name.startswith("full"):
            (path / "inside").touch()
    elif name.startswith("link"):
        path.symlink_to("target")
    elif name.startswith("file"):
        path.write_text(name)
    return path


RENAMES = {
    ("file1", "absent"): 0,
    ("file1", "file2"): 0,
    ("file1", "link2"): 0,
    ("link1", "file2"): 0,
    ("file1", "dir2"): errno.EISDIR,
    ("dir1", "file2"): errno.ENOTDIR,
    ("dir1", "absent"): 0,
    ("dir1", "dir2"): 0,
    ("full1", "dir2"): 0,
    ("full1", "full2"): errno.ENOTEMPTY,
    ("absent1", "file2"): errno.ENOENT,
    ("file1", "file1"): 0,
    ("dir1", "dir1/beneath"): errno.EINVAL,
    ("full1/inside", "full1"): errno.ENOTEMPTY,
    ("full1/inside", "out"): 0,
    ("file1", "absent/beneath"): errno.ENOENT,
}


@pytest.mark.parametrize(("names", "outcome"), RENAMES.items(), ids=map(" to ".join, RENAMES))
def test_rename(place: Place, names: tuple[str, str], outcome: int) -> None:
    old, new = (place.path / name for name in names)
    for name in dict.fromkeys(name.split("/")[0] for name in names):
        make(place, name)
    moved = old.lstat() if outcome == 0 else None
    before = sorted(os.listdir(place.layer))
    if moved is None:
        refuses(outcome, os.rename, old, new)
        assert sorted(os.listdir(place.layer)) == sorted(os.listdir(place.path)) == before
        return
    os.rename(old, new)
    assert os.path.samestat(new.lstat(), moved)
    assert os.path.lexists(old) == (old == new)
    assert sorted(os.listdir(place.layer)) == sorted(os.listdir(place.path))


def test_rename_between_two_names_of_one_file_does_nothing(place: Place) -> None:
    one, two = place.new("one"), place.path / "two"
    os.link(one, two)
    os.rename(one, two)
    assert sorted(os.listdir(place.layer)) == ["one", "two"]
    assert one.stat().st_nlink == 2


def test_who_has_the_replaced_file_open_keeps_it(place: Place) -> None:
    old, new = place.new("old", b"old"), place.new("new", b"new")
    with opened(old) as fd:
        os.rename(new, old)
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 10, 0) == b"old"
    assert old.read_bytes() == b"new"


def test_renaming_a_directory_takes_what_is_in_it_along(place: Place) -> None:
    (place.path / "a/b").mkdir(parents=True)
    (place.path / "a/b/file").write_text("content")
    (place.path / "c").mkdir()
    with opened(place.path / "a/b/file") as fd, opened(place.path / "a/b", os.O_PATH) as inner:
        os.rename(place.path / "a", place.path / "c/moved")
        assert os.read(fd, 100) == b"content"
        with opened(Path("made"), os.O_CREAT | os.O_WRONLY, dir_fd=inner):
            pass
    assert (place.path / "c/moved/b/file").read_text() == "content"
    assert (place.layer / "c/moved/b/made").exists()
    drop_dentries()
    assert (place.path / "c/moved/b/file").read_text() == "content"


def test_rename_noreplace(place: Place) -> None:
    old, new = make(place, "file1"), make(place, "file2")
    refuses(errno.EEXIST, renameat2, old, new, RENAME_NOREPLACE)
    assert new.read_text() == "file2"
    renameat2(old, place.path / "absent", RENAME_NOREPLACE)
    assert sorted(os.listdir(place.layer)) == ["absent", "file2"]


@pytest.mark.parametrize("names", [("file1", "file2"), ("file1", "full2"), ("link1", "dir2"), ("dir1", "full2")])
def test_rename_exchange(place: Place, names: tuple[str, str]) -> None:
    one, two = (make(place, name) for name in names)
    (place.path / "elsewhere").mkdir()
    two = two.rename(place.path / "elsewhere" / two.name)
    was_one, was_two = one.lstat(), two.lstat()
    renameat2(one, two, RENAME_EXCHANGE)
    for path in (one, place.layer / one.relative_to(place.path)):
        assert (path.lstat().st_ino, path.lstat().st_mode) == (was_two.st_ino, was_two.st_mode)
    assert os.path.samestat(two.lstat(), was_one)
    drop_dentries()
    assert os.path.samestat(two.lstat(), was_one)
    os.rename(one, place.path / "still-known")
    refuses(errno.ENOENT, renameat2, two, one, RENAME_EXCHANGE)


def test_rename_whiteout(place: Place) -> None:
    old, new = make(place, "file1"), make(place, "file2")
    renameat2(old, new, RENAME_WHITEOUT)
    assert new.read_text() == "file1"
    for path in (old, place.layer / "file1"):
        found = path.lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert (found.st_rdev, found.st_uid) == (0, 0)


@pytest.mark.parametrize("flags", [RENAME_NOREPLACE | RENAME_EXCHANGE, RENAME_WHITEOUT | RENAME_EXCHANGE, 8, 1 << 31])
def test_renames_that_make_no_sense(place: Place, flags: int) -> None:
    old, new = make(place, "file1"), make(place, "file2")
    refuses(errno.EINVAL, renameat2, old, new, flags)
    assert (old.read_text(), new.read_text()) == ("file1", "file2")
