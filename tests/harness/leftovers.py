"""What a test may leave behind: mounts, processes, loop devices, descriptors.

All but children and descriptors are recognised by the directory beneath which the run makes everything, so
that whatever else the machine does meanwhile is never blamed on a test, nor ended.
"""

import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harness.commands import CommandFailed, open_directory, run
from harness.mounts import MountEntry, mount_table, unmount_by_force

# Seconds that a process may take to end, and the kernel to free a loop device, before they are left behind.
GRACE = 5.0


class Belongings(NamedTuple):
    """What the run holds at one moment."""

    mounts: frozenset[MountEntry]
    children: frozenset[int]
    daemons: frozenset[int]
    loops: frozenset[str]
    descriptors: dict[int, str]


def belongings(area: Path) -> Belongings:
    """What the run that works beneath `area` holds now."""
    own = os.getpid()
    parents = {pid: parent for pid, parent in _processes() if pid != own}
    return Belongings(
        frozenset(mounts_of(area)),
        frozenset(pid for pid, parent in parents.items() if parent == own),
        frozenset(pid for pid, parent in parents.items() if parent != own and _names(pid, area)),
        frozenset(_loops(area)),
        dict(_descriptors()),
    )


def left_behind(before: Belongings, area: Path) -> list[str]:
    """What has come since and not gone again within GRACE, in words; all but descriptors is then removed."""
    end = time.monotonic() + GRACE
    while True:
        now = belongings(area)
        found = list(_difference(before, now))
        if not found:
            return []
        if time.monotonic() > end:
            break
        gc.collect()  # a descriptor in a cycle of references is closed here
        time.sleep(0.05)
    _remove(before, now)
    return found


@contextmanager
def own_area(name: str) -> Iterator[Path]:
    """A directory for all that a program makes, `tempfile` too. It goes with whatever is still in use beneath it when
    the program ends, by SIGTERM too; exit status 1 then."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    area = open_directory(f"shiftfs-{name}-")
    tempfile.tempdir = str(area)
    try:
        yield area
    finally:
        left = remove_all(area)
        shutil.rmtree(area)
    if left:
        sys.exit(f"left behind, and removed: {left}")


def _difference(before: Belongings, now: Belongings) -> Iterator[str]:
    for entry in now.mounts - before.mounts:
        yield f"mount {entry.path} ({entry.kind}, {entry.source})"
    for pid in (now.children | now.daemons) - before.children - before.daemons:
        yield f"process {pid}: {_command_line(pid)}"
    for name in now.loops - before.loops:
        yield f"loop device {name}"
    if len(now.descriptors) > len(before.descriptors):
        for number, target in now.descriptors.items():
            if before.descriptors.get(number) != target:
                yield f"descriptor {number}: {target}"


def _remove(before: Belongings, now: Belongings) -> None:
    _remove_mounts(now.mounts - before.mounts)
    for pid in (now.children | now.daemons) - before.children - before.daemons:
        try:
            os.kill(pid, signal.SIGKILL)
            if pid in now.children:
                os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    for name in now.loops - before.loops:
        # Fails for one that went with its mount just now.
        run(["losetup", "--detach", f"/dev/{name}"], check=False)


def _remove_mounts(entries: frozenset[MountEntry]) -> None:
    """Newest first, so that what is mounted on another mount goes before it."""
    for entry in sorted(entries, reverse=True):
        try:
            unmount_by_force(entry)
        except CommandFailed as failure:
            print(failure)


def remove_all(area: Path) -> list[str]:
    """At the end of a run: mounts, and processes that name its area. What there was, in words."""
    nothing = Belongings(frozenset(), frozenset(), frozenset(), frozenset(), {})
    now = belongings(area)._replace(children=frozenset(), descriptors={})
    found = list(_difference(nothing, now))
    _remove(nothing, now)
    return found


def mounts_of(area: Path) -> list[MountEntry]:
    """Mounts at, of, or from something beneath the area."""

    def beneath(path: str) -> bool:
        return path == str(area) or path.startswith(f"{area}/")

    return [entry for entry in mount_table() if any(map(beneath, (entry.path, entry.root, entry.source)))]


def _processes() -> Iterator[tuple[int, int]]:
    """Each process's number and its parent's."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(name), int(fields[1])


def _names(pid: int, area: Path) -> bool:
    """Whether a process's command line names something in the area."""
    return str(area) in _command_line(pid)


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        words = b""
    return os.fsdecode(words.rstrip(b"\0").replace(b"\0", b" ")) or "(ended, not waited for)"


def _loops(area: Path) -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text(errors="replace").startswith(f"{area}/"):
                yield backing.parts[3]
        except OSError:
            pass  # freed meanwhile


def _descriptors() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield int(name), os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the listing's own
