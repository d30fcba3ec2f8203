"""A layer's beginning, where the copy of its mounts cannot be had whole."""

import os
from pathlib import Path

import pytest

from shiftfs.layer import Layer
from shiftfs.sys import mounts


def test_a_copy_that_cannot_be_entered_leaves_the_plain_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()

    def clone_tree(fd: int) -> int:
        return os.open(tmp_path / "file", os.O_RDONLY)  # in which there is no `.`

    monkeypatch.setattr(mounts, "clone_tree", clone_tree)
    before = sorted(os.listdir("/proc/self/fd"))
    layer = Layer(os.fsencode(tmp_path))
    assert not layer.private
    assert os.listdir(layer.root.fd) == ["file"]
    assert os.fstat(layer.root.fd).st_ino == tmp_path.stat().st_ino
    del layer
    assert sorted(os.listdir("/proc/self/fd")) == before
