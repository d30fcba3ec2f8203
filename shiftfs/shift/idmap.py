"""Maps between real ids (on the layer) and shown ids (on the mount).

Owns the ranges, the rules that make them a map, and the three texts that maps are written in. Never reads a
file and never decides what to do about an id without a mapping: that is UNMAPPED, and its meaning is the
caller's. Maps are made before the mount; the loop thread looks ids up.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

UNMAPPED: Final = 0xFFFFFFFF
"""(uid_t)-1, which no file can be owned by; stat(2) shows it as the overflow id."""

_REMEMBERED: Final = 65_536  # some MiB a direction; callers choose the ids, so they are bounded
# int() would also take signs, blanks, underscores and other scripts.
_NUMBER = re.compile("[0-9]{1,10}", re.ASCII)
_ALLOWED = "ids go from 0 to 4294967294 and counts from 1"


class MapError(ValueError):
    """A map that cannot be; its text names the triple or line, and says what is allowed."""


class Range(NamedTuple):
    """`count` ids from `real` (on the layer), shown as those from `shown` (on the mount)."""

    real: int
    shown: int
    count: int  # type: ignore[assignment]  # the word of user_namespaces(7); hides tuple.count, unused here

    def __str__(self) -> str:
        return f"{self.real}:{self.shown}:{self.count}"


class _Side(dict[int, int]):
    """One direction of a map. Subscripting a known id is a plain dict lookup, the cheapest in Python."""

    __slots__ = ("_ranges", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        super().__init__()
        self._ranges = sorted(ranges)
        self._starts = [start for start, _, _ in self._ranges]

    def __missing__(self, number: int) -> int:
        answer = UNMAPPED
        index = bisect_right(self._starts, number) - 1
        if index >= 0:
            start, target, count = self._ranges[index]
            if number - start < count:
                answer = target + number - start
        if len(self) >= _REMEMBERED:
            self.clear()
        self[number] = answer
        return answer


class _Squashed(dict[int, int]):
    """Every id is shown as one."""

    __slots__ = ("_one",)

    def __init__(self, one: int) -> None:
        super().__init__()
        self._one = one

    def __missing__(self, number: int) -> int:
        return self._one


class IdMap:
    """A map of ids. `shown[real]` and `real[shown]` give the other id, or UNMAPPED; they never raise for an
    int. With `squash`, every owner is shown as that id, and only owners: `named` says what an id inside a value (an
    ACL, a capability) stands for, and `real` what is stored for a caller, as if nothing were squashed.

    Raises MapError for ranges that are empty, reach beyond the last id, or overlap on either side: then an id
    would have two meanings, and one owner could act as another.
    """

    __slots__ = ("is_identity", "keeps_ids", "named", "ranges", "real", "shown", "squash")

    def __init__(self, ranges: Iterable[Range], squash: int | None = None) -> None:
        self.ranges: Final = tuple(ranges)
        _check(self.ranges)
        self.squash: Final = squash
        self.named: Final = _Side((r.real, r.shown, r.count) for r in self.ranges)
        self.shown: Final[dict[int, int]] = self.named if squash is None else _Squashed(squash)
        self.real: Final = _Side((r.shown, r.real, r.count) for r in self.ranges)
        # Ranges without overlap that cover all ids have this sum and no gap.
        self.keeps_ids: Final = (
            all(r.real == r.shown for r in self.ranges) and sum(r.count for r in self.ranges) == UNMAPPED
        )
        """Are ids stored as they are?"""
        self.is_identity: Final = self.keeps_ids and squash is None

    @property
    def inverse(self) -> "IdMap":
        """The same, with what is real here shown there."""
        return IdMap(Range(one.shown, one.real, one.count) for one in self.ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and (self.ranges, self.squash) == (other.ranges, other.squash)

    def __hash__(self) -> int:
        return hash((self.ranges, self.squash))

    def __str__(self) -> str:
        return ":".join(map(str, self.ranges)) + ("" if self.squash is None else f", all shown as {self.squash}")

    def __repr__(self) -> str:
        return f"<IdMap {self}>"


def _check(ranges: Sequence[Range]) -> None:
    if not ranges:
        raise MapError("the map is empty; give at least one triple REAL:SHOWN:COUNT")
    for item in ranges:
        if item.count < 1:
            raise MapError(f"{item} maps no id; {_ALLOWED}")
        if min(item.real, item.shown) < 0 or max(item.real, item.shown) + item.count > UNMAPPED:
            raise MapError(f"{item} reaches beyond the last id; {_ALLOWED}")
    _check_overlap([(r.real, r) for r in ranges], "real")
    _check_overlap([(r.shown, r) for r in ranges], "shown")


def _check_overlap(starts: list[tuple[int, Range]], side: str) -> None:
    starts.sort()
    for (low, before), (high, after) in pairwise(starts):
        if low + before.count > high:
            raise MapError(f"{after} overlaps {before} in its {side} ids; an id can be mapped only once")


IDENTITY: Final = IdMap([Range(0, 0, UNMAPPED)])
"""Ids as they are."""


def parse_triples(text: str) -> IdMap:
    """Make a map of `REAL:SHOWN:COUNT`, any number of them joined by colons.

    containers/storage sends a colon before the first; that one is tolerated. Raises MapError.
    """
    parts = text.removeprefix(":").split(":") if text.removeprefix(":") else []
    triples = [parts[at : at + 3] for at in range(0, len(parts), 3)]
    return IdMap([_range(*t) if len(t) == 3 else _refuse(":".join(t)) for t in triples])


def from_proc_map(lines: Iterable[str]) -> IdMap:
    """Make the map of a user namespace from its /proc/PID/uid_map or gid_map (user_namespaces(7)), whose
    lines are `INSIDE OUTSIDE COUNT`: ids inside are those of the layer, ids outside those of the mount.

    OUTSIDE is as the reader's namespace has it, so read the file from that of the mount. Raises MapError.
    """
    ranges = []
    for line in lines:
        fields = line.split()
        if len(fields) != 3:
            raise MapError(f"the line {line.strip()!r} is not INSIDE OUTSIDE COUNT")
        ranges.append(_range(*fields))
    if not ranges:
        raise MapError("the user namespace has no map yet; write one first (newuidmap(1))")
    return IdMap(ranges)


def from_subid(lines: Iterable[str], user: str, uid: int, own_id: int) -> IdMap:
    """Make the map that `user` gets from /etc/subuid or /etc/subgid (subuid(5): `USER:START:COUNT`, where
    USER may also be the numeric `uid`, in both files).

    As podman and `unshare --map-root-user --map-auto` do: id 0 of the layer is the user itself (`own_id`: its
    uid or gid), and 1 and up are its ranges in the order of the file. Raises MapError.
    """
    ranges = [Range(0, own_id, 1)]
    for line in lines:
        owner, _, rest = line.strip().partition(":")
        if owner not in (user, str(uid)):
            continue  # others' lines, and blank ones, are none of our business even where malformed
        start, _, count = rest.partition(":")
        if not (_NUMBER.fullmatch(start) and _NUMBER.fullmatch(count)):
            raise MapError(f"the line {line.strip()!r} is not USER:START:COUNT")
        ranges.append(Range(ranges[-1].real + ranges[-1].count, int(start), int(count)))
    if len(ranges) == 1:
        raise MapError(f"no range is given to {user}; add one with usermod(8)")
    return IdMap(ranges)


def _range(real: str, shown: str, count: str) -> Range:
    if not all(map(_NUMBER.fullmatch, (real, shown, count))):
        _refuse(f"{real}:{shown}:{count}")
    return Range(int(real), int(shown), int(count))


def _refuse(triple: str) -> Range:
    raise MapError(f"{triple!r} is not REAL:SHOWN:COUNT in decimal digits; {_ALLOWED}")
