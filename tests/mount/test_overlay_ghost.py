"""`ghost=keep|drop` on a mount: the upper's children of a directory that disappears from the lower layers."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Layers, UserNamespace, read_tree, run, user_namespace, wait_until, write_tree
from harness.callers import Caller
from harness.calls import opened, unshare_mounts
from harness.layered import Tree, layered

LIMIT = 10.0
LOWER: Tree = {"d": {"l": b"lower", "sub": {"deep": b""}}, "other": {}}
CHILDREN: Tree = {"u": b"upper", "sub": {"u": b"deep"}, "new": {"x": b""}}
WHOLE: Tree = {"d": {"l": b"lower", "u": b"upper", "new": {"x": b""}, "sub": {"deep": b"", "u": b"deep"}}, "other": {}}
KEPT: Tree = {"d": {"u": b"upper", "new": {"x": b""}, "sub": {"u": b"deep"}}, "other": {}}


def left(ghost: str) -> Tree:
    return KEPT if ghost == "keep" else {"other": {}}


def shows(path: Path, tree: Tree) -> None:
    """Within a moment, by all that can be asked."""

    def is_shown() -> bool:
        try:
            return read_tree(path) == tree
        except FileNotFoundError:  # it was listed, and has gone
            return False

    wait_until(is_shown, f"{path} shows {tree}", LIMIT)


def disappears(lower: Path) -> None:
    shutil.rmtree(lower)


def moves_away(lower: Path) -> None:
    lower.rename(away_from(lower))


def away_from(lower: Path) -> Path:
    """Outside the layer, `lower` being two levels deep in it."""
    return lower.parents[2] / f"{lower.parent.name} away"


def becomes_a_file(lower: Path) -> None:
    moves_away(lower)
    lower.write_bytes(b"hidden")


def returns(lower: Path) -> None:
    away = away_from(lower)
    if lower.is_file():
        lower.unlink()
    if away.exists():
        away.rename(lower)
    else:
        write_tree(lower.parent, LOWER)


@pytest.mark.parametrize("ghost", ["keep", "drop"])
def test_children_of_the_upper(seen_layers: Layers, ghost: str) -> None:
    hows: dict[str, Callable[[Path], None]] = {
        "disappears": disappears, "moves away": moves_away, "becomes a file": becomes_a_file
    }  # fmt: skip
    write_tree(seen_layers.lower, dict.fromkeys(hows, LOWER))
    with seen_layers.mount(f"ghost={ghost}") as mount:
        for place in hows:
            write_tree(mount.path / place / "d", CHILDREN)
        assert read_tree(mount.path) == dict.fromkeys(hows, WHOLE)
        for place, how in [*hows.items()] * 2:
            path = mount.path / place
            how(seen_layers.lower / place / "d")
            shows(path, left(ghost))
            assert [entry.name for entry in os.scandir(path) if entry.is_dir()].count("d") == (ghost == "keep")
            wait_until(lambda: (path / "d/sub/u").exists() == (ghost == "keep"), "the names say the same", LIMIT)  # noqa: B023
            returns(seen_layers.lower / place / "d")
            shows(path, WHOLE)
    with seen_layers.mount(f"ghost={ghost}") as mount:
        assert read_tree(mount.path) == dict.fromkeys(hows, WHOLE)


def test_a_nested_directory_alone(seen_layers: Layers) -> None:
    write_tree(seen_layers.lower, LOWER)
    with seen_layers.mount("ghost=drop") as mount:
        write_tree(mount.path / "d", CHILDREN)
        shutil.rmtree(seen_layers.lower / "d/sub")
        shows(mount.path / "d", {"l": b"lower", "u": b"upper", "new": {"x": b""}})
        (seen_layers.lower / "d/sub").mkdir()
        shows(mount.path / "d", {"l": b"lower", "u": b"upper", "new": {"x": b""}, "sub": {"u": b"deep"}})


def test_a_name_that_is_taken_meanwhile(seen_layers: Layers) -> None:
    """Nothing of what was dropped is in the new directory, then or when the lower one returns."""
    write_tree(seen_layers.lower, LOWER)
    with seen_layers.mount("ghost=drop") as mount:
        write_tree(mount.path / "d", CHILDREN)
        disappears(seen_layers.lower / "d")
        shows(mount.path, {"other": {}})
        (mount.path / "d").mkdir()
        (mount.path / "d/mine").write_bytes(b"mine")
        assert read_tree(mount.path / "d") == {"mine": b"mine"}
        returns(seen_layers.lower / "d")
        shows(mount.path / "d", {"mine": b"mine", "l": b"lower", "sub": {"deep": b""}})


def test_the_tree_above_can_be_removed(seen_layers: Layers) -> None:
    write_tree(seen_layers.lower, {"above": LOWER})
    with seen_layers.mount("ghost=drop") as mount:
        write_tree(mount.path / "above/d", CHILDREN)
        disappears(seen_layers.lower / "above/d")
        shows(mount.path / "above", {"other": {}})
        run(["rm", "-r", mount.path / "above"])
        assert os.listdir(mount.path) == []


@pytest.mark.parametrize("ghost", ["keep", "drop"])
def test_who_has_it_open(seen_layers: Layers, ghost: str) -> None:
    """Goes on with what is kept, and keeps nobody from the return of what is dropped."""
    write_tree(seen_layers.lower, LOWER)
    with seen_layers.mount(f"ghost={ghost}") as mount:
        write_tree(mount.path / "d", CHILDREN)
        with opened(mount.path / "d") as fd:
            before = os.fstat(fd)
            disappears(seen_layers.lower / "d")
            shows(mount.path, left(ghost))
            assert os.fstat(fd).st_ino == before.st_ino
            if ghost == "keep":
                assert sorted(os.listdir(fd)) == ["new", "sub", "u"]
            returns(seen_layers.lower / "d")
            shows(mount.path, WHOLE)
            if ghost == "keep":
                assert sorted(os.listdir(fd)) == ["l", "new", "sub", "u"]
            assert (mount.path / "d").stat().st_ino == before.st_ino


@pytest.mark.parametrize("ghost", ["keep", "drop"])
def test_in_a_user_namespace(seen_layers: Layers, ghost: str) -> None:
    write_tree(seen_layers.lower, LOWER)
    (seen_layers.base / "mnt").mkdir()
    run(["chown", "-hR", "100000:100000", seen_layers.base])

    def work() -> Any:
        unshare_mounts()
        with layered(
            seen_layers.lowers, seen_layers.upper, seen_layers.work, *seen_layers.options, f"ghost={ghost}",
            mountpoint=seen_layers.base / "mnt",
        ) as mount:  # fmt: skip
            write_tree(mount.path / "d", CHILDREN)
            disappears(seen_layers.lower / "d")
            shows(mount.path, left(ghost))
            returns(seen_layers.lower / "d")
            shows(mount.path, WHOLE)

    namespace: UserNamespace
    with user_namespace((0, 100000, 65536)) as namespace:
        Caller(0, 0, namespace=namespace)(work)
