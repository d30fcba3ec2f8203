"""Cold lookup and cold walk of 20,000 files, side by side with other FUSE filesystems on the same directory.

`python -m bench.cold [--rounds N] [--files N]`, as root: dentries and inodes are dropped before each measurement,
rounds are interleaved between subjects, medians compared. Mounts what it finds on the machine; leaves nothing behind.
"""

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from .machine import machine

_FILES_PER_DIRECTORY: Final = 100
_WAIT: Final = 20.0

Command = Callable[[Path, Path], list[str]]

_OURS: Final = [sys.executable, "-m", "shiftfs"]
_MAPS: Final = "uidmapping=0:100000:65536,gidmapping=0:100000:65536"


def _layers(source: Path, at: Path) -> str:
    return f"lowerdir={source},upperdir={at}.upper,workdir={at}.work"


SUBJECTS: Final[dict[str, Command]] = {
    "shiftfs": lambda source, at: [*_OURS, str(source), str(at)],
    "shiftfs, mapped": lambda source, at: [*_OURS, "-o", _MAPS, str(source), str(at)],
    "fuse-overlayfs": lambda source, at: ["fuse-overlayfs", "-o", _layers(source, at), str(at)],
    "bindfs": lambda source, at: ["bindfs", str(source), str(at)],
}


def make_tree(root: Path, files: int) -> list[str]:
    """Files of a few bytes in directories of a hundred; their paths below `root`."""
    names = []
    for number in range(files):
        directory = f"d{number // _FILES_PER_DIRECTORY:05}"
        if number % _FILES_PER_DIRECTORY == 0:
            (root / directory).mkdir(parents=True)
        name = f"{directory}/file{number:06}"
        (root / name).write_bytes(b"x" * (number % 50))
        names.append(name)
    return names


@contextlib.contextmanager
def mounted(subject: str, source: Path, work: Path) -> Iterator[Path]:
    """The subject's mount of `source`."""
    at = work / subject.replace(", ", "-").replace(" ", "-")
    for made in (at, Path(f"{at}.upper"), Path(f"{at}.work")):
        made.mkdir()
    subprocess.run(SUBJECTS[subject](source, at), check=True, timeout=_WAIT)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True, timeout=_WAIT)


def cold_stat(root: Path, names: list[str]) -> float:
    """Seconds per stat of names in random order, nothing cached."""
    picked = random.Random(7).sample(names, len(names))
    drop_caches()
    began = time.perf_counter()
    for name in picked:
        os.stat(f"{root}/{name}")
    return (time.perf_counter() - began) / len(picked)


def cold_walk(root: Path, names: list[str]) -> float:
    """Seconds per file of a walk that stats everything, nothing cached."""
    drop_caches()
    seen = 0
    began = time.perf_counter()
    for directory, _, files in os.walk(root):
        for name in files:
            os.lstat(f"{directory}/{name}")
            seen += 1
    elapsed = time.perf_counter() - began
    if seen != len(names):
        raise RuntimeError(f"{root}: {seen} files seen, {len(names)} made")
    return elapsed / seen


def drop_caches() -> None:
    """Dentries and inodes; pages stay, so that the disk is not what is measured."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def main() -> int:
    """Print a table of microseconds and of ratios to each peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=20_000)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="shiftfs-bench-"))
    try:
        report(measure(work, arguments.files, arguments.rounds))
    finally:
        shutil.rmtree(work)
    return 0


def measure(work: Path, files: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Job -> subject -> seconds of each round."""
    source = work / "source"
    names = make_tree(source, files)
    jobs = {"cold stat": cold_stat, "cold walk": cold_walk}
    with contextlib.ExitStack() as stack:
        roots = {"native": source}
        for subject in SUBJECTS:
            if subject.startswith("shiftfs") or shutil.which(subject):
                roots[subject] = stack.enter_context(mounted(subject, source, work))
        times: dict[str, dict[str, list[float]]] = {job: {subject: [] for subject in roots} for job in jobs}
        for _ in range(rounds):
            for job, run in jobs.items():
                for subject, root in roots.items():
                    times[job][subject].append(run(root, names))
    return times


def report(times: dict[str, dict[str, list[float]]]) -> None:
    """Medians in microseconds, and shiftfs's ratio to each."""
    print(machine(*(subject for subject in next(iter(times.values())) if shutil.which(subject))))
    print(f"{'job':<18}{'subject':<18}{'median us':>12}{'best us':>12}{'shiftfs / it':>14}")
    for job, subjects in times.items():
        ours = statistics.median(subjects["shiftfs"])
        for subject, taken in subjects.items():
            median = statistics.median(taken)
            print(f"{job:<18}{subject:<18}{median * 1e6:>12.1f}{min(taken) * 1e6:>12.1f}{ours / median:>14.2f}")


if __name__ == "__main__":
    sys.exit(main())
