"""Results in the terminal: a table for each group, and one of the targets. Draws with rich, which `[bench]` brings."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .cells import cell
from .machine import described
from .results import Results
from .targets import REQUESTS, Verdict


def print_results(results: Results, console: Console) -> None:
    """One line per job: the median of each subject, and beside it how much of that ours takes; for ours, of native."""
    console.print(described(results.machine), highlight=False, markup=False)
    console.print(f"{results.scale}, rounds: {results.rounds}, load meanwhile {max(results.loads, default=0.0):.1f}")
    for group in results.groups():
        subjects = results.subjects(group)
        counts = any(subject in results.ours for subject in subjects)
        table = Table("", *(["requests"] if counts else []), *subjects, title=group, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for _, job in results.jobs(group):
            asked = [r for r in (results.row(group, job, s) for s in results.ours) if r]
            counted = " / ".join(f"{row.asked:.2f}" for row in asked[:2])
            cells = (cell(results, group, job, subject) for subject in subjects)
            table.add_row(job, *([counted] if counts else []), *cells)
        console.print(table)
    console.print(
        "Medians. In parentheses: shiftfs's part of it on the same layers (1.00: as fast, less: faster); "
        "for shiftfs itself: its multiple of native, or of the kernel's overlayfs."
        "\nRequests: per operation, of the first two of ours.",
        highlight=False,
    )
    if not results.is_whole:
        console.print("Interrupted: not everything was measured.")
    for row in results.rows:
        if row.failed:
            console.print(f"{row.group}: {row.job}: {row.subject}: {row.failed}", highlight=False, markup=False)
    for name, reason in results.left_out.items():
        console.print(f"without {name}: {reason}", highlight=False, markup=False)


def print_targets(verdicts: Sequence[Verdict], console: Console) -> None:
    """One line per bound that was measured; how many were not."""
    table = Table("work", "job", "of shiftfs", "against", "measured", "rounds", "at most", "", title="targets")
    for verdict in verdicts:
        bound = verdict.bound
        if verdict.measured is None:
            continue
        rounds = "" if bound.other == REQUESTS else f"{verdict.least:.2f}-{verdict.most:.2f}"
        word = "[green]holds" if verdict.holds else "[red]missed"
        measured = f"{verdict.measured:.4f}" if bound.other == REQUESTS else f"{verdict.measured:.2f}"
        table.add_row(verdict.work, verdict.job, bound.ours, bound.other, measured, rounds, f"{bound.limit:g}", word)
    console.print(table)
    absent = sum(verdict.measured is None for verdict in verdicts)
    if absent:
        console.print(f"{absent} more were not measured", highlight=False)
