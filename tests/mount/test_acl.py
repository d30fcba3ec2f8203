"""POSIX ACLs: named ids shifted on the layer, enforced by the kernel, inherited; unmapped ones are nobody's."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import (
    Caller,
    Mount,
    UserNamespace,
    errno_of,
    mounted,
    newest_mount,
    open_directory,
    run,
    shifted_directory,
    unmount,
    user_namespace,
    wait_until,
)

OPTIONS = ("uidmapping=0:100000:65536", "gidmapping=0:200000:65536")
NOBODY = 0xFFFFFFFE


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    with shifted_directory(*OPTIONS) as mount:
        yield mount


@pytest.fixture
def pair(mount: Mount) -> tuple[Path, Path]:
    """A new directory, on the layer and on the mount."""
    layer = open_directory_in(mount.source)
    return layer, mount.path / layer.name


def open_directory_in(above: Path) -> Path:
    path = above / str(len(os.listdir(above)))
    path.mkdir()
    path.chmod(0o755)
    return path


def acl(path: Path) -> list[str]:
    """An ACL's lines, ids as numbers, default ones after the others; nothing but the mode's three if there is none."""
    said = run(["getfacl", "--numeric", "--omit-header", "--no-effective", "--absolute-names", path]).stdout
    return said.split()


def set_acl(path: Path, *entries: str, default: bool = False) -> None:
    run(["setfacl", *(["--default"] if default else []), "--modify", ",".join(entries), path])


@pytest.mark.parametrize("prefix", ["", "default:"])
def test_named_ids_are_shifted(pair: tuple[Path, Path], prefix: str) -> None:
    layer, seen = pair
    real = [f"{prefix}user:5:rw-", f"{prefix}group:7:r-x"]
    shown = [f"{prefix}user:100005:rw-", f"{prefix}group:200007:r-x"]
    set_acl(seen, *shown)
    assert set(real) < set(acl(layer)) and set(shown) < set(acl(seen))
    run(["setfacl", "--remove-all", layer])
    set_acl(layer, f"{prefix}user:6:r--", real[1])
    now = {f"{prefix}user:100006:r--", shown[1]}
    # The kernel keeps an ACL for as long as attributes.
    wait_until(lambda: now < set(acl(seen)) and shown[0] not in acl(seen), "the layer's new ACL on the mount")


@pytest.mark.parametrize(
    ("caller", "may"),
    [
        (Caller(100005, 200099), True),
        (Caller(100006, 200007), True),
        (Caller(100006, 200099, (200007,)), True),
        (Caller(100006, 200099), False),
        (Caller(5, 7), False),
        (Caller(100007, 200005), False),
    ],
    ids=["named user", "named group", "supplementary group", "neither", "real ids", "user for group"],
)
def test_the_kernel_enforces_them_for_shifted_ids(pair: tuple[Path, Path], caller: Caller, may: bool) -> None:
    layer, seen = pair
    (layer / "file").write_text("content")
    (layer / "file").chmod(0o600)
    set_acl(seen / "file", "user:100005:r", "group:200007:r")
    assert errno_of(lambda: caller((seen / "file").read_text)) == (0 if may else errno.EACCES)
    assert errno_of(lambda: caller(os.open, seen / "file", os.O_WRONLY)) == errno.EACCES


def test_an_acl_can_also_refuse(pair: tuple[Path, Path]) -> None:
    layer, seen = pair
    (layer / "file").touch()
    set_acl(seen / "file", "user:100005:---")
    assert errno_of(lambda: Caller(100005, 200005)((seen / "file").read_text)) == errno.EACCES
    assert Caller(100006, 200005)((seen / "file").read_text) == ""


@pytest.mark.parametrize("umask", [0, 0o077])
def test_default_acls_are_inherited_as_on_a_local_disk(pair: tuple[Path, Path], tmp_path: Path, umask: int) -> None:
    layer, seen = pair
    for place, uid, gid in ((seen, 100005, 200007), (tmp_path, 5, 7)):
        set_acl(place, f"user:{uid}:rwx", f"group:{gid}:r-x", "mask::rwx", "other::---", default=True)
        place.chmod(0o777)

    def make(place: Path) -> None:
        os.umask(umask)
        (place / "directory" / "deeper").mkdir(parents=True)
        (place / "directory" / "file").touch()
        os.mkfifo(place / "fifo")
        os.close(os.open(place / "executable", os.O_CREAT | os.O_WRONLY, 0o750))

    # User and group of what they make match as well: container root's, and real root's.
    Caller(100000, 200000)(make, seen)
    Caller(0, 0)(make, tmp_path)
    for name in ("directory", "directory/deeper", "directory/file", "fifo", "executable"):
        assert acl(layer / name) == acl(tmp_path / name)
        assert (
            Path(layer / name).lstat().st_mode == Path(tmp_path / name).lstat().st_mode == (seen / name).stat().st_mode
        )
    shown = [line.replace(":5:", ":100005:").replace(":7:", ":200007:") for line in acl(layer / "directory")]
    assert acl(seen / "directory") == shown


def test_chmod_changes_the_mask_and_the_mask_the_mode(pair: tuple[Path, Path]) -> None:
    layer, seen = pair
    (layer / "file").touch()
    set_acl(seen / "file", "user:100005:rwx")
    assert (seen / "file").stat().st_mode & 0o777 == 0o674
    (seen / "file").chmod(0o640)
    assert acl(layer / "file") == ["user::rw-", "user:5:rwx", "group::r--", "mask::r--", "other::---"]
    assert acl(seen / "file") == ["user::rw-", "user:100005:rwx", "group::r--", "mask::r--", "other::---"]
    assert errno_of(lambda: Caller(100005, 200005)(os.open, seen / "file", os.O_WRONLY)) == errno.EACCES
    set_acl(seen / "file", "mask::rw-")
    assert (seen / "file").stat().st_mode & 0o777 == 0o660
    Caller(100005, 200005)(os.open, seen / "file", os.O_WRONLY)


def test_acls_are_removed(pair: tuple[Path, Path]) -> None:
    layer, seen = pair
    set_acl(seen, "user:100005:rwx")
    set_acl(seen, "user:100005:rwx", default=True)
    run(["setfacl", "--remove-default", seen])
    assert "system.posix_acl_default" not in os.listxattr(layer)
    run(["setfacl", "--remove-all", seen])
    assert os.listxattr(layer) == os.listxattr(seen) == []
    assert acl(layer) == acl(seen) == ["user::rwx", "group::r-x", "other::r-x"]


@pytest.mark.parametrize("tag", ["user", "group"])
def test_an_unmapped_id_is_shown_as_one_that_nobody_bears(pair: tuple[Path, Path], tag: str) -> None:
    layer, seen = pair
    (layer / "file").write_text("secret")
    (layer / "file").chmod(0o600)
    set_acl(layer / "file", f"{tag}:70000:rw-")
    assert f"{tag}:{NOBODY}:rw-" in acl(seen / "file")
    for who in (Caller(70000, 70000), Caller(65534, 65534), Caller(100000 + 65534, 200000 + 65534)):
        assert errno_of(lambda who=who: who((seen / "file").read_text)) == errno.EACCES  # type: ignore[misc]
    # Whose right it is cannot be told any more, so an ACL with it is not taken back.
    value = os.getxattr(seen / "file", "system.posix_acl_access")
    assert errno_of(lambda: os.setxattr(seen / "file", "system.posix_acl_access", value)) == errno.EOVERFLOW
    assert f"{tag}:70000:rw-" in acl(layer / "file")


@pytest.mark.parametrize("tag", ["user", "group"])
@pytest.mark.parametrize("number", [0, 5, 70000, 200000 + 65536])
def test_an_unmapped_id_cannot_be_set(pair: tuple[Path, Path], tag: str, number: int) -> None:
    layer, seen = pair
    said = run(["setfacl", "-m", f"{tag}:{number}:rw-", seen], check=False)
    assert said.returncode != 0 and os.strerror(errno.EOVERFLOW) in said.stderr
    assert os.listxattr(layer) == []


@pytest.fixture(scope="module")
def container() -> Iterator[tuple[Mount, UserNamespace]]:
    options = ("uidmapping=0:100000:65536", "gidmapping=0:100000:65536")
    with shifted_directory(*options) as mount, user_namespace((0, 100000, 65536)) as namespace:
        yield mount, namespace


def test_a_container_sees_and_sets_its_own_ids(container: tuple[Mount, UserNamespace]) -> None:
    mount, namespace = container
    layer = open_directory_in(mount.source)
    seen = mount.path / layer.name
    (layer / "file").touch()
    os.chown(layer / "file", 5, 5)
    namespace.run(["setfacl", "-m", "u:33:rw,g:50:r", seen / "file"], uid=5, gid=5)
    said = namespace.run(["getfacl", "-ncp", seen / "file"]).stdout.split()
    assert said == acl(layer / "file")
    assert "user:33:rw-" in said and "group:50:r--" in said
    for name in ("copy", "tar"):
        command = {"copy": "cp -a file copy", "tar": "tar --acls -cf x file && mkdir tar && tar --acls -C tar -xf x"}
        namespace.run(["sh", "-ec", command[name]], cwd=seen)
        assert acl(layer / {"copy": "copy", "tar": "tar/file"}[name]) == said
    refused = namespace.run(["setfacl", "-m", "u:33:rwx", seen / "file"], uid=6, gid=6, check=False)
    assert os.strerror(errno.EPERM) in refused.stderr


def test_set_gid_goes_when_a_stranger_to_the_group_sets_an_acl(container: tuple[Mount, UserNamespace]) -> None:
    mount, namespace = container
    for gid, kept in ((50, 0), (5, 0o2000)):
        layer = open_directory_in(mount.source) / "file"
        layer.touch()
        os.chown(layer, 5, gid)
        layer.chmod(0o2775)
        namespace.run(["setfacl", "-m", "u:33:rw", mount.path / layer.relative_to(mount.source)], uid=5, gid=5)
        assert layer.stat().st_mode & 0o2000 == kept


def test_a_layer_without_acls(tmp_path: Path) -> None:
    layer = open_directory("ramfs-")
    run(["mount", "-t", "ramfs", "none", layer])
    entry = newest_mount(layer)
    try:
        (layer / "file").touch()
        with mounted(layer, None, *OPTIONS) as mount:
            refused = run(["setfacl", "-m", "u:100005:rw", mount.path / "file"], check=False)
            assert os.strerror(errno.EOPNOTSUPP) in refused.stderr
            assert acl(mount.path / "file") == ["user::rw-", "group::r--", "other::r--"]
            (mount.path / "file").chmod(0o604)
            assert (layer / "file").stat().st_mode & 0o777 == 0o604
            assert Caller(100005, 200005)((mount.path / "file").read_text) == ""
            run(["cp", "-a", mount.path / "file", tmp_path])
    finally:
        unmount(entry)
        layer.rmdir()
