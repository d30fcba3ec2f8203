"""What an operation costs in requests, which is the same on any machine: it does not rise unnoticed."""

from pathlib import Path

import pytest

from bench import exact

KEPT = {"shiftfs: lookup: cold stat": {"LOOKUP": 1.01}, "shiftfs: lookup: hot stat": {}}


@pytest.mark.root
def test_no_operation_has_more_requests_than_it_had(tmp_path: Path) -> None:
    assert exact.believed_rises(tmp_path, exact.kept()) == []


def test_what_is_as_it_was_is_no_rise() -> None:
    assert exact.rises(KEPT, KEPT) == []


def test_fewer_requests_are_no_rise() -> None:
    assert exact.rises(KEPT, {"shiftfs: lookup: cold stat": {"LOOKUP": 1.0}}) == []


def test_another_operation_instead_is_no_rise() -> None:
    assert exact.rises(KEPT, {"shiftfs: lookup: cold stat": {"READDIRPLUS": 1.01}}) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            {"shiftfs: lookup: cold stat": {"LOOKUP": 1.01, "GETATTR": 0.01}},
            "shiftfs: lookup: cold stat: 1.01 per operation (LOOKUP 1.01); now 1.02 per operation (LOOKUP 1.01, "
            "GETATTR 0.01)",
        ),
        (
            {"shiftfs: lookup: hot stat": {"GETATTR": 0.001}},
            "shiftfs: lookup: hot stat: 0 per operation (none); now 0.001 per operation (GETATTR 0.001)",
        ),
        ({"shiftfs: lookup: novelty": {}}, "shiftfs: lookup: novelty: no figure is kept"),
    ],
)
def test_a_rise_is_named(now: exact.Counts, said: str) -> None:
    (rise,) = exact.rises(KEPT, now)
    assert rise.startswith(said)


def test_of_what_is_counted_again_the_least_counts() -> None:
    first = {"a": {"LOOKUP": 2.0, "GETATTR": 1.0}, "b": {"LOOKUP": 1.0}}
    again = {"a": {"LOOKUP": 2.0}, "b": {"LOOKUP": 1.0, "OPEN": 1.0}}
    assert exact.least(first, again) == {"a": {"LOOKUP": 2.0}, "b": {"LOOKUP": 1.0}}


def test_what_rises_once_and_not_again_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"a": {"LOOKUP": 2.0}, "b": {}}, {"a": {"LOOKUP": 1.0}}])
    monkeypatch.setattr(exact, "count", lambda area, only=None: next(answers))
    assert exact.believed_rises(tmp_path, {"a": {"LOOKUP": 1.0}, "b": {}}) == []


def test_what_rises_each_time_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(area: Path, only: list[str] | None = None) -> exact.Counts:
        asked.append(only)
        return {"a": {"LOOKUP": 2.0}}

    monkeypatch.setattr(exact, "count", count)
    assert len(exact.believed_rises(tmp_path, {"a": {"LOOKUP": 1.0}})) == 1
    assert asked == [None, ["a"], ["a"]]
