"""Owners, modes and kinds that live in an extended attribute, as others have written them.

The attribute is the layer's whose root directory has one. The files on the layer are its owner's and plain.
"""

import errno
import os
from pathlib import Path

import pytest

from harness import Caller, Layers, mounted, run
from harness.calls import refuses
from harness.overrides import CONTAINERS, NAMES, USER, Status, said, say, shown

OWNER, OTHER = 4711, 4712


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lower(our_layers: Layers, name: str) -> Path:
    """A layer whose owners live in the attribute."""
    return say(our_layers.lower, "1:2:0755:dir", name)


KINDS: dict[str, Status] = {
    "0:0:755": (0, 0, "-rwxr-xr-x"),
    "0:0:0644:file": (0, 0, "-rw-r--r--"),
    "4711:4712:100640": (4711, 4712, "-rw-r-----"),
    "4711:4712:4755:file": (4711, 4712, "-rwsr-xr-x"),
    "4294967294:2:1600:file": (4294967294, 2, "-rw------T"),
    "1:2:600:pipe": (1, 2, "prw-------"),
    "1:2:0755:socket": (1, 2, "srwxr-xr-x"),
    "1:2:777:symlink": (1, 2, "lrwxrwxrwx"),
    "0:6:660:block-8-1": (0, 6, "brw-rw----"),
    "0:0:666:char-1-3": (0, 0, "crw-rw-rw-"),
}


def test_what_a_file_is_said_to_be(our_layers: Layers, lower: Path, name: str) -> None:
    for value in KINDS:
        (lower / value).write_bytes(b"")
        say(lower / value, value, name)
    with our_layers.mount("xattr_permissions=2") as mount:
        assert {value: shown(mount.path / value) for value in KINDS} == KINDS
    with our_layers.mount_lowers("xattr_permissions=2") as mount:
        assert {entry.name: shown(Path(entry.path)) for entry in os.scandir(mount.path)} == KINDS
        assert shown(mount.path) == (1, 2, "drwxr-xr-x")


def test_without_layers_as_well(our_layers: Layers, lower: Path, name: str) -> None:
    (lower / "file").write_bytes(b"content")
    say(lower / "file", "4711:4712:0600:file", name)
    with mounted(lower) as mount:
        assert shown(mount.path / "file") == (4711, 4712, "-rw-------")
        assert Caller(OWNER, OTHER)((mount.path / "file").read_bytes) == b"content"
        refuses(errno.EACCES, Caller(OTHER, OTHER), (mount.path / "file").read_bytes)


def test_devices_have_their_numbers(our_layers: Layers, lower: Path, name: str) -> None:
    for number, (major, minor) in enumerate([(1, 3), (8, 300), (4095, 1048575)]):
        (lower / f"device{number}").write_bytes(b"")
        say(lower / f"device{number}", f"0:0:666:char-{major}-{minor}", name)
    with our_layers.mount("allow_dev", "xattr_permissions=2") as mount:
        numbers = [(mount.path / f"device{number}").stat().st_rdev for number in range(3)]
        assert [(os.major(one), os.minor(one)) for one in numbers] == [(1, 3), (8, 300), (4095, 1048575)]
        assert (mount.path / "device0").read_bytes() == b""
        (mount.path / "device0").write_bytes(b"nothing")
    assert (our_layers.lower / "device0").read_bytes() == b""


def test_a_listing_says_no_wrong_kind(our_layers: Layers, lower: Path, name: str) -> None:
    for kind, value in {"fifo": "pipe", "socket": "socket", "file": "file"}.items():
        (lower / kind).write_bytes(b"")
        say(lower / kind, f"0:0:0600:{value}", name)
    (lower / "directory").mkdir()
    for mounting in (our_layers.mount, lambda: mounted(lower)):
        with mounting() as mount:
            found = {kind: run(["find", mount.path, "-type", kind, "-printf", "%f "]).stdout.split() for kind in "psf"}
            assert found == {"p": ["fifo"], "s": ["socket"], "f": ["file"]}
            with os.scandir(mount.path) as entries:
                assert {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)} == {"directory"}


def test_what_has_none_is_what_it_is(our_layers: Layers, lower: Path) -> None:
    (lower / "file").write_bytes(b"")
    (lower / "link").symlink_to("file")
    os.mkfifo(lower / "fifo")
    os.chown(lower / "file", OWNER, OTHER)
    with our_layers.mount() as mount:
        assert shown(mount.path / "file") == (OWNER, OTHER, "-rw-r--r--")
        assert os.readlink(mount.path / "link") == "file"
        assert shown(mount.path / "fifo") == shown(lower / "fifo")


DAMAGED = """0:0 0:0:9 -1:0:755 a:b:755 0:0:755:door 0:0:755:dir 0:0:666:char-0-0 4294967295:0:755 0:0:644:block
    0:0:644:char-1 0:0:644:file:more"""


def test_what_cannot_be_is_an_error_and_not_another_owner(our_layers: Layers) -> None:
    lower = say(our_layers.lower, "0:0:755:dir")
    values = ["empty", *DAMAGED.split()]
    for value in values:
        (lower / value).write_bytes(b"")
        say(lower / value, value if value != "empty" else "")
    (lower / "beside").write_bytes(b"")
    with our_layers.mount() as mount:
        for value in values:
            refuses(errno.EINVAL, (mount.path / value).lstat)
        assert sorted(os.listdir(mount.path)) == sorted(["beside", *values])
        (mount.path / "beside").write_bytes(b"changed")


def test_only_the_layers_own_name_counts(our_layers: Layers) -> None:
    """The first of the three that its root has; the layer below may have another, or none."""
    say(our_layers.lower, "0:0:755:dir", CONTAINERS)
    say(our_layers.lower, "0:0:755:dir", USER)
    (our_layers.lower / "file").write_bytes(b"")
    say(say(our_layers.lower / "file", "1:1:600", USER), "2:2:640", CONTAINERS)
    below = our_layers.add_lower({"below": b"", "plain": b""})
    say(below / "plain", "3:3:600")
    with our_layers.mount() as mount:
        assert shown(mount.path / "file") == (2, 2, "-rw-r-----")
        assert shown(mount.path / "plain") == (0, 0, "-rw-r--r--")
    say(below, "0:0:755", USER)
    say(below / "below", "4:4:600", USER)
    with our_layers.mount() as mount:
        assert shown(mount.path / "below") == (4, 4, "-rw-------")
        assert shown(mount.path / "file") == (2, 2, "-rw-r-----")


def test_owners_are_shifted_as_ever(our_layers: Layers) -> None:
    say(our_layers.lower, "0:0:755:dir")
    (our_layers.lower / "file").write_bytes(b"")
    say(our_layers.lower / "file", "5:6:644:file")
    with our_layers.mount("uidmapping=0:100000:10", "gidmapping=0:200000:10", "xattr_permissions=2") as mount:
        assert shown(mount.path / "file") == (100005, 200006, "-rw-r--r--")
        os.chown(mount.path / "file", 100007, 200008)
    assert said(our_layers.upper / "file") == "7:8:0644:file"


def test_the_hosts_root_believes_nobody_who_owns_a_file(our_layers: Layers) -> None:
    """Else a program of anybody's in a directory that root mounts would be root's, with its set-id bit."""
    lower = say(our_layers.lower, "0:0:755:dir")
    (lower / "theirs").write_bytes(b"")
    (lower / "shared").write_bytes(b"")
    (lower / "roots").write_bytes(b"")
    (lower / "device").write_bytes(b"")
    say(lower / "device", "0:0:666:char-1-3")
    for one in ("theirs", "shared", "roots"):
        say(lower / one, "0:0:4755:file")
    os.chown(lower / "theirs", OWNER, OWNER)
    (lower / "shared").chmod(0o666)
    for mounting in (our_layers.mount, lambda: mounted(lower)):
        with mounting() as mount:
            assert shown(mount.path / "theirs") == (OWNER, OWNER, "-rw-r--r--")
            assert shown(mount.path / "shared") == (0, 0, "-rw-rw-rw-")
            assert shown(mount.path / "roots") == (0, 0, "-rwsr-xr-x")
            assert shown(mount.path / "device") == (0, 0, "-rw-r--r--")
    with our_layers.mount("xattr_permissions=2") as mount:
        assert shown(mount.path / "theirs") == shown(mount.path / "shared") == (0, 0, "-rwsr-xr-x")
