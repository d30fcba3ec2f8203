"""What is done to a directory behind a mount: each of these must look on the mount as it does where it is done.

Each begins with what TREE says, and with OUTSIDE in a directory beside it, on the same filesystem, that is not shown.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from harness.calls import RENAME_EXCHANGE, opened, renameat2
from harness.commands import run
from harness.habits import HABITS
from harness.layered import Tree

Change = Callable[[Path, Path, int], None]
"""Of a directory, with the one outside, and the first of the ids that files may be given."""


def _linked(path: Path) -> None:
    os.link(path.parent.parent / "file with two names", path)


TREE: Tree = {
    "file": b"content",
    "other": b"other",
    "log": b"one\n",
    "file with two names": b"two names",
    "link": Path("file"),
    "fifo": os.mkfifo,
    "dir": {"in": b"in", "name of two": _linked, "sub": {"deep": b"deep"}},
    "empty": {},
    "also empty": {},
}

OUTSIDE: Tree = {"came": b"came", "tree": {"one": b"1", "sub": {"two": b"2"}}}

CHANGES: dict[str, Change] = {}


def _change(function: Change) -> Change:
    CHANGES[function.__name__.removeprefix("_").replace("_", "-")] = function
    return function


# --- names that come ---


@_change
def _create(root: Path, outside: Path, first_id: int) -> None:
    (root / "new").write_bytes(b"new content")


@_change
def _create_empty(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir/sub/new").touch()


@_change
def _create_odd_names(root: Path, outside: Path, first_id: int) -> None:
    for name in (b"\xff\n\\", b"a b", b"x" * 255, "ä".encode()):
        with open(os.fsencode(root) + b"/" + name, "wb"):
            pass


@_change
def _mkdir(root: Path, outside: Path, first_id: int) -> None:
    (root / "new").mkdir(0o750)


@_change
def _fifo(root: Path, outside: Path, first_id: int) -> None:
    os.mkfifo(root / "new")


@_change
def _socket(root: Path, outside: Path, first_id: int) -> None:
    os.mknod(root / "new", stat.S_IFSOCK | 0o600)


@_change
def _device(root: Path, outside: Path, first_id: int) -> None:
    os.mknod(root / "new", stat.S_IFCHR | 0o644, os.makedev(1, 3))


@_change
def _symlink(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir/new").symlink_to("in")


@_change
def _link_in_the_directory(root: Path, outside: Path, first_id: int) -> None:
    os.link(root / "file", root / "new")


@_change
def _link_in_another(root: Path, outside: Path, first_id: int) -> None:
    os.link(root / "file", root / "dir/sub/new")


@_change
def _link_from_outside(root: Path, outside: Path, first_id: int) -> None:
    os.link(outside / "came", root / "new")


# --- names that go ---


@_change
def _unlink(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").unlink()


@_change
def _unlink_one_of_two(root: Path, outside: Path, first_id: int) -> None:
    (root / "file with two names").unlink()


@_change
def _unlink_both_of_two(root: Path, outside: Path, first_id: int) -> None:
    (root / "file with two names").unlink()
    (root / "dir/name of two").unlink()


@_change
def _unlink_symlink(root: Path, outside: Path, first_id: int) -> None:
    (root / "link").unlink()


@_change
def _unlink_fifo(root: Path, outside: Path, first_id: int) -> None:
    (root / "fifo").unlink()


@_change
def _rmdir(root: Path, outside: Path, first_id: int) -> None:
    (root / "empty").rmdir()


@_change
def _unlink_while_open(root: Path, outside: Path, first_id: int) -> None:
    with opened(root / "file"):
        (root / "file").unlink()


@_change
def _rm_r(root: Path, outside: Path, first_id: int) -> None:
    # As rm(1) does it, but always in the same order.
    for above, directories, files in os.walk(root / "dir", topdown=False):
        for name in sorted(files):
            Path(above, name).unlink()
        for name in sorted(directories):
            Path(above, name).rmdir()
    (root / "dir").rmdir()


# --- renames ---


@_change
def _rename(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").rename(root / "new")


@_change
def _rename_across(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").rename(root / "dir/sub/new")


@_change
def _rename_over(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").rename(root / "other")


@_change
def _rename_over_one_of_two(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").rename(root / "dir/name of two")


@_change
def _rename_directory(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir/sub").rename(root / "dir/new")


@_change
def _rename_directory_across(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir/sub").rename(root / "new")


@_change
def _rename_over_an_empty_directory(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir").rename(root / "empty")


@_change
def _rename_in(root: Path, outside: Path, first_id: int) -> None:
    (outside / "came").rename(root / "new")


@_change
def _rename_in_over(root: Path, outside: Path, first_id: int) -> None:
    (outside / "came").rename(root / "file")


@_change
def _rename_tree_in(root: Path, outside: Path, first_id: int) -> None:
    (outside / "tree").rename(root / "new")


@_change
def _rename_out(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").rename(outside / "went")


@_change
def _rename_tree_out(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir").rename(outside / "went")


@_change
def _rename_symlink(root: Path, outside: Path, first_id: int) -> None:
    (root / "link").rename(root / "dir/link")


@_change
def _rename_onto_the_same_inode(root: Path, outside: Path, first_id: int) -> None:
    (root / "file with two names").rename(root / "dir/name of two")


@_change
def _exchange(root: Path, outside: Path, first_id: int) -> None:
    renameat2(root / "file", root / "dir/in", RENAME_EXCHANGE)


@_change
def _exchange_file_and_directory(root: Path, outside: Path, first_id: int) -> None:
    renameat2(root / "file", root / "dir", RENAME_EXCHANGE)


@_change
def _rename_there_and_back(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").rename(root / "dir/moved")
    (root / "dir/moved").rename(root / "file")


@_change
def _rename_in_a_chain(root: Path, outside: Path, first_id: int) -> None:
    (root / "log").rename(root / "log.1")
    (root / "other").rename(root / "log")
    (root / "file").rename(root / "other")


# --- data ---


@_change
def _write(root: Path, outside: Path, first_id: int) -> None:
    with opened(root / "file", os.O_WRONLY) as fd:
        os.write(fd, b"CONTENT")


@_change
def _write_through_another_name(root: Path, outside: Path, first_id: int) -> None:
    with opened(root / "dir/name of two", os.O_WRONLY) as fd:
        os.write(fd, b"TWO NAMES")


@_change
def _through_both_names(root: Path, outside: Path, first_id: int) -> None:
    with opened(root / "file with two names", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"and more")
    (root / "dir/name of two").chmod(0o600)


@_change
def _append(root: Path, outside: Path, first_id: int) -> None:
    with opened(root / "log", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"two\n")


@_change
def _open_and_close_for_writing(root: Path, outside: Path, first_id: int) -> None:
    with opened(root / "file", os.O_WRONLY):
        pass


@_change
def _truncate(root: Path, outside: Path, first_id: int) -> None:
    os.truncate(root / "file", 3)


@_change
def _truncate_by_opening(root: Path, outside: Path, first_id: int) -> None:
    with opened(root / "file", os.O_WRONLY | os.O_TRUNC):
        pass


@_change
def _overwrite(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir/in").write_bytes(b"quite another content")


# --- attributes ---


@_change
def _chmod(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").chmod(0o600)


@_change
def _chmod_directory(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir").chmod(0o700)


@_change
def _chown(root: Path, outside: Path, first_id: int) -> None:
    os.chown(root / "file", first_id + 1001, first_id + 1002)


@_change
def _chown_symlink(root: Path, outside: Path, first_id: int) -> None:
    os.lchown(root / "link", first_id + 1001, first_id + 1002)


@_change
def _chown_one_of_two(root: Path, outside: Path, first_id: int) -> None:
    os.chown(root / "dir/name of two", first_id + 1001, -1)


@_change
def _setxattr(root: Path, outside: Path, first_id: int) -> None:
    os.setxattr(root / "file", "user.test", b"value")


@_change
def _setxattr_of_directory(root: Path, outside: Path, first_id: int) -> None:
    os.setxattr(root / "dir", "user.test", b"value")


@_change
def _utimes(root: Path, outside: Path, first_id: int) -> None:
    os.utime(root / "file", (1_000_000_000, 1_100_000_000))


@_change
def _touch_mtime(root: Path, outside: Path, first_id: int) -> None:
    run(["touch", "-m", "-d", "2001-02-03", root / "file"])


@_change
def _utimes_of_directory(root: Path, outside: Path, first_id: int) -> None:
    os.utime(root / "dir/sub", (1_000_000_000, 1_100_000_000))


# --- what people and programs do ---

for _habit in HABITS:
    _change(_habit)


# --- how much of it ---

THOROUGH = bool(os.environ.get("SHIFTFS_THOROUGH"))
"""Try everything everywhere, which takes a quarter of an hour."""

FULLY = ("source", "upper merged") if THOROUGH else ("source",)
"""Kinds of mounts on which every change is tried."""

SEVERAL_STEPS = (
    *("exchange", "exchange-file-and-directory", "rename-in-a-chain", "rename-there-and-back"),
    *("directory-becomes-file", "file-becomes-directory", "directory-becomes-file-and-back", "delete-and-recreate"),
    *("save-with-backup", "rotate-log", "sed-in-place", "cp-a", "unlink-while-open"),
)
"""Changes of names that come and go more than once. On a busy machine the kernel merges what it tells of them, or what
is looked up meanwhile is what came after them: then what is shown is right, and the order of events need not be."""

ORDERED = tuple(name for name in CHANGES if THOROUGH or name not in SEVERAL_STEPS)

EVERYWHERE = ("create", "unlink", "rename-across", "append", "atomic-save", "rmdir")
"""Changes that are tried on all."""

OF_WHAT_THERE_IS = ("unlink", "rename-across", "append", "rmdir")
"""Changes that make nothing new."""
