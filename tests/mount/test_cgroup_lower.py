"""A cgroup2 tree as a lower layer: its files are read in full and written through, whatever lies above."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Layers, Mount, layered, read_tree, run, wait_until, write_tree
from harness.calls import opened, refuses
from harness.mounts import new_cgroup

SOON = "timeout=0.1"
LIMIT = 10.0


@pytest.fixture
def group() -> Iterator[Path]:
    with new_cgroup() as path:
        try:
            yield path
        finally:
            for inner in sorted(path.rglob("*/"), reverse=True):
                if inner.is_dir():
                    inner.rmdir()


@pytest.fixture
def merged(our_layers: Layers, group: Path) -> Iterator[Mount]:
    """The group beneath an upper and a lower that have something in it themselves."""
    (group / "inner").mkdir()
    write_tree(our_layers.lower, {"ordinary": b"lower", "inner": {"note": b"lower"}})
    with layered([our_layers.lower, group], our_layers.upper, our_layers.work, SOON) as mount:
        yield mount


@contextmanager
def sleeping() -> Iterator[int]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        yield child.pid
        assert child.stdin is not None
        child.stdin.close()
        child.wait(LIMIT)


def same_as(path: Path, real: Path) -> bool:
    return path.read_text() == real.read_text() != ""


@pytest.mark.parametrize("name", ["cgroup.events", "cgroup.stat", "cgroup.type", "cgroup.max.depth", "cgroup.procs"])
def test_files_are_read_in_full(merged: Mount, group: Path, name: str) -> None:
    with sleeping() as pid:
        (group / "inner/cgroup.procs").write_text(str(pid))
        assert (merged.path / "inner" / name).stat().st_size == 0
        assert same_as(merged.path / "inner" / name, group / "inner" / name)
        (group / "cgroup.procs").write_text(str(pid))
        assert (merged.path / "inner/cgroup.procs").read_text() == ""


def test_files_are_written_through_and_never_copied_up(our_layers: Layers, merged: Mount, group: Path) -> None:
    path, real = merged.path / "inner", group / "inner"
    (path / "cgroup.max.depth").write_text("3")  # truncates as well
    assert (real / "cgroup.max.depth").read_text() == "3\n"
    with opened(path / "cgroup.max.depth", os.O_RDWR) as fd:
        os.write(fd, b"4")
        os.ftruncate(fd, 0)
        assert os.pread(fd, 100, 0) == b"4\n"
    with (path / "cgroup.max.depth").open("a") as file:
        file.write("5")
    assert (real / "cgroup.max.depth").read_text() == (path / "cgroup.max.depth").read_text() == "5\n"
    with sleeping() as pid:
        (path / "cgroup.procs").write_text(str(pid))
        assert (real / "cgroup.procs").read_text() == f"{pid}\n"
        (path / "cgroup.freeze").write_text("1")
        wait_until(lambda: "frozen 1" in (path / "cgroup.events").read_text(), "the group is frozen", LIMIT)
        (path / "cgroup.freeze").write_text("0")
        (group / "cgroup.procs").write_text(str(pid))
    (path / "cgroup.procs").chmod(0o640)
    os.chown(path / "cgroup.procs", 1234, 1234)
    found = (real / "cgroup.procs").stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o640, 1234)
    assert read_tree(our_layers.upper) == {}
    with pytest.raises(OSError, match="Invalid"):
        (path / "cgroup.max.depth").write_text("not a number")


def test_groups_come_and_go(merged: Mount, group: Path) -> None:
    assert "new" not in os.listdir(merged.path)
    (group / "new").mkdir()
    wait_until(lambda: "new" in os.listdir(merged.path), "the group is listed", LIMIT)
    wait_until((merged.path / "new/cgroup.procs").exists, "what the kernel has made in it is there", LIMIT)
    assert set(os.listdir(merged.path / "new")) == set(os.listdir(group / "new"))
    (group / "new").rmdir()
    wait_until(lambda: "new" not in os.listdir(merged.path), "the group is listed no more", LIMIT)
    wait_until(lambda: not (merged.path / "new").exists(), "nor found", LIMIT)


def test_what_lies_above_is_merged(our_layers: Layers, merged: Mount, group: Path) -> None:
    path = merged.path / "inner"
    assert set(os.listdir(path)) == {"note", *os.listdir(group / "inner")}
    (path / "mine").write_bytes(b"upper")
    (path / "note").write_bytes(b"changed")
    assert set(os.listdir(path)) == {"note", "mine", *os.listdir(group / "inner")}
    assert read_tree(our_layers.upper) == {"inner": {"mine": b"upper", "note": b"changed"}}
    assert same_as(path / "cgroup.events", group / "inner/cgroup.events")
    (path / "cgroup.max.depth").write_text("6")
    assert (group / "inner/cgroup.max.depth").read_text() == "6\n"
    (group / "inner/deeper").mkdir()
    wait_until(lambda: "deeper" in os.listdir(path), "a group within is listed", LIMIT)
    assert (path / "deeper/cgroup.procs").read_text() == ""
    (path / "deeper/mine").touch()
    (group / "inner/deeper").rmdir()
    wait_until(lambda: os.listdir(path / "deeper") == ["mine"], "the upper's part stays", LIMIT)


def test_directories_are_the_uppers(our_layers: Layers, merged: Mount, group: Path) -> None:
    """As in any overlay: making one makes no group, and removing a group's files removes no group."""
    (merged.path / "made").mkdir()
    assert not (group / "made").exists() and os.listdir(our_layers.upper / "made") == []
    refuses(errno.ENOTEMPTY, os.rmdir, merged.path / "inner")
    run(["rm", "-r", merged.path / "inner"])
    assert "inner" not in os.listdir(merged.path)
    assert (group / "inner/cgroup.procs").exists()


def test_its_files_keep_their_names(merged: Mount) -> None:
    path = merged.path / "inner/cgroup.procs"
    refuses(errno.EXDEV, os.rename, path, merged.path / "inner/other")
    refuses(errno.EXDEV, os.link, path, merged.path / "inner/other")
    path.unlink()
    assert not path.exists()


def test_without_an_upper_nothing_is_written(our_layers: Layers, group: Path) -> None:
    write_tree(our_layers.lower, {"ordinary": b"lower"})
    before = (group / "cgroup.max.depth").read_text()
    with layered([our_layers.lower, group], None, None, SOON) as mount:
        for name in ("cgroup.events", "cgroup.type", "cgroup.max.depth"):
            assert same_as(mount.path / name, group / name)
        for call in (lambda: (mount.path / "cgroup.max.depth").write_text("7"), lambda: (mount.path / "new").mkdir()):
            refuses(errno.EROFS, call)
        refuses(errno.EROFS, os.chmod, mount.path / "cgroup.procs", 0o600)
        (group / "new").mkdir()
        wait_until((mount.path / "new/cgroup.procs").exists, "the group is there", LIMIT)
        assert "new" in os.listdir(mount.path)
        (group / "new").rmdir()
        wait_until(lambda: "new" not in os.listdir(mount.path), "and gone", LIMIT)
    assert (group / "cgroup.max.depth").read_text() == before


@pytest.mark.parametrize("ghost", ["keep", "drop"])
def test_a_group_that_has_gone(our_layers: Layers, group: Path, ghost: str) -> None:
    (group / "inner").mkdir()
    with layered([group], our_layers.upper, our_layers.work, SOON, f"ghost={ghost}") as mount:
        (mount.path / "inner/mine").write_bytes(b"mine")
        for _ in range(2):
            (group / "inner").rmdir()
            if ghost == "keep":
                wait_until(lambda: os.listdir(mount.path / "inner") == ["mine"], "the upper's part stays", LIMIT)
            else:
                wait_until(lambda: "inner" not in os.listdir(mount.path), "it is not listed", LIMIT)
                wait_until(lambda: not (mount.path / "inner/mine").exists(), "nor found", LIMIT)
            (group / "inner").mkdir()
            wait_until((mount.path / "inner/cgroup.procs").exists, "the group is back", LIMIT)
            assert (mount.path / "inner/mine").read_bytes() == b"mine"
