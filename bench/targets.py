"""What shiftfs is to reach beside its peers: ratios of medians of one run, and requests. Prints nothing."""

from typing import Final, NamedTuple

from .results import Results, ratio_range
from .subjects import COLLECTING, KERNEL, NATIVE, OVERLAY, SINGLE, VOLATILE

_FUSE: Final = "fuse-overlayfs"
_PASSED: Final = ("shiftfs passthrough", "shiftfs overlay passthrough")


REQUESTS: Final = "requests per operation"
"""Stands for a peer where it is these that are limited."""


class Bound(NamedTuple):
    """`ours` takes at most `limit` of what `other` takes; without an other, its values are at most `limit`."""

    ours: str
    other: str
    limit: float


class Target(NamedTuple):
    work: str
    group: str
    jobs: tuple[str, ...]
    bounds: tuple[Bound, ...]
    unasked: bool = False  # no requests at all


class Verdict(NamedTuple):
    """A bound of a target, for one job. `measured` is a ratio, a value, or requests per operation; None: it was not
    measured. `least` and `most` are of single rounds."""

    work: str
    job: str
    bound: Bound
    measured: float | None
    least: float = 0.0
    most: float = 0.0

    @property
    def holds(self) -> bool | None:
        if self.measured is None:
            return None
        exact = self.bound.other == REQUESTS
        return (self.measured if exact else round(self.measured, 2)) <= self.bound.limit

_HOT: Final = (Bound(SINGLE, KERNEL, 1.1), Bound(OVERLAY, KERNEL, 1.1))


_DATA: Final = (
    "sequential read, cached",
    "sequential read, uncached",
    "sequential write",
    "random 4 KiB read, cached",
    "random 4 KiB read, uncached",
    "random 4 KiB write",
)
# What is read of a lower beneath an upper is never passed through.
_PASSED_DATA: Final = (
    "sequential read of what was written, cached",
    "sequential read of what was written, uncached",
    "sequential write",
    "random 4 KiB read of what was written, cached",
    "random 4 KiB read of what was written, uncached",
    "random 4 KiB write",
)

_COPIED: Final = ("append", "chmod of a lower file")


def _against(fuse: float, bindfs: float | None = None) -> tuple[Bound, ...]:
    bounds = (Bound(OVERLAY, _FUSE, fuse),)
    return bounds if bindfs is None else (*bounds, Bound(SINGLE, "bindfs", bindfs))


TARGETS: Final = (
    Target("hot names", "lookup", ("hot stat", "hot absent", "hot readlink"), _HOT, True),
    Target("hot readdir", "listing", ("hot list, 1,000 entries",), _HOT, True),
    Target("hot files", "files", ("hot open+read+close",), _HOT, True),
    Target("cold names", "lookup", ("cold stat", "cold absent"), _against(0.9, 1.2)),
    Target("cold walk", "listing", ("cold walk with stat",), _against(0.7, 0.7)),
    Target("a large directory", "listing", ("list, 100,000 entries", "list with stat, 100,000 entries"), _against(0.5)),
    Target("several clients", "clients", ("cold stat, 4 clients", "cold stat, 8 clients"), _against(0.8)),
    Target("small files", "files", ("create+write+close", "unlink", "rename"), _against(0.9)),
    Target(
        "data, passed through",
        "data",
        _PASSED_DATA,
        tuple(Bound(ours, NATIVE, 1.1) for ours in _PASSED),
    ),
    Target(
        "data",
        "data",
        _DATA,
        _against(1.0),
    ),
    Target(
        "data, collected as the other's",
        "data",
        ("sequential write", "sequential write+fsync", "random 4 KiB write"),
        (Bound(COLLECTING, _FUSE, 1.0),),
    ),
    Target("copy-up of small files", "copyup", _COPIED, _against(0.8)),
    Target("copy-up, not waited for as the other's", "copyup", _COPIED, (Bound(VOLATILE, _FUSE, 0.8),)),
    Target("whole jobs", "whole", ("untar", "git status", "python imports", "dpkg --install"), _against(0.9)),
    Target(
        "memory",
        "memory",
        ("bytes per known inode",),
        (Bound(SINGLE, "", 700), Bound(OVERLAY, "", 700), Bound(OVERLAY, _FUSE, 1.0)),
    ),
)


def judge(results: Results) -> list[Verdict]:
    """Every bound of every target; those of groups that were not run are not measured."""
    verdicts = []
    for target in TARGETS:
        for job in target.jobs:
            if target.unasked:
                for ours in (SINGLE, OVERLAY):
                    row = results.row(target.group, job, ours)
                    verdicts.append(Verdict(target.work, job, Bound(ours, REQUESTS, 0.0), row.asked if row else None))
            verdicts += [_verdict(results, target, job, bound) for bound in target.bounds]
    return verdicts


def _verdict(results: Results, target: Target, job: str, bound: Bound) -> Verdict:
    mine = results.row(target.group, job, bound.ours)
    if mine is None:
        return Verdict(target.work, job, bound, None)
    if not bound.other:
        return Verdict(target.work, job, bound, mine.median, min(mine.values), max(mine.values))
    its = results.row(target.group, job, bound.other)
    if its is None or not its.median:
        return Verdict(target.work, job, bound, None)
    return Verdict(target.work, job, bound, mine.median / its.median, *ratio_range(mine, its))
