"""A subject's mount, for as long as it is measured, and what its processes use.

Owns mounts, their upper and work directories, and copies of the native directory. Main thread.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harness.commands import environment
from harness.mounts import newest_mount, unmount

from .jobs import Mounted
from .subjects import Place, Subject

_WAIT = 60.0
_STEP = 0.02


class Footprint(NamedTuple):
    """Of all processes of a mount: seconds of CPU, resident KiB, descriptors."""

    cpu: float = 0.0
    memory_kib: int = 0
    descriptors: int = 0


@contextlib.contextmanager
def mounted(subject: Subject, lowers: Sequence[Path], base: Path, own: bool) -> Iterator[Mounted]:
    """The subject over `lowers`. With `own` what it writes to goes afterwards: for what has no upper, a copy."""
    place = Path(tempfile.mkdtemp(prefix=f"{subject.name.replace(' ', '-').replace('=', '-')}-", dir=base))
    upper, work, at, copy = (place / name for name in ("upper", "work", "at", "copy"))
    for made in (upper, work, at):
        made.mkdir()
    try:
        if own and not subject.layered:
            subprocess.run(["cp", "-a", str(lowers[0]), str(copy)], check=True, timeout=_WAIT)
            lowers = [copy]
        another = partial(mounted, subject, lowers, base, False)
        if subject.command is None:
            yield Mounted(subject.name, lowers[0], lowers[0], another)
            return
        run(subject.command(Place(lowers, upper, work, at)), subject.environment)
        entry, daemons = newest_mount(at), _processes(at)
        try:
            yield Mounted(subject.name, at, lowers[0], another, daemons, subject.ours)
        finally:
            unmount(entry)
    finally:
        _remove(place)


def wait_for_end(daemons: Sequence[int]) -> None:
    """What still ends would be in the way of the next measurement."""
    end = time.monotonic() + _WAIT
    while any(Path(f"/proc/{pid}").exists() for pid in daemons) and time.monotonic() < end:
        time.sleep(_STEP)


def run(command: Sequence[str], more: Iterable[tuple[str, str]] = ()) -> str:
    """What a command says, which is told where it fails."""
    # A file, since a daemon that keeps a pipe open would be waited for.
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            timeout=_WAIT,
            check=False,
            env=environment() | dict(more),
        )
        said.seek(0)
        text = said.read()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {text.strip()}")
    return text


def _remove(place: Path) -> None:
    # A process that has lost its mount may still be at the work directory.
    end = time.monotonic() + _WAIT
    while place.exists():
        shutil.rmtree(place, ignore_errors=time.monotonic() < end)


def _processes(at: Path) -> tuple[int, ...]:
    """Those whose command line ends in the mountpoint."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(at) in words:
                found.append(int(name))
    return tuple(found)


def footprint(daemons: Sequence[int]) -> Footprint:
    """What they use now; what has ended uses nothing."""
    cpu, memory, descriptors = 0, 0, 0
    for pid in daemons:
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                cpu += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            memory += pages * os.sysconf("SC_PAGE_SIZE") >> 10
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
    return Footprint(cpu / 1e9, memory, descriptors)


def settle(daemons: Sequence[int], limit: float = 10.0) -> float:
    """Wait until they have nothing to do, such as forgetting what was dropped. Seconds of CPU that they have used."""
    end = time.monotonic() + limit
    before, quiet = -1.0, 0
    while quiet < 2 and time.monotonic() < end:
        now = footprint(daemons).cpu
        # Looking at the clock now and then is nothing to do.
        quiet = quiet + 1 if now - before < 0.0005 else 0
        before = now
        if daemons:
            time.sleep(_STEP)
    return before


def drop_caches(pages: bool = False) -> None:
    """Names and inodes; the pages of files stay, unless asked, so that the disk is not what is measured."""
    Path("/proc/sys/vm/drop_caches").write_text("3" if pages else "2")
