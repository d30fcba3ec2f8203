"""Fixtures of the tests of watchers: a directory with something in it, on the filesystem that a test calls `place`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.listening import filesystems, new_base


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, Path]]:
    with filesystems() as found:
        yield found


@pytest.fixture
def base(places: dict[str, Path], place: str) -> Iterator[Path]:
    with new_base(places[place]) as path:
        yield path
