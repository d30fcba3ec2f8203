"""File capabilities: the root whose they are is shifted, so none is ever worth more on one side than on the other."""

import errno
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Caller, Mount, UserNamespace, errno_of, run, shifted_directory, user_namespace
from harness.commands import user_prefix

OPTIONS = ("uidmapping=0:100000:65536", "gidmapping=0:100000:65536")
NAME = "security.capability"
NET_BIND = 1 << 10


def version_2(bits: int = NET_BIND) -> bytes:
    return struct.pack("<5I", 0x02000001, bits, 0, 0, 0)


def version_3(root: int, bits: int = NET_BIND) -> bytes:
    return struct.pack("<6I", 0x03000001, bits, 0, 0, 0, root)


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    with shifted_directory(*OPTIONS) as mount:
        yield mount


@pytest.fixture(scope="module")
def unshifted() -> Iterator[Mount]:
    with shifted_directory() as mount:
        yield mount


@pytest.fixture(scope="module")
def container() -> Iterator[UserNamespace]:
    with user_namespace((0, 100000, 65536)) as namespace:
        yield namespace


def program(mount: Mount) -> tuple[Path, Path]:
    """A static program of real root's that tells what capabilities it got: on the layer, and on the mount."""
    layer = mount.source / f"busybox-{len(os.listdir(mount.source))}"
    shutil.copy("/bin/busybox", layer)
    layer.chmod(0o755)
    mount.settled()  # or it may just be open for writing, for the events of this
    return layer, mount.path / layer.name


def effective(path: Path, *prefix: str) -> int:
    """The effective capabilities of the program, run after `prefix`."""
    words = run([*prefix, path, "grep", "CapEff", "/proc/self/status"]).stdout.split()
    return int(words[1], 16)


def host_user(uid: int) -> list[str]:
    return user_prefix(uid)


def container_user(namespace: UserNamespace, uid: int) -> list[str]:
    return [str(word) for word in namespace.command([], uid, uid)]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [(version_2(), 100000), (version_3(1000), 101000), (version_3(65535), 165535), (version_3(70000), None)],
    ids=["version 2", "version 3", "version 3 at the end", "unmapped"],
)
def test_the_root_is_shown_shifted_or_the_whole_hidden(mount: Mount, stored: bytes, shown: int | None) -> None:
    layer, seen = program(mount)
    os.setxattr(layer, NAME, stored)
    if shown is None:
        assert errno_of(lambda: os.getxattr(seen, NAME)) == errno.ENODATA
        assert os.listxattr(seen) == []
    else:
        assert os.getxattr(seen, NAME) == version_3(shown)
        assert os.listxattr(seen) == [NAME]


def test_a_container_sees_its_own_as_version_2(mount: Mount, container: UserNamespace) -> None:
    layer, seen = program(mount)
    os.setxattr(layer, NAME, version_2())
    assert Caller(0, 0, namespace=container)(os.getxattr, seen, NAME) == version_2()
    assert "cap_net_bind_service=ep" in container.run(["getcap", seen]).stdout


def test_a_capability_of_the_layer_works_in_the_container_alone(mount: Mount, container: UserNamespace) -> None:
    layer, seen = program(mount)
    os.setxattr(layer, NAME, version_2())
    assert effective(seen, *container_user(container, 33)) == NET_BIND
    for uid in (5555, 100033):
        assert effective(seen, *host_user(uid)) == 0
    # It is another container's that has another root.
    with user_namespace((0, 300000, 65536)) as stranger:
        assert effective(seen, *container_user(stranger, 33)) == 0


def test_what_container_root_sets_works_in_its_namespace(mount: Mount, container: UserNamespace) -> None:
    layer, seen = program(mount)
    container.run(["setcap", "cap_net_bind_service+ep", seen])
    # Version 3 with root id 0 in fact: to real root itself the kernel shows it as version 2.
    assert os.getxattr(layer, NAME) == version_2()
    assert Caller(0, 0, namespace=container)(os.getxattr, seen, NAME) == version_2()
    assert effective(seen, *container_user(container, 33)) == NET_BIND
    assert effective(seen, *host_user(5555)) == 0
    container.run(["setcap", "-r", seen])
    assert os.listxattr(layer) == []


def test_what_container_root_sets_for_a_nested_container(mount: Mount, container: UserNamespace) -> None:
    layer, seen = program(mount)
    container.run(["setcap", "-n", "2000", "cap_net_bind_service+ep", seen])
    assert os.getxattr(layer, NAME) == version_3(2000)
    assert effective(seen, *container_user(container, 33)) == 0
    with user_namespace((0, 102000, 100)) as nested:
        assert effective(seen, *container_user(nested, 33)) == NET_BIND


@pytest.mark.parametrize("uid", [33, 0])
def test_who_may_not_set_them(mount: Mount, container: UserNamespace, uid: int) -> None:
    """A user of the container; and root of a namespace in which the owner has no number."""
    layer, seen = program(mount)
    with user_namespace((0, 300000, 65536)) as stranger:
        caller = Caller(33, 33, namespace=container) if uid else Caller(0, 0, namespace=stranger)
        assert errno_of(lambda: caller(os.setxattr, seen, NAME, version_2())) == errno.EPERM
    assert os.listxattr(layer) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (version_2(), errno.EOVERFLOW),
        (version_3(0), errno.EOVERFLOW),
        (version_3(70000), errno.EOVERFLOW),
        (version_2()[:12], errno.EINVAL),
    ],
    ids=["version 2", "of the host's root", "of an unmapped id", "version 1"],
)
def test_host_root_cannot_store_a_root_that_has_no_real_id(mount: Mount, value: bytes, expected: int) -> None:
    layer, seen = program(mount)
    assert errno_of(lambda: os.setxattr(seen, NAME, value)) == expected
    assert os.listxattr(layer) == []


def test_host_root_stores_that_of_a_containers_root(mount: Mount) -> None:
    layer, seen = program(mount)
    os.setxattr(seen, NAME, version_3(101000))
    assert os.getxattr(layer, NAME) == version_3(1000)


@pytest.mark.parametrize("value", [version_2(), version_3(100000)], ids=["version 2", "version 3"])
def test_without_a_map_they_pass_as_they_are(unshifted: Mount, container: UserNamespace, value: bytes) -> None:
    layer, seen = program(unshifted)
    os.setxattr(seen, NAME, value)
    assert os.getxattr(layer, NAME) == os.getxattr(seen, NAME) == value
    is_hosts = value == version_2()
    assert effective(seen, *host_user(5555)) == (NET_BIND if is_hosts else 0)


def test_nosuid_makes_them_void() -> None:
    with shifted_directory("nosuid") as mount:
        layer, seen = program(mount)
        os.setxattr(layer, NAME, version_2())
        assert effective(seen, *host_user(5555)) == 0


@pytest.mark.parametrize("change", ["write", "truncate", "chown"])
@pytest.mark.parametrize("caller", [Caller(5555, 5555), Caller(0, 0)], ids=["user", "root"])
def test_they_go_when_the_file_changes(unshifted: Mount, change: str, caller: Caller) -> None:
    """As on a local disk: also for root, and without a trace on the layer."""
    layer, seen = program(unshifted)
    os.chown(layer, caller.uid, caller.gid)
    layer.chmod(0o6755)
    os.setxattr(layer, NAME, version_2())
    assert os.getxattr(seen, NAME) == version_2()
    calls = {
        "write": lambda: seen.open("r+b").write(b"x"),
        "truncate": lambda: os.truncate(seen, 10),
        "chown": lambda: os.chown(seen, caller.uid, caller.gid),
    }
    caller(calls[change])
    assert os.listxattr(layer) == os.listxattr(seen) == []
