"""What is told of the machine that a measurement was made on."""

from pathlib import Path

import pytest

from bench import machine


@pytest.mark.parametrize(
    ("driver", "polls", "told"),
    [
        (None, None, "as the kernel has it"),
        ("intel_idle\n", None, "intel_idle"),
        ("haltpoll\n", None, "haltpoll"),
        ("haltpoll\n", "200000\n", "haltpoll, 200000 ns"),
        ("acpi_idle\n", "200000\n", "acpi_idle"),
    ],
)
def test_how_idle_processors_wait(tmp_path: Path, driver: str | None, polls: str | None, told: str) -> None:
    (tmp_path / "haltpoll/parameters").mkdir(parents=True)
    if driver is not None:
        (tmp_path / "current_driver").write_text(driver)
    if polls is not None:
        (tmp_path / "haltpoll/parameters/guest_halt_poll_ns").write_text(polls)
    assert machine.how_idle(tmp_path, tmp_path) == told


def test_it_stands_above_the_results(tmp_path: Path) -> None:
    found = machine.machine(tmp_path, [])
    assert f"idle processors: {machine.how_idle()}," in machine.described(found)
    del found["idle"]  # of a run of before
    assert "idle processors: not told," in machine.described(found)
