"""An overlay beside fuse-overlayfs and the kernel's overlayfs, over the same lower directories.

`python -m bench.layers [--rounds N] [--files N] [--size-gib N] [--directory DIR] [--options OPTIONS]`, as root: cold
lookups and walks, copy-up of small files and of a large one, listing of a directory that twenty lowers have. Rounds
are interleaved, medians compared; every measurement has a mount and an upper directory of its own. DIR should be on
ext4, without reflinks, with room for six times the size; filesystems with reflinks are made there, in images.
OPTIONS go to all; with `volatile` none of them waits for the disk: the kernel's overlayfs syncs each file that it
copies up. Leaves nothing behind.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from shiftfs.asking import ask

from .cold import cold_stat, cold_walk, drop_caches, make_tree, report

_WAIT: Final = 60.0
_SMALL_FILES: Final = 1000
_LOWERS: Final = 20
_NAMES_OF_A_LOWER: Final = 100
_REFLINKING: Final = ("xfs", "btrfs")

_OURS: Final = "shiftfs"
SUBJECTS: Final[dict[str, Callable[[str], list[str]]]] = {
    _OURS: lambda options: [sys.executable, "-m", "shiftfs", "-o", options],
    "fuse-overlayfs": lambda options: ["fuse-overlayfs", "-o", options],
    # With what shiftfs does without being told to.
    "kernel": lambda options: ["mount", "-t", "overlay", "-o", f"{options},redirect_dir=on,index=on,xino=on", "none"],
}


class Job(NamedTuple):
    """Something to measure: seconds per operation on a new mount of `lowers`, whose other directories are in `base`."""

    name: str
    base: Path
    lowers: Sequence[Path]
    run: Callable[[Path], float]
    operations: int


class Results(NamedTuple):
    """By job; seconds per operation by subject and round, requests of all its operations by opcode."""

    times: dict[str, dict[str, list[float]]]
    requests: dict[str, tuple[int, Counter[str]]]


@contextlib.contextmanager
def mounted(subject: str, job: Job, options: str) -> Iterator[Path]:
    """The subject's overlay of the job's lowers, with an empty upper directory."""
    place = Path(tempfile.mkdtemp(prefix=f"{subject}-", dir=job.base))
    upper, work, at = place / "upper", place / "work", place / "at"
    for made in (upper, work, at):
        made.mkdir()
    layers = f"lowerdir={':'.join(map(str, job.lowers))},upperdir={upper},workdir={work}"
    _run([*SUBJECTS[subject](",".join(filter(None, (layers, options)))), str(at)])
    try:
        yield at
    finally:
        _run(["umount", str(at)])
        _remove(place)


def _remove(place: Path) -> None:
    # fuse-overlayfs's process may still be at the work directory.
    end = time.monotonic() + _WAIT
    while place.exists():
        shutil.rmtree(place, ignore_errors=time.monotonic() < end)


@contextlib.contextmanager
def filesystem(kind: str, work: Path, size: int) -> Iterator[Path]:
    """A filesystem of `size` bytes in an image."""
    image, at = work / f"{kind}.img", work / kind
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    _run([f"mkfs.{kind}", "-q", str(image)])
    _run(["mount", "-t", kind, "-o", "loop", str(image), str(at)])
    try:
        yield at
    finally:
        _run(["umount", str(at)])
        image.unlink()


def lookup_jobs(work: Path, files: int) -> list[Job]:
    """Files of three lowers, all of which have the same directories: the first has most of them."""
    base = work / "lookup"
    lowers = [base / f"lower{number}" for number in range(3)]
    names = make_tree(lowers[0], files)
    for number, name in enumerate(names):
        lower = lowers[number % 5] if number % 5 in (1, 2) else lowers[0]
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lowers[0] / name).rename(lower / name)
    return [
        Job("cold stat", base, lowers, lambda at: cold_stat(at, names), files),
        Job("cold walk", base, lowers, lambda at: cold_walk(at, names), files),
    ]


def copy_up_jobs(work: Path) -> list[Job]:
    """A thousand files, each changed once."""
    base = work / "copy-up"
    names = make_tree(base / "lower", _SMALL_FILES)

    def append_to(path: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"x")
        os.close(fd)

    def each(change: Callable[[str], None], at: Path) -> float:
        drop_caches()
        began = time.perf_counter()
        for name in names:
            change(f"{at}/{name}")
        return (time.perf_counter() - began) / len(names)

    return [
        Job("chmod", base, [base / "lower"], lambda at: each(lambda path: os.chmod(path, 0o600), at), _SMALL_FILES),
        Job("append", base, [base / "lower"], lambda at: each(append_to, at), _SMALL_FILES),
    ]


def large_job(kind: str, base: Path, size: int) -> Job:
    """One byte more in a file of `size` bytes. The bytes are in memory."""
    lower = base / "lower"
    lower.mkdir(parents=True)
    block = os.urandom(1 << 20)
    with (lower / "large").open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)

    def run(at: Path) -> float:
        _warm(lower / "large")
        began = time.perf_counter()
        fd = os.open(at / "large", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"x")
        os.close(fd)
        return time.perf_counter() - began

    return Job(f"large, {kind}", base, [lower], run, 1)


def _warm(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def listing_job(work: Path) -> Job:
    """One directory, cold, of which every lower has a part, and a few names twice."""
    base = work / "listing"
    lowers = [base / f"lower{number}" for number in range(_LOWERS)]
    for number, lower in enumerate(lowers):
        (lower / "merged").mkdir(parents=True)
        for name in range(_NAMES_OF_A_LOWER):
            (lower / "merged" / f"name{number * (_NAMES_OF_A_LOWER - 5) + name:05}").touch()
    names = _LOWERS * (_NAMES_OF_A_LOWER - 5) + 5

    def run(at: Path) -> float:
        drop_caches()
        began = time.perf_counter()
        listed = len(os.listdir(at / "merged"))
        taken = time.perf_counter() - began
        if listed != names:
            raise RuntimeError(f"{at}: {listed} names listed, {names} made")
        return taken

    return Job(f"list {_LOWERS} lowers", base, lowers, run, 1)


def measure(jobs: Sequence[Job], rounds: int, options: str) -> Results:
    """Everything, `rounds` times."""
    subjects = [subject for subject in SUBJECTS if subject in (_OURS, "kernel") or shutil.which(subject)]
    times: dict[str, dict[str, list[float]]] = {job.name: {subject: [] for subject in subjects} for job in jobs}
    requests: dict[str, tuple[int, Counter[str]]] = {}
    for _ in range(rounds):
        for job in jobs:
            for subject in subjects:
                with mounted(subject, job, options) as at:
                    os.sync()  # nobody pays for what the one before left to be written
                    if subject == _OURS:
                        seconds, asked = counted(job, at)
                        requests[job.name] = job.operations, asked
                    else:
                        seconds = job.run(at)
                times[job.name][subject].append(seconds)
    return Results(times, requests)


def counted(job: Job, at: Path) -> tuple[float, Counter[str]]:
    """Seconds per operation, and the requests that they cost, without those that reading the counters costs."""
    first = _requests(at)
    before = _requests(at)
    seconds = job.run(at)
    return seconds, _requests(at) - before - (before - first)


def _requests(at: Path) -> Counter[str]:
    counts = json.loads(ask(str(at), "stats"))["requests"]
    return Counter({name: int(value["count"]) for name, value in counts.items()})


def report_requests(requests: dict[str, tuple[int, Counter[str]]]) -> None:
    """Requests per operation, the most frequent first."""
    print("\nrequests per operation")
    for job, (operations, counts) in requests.items():
        each = [f"{name} {count / operations:.2f}" for name, count in counts.most_common() if name != "FORGET"]
        print(f"{job:<18}{sum(counts.values()) / operations:>8.2f}   {', '.join(each)}")


def main() -> int:
    """Print times, ratios and requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size-gib", type=float, default=2)
    parser.add_argument("--directory", default="/var/tmp")
    parser.add_argument("--options", default="")
    arguments = parser.parse_args()
    size = int(arguments.size_gib * (1 << 30))
    work = Path(tempfile.mkdtemp(prefix="shiftfs-bench-", dir=arguments.directory))
    try:
        with contextlib.ExitStack() as stack:
            jobs = [*lookup_jobs(work, arguments.files), *copy_up_jobs(work), listing_job(work)]
            jobs.append(large_job(_kind_of(work), work / "large", size))
            for kind in _REFLINKING:
                room = stack.enter_context(filesystem(kind, work, 2 * size + (1 << 30)))
                jobs.append(large_job(kind, room, size))
            results = measure(jobs, arguments.rounds, arguments.options)
            if arguments.options:
                print(f"with {arguments.options}")
            report(results.times)
            report_requests(results.requests)
    finally:
        shutil.rmtree(work)
    return 0


def _kind_of(path: Path) -> str:
    """The kind of filesystem that a path is on."""
    return _run(["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path)]).strip()


def _run(command: list[str]) -> str:
    """What a command prints; its messages only where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_WAIT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
