"""How much of the machine this process may take: all, or what its control groups leave it of that (cgroups(7)).

Owns nothing. Any thread.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

_GROUPS: Final = "/sys/fs/cgroup"
_OWN: Final = "/proc/self/cgroup"


def memory(groups: str = _GROUPS, own: str = _OWN) -> int:
    """In bytes."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = _limits("memory", ("memory.max",), ("memory.limit_in_bytes",), groups, own)
    return min([machine, *(number for (number,) in limits)])


def processors(groups: str = _GROUPS, own: str = _OWN) -> float:
    """At a time, on the average of a tenth of a second or so."""
    quotas = _limits("cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"), groups, own)
    return min([len(os.sched_getaffinity(0)), *(quota / period for quota, period in quotas if quota > 0)])


def _limits(
    controller: str, names: tuple[str, ...], first_names: tuple[str, ...], groups: str, own: str
) -> Iterator[tuple[int, ...]]:
    """The numbers in these files, of which version 1 has others, of the process's groups and all above these."""
    with contextlib.suppress(OSError), open(own, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            number, controllers, path = line.rstrip("\n").split(":", 2)
            if number == "0":
                place, files = groups, names
            elif controller in controllers.split(","):
                place, files = f"{groups}/{controllers}", first_names
            else:
                continue
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for count in range(len(parts) + 1):
                yield from _limit("/".join([place, *parts[:count]]), files)


def _limit(group: str, files: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """None where there is no such file, as in the outermost group, or one says `max`."""
    with contextlib.suppress(OSError, ValueError):
        yield tuple(int(word) for name in files for word in _read(f"{group}/{name}").split())


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
