"""What a map leaves out: shown as the overflow id, in nobody's power, never written."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Caller, Mount, UserNamespace, errno_of, run, shifted_directory, user_namespace
from harness.kinds import MAKERS, owner

OPTIONS = ("uidmapping=0:100000:65536", "gidmapping=0:100000:65536")
OVERFLOW = 65534
UNMAPPED = 70000  # on the layer, and on the mount as well


@pytest.fixture(scope="module", params=["refuse", "serve"])
def mount(request: pytest.FixtureRequest) -> Iterator[Mount]:
    with shifted_directory(*OPTIONS, f"open={request.param}") as mount:
        yield mount


@pytest.fixture(scope="module")
def container() -> Iterator[UserNamespace]:
    with user_namespace((0, 100000, 65536)) as namespace:
        yield namespace


def directory(mount: Mount, name: str) -> tuple[Path, Path]:
    """A new directory for everybody: on the layer, and on the mount."""
    layer = mount.source / name
    layer.mkdir()
    layer.chmod(0o777)
    return layer, mount.path / name


# --- owners ---

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, IMMUTABLE = 0x80086601, 0x40086602, 0x10
NO_ID = 0xFFFFFFFF
ACL_HEAD = struct.pack("<IHHIHH", 2, 1, 6, NO_ID, 2, 7)
ACL_REST = struct.pack("<HHIHHIHHI", 4, 4, NO_ID, 16, 7, NO_ID, 32, 4, NO_ID)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def set_flags(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = fcntl.ioctl(fd, FS_IOC_GETFLAGS, struct.pack("L", 0))
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("L", struct.unpack("L", flags)[0] | IMMUTABLE))
    finally:
        os.close(fd)


# Each takes the file and the id of container root as the caller numbers it.
CHANGES: dict[str, Callable[[Path, int], object]] = {
    "chown to itself": lambda path, root: os.chown(path, root, root),
    "chown of the user": lambda path, root: os.chown(path, root, -1),
    "chown of the group": lambda path, root: os.chown(path, -1, root),
    "chmod": lambda path, root: os.chmod(path, 0o777),
    "set-id": lambda path, root: os.chmod(path, 0o6755),
    "setfacl": lambda path, root: os.setxattr(
        path, "system.posix_acl_access", ACL_HEAD + struct.pack("<I", root + 5) + ACL_REST
    ),
    "removal of an ACL": lambda path, root: os.removexattr(path, "system.posix_acl_access"),
    "setcap": lambda path, root: os.setxattr(path, "security.capability", CAPABILITY),
    "chattr": lambda path, root: set_flags(path),
}
OWNERS = {"both": (UNMAPPED, UNMAPPED), "user": (UNMAPPED, 0), "group": (0, UNMAPPED)}


def foreign(mount: Mount, name: str, mode: int, of: tuple[int, int] = (UNMAPPED, UNMAPPED)) -> tuple[Path, Path]:
    layer, seen = mount.source / name, mount.path / name
    layer.write_text("secret")
    layer.chmod(mode)
    os.chown(layer, *of)
    return layer, seen


@pytest.fixture
def root(request: pytest.FixtureRequest, container: UserNamespace) -> Caller:
    return Caller(0, 0, namespace=container if request.param == "container" else None)


both_roots = pytest.mark.parametrize("root", ["container", "host"], indirect=True)


@pytest.mark.parametrize("unmapped", OWNERS)
def test_an_unmapped_owner_is_shown_as_the_overflow_id(mount: Mount, container: UserNamespace, unmapped: str) -> None:
    _, seen = foreign(mount, f"overflow-{unmapped}", 0o644, OWNERS[unmapped])
    for mapped, who in ((100000, None), (0, container)):
        shown = tuple(OVERFLOW if number == UNMAPPED else mapped for number in OWNERS[unmapped])
        assert Caller(0, 0, namespace=who)(owner, seen) == shown


@both_roots
@pytest.mark.parametrize("unmapped", OWNERS)
@pytest.mark.parametrize("change", CHANGES)
def test_nobody_changes_what_an_unmapped_id_owns(
    mount: Mount, request: pytest.FixtureRequest, root: Caller, unmapped: str, change: str
) -> None:
    layer, seen = foreign(mount, request.node.name.replace("/", "-")[-100:], 0o644, OWNERS[unmapped])
    if change == "removal of an ACL":
        run(["setfacl", "-m", "u:5:r", layer])
    before = layer.stat()
    names = os.listxattr(layer)
    # Which of the three depends on whether the kernel or the process refuses.
    own = 100000 if root.namespace is None else 0
    assert errno_of(lambda: root(CHANGES[change], seen, own)) in (errno.EPERM, errno.EOVERFLOW, errno.EACCES)
    after = layer.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert os.listxattr(layer) == names
    assert "i" not in run(["lsattr", "-d", layer]).stdout.split()[0]


def test_nobody_gains_rights_over_what_an_unmapped_id_owns(mount: Mount, container: UserNamespace) -> None:
    _, seen = foreign(mount, "rights", 0o600)
    callers = [
        *(Caller(uid, uid, namespace=container) for uid in (0, 5, OVERFLOW)),
        *(Caller(uid, uid) for uid in (5, UNMAPPED, OVERFLOW)),
    ]
    for caller in callers:
        assert errno_of(lambda who=caller: who(seen.read_text)) == errno.EACCES  # type: ignore[misc]


def test_modes_for_others_hold_on_what_an_unmapped_id_owns(mount: Mount, container: UserNamespace) -> None:
    _, seen = foreign(mount, "others", 0o604)
    assert Caller(5, 5, namespace=container)(seen.read_text) == "secret"


@both_roots
@pytest.mark.parametrize("change", ["write", "unlink", "link", "rename"])
def test_the_kernel_itself_lets_nobody_write_or_move_it(mount: Mount, root: Caller, change: str) -> None:
    """As on its own idmapped mounts (HAS_UNMAPPED_ID, may_delete, may_linkat), whatever the mode."""
    calls: dict[str, Callable[[Path], object]] = {
        "write": lambda path: os.open(path, os.O_WRONLY),
        "unlink": os.unlink,
        "link": lambda path: os.link(path, path.with_name("other")),
        "rename": lambda path: os.rename(path, path.with_name("other")),
    }
    layer, seen = directory(mount, f"kernel-{change}-{root.namespace is None}")
    (layer / "file").touch()
    (layer / "file").chmod(0o666)
    os.chown(layer / "file", UNMAPPED, UNMAPPED)
    mount.settled()
    expected = errno.EACCES if change == "write" else errno.EOVERFLOW
    assert errno_of(lambda: root(calls[change], seen / "file")) == expected
    assert os.listdir(layer) == ["file"]


# --- ids that cannot be written ---


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "caller",
    [Caller(0, 0), Caller(UNMAPPED, UNMAPPED), Caller(100005, UNMAPPED), Caller(UNMAPPED, 100005)],
    ids=["host root", "both", "group", "user"],
)
def test_an_unmapped_caller_creates_nothing(mount: Mount, kind: str, caller: Caller) -> None:
    layer, seen = directory(mount, f"nothing-{kind}-{caller.uid}-{caller.gid}")
    assert errno_of(lambda: caller(MAKERS[kind], seen / "new")) == errno.EOVERFLOW
    assert os.listdir(layer) == []


@pytest.mark.parametrize("ids", [(0, 0), (UNMAPPED, -1), (-1, UNMAPPED), (165536, 100000), (100000, 99999)])
def test_chown_to_an_unmapped_id_is_refused(mount: Mount, ids: tuple[int, int]) -> None:
    layer, seen = directory(mount, f"overflow-{ids[0]}-{ids[1]}")
    (layer / "file").touch()
    os.chown(layer / "file", 5, 7)
    assert errno_of(lambda: os.chown(seen / "file", *ids)) == errno.EOVERFLOW
    assert owner(layer / "file") == (5, 7)


def test_a_whole_setattr_is_refused_before_any_of_it_is_done(mount: Mount) -> None:
    """chown clears set-id bits in the same request."""
    layer, seen = directory(mount, "whole")
    (layer / "file").touch()
    (layer / "file").chmod(0o6755)
    assert errno_of(lambda: os.chown(seen / "file", UNMAPPED, -1)) == errno.EOVERFLOW
    assert stat.S_IMODE((layer / "file").stat().st_mode) == 0o6755
