"""Fixtures of these tests: directories to make layers of."""

from pathlib import Path

import pytest

from harness import Layers, write_tree
from harness.layered import Tree
from harness.overlaid import Fill


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Makes layers that hold these trees, the lowers from top to bottom."""

    def made(*lowers: Tree, upper: Tree | None = None) -> Layers:
        layers = Layers(tmp_path, lowers=len(lowers))
        for path, tree in zip(layers.lowers, lowers, strict=True):
            write_tree(path, tree)
        write_tree(layers.upper, upper or {})
        return layers

    return made
