"""An overlay in a user namespace, by its root: the same as root's, without any privilege on the host.

Each test's work is done in a process that has gone into the namespace, with mounts of its own.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Caller, Layers, UserNamespace, errno_of, layered, read_tree, run, user_namespace, write_tree
from harness.calls import (
    RENAME_EXCHANGE,
    drop_dentries,
    in_child,
    opened,
    refuses,
    renameat2,
    unshare_mounts,
)
from harness.kinds import MAKERS, make_tmpfile, owner
from harness.layered import Tree

FIRST = 100000
USER = 1000

TREE: Tree = {
    "dir": {"one": b"1", "sub": {"deep": b""}, "gone": b""},
    "file": b"content",
    "link": Path("file"),
    "fifo": os.mkfifo,
}
BELOW: Tree = {"dir": {"two": b"2", "gone": b""}}


@pytest.fixture
def namespace() -> Iterator[UserNamespace]:
    with user_namespace((0, FIRST, 65536)) as namespace:
        yield namespace


@pytest.fixture
def inside(layers: Layers) -> Layers:
    """Layers that the namespace's root owns."""
    return owned_inside(layers)


@pytest.fixture
def ours_inside(our_layers: Layers) -> Layers:
    """For what the kernel needs file handles for, which it opens for the host's root alone."""
    return owned_inside(our_layers)


def owned_inside(layers: Layers) -> Layers:
    write_tree(layers.lower, TREE)
    layers.add_lower(BELOW)
    os.link(layers.lower / "file", layers.lower / "dir/linked")
    (layers.base / "mnt").mkdir()
    run(["chown", "-hR", f"{FIRST}:{FIRST}", layers.base])
    return layers


def mounted(layers: Layers, namespace: UserNamespace, work: Callable[[Path], Any], *options: str) -> Any:
    """What `work` returns that is called with the mount's path as root of the namespace."""

    def in_the_namespace() -> Any:
        unshare_mounts()
        own = ["userxattr"] if layers.kind == "kernel" else []
        path = layers.base / "mnt"
        with layered(
            layers.lowers, layers.upper, layers.work, *own, *options, kind=layers.kind, mountpoint=path
        ) as mount:
            return work(mount.path)

    return Caller(0, 0, namespace=namespace)(in_the_namespace)


def test_all_that_can_be_done_with_names(inside: Layers, namespace: UserNamespace) -> None:
    def work(path: Path) -> dict[str, Any]:
        (path / "dir/gone").unlink()
        with (path / "dir/sub/deep").open("ab") as file:
            file.write(b"copied up")
        (path / "dir/one").rename(path / "moved")
        (path / "link").unlink()
        (path / "link").mkdir()
        renameat2(path / "fifo", path / "moved", RENAME_EXCHANGE)
        make_tmpfile(path / "dir/tmpfile")
        (path / "upper").mkdir()
        (path / "upper").rename(path / "dir/upper")
        refuses(errno.EPERM, os.mknod, path / "null", stat.S_IFCHR, os.makedev(1, 3))
        return read_tree(path)

    linked = {"linked": b"content", "sub": {"deep": b"copied up"}, "tmpfile": b"", "two": b"2", "upper": {}}
    expected = {"dir": linked, "fifo": b"1", "file": b"content", "link": {}, "moved": stat.S_IFIFO | 0o644}
    assert mounted(inside, namespace, work) == expected
    assert mounted(inside, namespace, read_tree) == expected
    inside.kind = "kernel"
    assert mounted(inside, namespace, read_tree) == expected


def test_marks_are_those_of_users(inside: Layers, namespace: UserNamespace) -> None:
    def work(path: Path) -> list[str]:
        (path / "dir/gone").unlink()
        (path / "dir/one").write_bytes(b"copied up")
        run(["rm", "-r", path / "dir/sub"])
        (path / "dir/sub").mkdir()
        return os.listxattr(path / "dir/sub")

    assert mounted(inside, namespace, work) == []
    status = (inside.upper / "dir/gone").lstat()
    assert (stat.S_ISCHR(status.st_mode), status.st_rdev) == (True, 0)
    assert os.getxattr(inside.upper / "dir/sub", "user.overlay.opaque") == b"y"
    assert "user.overlay.origin" in os.listxattr(inside.upper / "dir/one")
    assert os.getxattr(inside.upper / "dir", "user.overlay.impure") == b"y"
    status = (inside.upper / "dir/one").stat()
    assert (status.st_uid, status.st_gid) == (FIRST, FIRST)


def test_directories_with_lower_parts_stay_where_they_are(inside: Layers, namespace: UserNamespace) -> None:
    """Neither fuse-overlayfs nor the kernel there follows redirects: what is below would be gone for them."""

    def work(path: Path) -> None:
        refuses(errno.EXDEV, (path / "dir").rename, path / "new")
        run(["mv", path / "dir", path / "new"])

    mounted(inside, namespace, work)
    assert read_tree(inside.upper / "new") == {
        "gone": b"",
        "linked": b"content",
        "one": b"1",
        "two": b"2",
        "sub": {"deep": b""},
    }


@pytest.mark.parametrize("options", [("redirect_dir=on",), ("metacopy=on",)], ids=str)
def test_directories_are_renamed_where_that_is_asked_for(
    ours_inside: Layers, namespace: UserNamespace, options: tuple[str, ...]
) -> None:
    def work(path: Path) -> None:
        (path / "dir").rename(path / "new")
        (path / "new/sub").rename(path / "sub")
        assert sorted(os.listdir(path / "new")) == ["gone", "linked", "one", "two"]

    mounted(ours_inside, namespace, work, *options)
    assert os.getxattr(ours_inside.upper / "new", "user.overlay.redirect") == b"dir"
    shown = mounted(ours_inside, namespace, read_tree)
    assert shown["new"] == {"gone": b"", "linked": b"content", "one": b"1", "two": b"2"}
    assert shown["sub"] == {"deep": b""}


def test_hard_links_survive_copy_up_and_remount(ours_inside: Layers, namespace: UserNamespace) -> None:
    names = ("file", "dir/linked")

    def numbers(path: Path) -> set[tuple[int, int, bytes]]:
        return {
            ((path / name).stat().st_ino, (path / name).stat().st_nlink, (path / name).read_bytes()) for name in names
        }

    def first(path: Path) -> set[tuple[int, int, bytes]]:
        ((number, links, content),) = numbers(path)
        assert (links, content) == (2, b"content")
        with (path / "file").open("ab") as file:
            file.write(b"!")
        assert numbers(path) == {(number, 2, b"content!")}
        os.link(path / "file", path / "dir/third")
        return numbers(path)

    def second(path: Path) -> int:
        found = numbers(path)
        (path / "file").unlink()
        (path / "dir/third").unlink()
        assert found == before
        return (path / "dir/linked").stat().st_nlink

    before = mounted(ours_inside, namespace, first)
    assert len(before) == 1
    assert mounted(ours_inside, namespace, second) == 1
    assert mounted(ours_inside, namespace, lambda path: (path / "dir/linked").stat().st_nlink) == 1


LASTING = ("dir", "dir/one", "dir/two", "dir/sub/deep", "file")


def test_numbers_stay(ours_inside: Layers, namespace: UserNamespace) -> None:
    names = (*LASTING, "link", "fifo")

    def numbers(path: Path) -> list[int]:
        return [(path / name).lstat().st_ino for name in names]

    def change(path: Path) -> list[int]:
        before = numbers(path)
        for name in names:
            os.utime(path / name, (1, 1), follow_symlinks=False)
        assert numbers(path) == before
        (path / "dir/one").rename(path / "one")
        assert (path / "one").stat().st_ino == before[1]
        (path / "one").rename(path / "dir/one")
        return before

    before = mounted(ours_inside, namespace, change, "watch=off", "timeout=0")
    drop_dentries()
    # Symlinks and fifos take no user.* attributes that could say where they came from.
    assert mounted(ours_inside, namespace, numbers)[: len(LASTING)] == before[: len(LASTING)]


def test_users_of_the_namespace(inside: Layers, namespace: UserNamespace) -> None:
    os.chown(inside.lower / "dir/one", FIRST + USER, FIRST + USER)
    os.chown(inside.lower / "dir/sub", FIRST + USER, FIRST + USER)

    def work(path: Path) -> dict[str, Any]:
        in_child(lambda: (path / "dir/one").write_bytes(b"a user's"), USER)
        in_child(lambda: (path / "dir/sub/deep").unlink(), USER)
        in_child(lambda: (path / "dir/sub/new").touch(), USER)
        refuses(errno.EACCES, lambda: in_child(lambda: (path / "file").write_bytes(b""), USER))
        refuses(errno.EACCES, lambda: in_child(lambda: (path / "dir/new").touch(), USER))
        return read_tree(path / "dir")

    shown = {"gone": b"", "linked": b"content", "one": b"a user's", "sub": {"new": b""}, "two": b"2"}
    assert mounted(inside, namespace, work) == shown
    for name in ("dir/one", "dir/sub/new"):
        status = (inside.upper / name).stat()
        assert (status.st_uid, status.st_gid) == (FIRST + USER, FIRST + USER)


@pytest.mark.parametrize("uid", [0, 99999, FIRST + 65536])
def test_what_belongs_to_nobody_here_is_not_copied(inside: Layers, namespace: UserNamespace, uid: int) -> None:
    """The upper could only hold it with another owner. Nor is anything in such a directory."""
    (inside.lower / "file").chmod(0o666)
    (inside.lower / "dir/sub").chmod(0o777)
    os.chown(inside.lower / "file", uid, FIRST)
    os.chown(inside.lower / "dir/sub", FIRST, uid)

    def work(path: Path) -> None:
        for name in ("file", "dir/sub/deep"):
            refuses(errno.EOVERFLOW, (path / name).write_bytes, b"")
            # For some the kernel asks first whose it is.
            assert errno_of(lambda name=name: (path / name).chmod(0o600)) in (errno.EOVERFLOW, errno.EPERM)  # type: ignore[misc]
        refuses(errno.EOVERFLOW, (path / "dir/sub/deep").unlink)
        refuses(errno.EOVERFLOW, (path / "dir/sub/deep").rename, path / "dir/deep")
        refuses(errno.EOVERFLOW, (path / "dir/sub/new").touch)
        assert (path / "file").read_bytes() == b"content"
        (path / "dir/one").write_bytes(b"another's name")

    mounted(inside, namespace, work)
    assert read_tree(inside.upper) == {"dir": {"one": b"another's name"}}


def test_root_whom_a_map_leaves_out_creates_as_itself(ours_inside: Layers, namespace: UserNamespace) -> None:
    """Container engines make files of their own in a container's tree, and give them to its root."""

    def work(path: Path) -> None:
        for name, make in MAKERS.items():
            make(path / "dir" / name.replace(" ", "-"))
        (path / "dir/one").write_bytes(b"changed")
        os.symlink("/proc/mounts", path / "mtab")
        assert owner(path / "mtab") == (1000, 2000)
        os.chown(path / "mtab", 1005, 2006, follow_symlinks=False)
        assert errno_of(lambda: os.mkdir(path / "new")) == 0
        assert errno_of(lambda: os.chown(path / "new", 0, 0)) == errno.EOVERFLOW

    mounted(ours_inside, namespace, work, "uidmapping=0:1000:60000", "gidmapping=0:2000:60000")
    assert owner(ours_inside.upper / "mtab") == (FIRST + 5, FIRST + 6)
    for name in ("dir", "new", *(f"dir/{name.replace(' ', '-')}" for name in MAKERS)):
        assert owner(ours_inside.upper / name) == (FIRST, FIRST)


def test_set_id_bits_and_acls_are_copied(inside: Layers, namespace: UserNamespace) -> None:
    (inside.lower / "file").chmod(0o6755)
    os.chown(inside.lower / "file", FIRST + 33, FIRST + 34)
    (inside.lower / "file").chmod(0o6755)
    run(["setfacl", "-m", f"u:{FIRST + 5}:rwx,m::rwx", inside.lower / "dir/one"])

    def work(path: Path) -> tuple[str, int]:
        for name in ("file", "dir/one"):
            os.utime(path / name, (1, 1))
        status = (path / "file").stat()
        assert (status.st_uid, status.st_gid) == (33, 34)
        return run(["getfacl", "-nc", path / "dir/one"]).stdout, status.st_mode

    acl, mode = mounted(inside, namespace, work)
    assert "user:5:rwx" in acl.split()
    assert stat.S_IMODE(mode) == stat.S_IMODE((inside.upper / "file").stat().st_mode) == 0o6755
    assert f"user:{FIRST + 5}:rwx" in run(["getfacl", "-nc", inside.upper / "dir/one"]).stdout.split()


def test_it_looks_like_any_overlay_from_within(inside: Layers, namespace: UserNamespace) -> None:
    def work(path: Path) -> None:
        os.setxattr(path / "file", "user.overlay.opaque", b"y")
        assert os.listxattr(path / "file") == ["user.overlay.opaque"]
        with opened(path / "dir") as fd:
            (path / "dir/new").touch()
            assert sorted(os.listdir(fd)) == ["gone", "linked", "new", "one", "sub", "two"]

    mounted(inside, namespace, work)
    assert os.getxattr(inside.upper / "file", "user.overlay.overlay.opaque") == b"y"
