"""How long others wait: the 99th percentile of stat while the mount is idle, copies 4 GiB, or has a read that blocks.

`python -m bench.latency [--size-gib N] [--rounds N] [--directory DIR]`, as root, with bindfs for the read that blocks
(it is stopped in the middle). Phases are interleaved; every stat is of another file, not cached. DIR must lie on a
real filesystem with room for twice the size. Leaves nothing behind.
"""

import argparse
import contextlib
import mmap
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from harness import SHIFTFS
from harness.commands import environment
from harness.leftovers import own_area

from .jobs import make_tree
from .machine import described, machine
from .mounting import drop_caches

_WAIT: Final = 20.0
_FILES: Final = 20_000
_LEAST_SAMPLES: Final = 3000
_CHUNK: Final = 1 << 30


class Phase:
    """Samples of stat, in seconds, taken while something else goes on."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self._root = root
        self._names = names
        self._next = 0

    def sample(self, goes_on: Callable[[], bool]) -> list[float]:
        """Stat uncached names, for as long as `goes_on` and at least some thousand times."""
        times: list[float] = []
        while goes_on() or len(times) < _LEAST_SAMPLES:
            if self._next % len(self._names) == 0:
                drop_caches()
            path = f"{self._root}/{self._names[self._next % len(self._names)]}"
            self._next += 1
            began = time.perf_counter()
            os.stat(path)
            times.append(time.perf_counter() - began)
        return times


@contextlib.contextmanager
def mounted(command: list[str], at: Path) -> Iterator[None]:
    """Run a mount command; unmount at the end."""
    subprocess.run(command, check=True, timeout=_WAIT, env=environment())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True, timeout=_WAIT)


def copying(mount: Path, size: int) -> threading.Thread:
    """A copy_file_range of `size` bytes through the mount, under way. The target stays the same, so that no round pays
    for deleting the last one's."""

    def copy() -> None:
        source = os.open(mount / "big", os.O_RDONLY)
        target = os.open(mount / "copy", os.O_WRONLY | os.O_CREAT)
        done = 0
        while done < size:
            done += os.copy_file_range(source, target, min(_CHUNK, size - done), done, done)
        os.close(source)
        os.close(target)

    thread = threading.Thread(target=copy)
    thread.start()
    return thread


@contextlib.contextmanager
def blocked_read(mount: Path, server: int) -> Iterator[None]:
    """A read through the mount of a file on a FUSE filesystem whose process is stopped."""
    file = os.open(mount / "slow" / "file", os.O_RDONLY | os.O_DIRECT)
    room = mmap.mmap(-1, 4096)
    reader = threading.Thread(target=os.preadv, args=(file, [room], 0))
    os.kill(server, signal.SIGSTOP)
    try:
        reader.start()
        time.sleep(0.2)
        yield
        if not reader.is_alive():
            raise RuntimeError("the read did not block")
    finally:
        os.kill(server, signal.SIGCONT)
        reader.join(_WAIT)
        os.close(file)


def main() -> int:
    """Print the percentiles and their ratios to idle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-gib", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default="/var/tmp")
    arguments = parser.parse_args()
    tempfile.tempdir = arguments.directory
    with own_area("bench") as work:
        report(measure(work, int(arguments.size_gib * 1024) << 20, arguments.rounds))
    return 0


def measure(work: Path, size: int, rounds: int) -> dict[str, list[list[float]]]:
    """Phase -> its rounds' samples."""
    source, slow, mount = work / "source", work / "slow", work / "mount"
    names = make_tree(source, _FILES)
    for directory in (slow, mount, source / "slow"):
        directory.mkdir()
    (slow / "file").write_bytes(b"x" * (1 << 20))
    with (source / "big").open("wb") as big:
        block = os.urandom(1 << 20)
        for _ in range(size >> 20):
            big.write(block)
    server = subprocess.Popen(["bindfs", "-f", str(slow), str(source / "slow")])
    phases: dict[str, list[list[float]]] = {"idle": [], "copy": [], "blocked read": []}
    try:
        while not os.path.ismount(source / "slow"):
            time.sleep(0.05)
        with mounted([*SHIFTFS, "-o", "timeout=3600", str(source), str(mount)], mount):
            phase = Phase(mount, names)
            for _ in range(rounds):
                phases["idle"].append(phase.sample(lambda: False))
                copy = copying(mount, size)
                phases["copy"].append(phase.sample(copy.is_alive))
                copy.join()
                phases["idle"].append(phase.sample(lambda: False))
                with blocked_read(mount, server.pid):
                    phases["blocked read"].append(phase.sample(lambda: False))
    finally:
        subprocess.run(["umount", "-l", str(source / "slow")], check=False, timeout=_WAIT)
        server.wait(_WAIT)
    return phases


def report(phases: dict[str, list[list[float]]]) -> None:
    """Medians over the rounds."""
    print(described(machine(Path("/var/tmp"), ["bindfs"])))
    print(f"{'phase':<14}{'samples':>9}{'median us':>11}{'p99 us':>9}{'max us':>10}{'p99 / idle':>12}")
    idle = statistics.median(percentile(times, 99) for times in phases["idle"])
    for name, rounds in phases.items():
        p99 = statistics.median(percentile(times, 99) for times in rounds)
        median = statistics.median(statistics.median(times) for times in rounds)
        most = max(max(times) for times in rounds)
        count = sum(map(len, rounds))
        print(f"{name:<14}{count:>9}{median * 1e6:>11.1f}{p99 * 1e6:>9.1f}{most * 1e6:>10.1f}{p99 / idle:>12.2f}")


def percentile(times: list[float], percent: int) -> float:
    """The value below which `percent` of the times lie."""
    return statistics.quantiles(times, n=100)[percent - 1]


if __name__ == "__main__":
    sys.exit(main())
