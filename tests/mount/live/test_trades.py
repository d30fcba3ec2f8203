"""Names that trade places behind the mount while they are being looked up: each ends with what it has in the layer."""

from pathlib import Path

import pytest

from harness import mounted, open_directory, wait_until
from harness.calls import opened

ROUNDS = 40


@pytest.mark.parametrize("opening", ["serve", "refuse"])
def test_trade(area: Path, opening: str) -> None:
    layer = open_directory("layer-")
    with mounted(layer, None, f"open={opening}") as mount:
        for number in range(ROUNDS):
            here, there = layer / f"place{number}", mount.path / f"place{number}"
            here.mkdir()
            for name in ("one", "two"):
                (here / name).write_text(name)
            with opened(there / "one"), opened(there / "two"):
                (here / "one").rename(here / "tmp")
                (here / "two").rename(here / "one")
                (here / "tmp").rename(here / "two")
                wait_until(lambda: contents(there) == ["two", "one"], "the names have traded places", 5.0)  # noqa: B023


def contents(directory: Path) -> list[str]:
    found = []
    for name in ("one", "two"):
        try:
            found.append((directory / name).read_text())
        except OSError as error:
            found.append(str(error))
    return found
