"""Walks of a tree, with and without stat; one directory of many entries; one that several layers have."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..jobs import Job, Layout, Mounted, Scale, Work, write_file
from .lookup import TREE

_MERGED_NAMES = 100
_OVERLAP = 5


def _walk(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
    return Work(lambda: _expect(sum(1 for _ in _files(str(mounted.at))), len(tree)), len(tree))


def _walk_with_stat(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
    def run() -> None:
        seen = 0
        for path in _files(str(mounted.at)):
            os.lstat(path)
            seen += 1
        _expect(seen, len(tree))

    return Work(run, len(tree))


def _files(root: str) -> Iterator[str]:
    return (f"{directory}/{name}" for directory, _, names in os.walk(root) for name in names)


def _directory(entries: int) -> Layout:
    def make(base: Path, scale: Scale) -> int:
        directory = base / "lower0" / "directory"
        directory.mkdir(parents=True)
        for number in range(entries):
            write_file(f"{directory}/entry{number:06}", b"")
        return entries

    return Layout(f"{entries} entries", make)


def _list(mounted: Mounted, entries: int, scale: Scale) -> Work:
    path = f"{mounted.at}/directory"
    return Work(lambda: _expect(len(os.listdir(path)), entries), entries)


def _list_again(mounted: Mounted, entries: int, scale: Scale) -> Work:
    path = f"{mounted.at}/directory"
    times = max(1, 10_000 // entries)

    def run() -> None:
        for _ in range(times):
            _expect(len(os.listdir(path)), entries)

    return Work(run, entries * times)


def _list_with_stat(mounted: Mounted, entries: int, scale: Scale) -> Work:
    path = f"{mounted.at}/directory"

    def run() -> None:
        with os.scandir(path) as found:
            _expect(sum(entry.stat(follow_symlinks=False).st_nlink for entry in found), entries)

    return Work(run, entries)


def _expect(found: int, made: int) -> None:
    if found != made:
        raise RuntimeError(f"{found} seen, {made} made")


def _merged(lowers: int) -> Layout:
    """A directory of which every lower has a part, and a few names twice."""

    def make(base: Path, scale: Scale) -> int:
        for number in range(lowers):
            directory = base / f"lower{number}" / "directory"
            directory.mkdir(parents=True)
            for name in range(_MERGED_NAMES):
                write_file(f"{directory}/name{number * (_MERGED_NAMES - _OVERLAP) + name:05}", b"")
        return lowers * (_MERGED_NAMES - _OVERLAP) + _OVERLAP

    return Layout(f"{lowers} lowers", make)


def _entries_jobs(scale: Scale) -> tuple[Job, ...]:
    """One directory, as it grows."""
    jobs = []
    for entries in scale.entries:
        layout = _directory(entries)
        for name, prepare, cache in (
            ("list", _list, "cold"),
            ("list with stat", _list_with_stat, "cold"),
            ("hot list", _list_again, "hot"),
        ):
            jobs.append(
                Job(
                    f"{name}, {entries:,} entries",
                    layout,
                    prepare,
                    "hot" if cache == "hot" else "cold",
                    series=f"{name} by entries",
                    x=entries,
                    exact=True,
                )
            )
    return tuple(jobs)


def _lowers_jobs(scale: Scale) -> tuple[Job, ...]:
    """A merged directory, as its layers grow in number."""
    return tuple(
        Job(
            f"list, {lowers} lowers",
            _merged(lowers),
            _list,
            "cold",
            layered=True,
            series="list by lowers",
            x=lowers,
            exact=True,
        )
        for lowers in scale.lowers
    )


def jobs(scale: Scale) -> tuple[Job, ...]:
    return (
        Job("cold walk", TREE, _walk, "cold", exact=True),
        Job("cold walk with stat", TREE, _walk_with_stat, "cold", exact=True),
        Job("hot walk", TREE, _walk, "hot", exact=True),
        Job("hot walk with stat", TREE, _walk_with_stat, "hot", exact=True),
        *_entries_jobs(scale),
        *_lowers_jobs(scale),
    )
