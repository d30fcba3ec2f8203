"""How much of the machine the process may take, where control groups say something of it."""

import os
from pathlib import Path

import pytest

from shiftfs.sys.groups import memory, processors

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
PROCESSORS = len(os.sched_getaffinity(0))
SMALL = 100 << 20
OF_NOBODY = ["", "0::/\n", "0::/elsewhere\n", "4:cpu,memory:/\n"]


def groups(path: Path, own: str, limits: dict[str, str]) -> tuple[str, str]:
    """Where the groups are, with files of these contents, and which are the process's own."""
    for name, content in limits.items():
        file = path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    (path / "own").write_text(own)
    return str(path / "groups"), str(path / "own")


@pytest.mark.parametrize("own", ["0::/a/b\n", "9:name=systemd:/a\n0::/a/b\n", "0::/a/b/c d:e\n", "0::/../a/b\n"])
def test_the_least_of_a_group_and_those_above_counts(tmp_path: Path, own: str) -> None:
    limits = {"a/b/memory.max": "max", "a/memory.max": str(SMALL), "a/b/cpu.max": "max 100000", "a/cpu.max": "5 10"}
    places = groups(tmp_path, own, limits)
    assert memory(*places) == SMALL and processors(*places) == 0.5
    places = groups(tmp_path, own, {"a/b/memory.max": str(SMALL // 2), "a/b/cpu.max": "100 1000"})
    assert memory(*places) == SMALL // 2 and processors(*places) == 0.1


@pytest.mark.parametrize("together", ["cpu", "cpu,cpuacct"])
def test_of_version_1(tmp_path: Path, together: str) -> None:
    own = f"8:pids:/\n4:memory:/a\n3:{together}:/a\n0::/\n"
    quota, period = f"{together}/a/cpu.cfs_quota_us", f"{together}/a/cpu.cfs_period_us"
    limits = {"memory/a/memory.limit_in_bytes": str(SMALL), quota: "30000", period: "100000"}
    places = groups(tmp_path, own, limits)
    assert memory(*places) == SMALL and processors(*places) == 0.3
    places = groups(tmp_path, own, {"memory/a/memory.limit_in_bytes": str(1 << 63), quota: "-1"})
    assert memory(*places) == MACHINE and processors(*places) == PROCESSORS


@pytest.mark.parametrize("own", OF_NOBODY)
def test_else_it_is_the_machines(tmp_path: Path, own: str) -> None:
    places = groups(tmp_path, own, {"a/memory.max": str(SMALL), "a/cpu.max": "1 10"})
    assert memory(*places) == MACHINE and processors(*places) == PROCESSORS


def test_of_this_process() -> None:
    assert 0 < memory() <= MACHINE
    assert 0 < processors() <= PROCESSORS
