"""Runs jobs: every round has each subject's turn, with caches dropped the same way for all.

Jobs that only read share one mount per subject; each measurement of one that writes has its own. What fails for one
subject is told, and the others go on. Main thread.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from harness.commands import environment, run
from harness.mounts import loop_filesystem
from harness.watchdog import Watchdog
from shiftfs.asking import ask

from .jobs import Job, Layout, MicroJob, Mounted, Scale
from .mounting import drop_caches, footprint, mounted, settle, wait_for_end
from .results import MICRO_SUBJECTS, Row
from .subjects import PURE, Subject

_LIMIT = 300.0
"""Seconds until a measurement is ended by force."""

_FORGETS = ("FORGET", "BATCH_FORGET", "INTERRUPT")

# AssertionError: what the harness raises for mounts and commands that are not as they should be.
_FAILURES = (OSError, RuntimeError, AssertionError, subprocess.SubprocessError)

Progress = Callable[[str], None]


class Turn(NamedTuple):
    """A job of a group."""

    group: str
    job: Job

    @property
    def label(self) -> str:
        return f"{self.group}: {self.job.name}"


class _Ground(NamedTuple):
    """What the jobs of a layout work on; `shared`: by subject, the mounts of those that only read."""

    lowers: Sequence[Path]
    base: Path
    material: Any
    shared: dict[str, Mounted]


class Runner:
    """Owns the rows, and all that is mounted meanwhile.

    With `only_counts` no time is spent on the quiet that times need, and jobs share mounts wherever they can.
    """

    def __init__(
        self, area: Path, scale: Scale, rounds: int, progress: Progress, *, only_counts: bool = False
    ) -> None:
        self._area = area
        self._scale = scale
        self._rounds = rounds
        self._progress = progress
        self._only_counts = only_counts
        self._rows: dict[tuple[str, str, str], Row] = {}
        self._watchdog = Watchdog(area)
        self._ending: list[int] = []  # processes whose mount is gone
        self.loads: list[float] = []

    def end(self) -> None:
        self._wait()
        self._watchdog.end()

    def _wait(self) -> None:
        wait_for_end(self._ending)
        self._ending.clear()

    @contextlib.contextmanager
    def _mounted(self, subject: Subject, lowers: Sequence[Path], base: Path, own: bool) -> Iterator[Mounted]:
        daemons: tuple[int, ...] = ()
        try:
            with mounted(subject, lowers, base, own) as place:
                daemons = place.daemons
                yield place
        finally:
            self._ending += daemons
            if not self._only_counts:
                self._wait()

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def run(self, turns: Sequence[Turn], subjects: Sequence[Subject]) -> None:
        """Layout by layout: none is there for longer than it is needed."""
        possible = [turn for turn in turns if not turn.job.needs or shutil.which(turn.job.needs)]
        for layout in dict.fromkeys(turn.job.layout for turn in possible):
            self._run_layout(layout, [turn for turn in possible if turn.job.layout == layout], subjects)

    def _run_layout(self, layout: Layout, turns: Sequence[Turn], subjects: Sequence[Subject]) -> None:
        with self._room(layout) as base:
            material = layout.make(base, self._scale)
            lowers = sorted(base.glob("lower*"), key=lambda path: int(path.name[5:]))
            showing = [subject for subject in subjects if subject.layered or len(lowers) == 1]
            readers = [turn for turn in turns if not self._has_own_mount(turn.job)]
            with contextlib.ExitStack() as stack:
                shared: dict[str, Mounted] = {}
                for subject in showing:
                    theirs = [turn for turn in readers if _takes_part(subject, turn)]
                    try:
                        if theirs:
                            held = self._mounted(subject, lowers, base, False)
                            shared[subject.name] = stack.enter_context(held)
                    except _FAILURES as error:
                        for turn in theirs:
                            self._row(turn, subject).failed = _words(error)
                self._take_turns(readers, showing, _Ground(lowers, base, material, shared))
            # With none of these mounts about: some would hear of all that is written.
            writers = [turn for turn in turns if self._has_own_mount(turn.job)]
            self._take_turns(writers, showing, _Ground(lowers, base, material, {}))

    def _take_turns(self, turns: Sequence[Turn], subjects: Sequence[Subject], ground: _Ground) -> None:
        for number in range(self._rounds) if turns else ():
            for turn in turns:
                everybody = [subject for subject in subjects if _takes_part(subject, turn)]
                # Nobody always comes after the same one.
                first = number % max(len(everybody), 1)
                for subject in everybody[first:] + everybody[:first]:
                    self._measure(turn, subject, ground)
            self.loads.append(os.getloadavg()[0])

    @contextlib.contextmanager
    def _room(self, layout: Layout) -> Iterator[Path]:
        """An empty directory for a layout, its uppers, and copies of it."""
        if layout.filesystem:
            with loop_filesystem(layout.filesystem, 3 * self._scale.large_mib + 1024) as room:
                yield room
            return
        base = Path(tempfile.mkdtemp(prefix="layout-", dir=self._area))
        try:
            # On ext4 each directory in it gets a group of inodes that few others use (chattr(1), T): for some minutes a
            # group passes over the inodes that have been freed in it, one by one (fs/ext4/ialloc.c, recently_deleted),
            # and whoever makes files would pay for what others have removed before.
            if shutil.which("chattr"):
                run(["chattr", "+T", base], check=False)
            yield base
        finally:
            shutil.rmtree(base)

    def _row(self, turn: Turn, subject: Subject) -> Row:
        job = turn.job
        new = Row(turn.group, job.name, subject.name, job.unit, job.series, job.x, exact=job.exact)
        return self._rows.setdefault((turn.group, job.name, subject.name), new)

    def _measure(self, turn: Turn, subject: Subject, ground: _Ground) -> None:
        job = turn.job
        self._progress(f"{turn.label}: {subject.name}")
        row = self._row(turn, subject)
        if row.failed:
            return
        self._watchdog.alarm(_LIMIT)
        try:
            with contextlib.ExitStack() as stack:
                place = ground.shared.get(subject.name)
                if place is None:
                    place = stack.enter_context(self._mounted(subject, ground.lowers, ground.base, job.writes))
                daemons = [pid for held in (*ground.shared.values(), place) for pid in held.daemons]
                self._one(row, job, place, ground.material, daemons)
        except _FAILURES as error:
            row.failed = _words(error)
        finally:
            self._watchdog.alarm(0)

    def _one(self, row: Row, job: Job, place: Mounted, material: Any, daemons: Sequence[int]) -> None:
        work = job.prepare(place, material, self._scale)
        try:
            if job.writes and not self._only_counts:
                os.sync()  # nobody pays for what the one before left to be written
            if job.cache == "hot":
                work.run()
            elif job.cache == "cold":
                drop_caches()
            if not self._only_counts:
                settle(daemons)
            counted = _Counting(place)
            spent = footprint(place.daemons).cpu
            began = time.perf_counter()
            value = work.run()
            taken = time.perf_counter() - began
            used = spent if self._only_counts else settle(place.daemons)
            asked = counted.requests()
        finally:
            if work.after:
                work.after()
        row.values.append(taken / work.operations if value is None else value)
        row.cpu.append(max(0.0, used - spent) / work.operations)
        row.operations = work.operations
        requests = {name: count / work.operations for name, count in asked.most_common() if count}
        # What others do meanwhile, such as to drop caches, adds requests and takes none away.
        if len(row.values) == 1 or sum(requests.values()) < row.asked:
            row.requests = requests
        after = footprint(place.daemons)
        row.memory_kib = max(row.memory_kib, after.memory_kib)
        row.descriptors = max(row.descriptors, after.descriptors)

    def _has_own_mount(self, job: Job) -> bool:
        if self._only_counts:
            return job.writes and job.layered  # which changes the layers for whoever comes later
        return job.fresh or job.writes

    def run_micro(self, jobs: Sequence[tuple[str, MicroJob]]) -> None:
        """Of groups, each round in processes of its own: with what is compiled, if anything is, and without."""
        for number in range(self._rounds) if jobs else ():
            for subject in micro_subjects():
                self._progress(f"{subject}, round {number + 1}")
                taken = json.loads(_micro([f"{group}: {job.name}" for group, job in jobs], subject))
                for group, job in jobs:
                    row = self._rows.setdefault((group, job.name, subject), Row(group, job.name, subject))
                    row.values.append(taken[f"{group}: {job.name}"])


def micro_subjects() -> Sequence[str]:
    return MICRO_SUBJECTS if find_spec("shiftfs._native") else MICRO_SUBJECTS[:1]


def _micro(names: Sequence[str], subject: str) -> str:
    words = environment()
    words["PYTHONPATH"] += f":{Path(__file__).parent.parent}"
    if subject == MICRO_SUBJECTS[0]:
        words.update([PURE])
    command = [sys.executable, "-P", "-m", "bench.micro", *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=_LIMIT, env=words)
    return done.stdout


class _Counting:
    """Requests since, without those that reading the counters costs."""

    def __init__(self, place: Mounted) -> None:
        self._place = place
        first = self._counts()
        self._before = self._counts()
        self._own = self._before - first

    def requests(self) -> Counter[str]:
        return self._counts() - self._before - self._own

    def _counts(self) -> Counter[str]:
        if not self._place.ours:
            return Counter()
        counts = json.loads(ask(str(self._place.at), "stats"))["requests"]
        return Counter({name: int(value["count"]) for name, value in counts.items() if name not in _FORGETS})


def _takes_part(subject: Subject, turn: Turn) -> bool:
    if turn.job.layered and not subject.layered:
        return False
    if turn.job.tells and not subject.ours and subject.command is not None:
        return False
    return not subject.groups or turn.group in subject.groups


def measurements(turns: Sequence[Turn], subjects: Sequence[Subject], rounds: int) -> int:
    """At most so many."""
    return rounds * sum(_takes_part(subject, turn) for turn in turns for subject in subjects)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return f"{errno.errorcode.get(error.errno, error.errno)}: {error}"
    return str(error)


