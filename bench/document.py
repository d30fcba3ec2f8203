"""docs/performance.md: the tables of a run, between two marks; what is written by hand around them stays."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from .cells import cell, compared
from .machine import described
from .results import MICRO_SUBJECTS, Results
from .targets import REQUESTS, judge

BEGIN: Final = "<!-- measured: written by `python -m bench --document`; what stands between these marks is replaced -->"
END: Final = "<!-- end of what is measured -->"

_NEW: Final = f"# Performance\n\n{BEGIN}\n{END}\n"
_SLOW: Final = 1.0


def write(results: Results, path: Path, charts: Mapping[str, Sequence[Path]]) -> None:
    """Put the run into the document, which is made if it is not there. ValueError if it has no marks. Of `charts`, by
    group, the SVG is shown."""
    text = path.read_text() if path.exists() else _NEW
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: without the lines\n{BEGIN}\n{END}\nnobody knows what may be replaced")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text("".join((before, BEGIN, "\n\n", rendered(results, _links(charts, path)), "\n", END, after)))


def _links(charts: Mapping[str, Sequence[Path]], document: Path) -> dict[str, list[str]]:
    def link(path: Path) -> str:
        return f"![{path.name}]({os.path.relpath(path, document.parent)}.svg)"

    return {group: list(map(link, paths)) for group, paths in charts.items()}


def rendered(results: Results, charts: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
    """Everything about a run, as Markdown."""
    groups = _groups(results, charts)
    return "\n".join([*_head(results), *_targets(results), *_slow(results), *groups, *_footprints(results)])


def _head(results: Results) -> Iterator[str]:
    machine, _, versions = described(results.machine).partition("\n")
    least, most = min(results.loads, default=0.0), max(results.loads, default=0.0)
    yield "## The run"
    yield ""
    yield f"{machine}. {versions}."
    yield f"`{results.scale}`, {results.rounds} rounds; load meanwhile {least:.1f} to {most:.1f}."
    if not results.is_whole:
        yield "It was interrupted: not everything was measured."
    for name, reason in results.left_out.items():
        yield f"Without {name}: {reason}."
    yield ""


def _targets(results: Results) -> Iterator[str]:
    verdicts = [verdict for verdict in judge(results) if verdict.measured is not None]
    if not verdicts:
        return
    held = sum(bool(verdict.holds) for verdict in verdicts)
    yield "## Targets"
    yield ""
    yield f"Ratios of medians; in parentheses the least and the largest of a round. {held} of {len(verdicts)} hold."
    yield ""
    yield "| work | job | | against | measured | at most | |"
    yield "|---|---|---|---|---|---|---|"
    for verdict in verdicts:
        bound = verdict.bound
        measured = f"{verdict.measured:.2f}"
        if bound.other != REQUESTS:
            measured += f" ({verdict.least:.2f}-{verdict.most:.2f})"
        against = bound.other or "-"
        word = "holds" if verdict.holds else "**missed**"
        yield f"| {verdict.work} | {verdict.job} | {bound.ours} | {against} | {measured} | {bound.limit:g} | {word} |"
    yield ""


def _slow(results: Results) -> Iterator[str]:
    """Where a peer that goes through FUSE as well is faster."""
    found = []
    for row in results.rows:
        if row.subject in (*results.ours, *MICRO_SUBJECTS, "native", "overlayfs") or not row.values or row.failed:
            continue
        ratio = compared(results, row)
        if ratio is not None and ratio > _SLOW:
            mine = results.rivals[row.subject]
            found.append((ratio, f"| {row.group}: {row.job} | {mine} | {row.subject} | {ratio:.2f} |"))
    if not found:
        return
    yield "## What is slow"
    yield ""
    yield f"All {len(found)} cases in which another FUSE filesystem took less time than shiftfs on the same layers."
    yield ""
    yield "| job | | of what it takes | |"
    yield "|---|---|---|---|"
    for _, line in sorted(found, reverse=True):
        yield line
    yield ""


def _groups(results: Results, charts: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield "## All of it"
    yield ""
    yield (
        "Medians. In parentheses: of a peer, what shiftfs takes of its time on the same layers (less than 1: shiftfs is"
        " faster); of shiftfs, its multiple of native, or of the kernel's overlayfs where native takes no part."
        " Requests are per operation, of the first two of shiftfs's columns."
    )
    yield ""
    for group in results.groups():
        subjects = results.subjects(group)
        mine = [subject for subject in subjects if subject in results.ours]
        heads = [*(["requests"] if mine else []), *subjects]
        yield f"### {group}"
        yield ""
        yield f"| | {' | '.join(heads)} |"
        yield f"|---|{'---|' * len(heads)}"
        for _, job in results.jobs(group):
            rows = [row for row in (results.row(group, job, subject) for subject in mine[:2]) if row]
            asked = [" / ".join(f"{row.asked:.2f}" for row in rows)] if mine else []
            yield f"| {job} | {' | '.join([*asked, *(cell(results, group, job, subject) for subject in subjects)])} |"
        yield ""
        for link in charts.get(group, ()):
            yield link
            yield ""
    for row in results.rows:
        if row.failed:
            yield f"Failed: {row.group}: {row.job}: {row.subject}: {row.failed}"
            yield ""


def _footprints(results: Results) -> Iterator[str]:
    """CPU of the processes, of jobs that take long enough; memory and descriptors at most."""
    subjects = [name for name in results.subjects() if name not in (*MICRO_SUBJECTS, "native", "overlayfs")]
    if not subjects:
        return
    yield "## CPU, memory, descriptors"
    yield ""
    yield "CPU seconds of a subject's processes, as a part of the time that the job took. Memory and descriptors: the"
    yield "most that was seen at the end of any job."
    yield ""
    yield f"| | {' | '.join(subjects)} |"
    yield f"|---|{'---|' * len(subjects)}"
    for group, job in results.jobs():
        rows = [results.row(group, job, subject) for subject in subjects]
        if any(row and row.unit == "s" and sum(row.cpu) * row.operations > 0.05 for row in rows):
            cells = [f"{sum(row.cpu) / sum(row.values):.2f}" if row and row.values else "-" for row in rows]
            yield f"| {group}: {job} | {' | '.join(cells)} |"
    of = {name: [row for row in results.rows if row.subject == name] for name in subjects}
    memory = (f"{max(row.memory_kib for row in rows) / 1024:.0f}" for rows in of.values())
    yield f"| memory, MiB | {' | '.join(memory)} |"
    yield f"| descriptors | {' | '.join(str(max(row.descriptors for row in rows)) for rows in of.values())} |"
    yield ""
