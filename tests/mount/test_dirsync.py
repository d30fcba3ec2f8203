"""dirsync and sync: a change of a directory is on the layer's disk before it is answered."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import mounted
from harness.traced import traced


def fsyncs_of(trace: Path) -> int:
    return sum("fsync(" in line for line in trace.read_text().splitlines())


CHANGES: dict[str, Callable[[Path], None]] = {
    "mkdir": lambda at: os.mkdir(at / "new"),
    "create": lambda at: os.close(os.open(at / "file", os.O_CREAT | os.O_WRONLY)),
    "symlink": lambda at: os.symlink("x", at / "link"),
    "link": lambda at: os.link(at / "old", at / "second"),
    "unlink": lambda at: os.unlink(at / "old"),
    "rmdir": lambda at: os.rmdir(at / "empty"),
    "rename": lambda at: os.rename(at / "old", at / "empty" / "renamed"),
}


@pytest.mark.parametrize("option", ["dirsync", "sync", "async"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_on_disk_when_it_returns(tmp_path: Path, option: str, change: str) -> None:
    source = tmp_path / "source"
    (source / "empty").mkdir(parents=True)
    (source / "old").write_text("old")
    with mounted(source, None, option) as mount:
        trace = tmp_path / "trace"
        with traced(mount.pid, "fsync", trace):
            CHANGES[change](mount.path)
    wanted = {"dirsync": 1, "sync": 1, "async": 0}[option] * (2 if change == "rename" else 1)
    assert fsyncs_of(trace) == wanted
