"""What a mount can be told to leave out: ACLs, extended attributes, link counts of directories, large inode numbers."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from harness import Caller, Layers, Mount, mounted, run
from harness.calls import refuses

Mounting = Callable[..., AbstractContextManager[Mount]]
USER = 4711


@pytest.fixture(params=["plain", "layered"])
def mounting(request: pytest.FixtureRequest, our_layers: Layers) -> Mounting:
    """A mount of the lower directory, or of it beneath an upper."""
    if request.param == "plain":
        return lambda *options: mounted(our_layers.lower, None, *options)
    return our_layers.mount


@pytest.fixture
def shared(our_layers: Layers) -> Iterator[Path]:
    """A file that an ACL alone lets a user read, though its group may write."""
    path = our_layers.lower / "shared"
    path.write_bytes(b"content")
    path.chmod(0o660)
    run(["setfacl", "-m", f"u:{USER}:r", path])
    os.setxattr(path, "user.kept", b"value")
    yield path


# --- noacl ---


def test_acls_are_heeded_and_shown_unless_told_not_to(mounting: Mounting, shared: Path) -> None:
    with mounting() as mount:
        Caller(USER, USER)((mount.path / "shared").read_bytes)
        assert f"user:{USER}:r--" in run(["getfacl", "-n", mount.path / "shared"]).stdout


def test_noacl_goes_by_modes_alone(mounting: Mounting, shared: Path) -> None:
    with mounting("noacl") as mount:
        refuses(errno.EACCES, Caller(USER, USER), (mount.path / "shared").read_bytes)


def test_noacl_has_none_to_show_and_takes_none(mounting: Mounting, shared: Path) -> None:
    name = "system.posix_acl_access"
    value = os.getxattr(shared, name)
    with mounting("noacl") as mount:
        path = mount.path / "shared"
        assert os.listxattr(path) == ["user.kept"]
        refuses(errno.EOPNOTSUPP, os.getxattr, path, name)
        refuses(errno.EOPNOTSUPP, os.setxattr, path, name, value)
        refuses(errno.EOPNOTSUPP, os.removexattr, path, name)
    assert os.getxattr(shared, name) == value


def test_noacl_keeps_an_acl_over_a_copy_up(our_layers: Layers, shared: Path) -> None:
    value = os.getxattr(shared, "system.posix_acl_access")
    with our_layers.mount("noacl") as mount, (mount.path / "shared").open("ab") as file:
        file.write(b" and more")
    assert os.getxattr(our_layers.upper / "shared", "system.posix_acl_access") == value


def test_the_umask_counts_with_noacl(mounting: Mounting) -> None:
    with mounting("noacl") as mount:
        before = os.umask(0o027)
        try:
            (mount.path / "new").write_bytes(b"")
            (mount.path / "directory").mkdir()
        finally:
            os.umask(before)
        assert (mount.path / "new").stat().st_mode & 0o777 == 0o640
        assert (mount.path / "directory").stat().st_mode & 0o777 == 0o750


# --- noxattrs ---


def test_noxattrs_has_no_extended_attributes(mounting: Mounting, shared: Path) -> None:
    with mounting("noxattrs=1") as mount:
        path = mount.path / "shared"
        refuses(errno.EOPNOTSUPP, os.listxattr, path)
        refuses(errno.EOPNOTSUPP, os.getxattr, path, "user.kept")
        refuses(errno.EOPNOTSUPP, os.setxattr, path, "user.new", b"value")
        refuses(errno.EOPNOTSUPP, os.removexattr, path, "user.kept")
        refuses(errno.EACCES, Caller(USER, USER), path.read_bytes)
    assert os.getxattr(shared, "user.kept") == b"value"


def test_noxattrs_keeps_them_over_a_copy_up(our_layers: Layers, shared: Path) -> None:
    with our_layers.mount("noxattrs=1") as mount:
        (mount.path / "shared").chmod(0o600)
    assert os.getxattr(our_layers.upper / "shared", "user.kept") == b"value"


def test_noxattrs_0_is_the_default(mounting: Mounting, shared: Path) -> None:
    with mounting("noxattrs=0") as mount:
        assert os.getxattr(mount.path / "shared", "user.kept") == b"value"


# --- static_nlink ---


def test_static_nlink_gives_each_directory_one_link_and_files_theirs(mounting: Mounting, our_layers: Layers) -> None:
    (our_layers.lower / "one/inner").mkdir(parents=True)
    (our_layers.lower / "file").write_bytes(b"")
    os.link(our_layers.lower / "file", our_layers.lower / "again")
    with mounting() as mount:
        assert (mount.path / "one").stat().st_nlink == 3
    with mounting("static_nlink") as mount:
        (mount.path / "new").mkdir()
        assert [(mount.path / name).stat().st_nlink for name in (".", "one", "new", "file")] == [1, 1, 1, 2]
        assert {entry.name: entry.stat().st_nlink for entry in os.scandir(mount.path)}["one"] == 1
        run(["find", mount.path, "-name", "inner"])
        assert str(mount.path / "one/inner") in run(["find", mount.path, "-type", "d"]).stdout


# --- ino32_t ---


def test_ino32_t_has_no_number_beyond_32_bits(mounting: Mounting, our_layers: Layers, tmp_path: Path) -> None:
    (our_layers.lower / "file").write_bytes(b"")
    (our_layers.lower / "other").mkdir()
    run(["mount", "-t", "tmpfs", "none", our_layers.lower / "other"])
    try:
        (our_layers.lower / "other/file").write_bytes(b"")
        with mounting() as mount:
            assert (mount.path / "other/file").stat().st_ino >= 1 << 32
        with mounting("ino32_t") as mount:
            for directory in (mount.path, mount.path / "other"):
                names = os.listdir(directory)
                numbers = {entry.name: entry.inode() for entry in os.scandir(directory)}
                assert numbers == {name: (directory / name).stat().st_ino for name in names}
                assert all(0 < number < 1 << 32 for number in numbers.values())
            same = (our_layers.lower / "file").stat().st_ino
            assert same >= 1 << 32 or (mount.path / "file").stat().st_ino == same
    finally:
        run(["umount", our_layers.lower / "other"])
