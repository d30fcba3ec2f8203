"""Whose word counts: attributes that lead elsewhere are obeyed only from whom nobody else can have them from.

Who may set user.* on a file of a layer must not see by it what he may not see. Where the program keeps its own marks
in trusted.*, those of ordinary users' inodes only hide.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Caller, Layers, errno_of, read_tree, write_tree
from harness.layered import Tree

USER = Caller(1000, 1000)
SECRET: Tree = {"root": {"key": b"secret", "sub": {"deep": b"secret"}}}
PREFIXES = ["user.overlay.", "user.fuseoverlayfs."]


def locked(path: Path) -> None:
    """A directory of root's alone."""
    write_tree(path, SECRET)
    (path / "root").chmod(0o700)


def led(to: bytes, owner: int, prefix: str, mode: int = 0o755) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        os.setxattr(path, prefix + "redirect", to)
        os.chown(path, owner, owner)
        path.chmod(mode)

    return make


def without_content(to: bytes, owner: int, prefix: str, mode: int = 0o644) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, len(b"secret"))
        os.setxattr(path, prefix + "metacopy", b"")
        os.setxattr(path, prefix + "redirect", to)
        os.chown(path, owner, owner)
        path.chmod(mode)

    return make


@pytest.fixture
def stacked(our_layers: Layers) -> Layers:
    """The secret is in the lowest of two lower layers."""
    locked(our_layers.add_lower())
    return our_layers


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("writable", [True, False])
def test_a_users_redirect_leads_nowhere(stacked: Layers, prefix: str, writable: bool) -> None:
    (stacked.lower / "up").mkdir()
    write_tree(stacked.lower / "up", {"relative": led(b"root", 1000, prefix)})
    write_tree(stacked.lower, {"absolute": led(b"/root", 1000, prefix), "sub": led(b"/root/sub", 1000, prefix)})
    with stacked.mount() if writable else stacked.mount_lowers() as mount:
        for name in ("absolute", "sub", "up/relative"):
            assert USER(os.listdir, mount.path / name) == []
            assert errno_of(lambda name=name: (mount.path / name / "key").stat()) == errno.ENOENT  # type: ignore[misc]
        assert errno_of(lambda: USER(os.listdir, mount.path / "root")) == errno.EACCES


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("writable", [True, False])
def test_a_users_metadata_has_no_others_content(stacked: Layers, prefix: str, writable: bool) -> None:
    write_tree(stacked.lower, {"file": without_content(b"/root/key", 1000, prefix)})
    with stacked.mount() if writable else stacked.mount_lowers() as mount:
        assert USER((mount.path / "file").read_bytes) == bytes(6)


def test_a_users_origin_is_not_believed(our_layers: Layers) -> None:
    write_tree(our_layers.lower, {"roots": b"roots", "users": b"users"})
    with our_layers.mount() as mount:
        number = (mount.path / "roots").stat().st_ino
        (mount.path / "roots").chmod(0o644)
    upper = our_layers.upper
    (upper / "made").write_bytes(b"made")
    os.setxattr(upper / "made", "user.overlay.origin", os.getxattr(upper / "roots", "trusted.overlay.origin"))
    os.chown(upper / "made", 1000, 1000)
    (upper / "roots").unlink()
    with our_layers.mount() as mount:
        assert (mount.path / "made").stat().st_ino != number
        assert (mount.path / "roots").stat().st_ino == number
        assert (mount.path / "made").read_bytes() == b"made"


@pytest.mark.parametrize("writable", [True, False])
def test_roots_are_obeyed(stacked: Layers, writable: bool) -> None:
    write_tree(
        stacked.lower,
        {"moved": led(b"/root", 0, "user.overlay."), "file": without_content(b"/root/key", 0, "user.overlay.")},
    )
    with stacked.mount() if writable else stacked.mount_lowers() as mount:
        assert read_tree(mount.path / "moved") == SECRET["root"]
        assert (mount.path / "file").read_bytes() == b"secret"


def test_what_hides_is_obeyed_from_anybody(stacked: Layers) -> None:
    """As whoever owns a directory may empty it."""
    write_tree(stacked.lowers[1], {"mine": {"below": b""}})
    write_tree(stacked.lower, {"mine": {"above": b""}})
    os.setxattr(stacked.lower / "mine", "user.overlay.opaque", b"y")
    os.chown(stacked.lower / "mine", 1000, 1000)
    with stacked.mount() as mount:
        assert os.listdir(mount.path / "mine") == ["above"]


def test_what_users_set_through_the_mount_leads_nowhere(stacked: Layers) -> None:
    (stacked.lower / "mine").mkdir()
    os.chown(stacked.lower / "mine", 1000, 1000)

    def set_it(path: Path) -> None:
        (path / "made").mkdir()
        os.setxattr(path / "made", "user.overlay.redirect", b"/root")

    with stacked.mount() as mount:
        USER(set_it, mount.path / "mine")
    with stacked.mount() as mount:
        assert os.listdir(mount.path / "mine/made") == []
        assert os.getxattr(mount.path / "mine/made", "user.overlay.redirect") == b"/root"


def test_roots_where_users_may_write_are_not_obeyed(stacked: Layers) -> None:
    write_tree(
        stacked.lower,
        {
            "moved": led(b"/root", 0, "user.overlay.", 0o777),
            "file": without_content(b"/root/key", 0, "user.overlay.", 0o666),
        },
    )
    with stacked.mount() as mount:
        assert USER(os.listdir, mount.path / "moved") == []
        assert USER((mount.path / "file").read_bytes) == bytes(6)
