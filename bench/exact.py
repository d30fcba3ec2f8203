"""Requests per operation, which are the same on any machine, beside the figures kept in requests.json.

`python -m bench requests` tells which have risen, and fails; `--write` keeps those of now. Never judges a time. What
others do meanwhile, such as to drop caches, adds requests: what has risen is counted again before it is believed.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from harness.leftovers import own_area

from . import mounts
from .jobs import EXACT
from .running import Runner, Turn
from .subjects import OVERLAY, SINGLE, SUBJECTS

KEPT: Final = Path(__file__).parent / "requests.json"
_TRIES: Final = 3
_TOLERANCE: Final = 1e-6

Counts = dict[str, dict[str, float]]
"""`subject: group: job` -> operation of the FUSE protocol -> requests per operation."""


def count(area: Path, only: Sequence[str] | None = None) -> Counts:
    """Measure; of all that is exact, or of some. RuntimeError where something fails."""
    turns = [Turn(group, job) for group, jobs in mounts.GROUPS.items() for job in jobs(EXACT) if job.exact]
    counts: Counts = {}
    for subject in SUBJECTS:
        if subject.name not in (SINGLE, OVERLAY):
            continue
        chosen = [turn for turn in turns if only is None or _name(subject.name, turn.group, turn.job.name) in only]
        runner = Runner(area, EXACT, 1, lambda _: None, only_counts=True)
        try:
            # By itself: a mount hears of what is done in its layers through another.
            runner.run(chosen, [subject])
        finally:
            runner.end()
        for row in runner.rows:
            if row.failed:
                raise RuntimeError(f"{row.subject}: {row.group}: {row.job}: {row.failed}")
            counts[_name(row.subject, row.group, row.job)] = dict(sorted(row.requests.items()))
    return counts


def _name(subject: str, group: str, job: str) -> str:
    return f"{subject}: {group}: {job}"


def rises(kept: Mapping[str, Mapping[str, float]], now: Mapping[str, Mapping[str, float]]) -> list[str]:
    """In words: what has more requests than it had, and what was never counted before."""
    found = []
    for name, requests in now.items():
        if name not in kept:
            found.append(f"{name}: no figure is kept: `python -m bench requests --write` does")
        elif sum(requests.values()) > sum(kept[name].values()) + _TOLERANCE:
            found.append(f"{name}: {_words(kept[name])}; now {_words(requests)}")
    return found


def believed_rises(area: Path, kept: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Those that are there each time."""
    now = count(area)
    for _ in range(_TRIES - 1):
        risen = [name for name in now if rises(kept, {name: now[name]})]
        if not risen:
            break
        now = least(now, count(area, risen))
    return rises(kept, now)


def least(one: Counts, other: Counts) -> Counts:
    """Of each job the fewest requests."""
    return one | {name: min(one[name], requests, key=lambda r: sum(r.values())) for name, requests in other.items()}


def kept() -> Counts:
    figures: Counts = json.loads(KEPT.read_text())
    return figures


def _words(requests: Mapping[str, float]) -> str:
    each = ", ".join(f"{name} {value:g}" for name, value in requests.items())
    return f"{sum(requests.values()):g} per operation ({each or 'none'})"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench requests", description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures of now")
    parser.add_argument("--directory", default="/var/tmp", help="where everything is made; default: %(default)s")
    arguments = parser.parse_args(argv)
    tempfile.tempdir = arguments.directory
    with own_area("bench") as area:
        if arguments.write:
            now = count(area)
            for _ in range(_TRIES - 1):
                now = least(now, count(area))
            KEPT.write_text(json.dumps(now, indent=1) + "\n")
            return 0
        risen = believed_rises(area, kept())
    print("\n".join(risen) or "no operation has more requests than it had")
    return 1 if risen else 0
