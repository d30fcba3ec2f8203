"""A layer where not all is as it should be: no copy of its mounts to be had, or births that cannot be."""

import os
from pathlib import Path

import pytest

from shiftfs import native
from shiftfs.inodes import Inode
from shiftfs.layer import Layer
from shiftfs.sys import files, mounts


def test_a_copy_that_cannot_be_entered_leaves_the_plain_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()

    def clone_tree(fd: int, noatime: bool) -> int:
        return os.open(tmp_path / "file", os.O_RDONLY)  # in which there is no `.`

    monkeypatch.setattr(mounts, "clone_tree", clone_tree)
    before = sorted(os.listdir("/proc/self/fd"))
    layer = Layer(os.fsencode(tmp_path))
    assert not layer.private
    assert os.listdir(layer.root.fd) == ["file"]
    assert os.fstat(layer.root.fd).st_ino == tmp_path.stat().st_ino
    del layer
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("seconds", [2**62, -(2**62)])
def test_a_birth_beyond_all_times_is_one_that_a_key_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """Of a filesystem that somebody has made up."""
    (tmp_path / "file").touch()
    layer = Layer(os.fsencode(tmp_path))
    real = files.StatxBuffer()
    monkeypatch.setattr(native, "look", None)
    monkeypatch.setattr(layer, "_statx", real)
    monkeypatch.setattr(files.StatxBuffer, "found", lambda self, fd, name: born(real.at(fd, name), seconds))
    found = layer.find(layer.root.fd, b"file")
    assert found is not None
    key = found[0]
    assert Inode(5, key, None).key == key
    assert -(2**63) <= key[2] < 2**63


def born(fields: files.StatxFields, seconds: int) -> files.StatxFields:
    return (*fields[:13], seconds, *fields[14:])
