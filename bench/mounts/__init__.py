"""Benchmarks on mounts, one group to a module: `jobs(scale)`, a table of small functions."""

from collections.abc import Callable, Sequence

from ..jobs import Job, Scale
from . import clients, copyup, data, events, files, growth, listing, locks, lookup, memory, whole

GROUPS: dict[str, Callable[[Scale], Sequence[Job]]] = {
    "lookup": lookup.jobs,
    "listing": listing.jobs,
    "clients": clients.jobs,
    "files": files.jobs,
    "copyup": copyup.jobs,
    "locks": locks.jobs,
    "events": events.jobs,
    "data": data.jobs,
    "whole": whole.jobs,
    "memory": memory.jobs,
    "growth": growth.jobs,
}
