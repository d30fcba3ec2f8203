"""Errors that nobody expected."""

from types import SimpleNamespace

import pytest

from shiftfs.faults import Faults


class Broken(Exception):
    pass


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    time = [1000.0]
    monkeypatch.setattr("shiftfs.faults.time", SimpleNamespace(monotonic=lambda: time[0]))
    return time


def test_they_are_told_of_with_where_they_came_from(now: list[float]) -> None:
    said: list[str] = []
    mount = Faults(said.append)
    try:
        raise Broken("details")
    except Broken as error:
        mount.survive(error)
    assert mount.total == len(said) == 1
    assert "the mount goes on" in said[0] and "Broken: details" in said[0] and __file__ in said[0]


def test_a_hundred_in_ten_seconds_are_too_many(now: list[float]) -> None:
    mount = Faults(lambda text: None)
    for number in range(100):
        now[0] += 0.01
        mount.survive(Broken(number))
    with pytest.raises(Broken) as caught:
        mount.survive(Broken("the last"))
    assert caught.value.args == ("the last",) and mount.total == 100


def test_as_many_as_there_are_if_they_take_their_time(now: list[float]) -> None:
    mount = Faults(lambda text: None)
    for number in range(500):
        now[0] += 0.2
        mount.survive(Broken(number))
    assert mount.total == 500
