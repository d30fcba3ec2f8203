"""A directory vanishes from one layer of a mount: that fails nothing in the others, neither at once nor later."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from harness import (
    Layers,
    Mount,
    make_whiteout,
    newest_mount,
    open_directory,
    read_tree,
    run,
    unmount,
    wait_until,
    write_tree,
)
from harness.calls import drop_dentries, opened
from harness.layered import Tree

LIMIT = 10.0
TREES: list[Tree] = [
    {"d": {"0": b"0", "link0": Path("to0"), "sub": {"0": b""}}, "f0": b"0"},
    {"d": {"1": b"1", "link1": Path("to1"), "sub": {"1": b""}}, "f1": b"1"},
    {"d": {"2": b"2", "link2": Path("to2"), "sub": {"2": b""}}, "f2": b"2"},
]


def removed(path: Path) -> None:
    shutil.rmtree(path)


def moved(path: Path) -> None:
    path.rename(path.with_name("moved"))


def replaced_by_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"file")


def replaced_by_a_symlink(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("f1")


def replaced_by_a_whiteout(path: Path) -> None:
    shutil.rmtree(path)
    make_whiteout(path)


def replaced_by_another(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


HOW: list[Callable[[Path], None]] = [
    removed, moved, replaced_by_a_file, replaced_by_a_symlink, replaced_by_a_whiteout, replaced_by_another
]  # fmt: skip


def filled(layers: Layers, trees: Sequence[Tree]) -> Layers:
    for tree in trees[1:]:
        layers.add_lower(tree)
    write_tree(layers.lower, trees[0])
    return layers


@pytest.fixture
def three(seen_layers: Layers) -> Layers:
    """The upper, or the topmost lower if it is mounted without one, and two more lowers, all with a directory `d`."""
    return filled(seen_layers, TREES)


def mount_with(layers: Layers, writable: bool) -> AbstractContextManager[Mount]:
    if not writable:
        return layers.mount_lowers()
    layers.upper.rmdir()
    layers.lowers.pop(0).rename(layers.upper)
    return layers.mount()


def expected(gone: int, how: Callable[[Path], None]) -> list[int]:
    """The layers whose parts show."""
    ends = how in (replaced_by_a_file, replaced_by_a_symlink, replaced_by_a_whiteout)
    return [layer for layer in range(3) if (layer < gone if ends else layer != gone)]


def place_of(how: Callable[[Path], None], gone: int, known: bool) -> str:
    return f"{how.__name__} {gone} {known}"


@pytest.fixture(scope="module", params=[True, False], ids=["upper", "lowers alone"])
def shared(request: pytest.FixtureRequest, area: Path, seen: tuple[str, ...]) -> Iterator[tuple[Path, list[Path]]]:
    """A mount with a place for each test that shares it, and its layers, from top to bottom."""
    base = open_directory("layers-")
    layers = Layers(base)
    layers.options = seen
    places = [place_of(how, gone, known) for how in HOW for gone in range(3) for known in (True, False)]
    filled(layers, [dict.fromkeys(places, tree) for tree in TREES])
    with mount_with(layers, request.param) as mount:
        yield mount.path, [*([layers.upper] if request.param else []), *layers.lowers]
    shutil.rmtree(base)


@pytest.mark.parametrize("known", [True, False], ids=["known", "forgotten"])
@pytest.mark.parametrize("gone", [0, 1, 2])
@pytest.mark.parametrize("how", HOW)
def test_the_others_are_shown(
    shared: tuple[Path, list[Path]], how: Callable[[Path], None], gone: int, known: bool
) -> None:  # fmt: skip
    place, *reals = (root / place_of(how, gone, known) for root in (shared[0], *shared[1]))
    path = place / "d"
    if known:
        read_tree(place)
        [(path / f"link{layer}").readlink() for layer in range(3)]
    left = expected(gone, how)
    with opened(path) as fd:
        how(reals[gone] / "d")
        # At once, to whoever has it open, what stays:
        os.fstat(fd)
        for layer in left:
            assert os.readlink(f"link{layer}", dir_fd=fd) == f"to{layer}"
            assert os.stat(str(layer), dir_fd=fd).st_size == 1
            assert str(layer) in os.listdir(fd)
        around = {"f0", "f1", "f2", *(["moved"] if how is moved else [])}
        wait_until(lambda: set(os.listdir(place)) - {"d"} == around, "what is around it is listed", LIMIT)
        if not known:
            drop_dentries()
        if not left:
            wait_until(lambda: not path.is_dir(), "the mount shows what took its place", LIMIT)
            return
        names = sorted([*map(str, left), *(f"link{layer}" for layer in left), "sub"])
        wait_until(lambda: sorted(os.listdir(path)) == names, f"the directory shows {left}", LIMIT)
        # It was looked up later than the directory, so where layers are asked again it is trusted for longer.
        below = [str(layer) for layer in left]
        wait_until(lambda: sorted(os.listdir(path / "sub")) == below, f"the directory below shows {left}", LIMIT)
        for layer in left:
            assert (path / str(layer)).read_bytes() == str(layer).encode()
            assert (path / f"link{layer}").readlink() == Path(f"to{layer}")
        assert path.stat().st_ino == os.fstat(fd).st_ino, "the same directory as before"


def test_attributes_come_from_what_is_left(three: Layers) -> None:
    for mode, lower in zip((0o700, 0o750, 0o711), three.lowers, strict=True):
        (lower / "d").chmod(mode)
    with mount_with(three, False) as mount, opened(mount.path / "d") as fd:
        for mode, lower in zip((0o700, 0o750, 0o711), three.lowers, strict=True):
            wait_until(lambda mode=mode: os.fstat(fd).st_mode & 0o777 == mode, f"mode {mode:o}", LIMIT)  # type: ignore[misc]
            assert (mount.path / "d").stat().st_mode & 0o777 == mode
            shutil.rmtree(lower / "d")
        wait_until(lambda: not (mount.path / "d").exists(), "it is gone", LIMIT)
        write_tree(three.lowers[2], TREES[2])
        wait_until(lambda: (mount.path / "d/2").exists(), "it is back", LIMIT)


def test_work_goes_on_in_the_upper(three: Layers) -> None:
    with mount_with(three, True) as mount:
        path = mount.path / "d"
        read_tree(path)
        for lower in three.lowers:
            shutil.rmtree(lower / "d")
        (path / "new").write_bytes(b"new")
        (path / "made").mkdir()
        (path / "0").rename(path / "renamed")
        (path / "link0").unlink()
        wait_until(
            lambda: sorted(os.listdir(path)) == ["made", "new", "renamed", "sub"], "the listing is the upper's", LIMIT
        )
        wait_until(lambda: os.listdir(path / "sub") == ["0"], "so is the one of the directory below", LIMIT)
        path.rename(mount.path / "e")
        assert read_tree(mount.path / "e") == {"made": {}, "new": b"new", "renamed": b"0", "sub": {"0": b""}}


def test_a_layer_without_a_root(three: Layers) -> None:
    with mount_with(three, True) as mount:
        read_tree(mount.path)
        shutil.rmtree(three.lowers[0])
        names = ["d", "f0", "f2"]
        wait_until(lambda: sorted(os.listdir(mount.path)) == names, "the others are shown", LIMIT)
        assert (mount.path / "d/2").read_bytes() == b"2"
        (mount.path / "new").touch()
        wait_until(lambda: not (mount.path / "d/1").exists(), "what was there is gone", LIMIT)


@contextmanager
def tmpfs_on(path: Path) -> Iterator[Path]:
    """A file on a filesystem mounted there."""
    run(["mount", "-t", "tmpfs", "none", path])
    entry = newest_mount(path)
    try:
        (path / "marker").touch()
        yield path / "marker"
    finally:
        unmount(entry)


def test_a_mount_in_a_merged_directory_stays(three: Layers) -> None:
    """The directory goes on, so the kernel has no reason to take away what is mounted on it."""
    with mount_with(three, True) as mount, tmpfs_on(mount.path / "d") as marker:
        for lower in three.lowers:
            shutil.rmtree(lower / "d")
            time.sleep(0.2)  # beyond what the kernel may believe
            assert marker.exists()
