"""Names: known and absent ones, deep paths, symlinks; asked for the first time, or again."""

import os
from pathlib import Path
from typing import NamedTuple

from ..jobs import Job, Layout, Mounted, Scale, Work, make_tree, picked, repeat

_DEPTHS = (1, 4, 16, 64)


class Deep(NamedTuple):
    """Names below the root."""

    links: list[str]
    files: dict[int, list[str]]  # by the number of directories above, and the file itself


def _make(base: Path, scale: Scale) -> list[str]:
    return make_tree(base / "lower0", scale.files)


def _make_deep(base: Path, scale: Scale) -> Deep:
    root = base / "lower0"
    (root / "links").mkdir(parents=True)
    links = [f"links/link{number}" for number in range(scale.hot)]
    for link in links:
        os.symlink("target", root / link)
    files: dict[int, list[str]] = {}
    for depth in _DEPTHS:
        files[depth] = []
        for branch in range(max(1, scale.hot // 20)):
            directory = Path(*(f"depth{depth}b{branch}n{level}" for level in range(depth - 1)))
            (root / directory).mkdir(parents=True, exist_ok=True)
            name = directory / f"depth{depth}file{branch}"
            (root / name).touch()
            files[depth].append(str(name))
    return Deep(links, files)


TREE = Layout("tree", _make)
DEEP = Layout("deep tree", _make_deep)


def _cold_stat(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
    return repeat(os.stat, picked(mounted, tree, scale.files))


def _cold_absent(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
    return repeat(_is_absent, [f"{path}-absent" for path in picked(mounted, tree, scale.files)])


def _hot_stat(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
    return repeat(os.stat, picked(mounted, tree, scale.hot), scale.passes)


def _hot_absent(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
    return repeat(_is_absent, [f"{path}-absent" for path in picked(mounted, tree, scale.hot)], scale.passes)


def _readlink(mounted: Mounted, deep: Deep, scale: Scale) -> Work:
    return repeat(os.readlink, picked(mounted, deep.links, scale.hot))


def _hot_readlink(mounted: Mounted, deep: Deep, scale: Scale) -> Work:
    return repeat(os.readlink, picked(mounted, deep.links, scale.hot), scale.passes)


def _deep(depth: int, cache: str) -> Job:
    def prepare(mounted: Mounted, deep: Deep, scale: Scale) -> Work:
        passes = scale.passes if cache == "hot" else 1
        return repeat(os.stat, picked(mounted, deep.files[depth], scale.hot), passes)

    name = f"{cache} stat, depth {depth}"
    series = f"{cache} stat by depth"
    return Job(name, DEEP, prepare, "hot" if cache == "hot" else "cold", series=series, x=depth, exact=True)


def _is_absent(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    raise RuntimeError(f"{path} is there")


def jobs(scale: Scale) -> tuple[Job, ...]:
    return (
        Job("cold stat", TREE, _cold_stat, "cold", exact=True),
        Job("cold absent", TREE, _cold_absent, "cold", exact=True),
        Job("cold readlink", DEEP, _readlink, "cold", exact=True),
        Job("hot stat", TREE, _hot_stat, "hot", exact=True),
        Job("hot absent", TREE, _hot_absent, "hot", exact=True),
        Job("hot readlink", DEEP, _hot_readlink, "hot", exact=True),
        *(_deep(depth, cache) for cache in ("cold", "hot") for depth in _DEPTHS),
    )
