"""Charts of a run: for each group how subjects compare, and for each series how the cost grows. SVG and PNG.

Draws with matplotlib, which `[bench]` brings, without a display.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .results import MICRO_SUBJECTS, Results

# One colour for a subject in every chart: shiftfs in blues, the others in the rest.
_COLOURS = {
    "native": "#555555",
    "overlayfs": "#999999",
    "shiftfs": "#08519c",
    "shiftfs overlay": "#3182bd",
    "fuse-overlayfs": "#e6550d",
    "bindfs": "#31a354",
    "mergerfs": "#756bb1",
    "unionfs-fuse": "#c49c00",
    "mfusepy": "#d6616b",
}
_OTHERS = ("#9ecae1", "#6baed6", "#74c476", "#fdae6b", "#bcbddc", "#c7e9c0", "#dadaeb")
_INCH_PER_JOB = 0.9


def draw(results: Results, directory: Path) -> dict[str, list[Path]]:
    """Write all charts into a directory; of each group their paths, without suffix."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    directory.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, list[Path]] = {}
    # Texts that can be searched, and the same file for the same run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "shiftfs"}):
        for group, name, figure in _figures(results):
            FigureCanvasAgg(figure)
            path = directory / name
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            figure.savefig(path.with_suffix(".png"), dpi=100)
            drawn.setdefault(group, []).append(path)
    return drawn


def _figures(results: Results) -> Iterator[tuple[str, str, Any]]:
    for group in results.groups():
        series = {row.series: None for row in results.rows if row.group == group and row.series}
        for name in series:
            yield group, f"{group}-{name.replace(' ', '-')}", _lines(results, group, name)
        rows = [row for row in results.rows if row.group == group]
        jobs = list(dict.fromkeys(row.job for row in rows if not row.series and row.unit == "s" and row.values))
        if jobs and rows[0].subject not in MICRO_SUBJECTS:
            yield group, group, _bars(results, group, jobs)


def _bars(results: Results, group: str, jobs: list[str]) -> Any:
    """Medians as multiples of the first subject's that was measured: native's, or the kernel's overlayfs's."""
    from matplotlib.figure import Figure

    subjects = results.subjects(group)
    figure = Figure(figsize=(9, 1.5 + _INCH_PER_JOB * len(jobs)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.85 / len(subjects)
    for place, subject in enumerate(subjects):
        points = []
        for number, job in enumerate(jobs):
            row = results.row(group, job, subject)
            reference = results.row(group, job, "native") or results.row(group, job, "overlayfs")
            if row and reference and reference.median:
                points.append((number + (place + 0.5) * height, row.median / reference.median))
        if points:
            where, values = zip(*points, strict=True)
            axes.barh(where, values, height, label=subject, color=colour(subject, subjects))
    axes.set_yticks([number + 0.4 for number in range(len(jobs))], jobs)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    unit = "native" if "native" in subjects else "overlayfs"
    axes.set_xlabel(f"time, as a multiple of {unit}'s (less is better)")
    axes.set_title(group)
    axes.legend(fontsize="small")
    return figure


def _lines(results: Results, group: str, series: str) -> Any:
    """Medians over what grows, with the range of the rounds."""
    from matplotlib.figure import Figure

    rows = [row for row in results.rows if row.group == group and row.series == series and row.values]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    subjects = list(dict.fromkeys(row.subject for row in rows))
    for subject in subjects:
        found = sorted((row.x, row.median, min(row.values), max(row.values)) for row in rows if row.subject == subject)
        x, medians, least, most = zip(*found, strict=True)
        drawn = colour(subject, subjects)
        axes.plot(x, [value * 1e6 for value in medians], marker="o", label=subject, color=drawn)
        axes.fill_between(x, [v * 1e6 for v in least], [v * 1e6 for v in most], color=drawn, alpha=0.12)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({row.x for row in rows})
    axes.set_xticks(ticks, [f"{value:,}" for value in ticks])
    axes.minorticks_off()
    axes.set_xlabel(series.rpartition(" by ")[2])
    axes.set_ylabel("microseconds per operation")
    axes.set_title(series)
    axes.legend(fontsize="small")
    return figure


def colour(subject: str, subjects: list[str]) -> str:
    """The same in every chart, for those that have one of their own."""
    others = [name for name in subjects if name not in _COLOURS]
    return _COLOURS.get(subject) or _OTHERS[others.index(subject) % len(_OTHERS)]
