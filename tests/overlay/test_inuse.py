"""One mount at a time has an upper or a work directory; the next is told which."""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Layers, mounted, newest_mount
from overlay import inuse
from overlay.stack import LayerError, open_stack


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def stacked(layers: Layers, upper: str = "upper", work: str = "work") -> object:
    lower, top, own = (os.fsencode(path) for path in (layers.lower, layers.base / upper, layers.base / work))
    return open_stack([lower], top, own, volatile=False, log=print)


def refusal(layers: Layers, upper: str = "upper", work: str = "work") -> str:
    try:
        stacked(layers, upper, work)
    except LayerError as error:  # pytest.raises would keep what the frames hold
        return str(error)
    pytest.fail("was not refused")


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Another process has the lock, and mounts nothing. Its id."""
    code = f"import fcntl, os, sys; fcntl.flock(os.open({str(path)!r}, os.O_RDONLY), fcntl.LOCK_EX); print(flush=True);"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code} sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inuse, "_PATIENCE", 0.05)


@pytest.mark.parametrize(("name", "role"), [("upper", "upperdir"), ("work", "workdir")])
def test_what_another_process_has_locked_is_refused(
    layers: Layers, name: str, role: str, impatient: None
) -> None:
    with locked(layers.base / name) as process:
        assert refusal(layers) == (
            f"{role} {layers.base}/{name}: in use by process {process}; unmount that, or give another directory"
        )
    assert stacked(layers)


def test_each_of_the_two_is_locked(layers: Layers, impatient: None) -> None:
    for name in ("other-upper", "other-work"):
        (layers.base / name).mkdir()
    first = stacked(layers)
    assert f"upperdir {layers.upper}: in use by process {os.getpid()}" in refusal(layers, work="other-work")
    assert f"workdir {layers.work}: in use by process {os.getpid()}" in refusal(layers, upper="other-upper")
    del first
    assert stacked(layers)


def test_nothing_in_the_work_directory_is_touched_while_it_is_in_use(layers: Layers, impatient: None) -> None:
    first = stacked(layers)
    (layers.work / "work/#1").touch()
    refusal(layers)
    assert (layers.work / "work/#1").exists()
    del first


def test_a_process_that_is_about_to_end_is_waited_for(layers: Layers) -> None:
    held = os.open(layers.upper, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    timer = threading.Timer(0.2, os.close, [held])
    timer.start()
    assert stacked(layers)
    timer.join()


def test_a_mount_that_cannot_be_seen_is_said_to_be_elsewhere(
    layers: Layers, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inuse, "_fuse_devices", lambda process: ["0:1048575"])
    with locked(layers.upper) as process:
        assert f"in use by process {process}, whose mount lives on in another mount namespace;" in refusal(layers)


def test_a_reader_of_the_directory_is_no_mount(layers: Layers) -> None:
    held = os.open(layers.upper, os.O_RDONLY)
    assert stacked(layers)
    os.close(held)


def test_where_locks_are_not_to_be_had_that_is_said(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    lower, upper, work = (os.fsencode(path) for path in (layers.lower, layers.upper, layers.work))
    assert open_stack([lower], upper, work, volatile=False, log=said.append)
    assert [line.partition(": ")[2] for line in said] == [
        "cannot be locked (No locks available); a second mount of it will not be noticed"
    ] * 2


@pytest.mark.root
@pytest.mark.parametrize("names_itself", [True, False], ids=["by its descriptor", "by its command line"])
def test_the_mount_of_a_process_is_found(
    layers: Layers, monkeypatch: pytest.MonkeyPatch, names_itself: bool
) -> None:
    with mounted(layers.lower) as mount, mounted(layers.upper) as other:
        if not names_itself:
            monkeypatch.setattr(inuse, "_fuse_devices", lambda process: [])
        assert inuse._mountpoint_of(mount.pid) == os.fsencode(mount.path)
        assert inuse._mountpoint_of(other.pid) == os.fsencode(other.path)
    assert inuse._mountpoint_of(os.getpid()) is None


@pytest.mark.root
@pytest.mark.parametrize("name", ["plain", "with, comma: and = blank", "with \\\\ backslash"])
def test_what_the_kernels_overlay_has_mounted_is_refused(layers: Layers, name: str) -> None:
    base = layers.base / name
    base.mkdir()
    theirs = Layers(base)
    with theirs.mount(kind="kernel") as mount:
        where = newest_mount(mount.path).path
        advice = f"in use by the kernel's overlay mounted at {where}; unmount that, or give another directory"
        assert refusal(theirs) == f"upperdir {theirs.upper}: {advice}"
        (base / "fresh").mkdir()
        assert refusal(theirs, upper="fresh") == f"workdir {theirs.work}: {advice}"
        assert refusal(theirs, upper="work", work="fresh") == f"upperdir {theirs.work}: {advice}"
    assert stacked(theirs)
