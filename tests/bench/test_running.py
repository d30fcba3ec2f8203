"""Turns, failures and choices: what is measured when, and what becomes of those that cannot take part."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.jobs import EXACT, Job, Layout, Mounted, Scale, Work
from bench.running import Runner, Turn
from bench.subjects import NATIVE, SUBJECTS, Subject, chosen, missing, our_overlay, ours, peer

HERE = Subject(NATIVE, None)
BROKEN = peer("broken", lambda place: ["false"])
OTHER = Subject("another directory", None)


def _make(base: Path, scale: Scale) -> str:
    (base / "lower0").mkdir()
    return "material"


EMPTY = Layout("empty", _make)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    made = Runner(tmp_path, EXACT, 3, lambda _: None, only_counts=True)
    yield made
    made.end()


def quick(mounted: Mounted, material: str, scale: Scale) -> Work:
    return Work(lambda: None, 10)


def test_each_round_has_everybodys_turn_and_begins_with_another(runner: Runner) -> None:
    order = []

    def prepare(mounted: Mounted, material: str, scale: Scale) -> Work:
        assert material == "material"
        return Work(lambda: order.append(mounted.subject))

    runner.run([Turn("group", Job("job", EMPTY, prepare))], [HERE, OTHER])
    assert order == [NATIVE, OTHER.name, OTHER.name, NATIVE, NATIVE, OTHER.name]


def test_seconds_are_per_operation_unless_the_work_has_a_value_of_its_own(runner: Runner) -> None:
    def value(mounted: Mounted, material: str, scale: Scale) -> Work:
        return Work(lambda: 123.0, 10)

    runner.run([Turn("group", Job("seconds", EMPTY, quick)), Turn("group", Job("value", EMPTY, value))], [HERE])
    seconds, own = runner.rows
    assert len(seconds.values) == 3 and all(0 < taken < 1 for taken in seconds.values)
    assert own.values == [123.0] * 3


@pytest.mark.parametrize("writes", [False, True])
def test_what_cannot_be_mounted_is_told_and_the_others_go_on(runner: Runner, writes: bool) -> None:
    runner.run([Turn("group", Job("job", EMPTY, quick, writes=writes))], [BROKEN, HERE])
    rows = {row.subject: row for row in runner.rows}
    assert "false" in rows["broken"].failed and rows["broken"].values == []
    assert len(rows[NATIVE].values) == 3 and not rows[NATIVE].failed


def test_work_that_fails_is_told_and_cleaned_up_after(runner: Runner) -> None:
    cleaned = []

    def prepare(mounted: Mounted, material: str, scale: Scale) -> Work:
        def run() -> None:
            raise OSError(5, "no luck")

        return Work(run, after=lambda: cleaned.append(True))

    runner.run([Turn("group", Job("job", EMPTY, prepare)), Turn("group", Job("next", EMPTY, quick))], [HERE])
    failed, after = runner.rows
    assert failed.failed == "EIO: [Errno 5] no luck"
    assert cleaned == [True]
    assert len(after.values) == 3


def test_what_writes_has_a_copy_of_its_own(runner: Runner, tmp_path: Path) -> None:
    def prepare(mounted: Mounted, material: str, scale: Scale) -> Work:
        assert list(mounted.at.iterdir()) == []
        return Work((mounted.at / "written").touch)

    # Where only requests are counted, only what changes layers has one.
    runner._only_counts = False
    runner.run([Turn("group", Job("job", EMPTY, prepare, writes=True))], [HERE])
    (row,) = runner.rows
    assert not row.failed and len(row.values) == 3


@pytest.mark.parametrize(
    ("job", "takes_part"),
    [
        (Job("job", EMPTY, quick, layered=True), False),
        (Job("job", EMPTY, quick, tells=True), True),
        (Job("job", EMPTY, quick, needs="no-such-program"), False),
    ],
)
def test_a_job_is_for_those_that_it_fits(runner: Runner, job: Job, takes_part: bool) -> None:
    runner.run([Turn("group", job)], [HERE])
    assert bool(runner.rows) == takes_part


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        (peer("peer", lambda place: [], program="no-such-program"), "no-such-program is not on this machine"),
        (ours("shiftfs", "novelty=on"), "this shiftfs has no novelty=on"),
        (ours("shiftfs", "splice_read"), "splice_read does nothing in this shiftfs"),
        (ours("shiftfs", "open=serve"), ""),
        (our_overlay("shiftfs overlay", "volatile"), ""),
        (HERE, ""),
    ],
)
def test_what_cannot_be_had_is_left_out_with_a_reason(subject: Subject, reason: str) -> None:
    assert missing(subject) == reason


def test_peers_and_ours_are_chosen_by_name() -> None:
    taken, _ = chosen("none", "shiftfs", [])
    assert [subject.name for subject in taken] == [NATIVE, "shiftfs"]


def test_another_checkout_is_measured_beside() -> None:
    taken, _ = chosen("none", "shiftfs", ["/srv/before"])
    assert [subject.name for subject in taken][2:] == ["shiftfs of before", "shiftfs overlay of before"]
    assert dict(taken[2].environment) == {"PYTHONPATH": "/srv/before"}


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no subject is named novelty"):
        chosen("novelty", None, [])


def test_no_two_subjects_have_one_name() -> None:
    assert len({subject.name for subject in SUBJECTS}) == len(SUBJECTS)
