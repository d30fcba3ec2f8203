"""How much memory this process may take: the machine's, or what its control groups leave it of that (cgroups(7)).

Owns nothing. Any thread.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

_GROUPS: Final = "/sys/fs/cgroup"
_OWN: Final = "/proc/self/cgroup"


def allowed(groups: str = _GROUPS, own: str = _OWN) -> int:
    """In bytes."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(groups, own)])


def _limits(groups: str, own: str) -> Iterator[int]:
    """Of the process's groups and all above these."""
    with contextlib.suppress(OSError), open(own, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            number, controllers, path = line.rstrip("\n").split(":", 2)
            if number == "0":
                place, name = groups, "memory.max"
            elif "memory" in controllers.split(","):
                place, name = f"{groups}/{controllers}", "memory.limit_in_bytes"
            else:
                continue
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for count in range(len(parts) + 1):
                yield from _limit("/".join([place, *parts[:count], name]))


def _limit(path: str) -> Iterator[int]:
    """None where there is no such file, as in the outermost group, or it says `max`."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        yield int(file.read())
