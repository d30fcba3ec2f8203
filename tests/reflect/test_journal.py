"""The ring of changes: what is kept, how it is counted, and how it goes to shiftfsctl in parts."""

import json
import os
from typing import Any

import pytest

from shiftfs.ops.control import REPORT_OUT, REPORT_SIZE
from shiftfs.reflect import journal
from shiftfs.reflect.journal import Entry, Journal


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(journal, "time", clock)
    return clock


def filled(count: int, size: int = journal.SIZE) -> Journal:
    kept = Journal(size)
    for number in range(1, count + 1):
        kept.add(0, b"/%d" % number, "create")
    return kept


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.number for entry in entries]


def parts(kept: Journal, after: int = 0, when: float = 0.0) -> list[dict[str, Any]]:
    """All reports that it takes, through JSON."""
    found = []
    while True:
        report = json.loads(json.dumps(kept.report(after, when)))
        found.append(report)
        assert report["next"] > after or report["next"] == report["total"], "no way on"
        after = report["next"]
        if after >= report["total"]:
            return found


def test_what_is_added_is_kept_as_it_was(clock: Clock) -> None:
    kept = Journal()
    kept.add(2, b"/a\xff\n", "create")
    clock.now = 1001.5
    kept.add(0, b"/a", "move", b"/b", shown=False)
    assert kept.since(0) == [
        Entry(1, 1000.0, 2, b"/a\xff\n", "create", b"", True),
        Entry(2, 1001.5, 0, b"/a", "move", b"/b", False),
    ]
    assert (kept.total, kept.dropped) == (2, 0)


def test_an_empty_one() -> None:
    kept = Journal()
    assert kept.since(0) == kept.since(5) == []
    report = kept.report(0, 0.0)
    assert report == {
        "started": kept.started,
        "total": 0,
        "dropped": 0,
        "size": journal.SIZE,
        "oldest": None,
        "next": 0,
        "entries": [],
    }


def test_the_oldest_fall_out_and_are_counted() -> None:
    kept = filled(25, 10)
    assert (kept.total, kept.dropped) == (25, 15)
    assert numbers(kept.since(0)) == list(range(16, 26))
    assert kept.since(0)[0].path == b"/16"


@pytest.mark.parametrize(
    ("after", "first"), [(0, 16), (14, 16), (15, 16), (16, 17), (24, 25), (25, None), (26, None), (2**64 - 1, None)]
)
def test_since_a_number(after: int, first: int | None) -> None:
    found = numbers(filled(25, 10).since(after))
    assert found == ([] if first is None else list(range(first, 26)))


def test_since_a_time_whatever_the_clock_did(clock: Clock) -> None:
    kept = Journal()
    for clock.now in (10.0, 20.0, 5.0, 30.0):
        kept.add(0, b"/", "attributes")
    assert [entry.time for entry in kept.since(0, 20.0)] == [20.0, 30.0]
    assert numbers(kept.since(2, 20.0)) == [4]
    assert kept.since(0, 31.0) == kept.since(0, float("inf")) == []


def test_at_least_one_however_long() -> None:
    kept = Journal()
    for name in (b"a" * 5000, b"b", b"c"):
        kept.add(0, name, "create")
    assert numbers(kept.since(0, most=100)) == [1]
    assert numbers(kept.since(1, most=100)) == [2]
    assert numbers(kept.since(1, most=10_000)) == [2, 3]


def test_all_of_it_in_parts_of_one_answer_each() -> None:
    kept = filled(12_000)
    reports = parts(kept)
    assert [event["number"] for report in reports for event in report["entries"]] == list(range(2001, 12_001))
    assert max(len(json.dumps(report)) for report in reports) <= REPORT_SIZE - REPORT_OUT.size
    assert {(report["total"], report["dropped"], report["size"]) for report in reports} == {(12_000, 2000, 10_000)}


def test_parts_pass_over_what_is_too_old(clock: Clock) -> None:
    kept = filled(5000)
    clock.now = 2000.0
    kept.add(0, b"/new", "create")
    (report,) = parts(kept, when=1500.0)
    assert [event["path"] for event in report["entries"]] == ["/new"]
    assert (report["next"], report["oldest"]) == (5001, 1000.0)


def test_any_name_survives_json() -> None:
    kept = Journal()
    name = b"/" + bytes(byte for byte in range(1, 256) if byte != ord("/"))
    kept.add(0, name, "move", name[::-1])
    (report,) = parts(kept)
    (event,) = report["entries"]
    assert (os.fsencode(event["path"]), os.fsencode(event["to"])) == (name, name[::-1])


def test_the_fields_of_a_report(clock: Clock) -> None:
    kept = Journal()
    kept.add(1, b"/a", "modify")
    kept.add(-1, b"/", "overflow", shown=False)
    assert kept.report(0, 0.0)["entries"] == [
        {"number": 1, "time": 1000.0, "layer": 1, "kind": "modify", "path": "/a", "shown": True},
        {"number": 2, "time": 1000.0, "layer": None, "kind": "overflow", "path": "/", "shown": False},
    ]
    assert kept.report(0, 0.0)["started"] == 1000.0
