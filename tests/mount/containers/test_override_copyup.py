"""Copy-up to and from layers whose owners live in an attribute, and such layers in the hands of a user with one id."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Caller, Layers, UserNamespace, layered, run, user_namespace
from harness.calls import in_child, unshare_mounts
from harness.overrides import CONTAINERS, NAMES, PRIVILEGED, USER, Status, said, say, shown

OWNER, OTHER = 4711, 4712
FIRST = 100000
ASKED = {PRIVILEGED: "xattr_permissions=1", CONTAINERS: "xattr_permissions=2", USER: "xattr_permissions=2"}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_copy_has_the_owner_of_what_it_is_of(our_layers: Layers, name: str) -> None:
    if name == USER:
        say(our_layers.upper, "0:0:755:dir", USER)
    lower = our_layers.lower
    (lower / "dir").mkdir(mode=0o750)
    (lower / "dir/file").write_bytes(b"content")
    os.chown(lower / "dir", 3, 4)
    os.chown(lower / "dir/file", OWNER, OTHER)
    (lower / "dir/file").chmod(0o4755)
    with our_layers.mount(ASKED[name]) as mount:
        path = mount.path / "dir/file"
        number = path.stat().st_ino
        path.chmod(0o4711)
        assert (shown(path), path.stat().st_ino) == ((OWNER, OTHER, "-rws--x--x"), number)
        assert shown(mount.path / "dir") == (3, 4, "drwxr-x---")
        assert path.read_bytes() == b"content"
    assert said(our_layers.upper / "dir/file", name) == "4711:4712:04711:file"
    assert (our_layers.upper / "dir/file").stat().st_mode & 0o7022 == 0


def test_a_copy_takes_what_a_layer_says_of_it(our_layers: Layers) -> None:
    lower = say(our_layers.lower, "0:0:755:dir")
    for one, value in {"file": "5:6:0640:file", "fifo": "5:6:0600:pipe", "device": "0:0:0666:char-1-3"}.items():
        (lower / one).write_bytes(b"")
        say(lower / one, value)
    with our_layers.mount("xattr_permissions=2") as mount:
        numbers = [(mount.path / one).stat().st_ino for one in ("file", "fifo", "device")]
        for one in ("file", "fifo", "device"):
            os.utime(mount.path / one)
        assert shown(mount.path / "file") == (5, 6, "-rw-r-----")
        assert shown(mount.path / "fifo") == (5, 6, "prw-------")
        assert shown(mount.path / "device") == (0, 0, "crw-rw-rw-")
        assert [(mount.path / one).stat().st_ino for one in ("file", "fifo", "device")] == numbers
    assert said(our_layers.upper / "fifo") == "5:6:0600:pipe"
    assert said(our_layers.upper / "device") == "0:0:0666:char-1-3"
    with our_layers.mount("xattr_permissions=2") as mount:
        assert [(mount.path / one).stat().st_ino for one in ("file", "fifo", "device")] == numbers


def test_a_copy_into_a_plain_upper_is_what_was_said(our_layers: Layers) -> None:
    lower = say(our_layers.lower, "0:0:755:dir")
    for one, value in {"file": "5:6:0640:file", "fifo": "5:6:0600:pipe", "socket": "0:0:0666:socket"}.items():
        (lower / one).write_bytes(b"")
        say(lower / one, value)
    with our_layers.mount() as mount:
        for one in ("file", "fifo", "socket"):
            os.chown(mount.path / one, OWNER, OTHER)
        assert shown(mount.path / "fifo") == (OWNER, OTHER, "prw-------")
    assert shown(our_layers.upper / "file") == (OWNER, OTHER, "-rw-r-----")
    assert shown(our_layers.upper / "fifo") == (OWNER, OTHER, "prw-------")
    assert shown(our_layers.upper / "socket") == (OWNER, OTHER, "srw-rw-rw-")
    assert os.listxattr(our_layers.upper / "fifo") == ["trusted.overlay.origin"]


def test_a_real_device_or_fifo_comes_up_as_a_file_that_stands_for_it(our_layers: Layers) -> None:
    os.mkfifo(our_layers.lower / "fifo")
    os.mknod(our_layers.lower / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with our_layers.mount("xattr_permissions=2") as mount:
        numbers = [(mount.path / one).stat().st_ino for one in ("fifo", "device")]
        os.chown(mount.path / "fifo", OWNER, OTHER)
        (mount.path / "device").chmod(0o666)
        assert shown(mount.path / "fifo") == (OWNER, OTHER, "prw-r--r--")
        assert shown(mount.path / "device") == (0, 0, "crw-rw-rw-")
        assert [(mount.path / one).stat().st_ino for one in ("fifo", "device")] == numbers
    assert stat.S_ISREG((our_layers.upper / "fifo").lstat().st_mode)
    with our_layers.mount("xattr_permissions=2") as mount:
        assert [(mount.path / one).stat().st_ino for one in ("fifo", "device")] == numbers


def test_whiteouts_hide_it_as_ever(our_layers: Layers) -> None:
    lower = say(our_layers.lower, "0:0:755:dir")
    (lower / "file").write_bytes(b"")
    (lower / "directory").mkdir()
    with our_layers.mount("xattr_permissions=2") as mount:
        (mount.path / "file").unlink()
        (mount.path / "directory").rmdir()
        assert os.listdir(mount.path) == []
        os.mkfifo(mount.path / "file")
        (mount.path / "directory").mkdir()
        (mount.path / "file").unlink()
    with our_layers.mount("xattr_permissions=2") as mount:
        assert os.listdir(mount.path) == ["directory"]


# --- as a user ---


@pytest.fixture
def alone() -> Iterator[UserNamespace]:
    with user_namespace((0, FIRST, 1)) as namespace:
        yield namespace


def in_namespace(layers: Layers, namespace: UserNamespace, work: Callable[[Path], Any], *options: str) -> Any:
    def inside() -> Any:
        unshare_mounts()
        at = layers.base / "mnt"
        with layered(layers.lowers, layers.upper, layers.work, *options, mountpoint=at) as mount:
            return work(mount.path)

    return Caller(0, 0, namespace=namespace)(inside)


def test_the_root_of_a_namespace_of_one_has_all_owners(our_layers: Layers, alone: UserNamespace) -> None:
    """What `force_mask` is for: nothing on the layer is anybody else's."""
    say(our_layers.lower, "0:0:755:dir")
    (our_layers.lower / "file").write_bytes(b"content")
    (our_layers.lower / "gone").write_bytes(b"content")
    say(our_layers.lower / "file", "0:0:644:file")
    (our_layers.base / "mnt").mkdir()
    run(["chown", "-R", f"{FIRST}:{FIRST}", our_layers.base])

    def work(path: Path) -> list[Status]:
        os.mkfifo(path / "fifo")
        (path / "gone").unlink()
        with (path / "file").open("ab") as file:
            file.write(b" and more")
        return [shown(path / "file"), shown(path / "fifo")]

    assert in_namespace(our_layers, alone, work, "xattr_permissions=2")[0] == (0, 0, "-rw-r--r--")
    assert said(our_layers.upper / "file") == "0:0:0644:file"
    assert said(our_layers.upper / "fifo") == "0:0:0644:pipe"
    assert (our_layers.upper / "file").stat().st_uid == FIRST
    assert in_namespace(our_layers, alone, lambda path: sorted(os.listdir(path))) == ["fifo", "file"]


def test_the_name_that_only_root_may_set_is_refused_in_words(our_layers: Layers, alone: UserNamespace) -> None:
    (our_layers.base / "mnt").mkdir()
    run(["chown", "-R", f"{FIRST}:{FIRST}", our_layers.base])
    with pytest.raises(AssertionError, match="xattr_permissions"):
        in_child(lambda: _failing(our_layers, alone))


def _failing(layers: Layers, namespace: UserNamespace) -> None:
    try:
        in_namespace(layers, namespace, lambda path: None, "xattr_permissions=1")
    except Exception as error:
        raise AssertionError(str(error)) from None
