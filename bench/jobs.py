"""What a benchmark is: a row of a table, and one small function.

Owns the values that the tables in bench/mounts and bench/micro are made of. Runs and measures nothing.
"""

import os
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Scale(NamedTuple):
    """How much of everything."""

    name: str
    files: int  # in the tree of lookups and walks
    entries: tuple[int, ...]  # of one directory
    lowers: tuple[int, ...]
    clients: tuple[int, ...]
    small: int  # files that are created, changed, copied up
    hot: int  # names that are asked for again and again
    passes: int  # how often
    large_mib: int  # one large file


_ENTRIES = (1, 100, 1000, 10_000, 100_000)
_LOWERS = (1, 2, 5, 10, 20, 50)
FULL = Scale("full", 20_000, _ENTRIES, _LOWERS, (1, 2, 4, 8), 1000, 1000, 50, 2048)
QUICK = Scale("quick", 2000, (1, 100, 1000, 10_000), (1, 5, 20), (1, 4), 200, 200, 100, 64)
EXACT = Scale("exact", 400, (1, 1000), (5,), (1,), 50, 50, 2, 8)
"""For counting requests, which needs no more."""


class Mounted(NamedTuple):
    """A subject that is mounted, or the native directory."""

    subject: str
    at: Path
    layer: Path  # the topmost lower, or what the mount shows
    another: Callable[[], AbstractContextManager["Mounted"]]  # one more mount of the same layers
    daemons: tuple[int, ...] = ()  # processes; none of those in the kernel
    ours: bool = False


class Work(NamedTuple):
    """What is measured: `run` does `operations`; it may return a value of its own instead of the seconds that it took.
    `after` removes what it made; never measured."""

    run: Callable[[], float | None]
    operations: int = 1
    after: Callable[[], None] | None = None


class Layout(NamedTuple):
    """Directories to be mounted: `make(base, scale)` makes base/lower0 (the topmost) and so on, and returns what the
    jobs need to know of them."""

    name: str
    make: Callable[[Path, Scale], Any]
    filesystem: str = ""  # of which kind, in an image; none: that of the directory where everything is made


class Job(NamedTuple):
    """One benchmark. `prepare` gets ready, unmeasured, and returns the work."""

    name: str
    layout: Layout
    prepare: Callable[[Mounted, Any, Scale], Work]
    cache: Literal["hot", "cold", "as it is"] = "as it is"  # run once before; names dropped; neither
    fresh: bool = False  # has a mount of its own for each measurement
    writes: bool = False  # likewise, and a copy of the directory for those without an upper
    layered: bool = False  # only for those that have an upper
    tells: bool = False  # only for those that tell of changes in layers
    unit: str = "s"  # of the values: per operation where they are seconds
    series: str = ""  # the jobs of one series differ by `x`, which is named so
    x: int = 0
    needs: str = ""  # a program
    exact: bool = False  # its requests are the same each time: kept in the repository


class MicroJob(NamedTuple):
    """Operations of a part of shiftfs, without a mount: `prepare` returns work of some thousand."""

    name: str
    prepare: Callable[[], Work]


def repeat(call: Callable[[Any], object], arguments: Sequence[Any], passes: int = 1) -> Work:
    """Work that calls `call` with each argument; the loop costs next to nothing beside a system call."""

    def run() -> None:
        for _ in range(passes):
            for argument in arguments:
                call(argument)

    return Work(run, len(arguments) * passes)


def picked(mounted: Mounted, names: Sequence[str], count: int) -> list[str]:
    """Paths of some names, in an order that no directory is in; the same for every subject and round."""
    chosen = random.Random(7).sample(names, min(count, len(names)))
    return [f"{mounted.at}/{name}" for name in chosen]


def make_tree(root: Path, files: int, per_directory: int = 100) -> list[str]:
    """Files of a few bytes in directories of a hundred; their paths below `root`."""
    names = []
    for number in range(files):
        directory = f"d{number // per_directory:05}"
        if number % per_directory == 0:
            (root / directory).mkdir(parents=True)
        name = f"{directory}/file{number:06}"
        write_file(f"{root}/{name}", b"x" * (number % 50))
        names.append(name)
    return names


def write_file(path: str, content: bytes) -> None:
    """A new file, by as few system calls as there can be."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if content:
            os.write(fd, content)
    finally:
        os.close(fd)
