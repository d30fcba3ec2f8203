"""What is said of the layers before there is a mount. What follows from it, tests/mount shows."""

import os
from pathlib import Path

import pytest

from shiftfs.layer import Layer
from shiftfs.opening import lie_elsewhere, show_sizes_that_lie
from shiftfs.sys import files

EXT4, NFS, FUSE = 0xEF53, 0x6969, 0x65735546


@pytest.mark.parametrize(
    ("kind", "elsewhere", "lies"), [(EXT4, False, False), (NFS, True, False), (FUSE, True, True)]
)  # fmt: skip
def test_what_is_another_machines_and_whose_sizes_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, elsewhere: bool, lies: bool
) -> None:
    """Of several layers, one is enough."""
    other = Layer(os.fsencode(tmp_path))
    monkeypatch.setattr(files, "filesystem_type", lambda fd: kind)
    layer = Layer(os.fsencode(tmp_path))
    assert lie_elsewhere([layer]) is lie_elsewhere([other, layer]) is elsewhere
    assert not lie_elsewhere([other])
    assert show_sizes_that_lie([layer]) is lies
