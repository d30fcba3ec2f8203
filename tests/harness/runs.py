"""Results of runs that never were, for the tests of what is made of them."""

from collections.abc import Mapping, Sequence

from bench.results import Results, Row

MACHINE = {
    "date": "2026-01-02 03:04",
    "kernel": "6.18",
    "processor": "one",
    "cores": 2,
    "memory_gib": 4.0,
    "filesystem": "ext4",
    "python": "3.11.2",
    "load": 0.5,
    "versions": {"shiftfs": "1", "bindfs": "2"},
}
OURS = ["shiftfs", "shiftfs overlay"]
RIVALS = {"shiftfs": "shiftfs", "shiftfs overlay": "shiftfs overlay", "bindfs": "shiftfs", "native": "shiftfs"}
RIVALS |= {"overlayfs": "shiftfs overlay", "fuse-overlayfs": "shiftfs overlay"}


def row(subject: str, values: Sequence[float], job: str = "cold stat", group: str = "lookup", **fields: object) -> Row:
    """Values are in seconds."""
    return Row(group, job, subject, values=list(values), cpu=[0.0] * len(values), **fields)  # type: ignore[arg-type]


def results(*rows: Row, left_out: Mapping[str, str] | None = None) -> Results:
    return Results(MACHINE, "full", 3, dict(left_out or {}), OURS, RIVALS, list(rows), [0.5, 1.5])
