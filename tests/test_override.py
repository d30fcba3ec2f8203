"""The value that says whose a file is: what it can be, what it cannot, and that it comes back as it was written."""

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftfs.layer import Layer
from shiftfs.override import Override, Owned, parsed, written
from shiftfs.tree import Attributes, Change

FILE, DIRECTORY = stat.S_IFREG | 0o700, stat.S_IFDIR | 0o700
KINDS = [stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK]
DEVICES = [stat.S_IFBLK, stat.S_IFCHR]
ids = st.integers(0, 0xFFFFFFFE)
modes = st.integers(0, 0o7777)
CONTAINERS = b"user.containers.override_stat"


@given(ids, ids, st.sampled_from(KINDS), modes)
def test_what_is_written_is_read(uid: int, gid: int, kind: int, mode: int) -> None:
    owned = Owned(uid, gid, kind | mode, 0)
    assert parsed(written(owned), FILE) == owned


@given(ids, ids, modes)
def test_directories_are_directories(uid: int, gid: int, mode: int) -> None:
    owned = Owned(uid, gid, stat.S_IFDIR | mode, 0)
    assert parsed(written(owned), DIRECTORY) == owned


@given(st.sampled_from(DEVICES), modes, st.integers(1, 0xFFFFFFFF))
def test_devices_keep_their_numbers(kind: int, mode: int, rdev: int) -> None:
    assert parsed(written(Owned(0, 0, kind | mode, rdev)), FILE).rdev == rdev


@given(st.binary(max_size=40), st.sampled_from([FILE, DIRECTORY]))
def test_whatever_else_it_is_does_no_harm(value: bytes, real_mode: int) -> None:
    try:
        owned = parsed(value, real_mode)
    except OSError as error:
        assert error.errno == errno.EINVAL
    else:
        assert max(owned.uid, owned.gid) < 0xFFFFFFFF
        assert stat.S_ISDIR(owned.mode) == stat.S_ISDIR(real_mode)


def test_a_mode_may_bring_its_kind_along_which_does_not_count() -> None:
    assert parsed(b"1:2:100644", FILE).mode == stat.S_IFREG | 0o644
    assert parsed(b"1:2:40755", DIRECTORY).mode == stat.S_IFDIR | 0o755
    assert parsed(b"1:2:20666", FILE).mode == stat.S_IFREG | 0o666


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (b"user.mine", b"user.mine"),
        (b"trusted.mine", b"trusted.mine"),
        (b"security.capability", b"user.containers.override_security.capability"),
        (CONTAINERS, b"user.containers.override_" + CONTAINERS),
    ],
)
def test_what_would_be_taken_for_something_else_is_kept_under_another_name(name: bytes, kept: bytes) -> None:
    own = Override(CONTAINERS, True)
    assert own.stored(name) == own.found(name) == kept
    assert own.shown(kept) == name
    assert own.listed([CONTAINERS, kept, b"security.selinux"]) == [name]


def test_what_has_no_place() -> None:
    own = Override(b"user.fuseoverlayfs.override_stat", True)
    with pytest.raises(PermissionError):
        own.stored(own.name)
    with pytest.raises(OSError, match="No data"):
        own.found(own.name)
    with pytest.raises(PermissionError):
        Override(CONTAINERS, True).stored(b"security." + b"x" * 230)
    assert own.stored(b"security.capability") == b"security.capability"


def new_layer(tmp_path: Path) -> Layer:
    os.setxattr(tmp_path, CONTAINERS, b"0:0:0755:dir")
    (tmp_path / "file").write_bytes(b"")
    found = Layer(os.fsencode(tmp_path))
    assert found.override is not None
    found.override.trust()
    return found


def look(layer: Layer) -> Attributes:
    return layer.look(layer.root.fd, b"file")[1]


def test_a_layer_without_one_asks_for_none(tmp_path: Path) -> None:
    assert Layer(os.fsencode(tmp_path)).override is None


def test_a_change_of_the_owner_alone_keeps_the_mode(tmp_path: Path) -> None:
    layer = new_layer(tmp_path)
    fd = layer.open_path(layer.root.fd, b"file")
    try:
        layer.change(fd, Change(0o4751, 7, None, None, None))
        assert (look(layer).uid, look(layer).mode) == (7, stat.S_IFREG | 0o4751)
        layer.change(fd, Change(None, None, 8, (1, 2), None))
        a = look(layer)
        assert (a.uid, a.gid, a.mode, a.atime, a.atimensec) == (7, 8, stat.S_IFREG | 0o751, 1, 2)
        layer.change(fd, Change(None, 0xFFFFFFFF, 0xFFFFFFFF, None, None))
        assert (look(layer).uid, look(layer).gid) == (7, 8)
    finally:
        os.close(fd)


def test_what_cannot_be_written_down_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = new_layer(tmp_path)

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "setxattr", fails)
    layer.make_node(layer.root.fd, b"fifo", stat.S_IFIFO | 0o600, 0)
    with pytest.raises(OSError, match="full"):
        layer.born(layer.root.fd, b"fifo", lambda: look(layer), stat.S_IFIFO | 0o600)
    assert layer.find(layer.root.fd, b"fifo") is None
