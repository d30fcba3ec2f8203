"""What a copy has besides its content, and in which order it gets it."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from harness import Caller, errno_of, run, user_namespace
from overlay import metadata
from shiftfs.layer import Layer
from shiftfs.tree import Attributes, Descriptor

pytestmark = pytest.mark.root
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
EARLY = (-5 * 10**9 + 7, 1_234_567_890_123_456_789)


def look(path: Path) -> Attributes:
    layer = Layer(os.fsencode(path.parent))
    return layer.look(layer.root.fd, os.fsencode(path.name))[1]


def copy(source: Path, target: Path) -> None:
    held = [Descriptor(os.open(path, os.O_PATH | os.O_NOFOLLOW), os.close) for path in (source, target)]
    layers = [Layer(os.fsencode(path.parent)) for path in (source, target)]
    metadata.copy(layers[0], held[0].fd, layers[1], held[1].fd, look(source))


def described(path: Path) -> dict[str, Any]:
    seen = path.lstat()
    names = os.listxattr(path, follow_symlinks=False)
    return {
        "mode": seen.st_mode, "owner": (seen.st_uid, seen.st_gid), "times": (seen.st_atime_ns, seen.st_mtime_ns),
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
    }  # fmt: skip


@pytest.mark.parametrize("mode", [0o000, 0o644, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777])
@pytest.mark.parametrize("kind", [Path.touch, Path.mkdir, os.mkfifo], ids=["file", "directory", "fifo"])
def test_owner_mode_and_times_are_the_sources(tmp_path: Path, kind: Any, mode: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    kind(source)
    kind(target)
    os.chown(source, 1234, 5678)
    source.chmod(mode)
    os.utime(source, ns=EARLY)
    copy(source, target)
    assert described(target) == described(source)


def test_attributes_acls_and_capabilities_come_along(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.touch(mode=0o640)
    target.touch(mode=0o600)
    os.chown(source, 1234, 5678)  # which would take a capability away again
    run(["setfacl", "-m", "user:1:rwx,mask::rw", source])
    for name, value in (("user.any", b"\0value"), ("trusted.any", b""), ("security.capability", CAPABILITY)):
        os.setxattr(source, name, value)
    copy(source, target)
    assert described(target) == described(source)
    assert set(described(target)["xattrs"]) == {
        "user.any", "trusted.any", "security.capability", "system.posix_acl_access"
    }  # fmt: skip


def test_a_directory_has_its_default_acl(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    run(["setfacl", "-m", "default:user:1:rwx", tmp_path / "source"])
    copy(tmp_path / "source", tmp_path / "target")
    assert described(tmp_path / "target") == described(tmp_path / "source")


def test_a_symlinks_own_are_copied_and_not_its_targets(tmp_path: Path) -> None:
    for name in ("file", "other"):
        (tmp_path / name).touch()
        (tmp_path / f"to-{name}").symlink_to(name)
    source = tmp_path / "to-file"
    os.chown(source, 12, 34, follow_symlinks=False)
    os.setxattr(source, "trusted.any", b"link", follow_symlinks=False)
    os.utime(source, ns=EARLY, follow_symlinks=False)
    before = described(tmp_path / "other")
    copy(source, tmp_path / "to-other")
    ours, theirs = described(tmp_path / "to-other"), described(source)
    for one in (ours, theirs):
        one["times"] = one["times"][1]  # the symlink was read meanwhile
    assert ours == theirs
    assert described(tmp_path / "other") == before


def test_the_overlays_own_attributes_stay_behind_and_escaped_ones_do_not(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    for name in ("trusted.overlay.opaque", "user.overlay.redirect", "user.fuseoverlayfs.opaque"):
        os.setxattr(tmp_path / "source", name, b"y")
    for name in ("trusted.overlay.overlay.opaque", "user.overlay.overlay.x"):
        os.setxattr(tmp_path / "source", name, b"users")
    copy(tmp_path / "source", tmp_path / "target")
    assert described(tmp_path / "target")["xattrs"] == {
        "trusted.overlay.overlay.opaque": b"users", "user.overlay.overlay.x": b"users"
    }  # fmt: skip


def test_what_the_target_has_no_place_for_stays_behind(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "source").touch()
    os.setxattr(tmp_path / "source", "user.any", b"value")
    run(["mount", "-t", "ramfs", "none", there])
    try:
        (there / "target").touch()
        copy(tmp_path / "source", there / "target")
        assert os.listxattr(there / "target") == []
        (tmp_path / "source").chmod(0o604)
        copy(there / "target", tmp_path / "source")  # and one that has none gives none
        assert os.getxattr(tmp_path / "source", "user.any") == b"value"
        assert stat.S_IMODE((tmp_path / "source").stat().st_mode) == 0o644
    finally:
        run(["umount", there])


def test_the_group_gets_no_more_where_no_acl_can_be_kept(tmp_path: Path) -> None:
    """The mode shows the mask in its place, which may be wider."""
    there = tmp_path / "there"
    there.mkdir()
    run(["mount", "-t", "ramfs", "none", there])
    try:
        for name, group, mode in (("file", "r", 0o644), ("directory", "-", 0o705)):
            source, target = tmp_path / name, there / name
            for path in (source, target):
                path.touch() if name == "file" else path.mkdir()
            source.chmod(mode)
            run(["setfacl", "-m", f"group::{group},user:1:rwx", source])
            assert stat.S_IMODE(source.stat().st_mode) == mode | 0o070
            copy(source, target)
            assert stat.S_IMODE(target.stat().st_mode) == mode
    finally:
        run(["umount", there])


# --- what a copy would not keep ---


@pytest.mark.parametrize("flag, number", [("+i", errno.EPERM), ("+a", errno.EPERM), ("+d", 0)])
def test_what_nobody_may_change_is_refused(tmp_path: Path, flag: str, number: int) -> None:
    path = tmp_path / "file"
    path.touch()
    run(["chattr", flag, path])
    try:
        assert errno_of(lambda: metadata.check_changeable(look(path))) == number
    finally:
        run(["chattr", "-ia", path])


def check(path: Path) -> int:
    held = Descriptor(os.open(path, os.O_PATH | os.O_NOFOLLOW), os.close)
    return errno_of(lambda: metadata.Ids().check(held.fd, look(path)))


@pytest.mark.parametrize("owner", [0, 1, 65534, 4_000_000_000])
def test_whoever_knows_everybody_takes_everybody(tmp_path: Path, owner: int) -> None:
    (tmp_path / "file").touch(mode=0o600)
    os.chown(tmp_path / "file", owner, owner)
    assert check(tmp_path / "file") == 0


NOBODY = 65534
FIRST = 100_000


@pytest.mark.parametrize(
    "owner, mode, number",
    [
        (FIRST, 0o777, 0),
        (FIRST + 1, 0o600, 0),
        (1, 0o600, errno.EOVERFLOW),
        (1, 0o777, errno.EOVERFLOW),
        (FIRST + 65_536, 0o600, errno.EOVERFLOW),
        (FIRST + NOBODY, 0o600, 0),
        (FIRST + NOBODY, 0o777, errno.EOVERFLOW),  # nothing tells nobody from somebody unknown
    ],
)
@pytest.mark.parametrize("group", ["same", "known", "unknown"])
def test_whom_a_namespace_does_not_know_cannot_own_a_copy(
    tmp_path: Path, owner: int, mode: int, number: int, group: str
) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, owner, {"same": owner, "known": FIRST, "unknown": 1}[group])
    path.chmod(mode)
    with user_namespace((0, FIRST, 65_536)) as namespace:
        seen = Caller(0, 0, namespace=namespace)(check, path)
    assert seen == (errno.EOVERFLOW if group == "unknown" else number)
