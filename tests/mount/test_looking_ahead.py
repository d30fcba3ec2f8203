"""The names behind those that somebody was told are looked at while he is busy with them: seen in the system calls of
the process, and never in what it answers."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Layers, Mount, wait_until
from harness.calls import all_dirents, getdents, opened
from harness.traced import traced
from shiftfs import native
from shiftfs.sys import groups

pytestmark = pytest.mark.skipif(
    native.Lane is None or groups.processors() < 2,
    reason="the native part does so, where a processor has nothing else to do",
)
LOOKED_AT = re.compile(r'statx\(\d+, "(name[^"]*)"')


@pytest.fixture
def mount(our_layers: Layers) -> Iterator[Mount]:
    (our_layers.lowers[0] / "large").mkdir()
    for number in range(2000):
        (our_layers.lowers[0] / f"large/name{number}").touch()
    with our_layers.mount() as mount:
        yield mount


def looked_at(log: Path) -> set[bytes]:
    return {name.encode() for name in LOOKED_AT.findall(log.read_text())}


def test_the_names_behind_those_that_were_told(mount: Mount, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with traced(mount.pid, "statx", log), opened(mount.path / "large") as fd:
        told = {one.name for one in getdents(fd, 32768)} - {b".", b".."}
        wait_until(lambda: len(looked_at(log)) > len(told) * 1.5, "names to be looked at")
        ahead = looked_at(log) - told
        behind = [one.name for one in getdents(fd, 32768)]
        behind += [one.name for one in all_dirents(fd)]
    assert ahead <= set(behind[: len(told) + 8])
