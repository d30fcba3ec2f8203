"""How much memory the process may take, where control groups say something of it."""

import os
from pathlib import Path

import pytest

from shiftfs.mark.memory import allowed

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
SMALL = 100 << 20


def groups(path: Path, own: str, **limits: str) -> int:
    """What is allowed to a process of these groups; files are named with `__` for `/`."""
    for name, content in limits.items():
        file = path / "groups" / name.replace("__", "/").replace("memory_", "memory.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    (path / "own").write_text(own)
    return allowed(str(path / "groups"), str(path / "own"))


@pytest.mark.parametrize("own", ["0::/a/b\n", "9:name=systemd:/a\n0::/a/b\n", "0::/a/b/c d:e\n", "0::/../a/b\n"])
def test_the_least_of_a_group_and_those_above_counts(tmp_path: Path, own: str) -> None:
    assert groups(tmp_path, own, a__b__memory_max="max", a__memory_max=str(SMALL)) == SMALL
    assert groups(tmp_path, own, a__b__memory_max=str(SMALL // 2)) == SMALL // 2


def test_of_version_1(tmp_path: Path) -> None:
    own = "8:pids:/\n4:memory:/a\n0::/\n"
    assert groups(tmp_path, own, memory__a__memory_limit_in_bytes=str(SMALL)) == SMALL
    assert groups(tmp_path, own, memory__a__memory_limit_in_bytes=str(1 << 63)) == MACHINE


@pytest.mark.parametrize("own", ["", "0::/\n", "0::/elsewhere\n", "4:cpu,memory:/\n"])
def test_else_it_is_the_machines(tmp_path: Path, own: str) -> None:
    assert groups(tmp_path, own, a__memory_max=str(SMALL)) == MACHINE


def test_of_this_process() -> None:
    assert 0 < allowed() <= MACHINE
