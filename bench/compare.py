"""`python -m bench compare OLD.json NEW.json`: what has become slower, beyond what the runs themselves vary.

Two runs see two machines, even on one: so a time counts beside what everybody else took for the same job in the same
run. Requests need no such care: any rise is named, where they are the same each time. Exit status 1 if anything is.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from .results import MICRO_SUBJECTS, Results, Row, load

_LEAST: Final = 0.05
"""Below this, as a part, nothing is a change."""

_NOISE: Final = 3.0
"""A change is one beyond so many times the spread of the rounds."""


class Change(NamedTuple):
    """Of one subject's job: what it takes now of what it took, the machine's own change taken out; and the noise, as
    the part of 1 that it has to exceed."""

    name: str
    ratio: float
    noise: float

    @property
    def is_slower(self) -> bool:
        return self.ratio > 1 + self.noise

    @property
    def is_faster(self) -> bool:
        return self.ratio < 1 / (1 + self.noise)


def changes(old: Results, new: Results) -> list[Change]:
    """Of all that both runs have measured of shiftfs."""
    found = []
    for was, now in _pairs(old, new):
        machine, noise = _machine(old, new, now)
        spread = math.hypot(was.spread, now.spread, noise)
        ratio = now.median / was.median / machine
        found.append(Change(_name(now), ratio, max(_LEAST, _NOISE * spread)))
    return found


def risen(old: Results, new: Results) -> list[str]:
    """In words: what has more requests per operation; beyond _LEAST for what is not the same each time. FORGETs are not
    among them."""
    return [
        f"{_name(now)}: {was.asked:g} requests per operation were {now.asked:g}: {_opcodes(was, now)}"
        for was, now in _pairs(old, new)
        if now.asked > was.asked * (1 if now.exact else 1 + _LEAST) + 1e-6
    ]


def _pairs(old: Results, new: Results) -> list[tuple[Row, Row]]:
    pairs = []
    for now in new.rows:
        was = old.row(now.group, now.job, now.subject)
        if now.subject in (*new.ours, *MICRO_SUBJECTS) and now.values and not now.failed and was and was.median:
            pairs.append((was, now))
    return pairs


def _machine(old: Results, new: Results, row: Row) -> tuple[float, float]:
    """How much slower everybody else was at this job in the new run, and how sure that is."""
    ratios, spreads = [], []
    for subject in new.subjects(row.group):
        if subject in (*new.ours, *old.ours, *MICRO_SUBJECTS):
            continue
        was, now = old.row(row.group, row.job, subject), new.row(row.group, row.job, subject)
        if was and now and was.median and now.median:
            ratios.append(now.median / was.median)
            spreads.append(math.hypot(was.spread, now.spread))
    if not ratios:
        return 1.0, 0.0
    # The geometric mean, whose spread falls with the number of those that it is of.
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return mean, math.hypot(*spreads) / len(spreads)


def _name(row: Row) -> str:
    return f"{row.subject}: {row.group}: {row.job}"


def _opcodes(was: Row, now: Row) -> str:
    names = dict.fromkeys([*now.requests, *was.requests])
    rows = [(name, was.requests.get(name, 0.0), now.requests.get(name, 0.0)) for name in names]
    return ", ".join(f"{name} {before:g} is {after:g}" for name, before, after in rows if before != after)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args(argv)
    try:
        old, new = load(arguments.old), load(arguments.new)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    if old.scale != new.scale:
        sys.exit(f"one run is {old.scale}, the other {new.scale}: they did not do the same")
    found = changes(old, new)
    slower = [change for change in found if change.is_slower]
    more = risen(old, new)
    for title, which in (("slower", slower), ("faster", [change for change in found if change.is_faster])):
        for change in which:
            print(f"{title}: {change.name}: {change.ratio:.2f} of what it took; noise {change.noise:.2f}")
    for line in more:
        print(f"more requests: {line}")
    print(f"{len(found)} compared, {len(slower)} slower, {len(more)} with more requests")
    return 1 if slower or more else 0
