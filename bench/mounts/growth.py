"""Cost as there is more of everything: inodes that are known already, mounts of the same directory."""

import contextlib
import os
from collections.abc import Callable

from ..jobs import Job, Mounted, Scale, Work, repeat
from ..mounting import drop_caches, footprint, settle
from .lookup import TREE

_SAMPLE = 20
_MOUNTS = (1, 4, 16)


def _known(part: int) -> Callable[[Mounted, list[str], Scale], Work]:
    """Stat of names never seen while `part` percent of the tree are known."""

    def prepare(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
        drop_caches()
        # Of each directory the last names, so that in any case the directory is known.
        new = [name for number, name in enumerate(tree) if number % 100 >= 100 - _SAMPLE]
        most = max(1, part * (100 - _SAMPLE) // 100)
        known = [name for number, name in enumerate(tree) if number % 100 < most]
        for name in known:
            os.stat(f"{mounted.at}/{name}")
        settle(mounted.daemons)
        return repeat(os.stat, [f"{mounted.at}/{name}" for name in new])

    return prepare


def _mounts(count: int) -> Callable[[Mounted, list[str], Scale], Work]:
    """Cold stat on one of several mounts of the same layers, all of which know the directories."""

    def prepare(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
        stack = contextlib.ExitStack()
        try:
            for _ in range(count - 1):
                other = stack.enter_context(mounted.another())
                for name in tree[::100]:
                    os.stat(f"{other.at}/{name}")
        except BaseException:
            stack.close()
            raise
        paths = [f"{mounted.at}/{name}" for name in tree[: scale.hot * 2]]
        return repeat(os.stat, paths)._replace(after=stack.close)

    return prepare


def _mount(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
    def run() -> None:
        with mounted.another():
            pass

    return Work(run)


def _idle(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
    """KiB that the processes of a mount have before they have done anything."""

    def run() -> float:
        with mounted.another() as other:
            return footprint(other.daemons).memory_kib

    return Work(run)


def jobs(scale: Scale) -> tuple[Job, ...]:
    found = []
    for part in (0, 50, 100):
        known = scale.files * part * (100 - _SAMPLE) // 10_000 or scale.files // 100
        name = f"stat of new names, {known:,} inodes known"
        series = "stat of new names by known inodes"
        found.append(Job(name, TREE, _known(part), fresh=True, series=series, x=known))
    for count in _MOUNTS:
        name = f"stat of new names, {count} mount{'s' if count > 1 else ''}"
        found.append(Job(name, TREE, _mounts(count), fresh=True, series="stat of new names by mounts", x=count))
    found.append(Job("mount and unmount", TREE, _mount, fresh=True))
    found.append(Job("an idle mount", TREE, _idle, fresh=True, unit="KiB"))
    return tuple(found)
