"""Squashing: everything shows as one owner's, and what is stored is who did it, as far as that can be."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Caller, Layers, UserNamespace, layered, mounted, run, user_namespace
from harness.calls import refuses, unshare_mounts

OWNER, OTHER = 4711, 4712
FIRST = 100000


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.fixture
def lower(our_layers: Layers) -> Path:
    path = our_layers.lower / "file"
    path.write_bytes(b"content")
    os.chown(path, OWNER, OTHER)
    path.chmod(0o640)
    return path


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["squash_to_root"], (0, 0)),
        (["squash_to_uid=7"], (7, OTHER)),
        (["squash_to_gid=8"], (OWNER, 8)),
        (["squash_to_uid=7", "squash_to_root"], (7, 0)),
        (["squash_to_uid=4294967294", "squash_to_gid=8"], (4294967294, 8)),
        (["squash_to_uid=7", "uidmapping=0:100000:65536", "gidmapping=0:100000:65536"], (7, 100000 + OTHER)),
    ],
)
def test_every_owner_shows_as_one(our_layers: Layers, lower: Path, options: list[str], shown: tuple[int, int]) -> None:
    with our_layers.mount(*options) as mount:
        assert owner(mount.path / "file") == shown
        assert stat.S_IMODE((mount.path / "file").stat().st_mode) == 0o640
    with mounted(our_layers.lower, None, *options) as mount:
        assert owner(mount.path / "file") == shown


def test_what_is_created_stores_its_creator(our_layers: Layers) -> None:
    our_layers.upper.chmod(0o777)
    with our_layers.mount("squash_to_root") as mount:
        Caller(OWNER, OTHER)((mount.path / "new").write_bytes, b"")
        Caller(OWNER, OTHER)((mount.path / "directory").mkdir)
        assert owner(mount.path / "new") == owner(mount.path / "directory") == (0, 0)
    assert owner(our_layers.upper / "new") == owner(our_layers.upper / "directory") == (OWNER, OTHER)


def test_a_change_of_owner_is_stored_and_does_not_show(our_layers: Layers, lower: Path) -> None:
    with our_layers.mount("squash_to_uid=7", "squash_to_gid=8") as mount:
        os.chown(mount.path / "file", 1234, 1235)
        assert owner(mount.path / "file") == (7, 8)
    assert owner(our_layers.upper / "file") == (1234, 1235)
    assert (our_layers.upper / "file").read_bytes() == b"content"


def test_the_one_owner_has_an_owners_rights(our_layers: Layers, lower: Path) -> None:
    with our_layers.mount("squash_to_uid=7", "squash_to_gid=8") as mount:
        Caller(7, 8)((mount.path / "file").write_bytes, b"changed")
        with pytest.raises(PermissionError):
            Caller(OWNER, OTHER)((mount.path / "file").read_bytes)
        assert (mount.path / "file").read_bytes() == b"changed"


def test_ids_in_an_acl_are_not_owners(our_layers: Layers, lower: Path) -> None:
    run(["setfacl", "-m", f"u:{OTHER}:rw", lower])
    with our_layers.mount("squash_to_root") as mount:
        assert f"user:{OTHER}:rw-" in run(["getfacl", "-n", mount.path / "file"]).stdout
        run(["setfacl", "-m", f"u:{OWNER}:r", mount.path / "file"])
    assert f"user:{OWNER}:r--" in run(["getfacl", "-n", our_layers.upper / "file"]).stdout


def test_a_capability_stays_what_it_is(our_layers: Layers) -> None:
    program = our_layers.lower / "program"
    program.write_bytes(b"")
    run(["setcap", "cap_net_raw+ep", program])
    value = os.getxattr(program, "security.capability")
    with our_layers.mount("squash_to_uid=7") as mount:
        assert os.getxattr(mount.path / "program", "security.capability") == value
        (mount.path / "new").write_bytes(b"")
        os.setxattr(mount.path / "new", "security.capability", value)
    assert os.getxattr(our_layers.upper / "new", "security.capability") == value


# --- where only one id can be stored: the root of a user namespace with a map of one ---


@pytest.fixture
def alone() -> Iterator[UserNamespace]:
    with user_namespace((0, FIRST, 1)) as namespace:
        yield namespace


def test_where_only_one_can_be_stored_all_is_his(our_layers: Layers, lower: Path, alone: UserNamespace) -> None:
    for path in (our_layers.base, our_layers.lower, our_layers.upper, our_layers.work):
        os.chown(path, FIRST, FIRST)
    (our_layers.base / "mnt").mkdir()
    lower.chmod(0o644)

    def work() -> tuple[tuple[int, int], ...]:
        unshare_mounts()
        at = our_layers.base / "mnt"
        options = ["squash_to_uid=0", "squash_to_gid=0"]
        with layered(our_layers.lowers, our_layers.upper, our_layers.work, *options, mountpoint=at) as mount:
            seen = owner(mount.path / "file")
            with (mount.path / "file").open("ab") as file:
                file.write(b" and more")
            (mount.path / "new").write_bytes(b"")
            for name in ("file", "new"):
                os.chown(mount.path / name, 0, 0)
            return seen, owner(mount.path / "file"), owner(mount.path / "new")

    assert Caller(0, 0, namespace=alone)(work) == ((0, 0), (0, 0), (0, 0))
    assert (our_layers.upper / "file").read_bytes() == b"content and more"
    assert owner(our_layers.upper / "file") == owner(our_layers.upper / "new") == (FIRST, FIRST)


def test_without_squashing_nobody_changes_what_is_nobodys(
    our_layers: Layers, lower: Path, alone: UserNamespace
) -> None:
    for path in (our_layers.base, our_layers.lower, our_layers.upper, our_layers.work):
        os.chown(path, FIRST, FIRST)
    (our_layers.base / "mnt").mkdir()
    lower.chmod(0o666)

    def work() -> None:
        unshare_mounts()
        at = our_layers.base / "mnt"
        with layered(our_layers.lowers, our_layers.upper, our_layers.work, mountpoint=at) as mount:
            refuses(errno.EACCES, (mount.path / "file").write_bytes, b"changed")

    Caller(0, 0, namespace=alone)(work)
