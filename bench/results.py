"""The result of a run: rows of numbers, as JSON and back; the statistics of a row. Measures nothing, prints nothing."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1

MICRO_SUBJECTS: Final = ("python", "compiled")
"""What parts of shiftfs are measured as: without what is compiled, and with it, if anything is."""


@dataclass(slots=True)
class Row:
    """What one subject took for one job, round by round."""

    group: str
    job: str
    subject: str
    unit: str = "s"
    series: str = ""
    x: int = 0
    values: list[float] = field(default_factory=list)  # per operation
    cpu: list[float] = field(default_factory=list)  # seconds of the subject's processes, per operation
    operations: int = 1
    requests: dict[str, float] = field(default_factory=dict)  # per operation, without FORGETs; of shiftfs alone
    memory_kib: int = 0
    descriptors: int = 0
    exact: bool = False  # the requests are the same each time
    failed: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def asked(self) -> float:
        """Requests per operation."""
        return sum(self.requests.values())

    @property
    def spread(self) -> float:
        """How far rounds are from the median, as a part of it: the median of the distances."""
        median = self.median
        if not median:
            return 0.0
        return statistics.median(abs(value - median) for value in self.values) / median


@dataclass(slots=True)
class Results:
    """A run."""

    machine: dict[str, Any]
    scale: str
    rounds: int
    left_out: dict[str, str]  # subject -> why
    ours: list[str]  # subjects that are shiftfs
    rivals: dict[str, str]  # subject -> which of ours it is compared with
    rows: list[Row] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)  # one at the end of each round of a layout
    is_whole: bool = True  # False: it was interrupted
    format: int = FORMAT

    def row(self, group: str, job: str, subject: str) -> Row | None:
        """None where it was not measured, or failed."""
        for row in self.rows:
            if (row.group, row.job, row.subject) == (group, job, subject):
                return row if row.values and not row.failed else None
        return None

    def jobs(self, group: str = "") -> list[tuple[str, str]]:
        """(group, job) in the order of the run."""
        return list(dict.fromkeys((row.group, row.job) for row in self.rows if group in ("", row.group)))

    def groups(self) -> list[str]:
        return list(dict.fromkeys(row.group for row in self.rows))

    def subjects(self, group: str = "") -> list[str]:
        return list(dict.fromkeys(row.subject for row in self.rows if group in ("", row.group)))

    def ratio(self, group: str, job: str, ours: str, other: str) -> float | None:
        """Of medians."""
        mine, its = self.row(group, job, ours), self.row(group, job, other)
        return mine.median / its.median if mine and its and its.median else None


def save(results: Results, path: Path) -> None:
    path.write_text(json.dumps(asdict(results), indent=1) + "\n")


def load(path: Path) -> Results:
    """Raises ValueError for what is no result, or one of another format."""
    try:
        fields = json.loads(path.read_text())
        if fields["format"] != FORMAT:
            raise ValueError(f"{path}: format {fields['format']}, not {FORMAT}: run the benchmark anew")
        rows = [Row(**row) for row in fields.pop("rows")]
        return Results(**fields, rows=rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of `python -m bench --json`: {error!r}") from None


def joined(runs: Sequence[Results]) -> Results:
    """Several runs as one: the rounds of the later ones come after those of the first. What only some have measured has
    fewer. ValueError if they did not do the same."""
    first = runs[0]
    for run in runs[1:]:
        if run.scale != first.scale:
            raise ValueError(f"one run is {first.scale}, another {run.scale}: they did not do the same")
        if run.machine["versions"]["shiftfs"] != first.machine["versions"]["shiftfs"]:
            raise ValueError("the runs are of different versions of shiftfs: compare them instead")
        first.rounds += run.rounds
        first.is_whole &= run.is_whole
        first.loads += run.loads
        first.rivals |= run.rivals
        first.left_out |= run.left_out
        first.ours = list(dict.fromkeys([*first.ours, *run.ours]))
        there = {(row.group, row.job, row.subject): row for row in first.rows}
        for row in run.rows:
            known = there.get((row.group, row.job, row.subject))
            if known is None:
                first.rows.append(row)
                continue
            known.values += row.values
            known.cpu += row.cpu
            known.failed = known.failed or row.failed
            known.requests = min(known.requests, row.requests, key=lambda asked: sum(asked.values()))
            known.memory_kib = max(known.memory_kib, row.memory_kib)
            known.descriptors = max(known.descriptors, row.descriptors)
    return first


def ratio_range(mine: Row, its: Row) -> tuple[float, float]:
    """The least and the largest ratio of one round: both were measured beside each other in it."""
    ratios = [a / b for a, b in zip(mine.values, its.values, strict=False) if b] or [0.0]
    return min(ratios), max(ratios)
