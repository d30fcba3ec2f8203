"""Fixtures of the tests of layers that are changed behind a mount. Owns what the tests of one module share."""

import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.behind import KINDS, Behind, Place, behind
from harness.changes import OUTSIDE, TREE

_waits: dict[str, list[float]] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind, waits in _waits.items():
        median, worst = statistics.median(waits) * 1000, max(waits) * 1000
        terminalreporter.write_line(
            f"live, {kind}: {len(waits)} changes visible after {median:.1f} ms (median), {worst:.1f} ms (worst)"
        )


@pytest.fixture(scope="module", params=KINDS)
def each(request: pytest.FixtureRequest, area: Path) -> Iterator[Behind]:
    """Mounts of every kind, and none."""
    yield from _behind(request.param)


@pytest.fixture(scope="module", params=["native", "source", "inotify", "namespace", "lower", "upper merged"])
def writable(request: pytest.FixtureRequest, area: Path) -> Iterator[Behind]:
    """As `each`, for what is done through the mount."""
    yield from _behind(request.param)


@pytest.fixture(scope="module", params=["native", "source", "upper merged"])
def some(request: pytest.FixtureRequest, area: Path) -> Iterator[Behind]:
    """As `each`, for what need not be tried on all."""
    yield from _behind(request.param)


def _behind(kind: str) -> Iterator[Behind]:
    with behind(kind) as found:
        yield found
    if found.waits:
        _waits[kind] = _waits.get(kind, []) + found.waits


@pytest.fixture
def place(some: Behind) -> Place:
    """A directory with what harness.changes begins with."""
    return some.new(TREE, OUTSIDE)
