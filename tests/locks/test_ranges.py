"""The locks of one file: what fcntl(2) says of them, case by case."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from shiftfs import native
from shiftfs.locks import ranges
from shiftfs.locks.ranges import FileLocks, Held, suited
from shiftfs.sys.locks import END, NONE, READ, WRITE

ME, YOU, THEM = 7, 8, 9


@pytest.fixture(params=["plain", "native"], autouse=True)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case is one of the twin as well."""
    if request.param == "native":
        assert native.FileLocks is not None
        monkeypatch.setitem(globals(), "FileLocks", lambda: native.FileLocks(Held))


def held(*locks: tuple[int, int, int, int]) -> FileLocks:
    """With these set one after another: owner, start, end, kind. All through handle 1, by process 100."""
    made = FileLocks()
    for owner, start, end, kind in locks:
        made.set(owner, start, end, kind, 100, 1)
    return made


def owners(locks: FileLocks) -> set[int]:
    return {lock.owner for lock in locks}


def seen(locks: FileLocks) -> list[tuple[int, int, int, int]]:
    """What is held, without who called last."""
    return [lock[:4] for lock in locks]


def test_nothing_is_held_at_first() -> None:
    locks = FileLocks()
    assert (list(locks), len(locks)) == ([], 0)
    assert locks.conflict(ME, 0, END, WRITE) is None
    assert locks.needed(0, END) == [(0, END, NONE)]
    assert (locks.drop(ME), locks.drop_handle(1)) == ([], [])


def test_a_lock_is_held_as_it_was_set() -> None:
    locks = FileLocks()
    locks.set(ME, 3, 5, WRITE, 100, 1)
    assert list(locks) == [Held(ME, 3, 5, WRITE, 100, 1)]
    assert owners(locks) == {ME}


def test_kinds_are_numbered_as_in_fcntl() -> None:
    assert (READ, WRITE, NONE) == (0, 1, 2)


# What one owner sets over what he has.


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [
        (4, 6, [(2, 3), (7, 8)]),
        (3, 7, [(2, 2), (8, 8)]),
        (2, 4, [(5, 8)]),
        (6, 8, [(2, 5)]),
        (0, 4, [(5, 8)]),
        (6, END, [(2, 5)]),
        (2, 8, []),
        (0, END, []),
        (0, 1, [(2, 8)]),
        (9, 9, [(2, 8)]),
    ],
)
def test_unlocking_leaves_what_reaches_beyond(start: int, end: int, left: list[tuple[int, int]]) -> None:
    for kind in (READ, WRITE):
        locks = held((ME, 2, 8, kind), (ME, start, end, NONE))
        assert seen(locks) == [(ME, *each, kind) for each in left]
        assert owners(locks) == ({ME} if left else set())


def test_both_parts_of_a_split_lock_are_of_who_set_it() -> None:
    locks = FileLocks()
    locks.set(ME, 0, 9, WRITE, 100, 1)
    locks.set(ME, 4, 5, NONE, 200, 2)
    assert list(locks) == [Held(ME, 0, 3, WRITE, 100, 1), Held(ME, 6, 9, WRITE, 100, 1)]


@pytest.mark.parametrize(("old", "new"), [(READ, WRITE), (WRITE, READ)], ids=["upgrade", "downgrade"])
def test_another_kind_takes_the_place_of_the_first(old: int, new: int) -> None:
    assert seen(held((ME, 2, 8, old), (ME, 2, 8, new))) == [(ME, 2, 8, new)]
    assert seen(held((ME, 2, 8, old), (ME, 4, 6, new))) == [(ME, 2, 3, old), (ME, 4, 6, new), (ME, 7, 8, old)]
    assert seen(held((ME, 2, 8, old), (ME, 0, 4, new))) == [(ME, 0, 4, new), (ME, 5, 8, old)]
    assert seen(held((ME, 2, 8, old), (ME, 6, END, new))) == [(ME, 2, 5, old), (ME, 6, END, new)]
    assert seen(held((ME, 2, 3, old), (ME, 6, 7, old), (ME, 0, 9, new))) == [(ME, 0, 9, new)]


@pytest.mark.parametrize(
    ("start", "end", "now"),
    [
        (6, 8, [(3, 8), (20, 30)]),
        (0, 2, [(0, 5), (20, 30)]),
        (5, 9, [(3, 9), (20, 30)]),
        (4, 4, [(3, 5), (20, 30)]),
        (0, 40, [(0, 40)]),
        (6, 19, [(3, 30)]),
        (7, 18, [(3, 5), (7, 18), (20, 30)]),
        (31, END, [(3, 5), (20, END)]),
    ],
)
def test_those_of_one_kind_that_meet_or_touch_become_one(start: int, end: int, now: list[tuple[int, int]]) -> None:
    for kind in (READ, WRITE):
        locks = held((ME, 3, 5, kind), (ME, 20, 30, kind), (ME, start, end, kind))
        assert seen(locks) == [(ME, *each, kind) for each in now]


def test_a_merged_lock_is_of_who_set_the_last_part() -> None:
    locks = FileLocks()
    locks.set(ME, 0, 4, READ, 100, 1)
    locks.set(ME, 5, 9, READ, 200, 2)
    assert list(locks) == [Held(ME, 0, 9, READ, 200, 2)]
    locks.set(ME, 3, 3, READ, 300, 3)
    assert list(locks) == [Held(ME, 0, 9, READ, 300, 3)]


def test_neighbours_of_different_kinds_stay_two() -> None:
    assert seen(held((ME, 0, 4, READ), (ME, 5, 9, WRITE))) == [(ME, 0, 4, READ), (ME, 5, 9, WRITE)]


def test_a_lock_between_two_of_another_kind_parts_them_and_is_taken_back() -> None:
    locks = held((ME, 0, 9, READ), (ME, 5, 5, WRITE))
    locks.set(ME, 5, 5, READ, 100, 1)
    assert seen(locks) == [(ME, 0, 9, READ)]


def test_locks_reach_to_the_last_byte_there_is() -> None:
    locks = held((ME, END, END, WRITE), (ME, 0, END - 1, WRITE))
    assert seen(locks) == [(ME, 0, END, WRITE)]
    locks.set(ME, END, END, NONE, 100, 1)
    assert seen(locks) == [(ME, 0, END - 1, WRITE)]
    assert locks.conflict(YOU, END, END, WRITE) is None
    assert locks.conflict(YOU, END - 1, END, WRITE) is not None


# Several owners.


def test_what_others_hold_stays() -> None:
    locks = held((ME, 0, 9, READ), (YOU, 5, 14, READ))
    assert seen(locks) == [(ME, 0, 9, READ), (YOU, 5, 14, READ)]
    locks.set(ME, 0, END, NONE, 100, 1)
    assert seen(locks) == [(YOU, 5, 14, READ)]


def test_locks_are_listed_by_their_starts() -> None:
    locks = held((YOU, 30, 31, READ), (ME, 40, 41, WRITE), (ME, 10, 11, WRITE), (YOU, 20, 21, WRITE))
    assert [lock.start for lock in locks] == [10, 20, 30, 40]
    assert len(locks) == 4
    assert owners(locks) == {ME, YOU}


def test_locks_may_be_dropped_while_they_are_listed() -> None:
    locks = held((ME, 0, 0, READ), (ME, 2, 2, READ), (YOU, 4, 4, READ))
    assert [locks.drop(lock.owner) for lock in locks] == [[(0, 0), (2, 2)], [], [(4, 4)]]


@pytest.mark.parametrize(
    ("theirs", "mine", "excluded"),
    [
        (READ, READ, False),
        (READ, WRITE, True),
        (WRITE, READ, True),
        (WRITE, WRITE, True),
        (READ, NONE, False),
        (WRITE, NONE, False),
    ],
)
def test_readers_share_and_writers_do_not(theirs: int, mine: int, excluded: bool) -> None:
    locks = held((YOU, 4, 6, theirs))
    for start, end in ((0, END), (4, 6), (5, 5), (0, 4), (6, 9)):
        assert locks.conflict(ME, start, end, mine) == (Held(YOU, 4, 6, theirs, 100, 1) if excluded else None)
    for start, end in ((0, 3), (7, END)):
        assert locks.conflict(ME, start, end, mine) is None


def test_nobody_is_in_his_own_way() -> None:
    locks = held((ME, 0, END, WRITE))
    assert locks.conflict(ME, 5, 6, WRITE) is None
    assert locks.conflict(ME, 5, 6, READ) is None


def test_the_first_conflict_is_told() -> None:
    locks = held((YOU, 30, 39, WRITE), (THEM, 10, 19, READ), (THEM, 40, 49, WRITE), (ME, 0, 5, WRITE))

    def first(owner: int, start: int, kind: int) -> int | None:
        conflict = locks.conflict(owner, start, END, kind)
        return None if conflict is None else conflict.start

    assert first(ME, 0, WRITE) == 10
    assert first(ME, 15, WRITE) == 10, "it starts before the range"
    assert first(ME, 20, WRITE) == 30
    assert first(ME, 0, READ) == 30, "the first is shared"
    assert first(YOU, 6, READ) == 40
    assert first(THEM, 0, READ) == 0
    assert first(ME, 50, WRITE) is None


# Closing.


def test_close_releases_all_of_an_owner() -> None:
    locks = held((ME, 9, 9, READ), (ME, 0, 1, WRITE), (ME, 4, 5, READ), (YOU, 4, 5, READ))
    assert locks.drop(ME) == [(0, 1), (4, 5), (9, 9)]
    assert seen(locks) == [(YOU, 4, 5, READ)]
    assert owners(locks) == {YOU}
    assert locks.drop(ME) == []


def test_a_handle_takes_along_what_was_locked_through_it() -> None:
    locks = FileLocks()
    locks.set(ME, 20, 21, WRITE, 100, 1)
    locks.set(ME, 0, 1, READ, 100, 1)
    locks.set(ME, 10, 11, READ, 100, 2)
    locks.set(YOU, 5, 6, WRITE, 200, 1)
    assert locks.drop_handle(1) == [(0, 1), (5, 6), (20, 21)]
    assert list(locks) == [Held(ME, 10, 11, READ, 100, 2)]
    assert owners(locks) == {ME}
    assert locks.drop_handle(1) == []


def test_a_merged_lock_goes_with_the_last_handle_it_was_set_through() -> None:
    locks = FileLocks()
    locks.set(ME, 0, 4, READ, 100, 1)
    locks.set(ME, 5, 9, READ, 100, 2)
    assert locks.drop_handle(1) == []
    assert locks.drop_handle(2) == [(0, 9)]
    assert len(locks) == 0


def test_both_parts_of_a_split_lock_go_with_its_handle() -> None:
    locks = FileLocks()
    locks.set(ME, 0, 9, READ, 100, 1)
    locks.set(ME, 4, 5, WRITE, 100, 2)
    assert locks.drop_handle(1) == [(0, 3), (6, 9)]
    assert seen(locks) == [(ME, 4, 5, WRITE)]


# What must be held on behalf of all.


def test_the_strongest_kind_is_needed() -> None:
    locks = held((ME, 0, 9, READ), (YOU, 5, 14, READ), (THEM, 15, 19, WRITE), (THEM, 30, END, READ))
    assert locks.needed(0, END) == [(0, 14, READ), (15, 19, WRITE), (20, 29, NONE), (30, END, READ)]
    assert locks.needed(3, 16) == [(3, 14, READ), (15, 16, WRITE)]
    assert locks.needed(20, 20) == [(20, 20, NONE)]
    assert locks.needed(END, END) == [(END, END, READ)]


def test_neighbours_of_one_kind_are_needed_as_one() -> None:
    locks = held((ME, 0, 4, READ), (YOU, 5, 9, READ), (ME, 10, 14, WRITE), (YOU, 15, 19, WRITE))
    assert locks.needed(0, 19) == [(0, 9, READ), (10, 19, WRITE)]


def test_what_one_gives_up_another_may_still_need() -> None:
    locks = held((ME, 0, 9, READ), (YOU, 3, 5, READ))
    dropped = locks.drop(ME)
    assert [locks.needed(*each) for each in dropped] == [[(0, 2, NONE), (3, 5, READ), (6, 9, NONE)]]


# Many.


def many(count: int) -> FileLocks:
    """Of one owner: even bytes, read and written by turns."""
    locks = FileLocks()
    for offset in range(0, 2 * count, 4):
        locks.set(ME, offset, offset, READ, 100, 1)
        locks.set(ME, offset + 2, offset + 2, WRITE, 100, 1)
    return locks


def steps(call: Callable[[], object]) -> int:
    """How many instructions of the module the interpreter goes through for a call."""
    counted = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal counted
        if frame.f_code.co_filename != ranges.__file__:
            return None
        frame.f_trace_opcodes = True
        counted += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        call()
    finally:
        sys.settrace(before)
    assert counted
    return counted


CALLS: dict[str, Callable[[FileLocks, int], object]] = {
    "add": lambda locks, at: locks.set(ME, at + 1, at + 1, READ, 100, 1),
    "upgrade": lambda locks, at: locks.set(ME, at, at, WRITE, 100, 1),
    "unlock": lambda locks, at: locks.set(ME, at, at, NONE, 100, 1),
    "conflict": lambda locks, at: locks.conflict(YOU, at, at + 1, WRITE),
    "shared": lambda locks, at: locks.conflict(YOU, at, at + 1, READ),
    "conflict somewhere": lambda locks, at: locks.conflict(YOU, 0, END, WRITE),
    "needed": lambda locks, at: locks.needed(at, at + 10),
}


def test_a_call_takes_no_more_steps_among_100000_locks_than_among_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FileLocks", ranges.FileLocks)
    few, lots = many(1_000), many(100_000)
    assert (len(few), len(lots)) == (1_000, 100_000)
    for name, call in CALLS.items():
        enough = 2 * steps(lambda call=call: call(few, 1_000))  # type: ignore[misc]
        for at in (0, 100_000, 199_980):
            assert steps(lambda call=call, at=at: call(lots, at)) <= enough, name  # type: ignore[misc]


@pytest.mark.parametrize("backwards", [False, True])
def test_100000_locks_are_kept_apart_and_can_be_joined(backwards: bool) -> None:
    locks = FileLocks()
    offsets = range(0, 200_000, 2)
    for offset in reversed(offsets) if backwards else offsets:
        locks.set(ME, offset, offset, READ, 100, 1)
        locks = suited(locks)
    assert [(lock.start, lock.end) for lock in locks] == [(offset, offset) for offset in offsets]
    assert len(locks.needed(0, 199_998)) == 199_999
    locks.set(ME, 1_000, 150_000, WRITE, 100, 1)
    assert len(locks) == 500 + 1 + 24_999
    locks.set(ME, 0, END, READ, 100, 1)
    assert seen(locks) == [(ME, 0, END, READ)]


def test_a_file_has_the_same_locks_when_they_have_become_many() -> None:
    locks = FileLocks()
    for owner in (ME, YOU):
        for offset in range(0, ranges.MANY, 2):
            locks.set(owner, offset, offset, READ, owner, offset)
            before = list(locks)
            locks = suited(locks)
            assert list(locks) == before
    assert type(locks) is ranges.FileLocks
