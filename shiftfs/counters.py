"""Counts and times of the requests of one mount, per operation. Owns numbers only. Loop thread."""

from typing import Any

from .wire.abi import Opcode


class Counter:
    """One operation: requests answered, those answered with an error, nanoseconds spent in all and at most."""

    __slots__ = ("count", "errors", "longest", "total")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.total = 0
        self.longest = 0

    def add(self, nanoseconds: int) -> None:
        """One more request, from its arrival to its answer."""
        self.count += 1
        self.total += nanoseconds
        if nanoseconds > self.longest:
            self.longest = nanoseconds


    def add_many(self, count: int, errors: int, total: int, longest: int) -> None:
        """The same of several, with nanoseconds in all and of the longest."""
        self.count += count
        self.errors += errors
        self.total += total
        self.longest = max(self.longest, longest)


class Counters(dict[int, Counter]):
    """Opcode -> its counter, made at first use."""

    def __missing__(self, opcode: int) -> Counter:
        counter = self[opcode] = Counter()
        return counter

    def report(self) -> dict[str, dict[str, Any]]:
        """By the operation's name; times in microseconds."""
        return {
            _name(opcode): {
                "count": c.count,
                "errors": c.errors,
                "mean_us": round(c.total / c.count / 1000, 1) if c.count else 0.0,
                "max_us": round(c.longest / 1000, 1),
            }
            for opcode, c in sorted(self.items())
        }


def _name(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"OPCODE_{opcode}"
