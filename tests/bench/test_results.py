"""The format of results, their statistics, and the targets that are judged by them."""

from pathlib import Path

import pytest

from bench.results import Row, joined, load, ratio_range, save
from bench.targets import REQUESTS, TARGETS, judge
from harness.runs import OURS, results, row


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = results(row("shiftfs", [1e-5, 2e-5], requests={"LOOKUP": 1.0}), left_out={"mergerfs": "is not there"})
    save(made, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == made


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 1}', '{"format": 1, "rows": [{"novelty": 1}]}', "no JSON"])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError):
        load(tmp_path / "run.json")


def test_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99, not 1"):
        load(tmp_path / "run.json")


def test_one_slow_round_moves_neither_median_nor_spread() -> None:
    found = row("shiftfs", [10.0, 11.0, 12.0, 11.0, 500.0])
    assert found.median == 11.0
    assert found.spread == pytest.approx(1 / 11)


def test_a_ratio_is_of_medians_and_its_range_of_rounds() -> None:
    mine, its = row("shiftfs", [2.0, 4.0, 9.0]), row("bindfs", [1.0, 1.0, 3.0])
    assert results(mine, its).ratio("lookup", "cold stat", "shiftfs", "bindfs") == 4.0
    assert ratio_range(mine, its) == (2.0, 4.0)


def test_what_failed_is_not_compared() -> None:
    made = results(row("shiftfs", [1.0]), row("bindfs", [1.0], failed="EIO"))
    assert made.ratio("lookup", "cold stat", "shiftfs", "bindfs") is None


def test_runs_are_joined_as_rounds_of_one() -> None:
    one = results(row("shiftfs", [1.0], requests={"LOOKUP": 1.0, "OPEN": 1.0}), row("mergerfs", [5.0]))
    other = results(row("shiftfs", [2.0, 3.0], requests={"LOOKUP": 1.0}), row("bindfs", [4.0, 4.0]))
    both = joined([one, other])
    mine = both.row("lookup", "cold stat", "shiftfs")
    assert mine is not None and mine.values == [1.0, 2.0, 3.0] and mine.asked == 1.0
    assert both.rounds == 6
    assert both.subjects() == ["shiftfs", "mergerfs", "bindfs"]


def test_runs_of_two_scales_are_not_joined() -> None:
    other = results()
    other.scale = "quick"
    with pytest.raises(ValueError, match="did not do the same"):
        joined([results(), other])


def test_runs_of_two_versions_are_not_joined() -> None:
    other = results()
    other.machine = {**other.machine, "versions": {"shiftfs": "2"}}
    with pytest.raises(ValueError, match="different versions"):
        joined([results(), other])


def judged(*rows: Row) -> dict[tuple[str, str, str], bool | None]:
    verdicts = judge(results(*rows))
    return {(v.job, v.bound.ours, v.bound.other): v.holds for v in verdicts if v.measured is not None}


def test_a_target_holds_up_to_its_bound() -> None:
    for mine, holds in ((0.9, True), (0.92, False)):
        found = judged(row("shiftfs overlay", [mine]), row("fuse-overlayfs", [1.0]))
        assert found == {("cold stat", "shiftfs overlay", "fuse-overlayfs"): holds}


def test_a_hot_operation_may_ask_nothing_at_all() -> None:
    asked = row("shiftfs", [1.0], "hot stat", requests={"GETATTR": 0.0001})
    assert judged(asked) == {("hot stat", "shiftfs", REQUESTS): False}
    assert judged(row("shiftfs", [1.0], "hot stat")) == {("hot stat", "shiftfs", REQUESTS): True}


def test_memory_is_judged_by_its_value_and_beside_the_peer() -> None:
    rows = [row(name, [value], "bytes per known inode", "memory") for name, value in zip(OURS, (650, 750), strict=True)]
    found = judged(*rows, row("fuse-overlayfs", [700], "bytes per known inode", "memory"))
    assert found == {
        ("bytes per known inode", "shiftfs", ""): True,
        ("bytes per known inode", "shiftfs overlay", ""): False,
        ("bytes per known inode", "shiftfs overlay", "fuse-overlayfs"): False,
    }


def test_every_target_is_about_jobs_that_there_are() -> None:
    from bench import mounts
    from bench.jobs import FULL

    there = {(group, job.name) for group, jobs in mounts.GROUPS.items() for job in jobs(FULL)}
    assert {(target.group, job) for target in TARGETS for job in target.jobs} <= there
