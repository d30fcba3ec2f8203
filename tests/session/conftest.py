"""Fixtures of these tests: a session over a tree in memory, and a source tree on a real directory."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bodies import DIRECTORY, FILE, LINK
from harness.device import Served, served
from harness.memory import MemoryTree
from shiftfs.layer import Layer
from shiftfs.source import SourceTree


@pytest.fixture
def memory() -> Iterator[MemoryTree]:
    made = MemoryTree()
    made.add(made.root, b"file", stat.S_IFREG | 0o644, b"content").xattrs[b"user.old"] = b"value"
    made.add(made.root, b"directory", stat.S_IFDIR | 0o755)
    made.add(made.root, b"link", stat.S_IFLNK | 0o777).target = b"anywhere"
    yield made
    made.close()


@pytest.fixture
def at_work(memory: MemoryTree) -> Iterator[Served]:
    """A session that knows the three by their nodeids."""
    with served(memory) as running:
        assert [running.device.look(name) for name in (b"file", b"directory", b"link")] == [FILE, DIRECTORY, LINK]
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "d").mkdir(parents=True)
    (path / "d" / "file").write_text("inside")
    (path / "d" / "link").symlink_to("target")
    (path / "d" / "sub").mkdir()
    return path


@pytest.fixture(params=["handles", "names"])
def tree(source: Path, request: pytest.FixtureRequest) -> Iterator[SourceTree]:
    layer = Layer(os.fsencode(source))
    if request.param == "handles" and not layer.opens_by_handle:
        vars(layer).clear()
        pytest.skip("needs CAP_DAC_READ_SEARCH and a filesystem with file handles")
    layer.opens_by_handle = request.param == "handles"
    made = SourceTree(layer, 64)
    yield made
    for held in (made._held, made, layer):
        vars(held).clear()  # pytest holds them longer than they may hold descriptors
