"""Which changes between two runs are named: those beyond what the runs vary, the machine's own change taken out."""

from pathlib import Path

import pytest

from bench import compare
from bench.results import Results, save
from harness.runs import results, row

STEADY = [10.0, 10.1, 9.9]


Asked = dict[str, float] | None


def run(mine: list[float], others: list[float], requests: Asked = None, exact: bool = True) -> Results:
    measured = row("shiftfs", mine, requests=requests or {}, exact=exact)
    return results(measured, row("bindfs", others), row("native", others))


def only(old: Results, new: Results) -> compare.Change:
    (change,) = compare.changes(old, new)
    return change


def test_what_takes_longer_is_slower() -> None:
    change = only(run(STEADY, STEADY), run([13.0, 13.1, 12.9], STEADY))
    assert change.is_slower and not change.is_faster
    assert change.ratio == pytest.approx(1.3)


def test_what_takes_less_is_faster() -> None:
    assert only(run(STEADY, STEADY), run([7.0, 7.1, 6.9], STEADY)).is_faster


def test_a_slower_machine_is_no_change() -> None:
    doubled = [2 * value for value in STEADY]
    change = only(run(STEADY, STEADY), run(doubled, doubled))
    assert change.ratio == pytest.approx(1)
    assert not change.is_slower


def test_what_has_grown_slower_shows_on_a_faster_machine() -> None:
    halved = [value / 2 for value in STEADY]
    assert only(run(STEADY, STEADY), run(STEADY, halved)).ratio == pytest.approx(2)


def test_rounds_that_differ_much_hide_a_small_change() -> None:
    noisy = [8.0, 10.0, 12.0]
    assert not only(run(noisy, STEADY), run([10.0, 13.0, 15.0], STEADY)).is_slower


def test_noise_of_the_others_counts_as_well() -> None:
    noisy = [5.0, 10.0, 15.0]
    assert only(run(STEADY, noisy), run([13.0, 13.1, 12.9], noisy)).noise > 0.3


def test_what_only_one_run_has_is_not_compared() -> None:
    assert compare.changes(results(), run(STEADY, STEADY)) == []


def test_requests_that_rise_are_named() -> None:
    old = run(STEADY, STEADY, requests={"LOOKUP": 1.0})
    new = run(STEADY, STEADY, requests={"LOOKUP": 1.0, "GETATTR": 0.5})
    assert compare.risen(old, new) == [
        "shiftfs: lookup: cold stat: 1 requests per operation were 1.5: GETATTR 0 is 0.5"
    ]
    assert compare.risen(new, old) == []


def test_requests_that_are_not_the_same_each_time_may_rise_a_little() -> None:
    def asked(count: float) -> Results:
        return run(STEADY, STEADY, {"LOOKUP": count}, exact=False)

    assert compare.risen(asked(1000), asked(1049)) == []
    assert len(compare.risen(asked(1000), asked(1051))) == 1


@pytest.mark.parametrize(
    ("old", "new", "status", "said"),
    [
        (run(STEADY, STEADY), run(STEADY, STEADY), 0, "1 compared, 0 slower, 0 with more requests"),
        (run(STEADY, STEADY), run([20.0] * 3, STEADY), 1, "slower: shiftfs: lookup: cold stat: 2.00"),
        (run(STEADY, STEADY), run(STEADY, STEADY, requests={"OPEN": 1.0}), 1, "more requests: shiftfs"),
    ],
)
def test_the_command_fails_on_what_it_names(
    old: Results, new: Results, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(old, tmp_path / "old")
    save(new, tmp_path / "new")
    assert compare.main([str(tmp_path / "old"), str(tmp_path / "new")]) == status
    assert said in capsys.readouterr().out


def test_runs_of_two_scales_are_not_compared(tmp_path: Path) -> None:
    quick = run(STEADY, STEADY)
    quick.scale = "quick"
    save(quick, tmp_path / "quick")
    save(run(STEADY, STEADY), tmp_path / "full")
    with pytest.raises(SystemExit, match="did not do the same"):
        compare.main([str(tmp_path / "quick"), str(tmp_path / "full")])
