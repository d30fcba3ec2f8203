"""Names that trade places behind the mount while they are being looked up: each ends with what it has in the layer."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Layers, Mount, mounted, open_directory, read_tree, wait_until, write_tree
from harness.calls import opened
from harness.layered import Tree

ROUNDS = 40


@pytest.mark.parametrize("opening", ["serve", "refuse"])
def test_trade(area: Path, opening: str) -> None:
    layer = open_directory("layer-")
    with mounted(layer, None, f"open={opening}") as mount:
        for number in range(ROUNDS):
            here, there = layer / f"place{number}", mount.path / f"place{number}"
            here.mkdir()
            for name in ("one", "two"):
                (here / name).write_text(name)
            with opened(there / "one"), opened(there / "two"):
                (here / "one").rename(here / "tmp")
                (here / "two").rename(here / "one")
                (here / "tmp").rename(here / "two")
                wait_until(lambda: contents(there) == ["two", "one"], "the names have traded places", 5.0)  # noqa: B023


@pytest.mark.parametrize("what", ["removed", "removed directory", "renamed"])
@pytest.mark.parametrize("layered", [True, False])
def test_a_directory_leaves_its_path_to_another(area: Path, layered: bool, what: str) -> None:
    """What is to be told of the one by its path, as that was, is not told of the other."""
    layers = Layers(open_directory("layers-"))
    layer = layers.upper if layered else layers.lower
    names: Tree = {"file": b"", "sub": {}}
    write_tree(layer, {"at": names, "into": {}})
    with layers.mount() if layered else mounted(layer) as mount:
        read_tree(mount.path)
        with opened(mount.path / "at/file"), opened(mount.path / "at/sub"):
            with agent_stopped(mount) as heard:
                if what == "removed":
                    (layer / "at/file").unlink()
                elif what == "removed directory":
                    (layer / "at/sub").rmdir()
                else:
                    (layer / "at/sub").rename(layer / "at/new")
                heard(1)
                (layer / "at").rename(layer / "moved")
                (layer / "at").mkdir()
                heard(2)
                write_tree(layer / "at", names)
                for path in ("moved", "at", "at/file", "at/sub"):  # as the kernel finds them now
                    (mount.path / path).lstat()
            wait_until(lambda: shown(mount.path) == shown(layer), "what there is in the layer", 5.0)


def shown(root: Path) -> list[tuple[set[str], set[str]]]:
    """What two directories list, and what there is by its name."""
    names = ("file", "new", "sub")
    paths = [root / path for path in ("at", "moved")]
    return [(set(os.listdir(path)), {name for name in names if (path / name).exists()}) for path in paths]


@contextmanager
def agent_stopped(mount: Mount) -> Iterator[Callable[[int], None]]:
    """What happens behind the mount is heard of, and not told yet; what is given waits until so many changes more have
    been heard of."""

    def total() -> int:
        return int(mount.status()["journal"]["total"])

    mount.settled()
    before = total()

    def heard(count: int) -> None:
        nonlocal before
        wait_until(lambda: total() >= before + count, "all changes heard of", 5.0)
        before = total()

    (agent,) = map(int, Path(f"/proc/{mount.pid}/task/{mount.pid}/children").read_text().split())
    os.kill(agent, signal.SIGSTOP)
    try:
        yield heard
    finally:
        os.kill(agent, signal.SIGCONT)


def contents(directory: Path) -> list[str]:
    found = []
    for name in ("one", "two"):
        try:
            found.append((directory / name).read_text())
        except OSError as error:
            found.append(str(error))
    return found
