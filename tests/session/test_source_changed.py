"""Somebody changes the source behind a source tree: nothing outside is read, changed or opened."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import errno_of, run
from harness.entries import find
from shiftfs.descriptors import Entry
from shiftfs.source import SourceTree
from shiftfs.tree import Change

KEEP = Change(None, None, None, None, None)


MODIFYING: dict[str, Callable[[SourceTree, Entry, Entry], Any]] = {
    "lookup": lambda tree, d, file: tree.lookup(d, b"file"),
    "listing": lambda tree, d, file: tree.listing(tree.held(d)),
    "mknod": lambda tree, d, file: tree.mknod(d, b"new", 0o100644, 0),
    "mkdir": lambda tree, d, file: tree.mkdir(d, b"new", 0o755),
    "symlink": lambda tree, d, file: tree.symlink(d, b"new", b"x"),
    "link": lambda tree, d, file: tree.link(file, d, b"new"),
    "create": lambda tree, d, file: tree.create(d, b"new", 0o644),
    "tmpfile": lambda tree, d, file: tree.tmpfile(d, 0o600),
    "unlink": lambda tree, d, file: tree.unlink(d, b"file", file),
    "rmdir": lambda tree, d, file: tree.rmdir(d, b"sub", None),
    "rename": lambda tree, d, file: tree.rename(d, b"file", d, b"new", 0, file, None),
    "rename from": lambda tree, d, file: tree.rename(d, b"file", tree.root, b"new", 0, file, None),
    "rename to": lambda tree, d, file: tree.rename(tree.root, b"mine", d, b"file", 0, None, file),
    "attributes": lambda tree, d, file: tree.attributes(file),
    "change": lambda tree, d, file: tree.change(file, KEEP._replace(mode=0o777, mtime=(1, 1))),
    "read": lambda tree, d, file: os.read(tree.data(file, False).fd, 100),
    "write": lambda tree, d, file: os.write(tree.data(file, True).fd, b"overwritten"),
    "getxattr": lambda tree, d, file: tree.getxattr(file, b"user.secret"),
    "setxattr": lambda tree, d, file: tree.setxattr(file, b"user.new", b"", 0),
    "removexattr": lambda tree, d, file: tree.removexattr(file, b"user.secret"),
    "readlink": lambda tree, d, file: tree.readlink(file),
}  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path, source: Path) -> Path:
    """What must be neither read nor changed; of the very names that are known."""
    path = tmp_path / "outside"
    (path / "sub").mkdir(parents=True)
    (path / "file").write_text("secret")
    os.setxattr(path / "file", "user.secret", b"secret")
    (source / "mine").touch()
    return path


def state(path: Path) -> list[object]:
    """All there is to see of a directory."""
    found: list[object] = []
    for item in sorted([path, *path.iterdir()]):
        s = item.lstat()
        names = os.listxattr(item, follow_symlinks=False)
        found.append((item.name, s.st_mode, s.st_nlink, s.st_uid, s.st_size, s.st_mtime_ns, s.st_ctime_ns, names))
    return found


@pytest.mark.parametrize("method", MODIFYING)
@pytest.mark.parametrize("swapped", ["parent", "parent gone", "leaf", "leaf gone"])
def test_a_symlink_in_place_of_what_was_looked_up_leads_nowhere(
    tree: SourceTree, source: Path, outside: Path, method: str, swapped: str
) -> None:
    (source / "e").mkdir()
    file = find(tree, b"d/file")
    d = file.parent
    assert d is not None
    victim, target = (source / "d", outside) if "parent" in swapped else (source / "d" / "file", outside / "file")
    if "gone" in swapped:
        run(["rm", "-r", victim])
    else:
        victim.rename(source / "e" / "kept")
    victim.symlink_to(target)
    before, inside = state(outside), (source / "d").lstat().st_ino
    try:
        result = MODIFYING[method](tree, d, file)
    except OSError as error:
        assert error.errno in (errno.ESTALE, errno.ENOENT, errno.ENODATA, errno.EINVAL, errno.ENOTEMPTY)
    else:
        assert "secret" not in repr(result)
        assert (outside / "file").stat().st_ino not in _numbers(result)
    assert state(outside) == before
    assert (source / "d").lstat().st_ino == inside, "the symlink itself is not ours either"


def _numbers(result: object) -> set[object]:
    if isinstance(result, tuple | list):
        return {number for item in result for number in _numbers(item)}
    return {result} if isinstance(result, int) else set()


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR, stat.S_IFREG, stat.S_IFCHR])
@pytest.mark.parametrize("writable", [False, True])
def test_something_else_in_place_of_a_file_is_never_opened(
    tree: SourceTree, source: Path, kind: int, writable: bool
) -> None:
    """A fifo would stop the loop, a device could do anything."""
    if kind == stat.S_IFCHR and os.geteuid() != 0:
        pytest.skip("needs root")
    file = find(tree, b"d/file")
    (source / "d" / "file").unlink()
    if kind == stat.S_IFDIR:
        (source / "d" / "file").mkdir()
    else:
        os.mknod(source / "d" / "file", kind | 0o666, os.makedev(1, 5))
    assert errno_of(lambda: tree.data(file, writable)) == errno.ESTALE
    assert errno_of(lambda: tree.attributes(file)) == errno.ESTALE


def test_a_known_directory_is_the_same_one_whatever_its_name(tree: SourceTree, source: Path, outside: Path) -> None:
    """While its descriptor is held: what we do in it is done in it."""
    d = find(tree, b"d")
    tree.path(d)
    (source / "d").rename(source / "moved")
    (source / "d").symlink_to(outside)
    tree.mkdir(d, b"new", 0o755)
    assert (source / "moved" / "new").is_dir()


def test_directories_that_change_places_make_no_circle(tree: SourceTree, source: Path) -> None:
    """`a/b` becomes `b/a`, and is looked up through a descriptor of `b` that is still open."""
    (source / "a" / "b").mkdir(parents=True)
    b = find(tree, b"a/b")
    a = b.parent
    assert a is not None
    tree.path(b)
    (source / "a" / "b").rename(source / "b")
    (source / "a").rename(source / "b" / "a")
    key, *_ = tree.lookup(b, b"a")
    assert key == a.key
    tree.found_at(a, b, b"a")
    assert tree.path_of(a) == b"/b/a", "where it was seen last"
    for entry in (a, b):
        tree.release(entry)
    for entry in (a, b):
        assert errno_of(lambda entry=entry: tree.path(entry)) in (0, errno.ESTALE)  # type: ignore[misc]
        tree.release(a)
        tree.release(b)
    tree.found_at(b, tree.root, b"b")  # once it has been looked up, all is well
    tree.found_at(a, b, b"a")
    for entry in (a, b):
        assert os.fstat(tree.path(entry).fd).st_ino == entry.key[1]
