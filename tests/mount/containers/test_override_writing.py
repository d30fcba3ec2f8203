"""xattr_permissions: owners, modes, devices, fifos and sockets go into the attribute, and the files stay plain."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Caller, Layers, Mount, run
from harness.calls import RENAME_EXCHANGE, refuses, renameat2
from harness.kinds import make_tmpfile
from harness.marks import container, marked
from harness.overrides import CONTAINERS, NAMES, PRIVILEGED, USER, said, say, shown

OWNER, OTHER = 4711, 4712
ASKED = {PRIVILEGED: "xattr_permissions=1", CONTAINERS: "xattr_permissions=2", USER: "xattr_permissions=2"}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def writable(our_layers: Layers, name: str) -> Iterator[Mount]:
    if name == USER:
        say(our_layers.upper, "0:0:755:dir", USER)
    with our_layers.mount(ASKED[name], "allow_dev") as mount:
        yield mount


def test_the_root_gets_one(our_layers: Layers, writable: Mount, name: str) -> None:
    expected = "drwxr-xr-x" if name == USER else "dr-xr-xr-x"
    assert shown(writable.path) == (0, 0, expected)
    assert os.listxattr(writable.path) == []
    assert said(our_layers.upper, name).startswith("0:0:")


def test_the_root_gets_that_of_a_layer_below(our_layers: Layers) -> None:
    our_layers.add_lower()
    say(our_layers.lowers[1], "7:8:0711:dir")
    with our_layers.mount("xattr_permissions=2") as mount:
        assert shown(mount.path) == (7, 8, "drwx--x--x")
    assert said(our_layers.upper) == "7:8:0711:dir"


def test_what_is_made_is_the_callers_on_the_mount_alone(our_layers: Layers, writable: Mount, name: str) -> None:
    writable.path.chmod(0o777)

    def make(at: Path) -> None:
        os.umask(0o027)
        (at / "file").write_bytes(b"content")
        (at / "directory").mkdir()
        os.mkfifo(at / "fifo", 0o666)
        socket.socket(socket.AF_UNIX).bind(str(at / "socket"))
        make_tmpfile(at / "linked")

    Caller(OWNER, OTHER)(make, writable.path)
    os.mknod(writable.path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(writable.path / "disk", stat.S_IFBLK | 0o600, os.makedev(8, 300))
    expected = {
        "file": ("-rw-r-----", "4711:4712:0640:file"),
        "directory": ("drwxr-x---", "4711:4712:0750:dir"),
        "fifo": ("prw-r-----", "4711:4712:0640:pipe"),
        "socket": ("srwxr-x---", "4711:4712:0750:socket"),
        "device": ("crw-------", "0:0:0600:char-1-3"),
        "disk": ("brw-------", "0:0:0600:block-8-300"),
    }
    for one, (mode, value) in expected.items():
        assert shown(writable.path / one)[2] == mode
        assert said(our_layers.upper / one, name) == value
        real = (our_layers.upper / one).lstat()
        assert (real.st_uid, real.st_gid, real.st_mode & 0o022) == (0, 0, 0)
        assert stat.S_ISDIR(real.st_mode) if one == "directory" else stat.S_ISREG(real.st_mode)
    assert shown(writable.path / "linked")[:2] == (OWNER, OTHER)
    assert os.listdir(our_layers.work / "work") == []


def test_a_directorys_group_is_passed_on(our_layers: Layers, writable: Mount) -> None:
    (writable.path / "shared").mkdir()
    os.chown(writable.path / "shared", 1, 77)
    (writable.path / "shared").chmod(0o2777)

    def make(at: Path) -> None:
        (at / "file").write_bytes(b"")
        (at / "inner").mkdir(0o755)

    Caller(OWNER, OTHER)(make, writable.path / "shared")
    assert shown(writable.path / "shared/file")[:2] == (OWNER, 77)
    assert shown(writable.path / "shared/inner") == (OWNER, 77, "drwxr-sr-x")


def test_changes_of_owner_and_mode(our_layers: Layers, writable: Mount, name: str) -> None:
    path = writable.path / "file"
    path.write_bytes(b"content")
    real = (our_layers.upper / "file").stat()
    os.chown(path, OWNER, -1)
    path.chmod(0o6755)
    assert shown(path) == (OWNER, 0, "-rwsr-sr-x")
    os.chown(path, -1, OTHER)
    assert shown(path) == (OWNER, OTHER, "-rwxr-xr-x"), "a new owner takes the set-id bits away"
    path.chmod(0o4755)
    Caller(OWNER, OTHER)(path.write_bytes, b"changed")
    assert shown(path) == (OWNER, OTHER, "-rwxr-xr-x"), "so does somebody who writes"
    os.utime(path, ns=(5, 7))
    assert (path.stat().st_mtime_ns, path.read_bytes()) == (7, b"changed")
    after = (our_layers.upper / "file").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (real.st_mode, real.st_uid, real.st_gid)
    assert said(our_layers.upper / "file", name) == "4711:4712:0755:file"


def test_rights_go_by_it(writable: Mount) -> None:
    path = writable.path / "file"
    path.write_bytes(b"content")
    path.chmod(0o600)
    os.chown(path, OWNER, OTHER)
    writable.path.chmod(0o755)
    assert Caller(OWNER, OTHER)(path.read_bytes) == b"content"
    refuses(errno.EACCES, Caller(OTHER, OTHER), path.read_bytes)
    Caller(OWNER, OTHER)(path.chmod, 0o000)
    refuses(errno.EACCES, Caller(OWNER, OTHER), path.read_bytes)
    assert path.read_bytes() == b"content"


def test_removal_and_renames_are_as_ever(our_layers: Layers, writable: Mount) -> None:
    for one in ("a", "b"):
        os.mkfifo(writable.path / one)
    (writable.path / "file").write_bytes(b"")
    renameat2(writable.path / "a", writable.path / "file", RENAME_EXCHANGE)
    (writable.path / "b").rename(writable.path / "c")
    os.link(writable.path / "c", writable.path / "d")
    (writable.path / "c").unlink()
    kinds = {one: shown(writable.path / one)[2][0] for one in sorted(os.listdir(writable.path))}
    assert kinds == {"a": "-", "d": "p", "file": "p"}
    refuses(errno.EEXIST, os.mkfifo, writable.path / "d")
    refuses(errno.EEXIST, (writable.path / "d").mkdir)


def test_all_of_it_is_there_again(our_layers: Layers, name: str) -> None:
    if name == USER:
        say(our_layers.upper, "0:0:755:dir", USER)
    with our_layers.mount(ASKED[name]) as mount:
        os.mkfifo(mount.path / "fifo")
        (mount.path / "file").write_bytes(b"")
        os.chown(mount.path / "file", OWNER, OTHER)
        before = {one: (shown(mount.path / one), (mount.path / one).lstat().st_ino) for one in ("fifo", "file")}
    for options in ([ASKED[name]], []):
        with our_layers.mount(*options) as mount:
            found = {one: (shown(mount.path / one), (mount.path / one).lstat().st_ino) for one in ("fifo", "file")}
            assert found == before


# --- the other attributes ---


def test_it_is_not_to_be_seen_or_set(our_layers: Layers, writable: Mount, name: str) -> None:
    path = writable.path / "file"
    path.write_bytes(b"")
    os.setxattr(path, "user.other", b"value")
    assert os.listxattr(path) == ["user.other"]
    refuses(errno.ENODATA, os.getxattr, path, name)
    refuses(errno.ENODATA, os.removexattr, path, name)
    before = said(our_layers.upper / "file", name)
    try:
        os.setxattr(path, name, b"0:0:4755:file")
    except PermissionError:
        assert name != CONTAINERS
    else:  # an engine inside a container writes its own, which are for its own mounts
        assert name == CONTAINERS
        assert os.getxattr(path, name) == b"0:0:4755:file"
        assert sorted(os.listxattr(path)) == [name, "user.other"]
    assert said(our_layers.upper / "file", name) == before
    assert shown(path)[2] == "-rw-r--r--"


@pytest.mark.parametrize("name", [CONTAINERS, USER])
def test_who_mounts_a_mark_does_not_say_where_its_owners_live(name: str) -> None:
    with marked() as mark, container() as user:
        (mark.source / "directory").mkdir()
        user.mount(mark.path)
        set_it = ["setfattr", "-n", name, "-v", "0:0:4755"]
        assert user.run(*set_it, user.target, check=False).returncode != 0
        assert user.run(*set_it, user.target / "directory").returncode == 0, "an engine inside has layers of its own"
    assert os.listxattr(mark.source) == []


def test_capabilities_live_beside_it(our_layers: Layers) -> None:
    with our_layers.mount("xattr_permissions=2") as mount:
        path = mount.path / "program"
        path.write_bytes(b"")
        run(["setcap", "cap_net_raw+ep", path])
        assert "cap_net_raw" in run(["getcap", path]).stdout
        value = os.getxattr(path, "security.capability")
        assert os.listxattr(path) == ["security.capability"]
        assert os.getxattr(our_layers.upper / "program", "user.containers.override_security.capability") == value
        path.write_bytes(b"other content")
        assert os.listxattr(path) == [], "it goes when somebody writes"
        run(["setcap", "cap_net_raw+ep", path])
        os.truncate(path, 1)
        assert os.listxattr(path) == []
        run(["setcap", "cap_net_raw+ep", path])
        os.chown(path, OWNER, OTHER)
        assert os.listxattr(path) == []


def test_a_capability_comes_up_with_its_file(our_layers: Layers) -> None:
    (our_layers.lower / "program").write_bytes(b"")
    run(["setcap", "cap_net_raw+ep", our_layers.lower / "program"])
    with our_layers.mount("xattr_permissions=2") as mount:
        (mount.path / "program").chmod(0o755)
        assert "cap_net_raw" in run(["getcap", mount.path / "program"]).stdout
    assert os.listxattr(our_layers.upper / "program")[-1] != "security.capability"


def test_there_are_no_acls(our_layers: Layers, writable: Mount) -> None:
    """They would go by the real owners."""
    path = writable.path / "file"
    path.write_bytes(b"")
    refuses(errno.EOPNOTSUPP, os.setxattr, path, "system.posix_acl_access", bytes([2, 0, 0, 0]))
    refuses(errno.ENODATA, os.getxattr, path, "system.posix_acl_access")


def test_a_mask_is_no_right_of_the_group(our_layers: Layers) -> None:
    (our_layers.lower / "file").write_bytes(b"")
    (our_layers.lower / "file").chmod(0o600)
    run(["setfacl", "-m", f"u:{OWNER}:rw", our_layers.lower / "file"])
    with our_layers.mount("xattr_permissions=2") as mount:
        os.utime(mount.path / "file")
        assert shown(mount.path / "file")[2] == "-rw-------"
