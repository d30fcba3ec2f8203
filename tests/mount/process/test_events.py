"""`shiftfsctl events --follow` beside a running mount: it is in nobody's way, and ends with the mount."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Mount, mounted, run, shiftfsctl
from harness.commands import SHIFTFSCTL, environment


@contextmanager
def following(mount: Mount) -> Iterator["subprocess.Popen[bytes]"]:
    """That has asked a few times."""
    command = [*SHIFTFSCTL, "events", "--follow", os.fspath(mount.path)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        before = mount.stats()["requests"]["IOCTL"]["count"]
        end = time.monotonic() + 10
        while mount.stats()["requests"]["IOCTL"]["count"] < before + 20 and time.monotonic() < end:
            time.sleep(0.05)
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


def unmount(mount: Mount) -> None:
    run(["umount", mount.path])


def terminate(mount: Mount) -> None:
    os.kill(mount.pid, signal.SIGTERM)


@pytest.mark.parametrize("end", [unmount, terminate])
def test_following_ends_with_the_mount(tmp_path: Path, end: Callable[[Mount], None]) -> None:
    (tmp_path / "source").mkdir()
    with mounted(tmp_path / "source") as mount, following(mount) as process:
        end(mount)
        assert process.wait(10) == 0
        assert process.stderr is not None and process.stderr.read() == b""


def test_a_mount_without_changes_tells_none(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with mounted(tmp_path / "source") as mount:
        for options in ([], ["--json"], ["--since", "1h"]):
            assert shiftfsctl("events", mount.path, *options).stdout == ""
        assert mount.status()["journal"] == {"total": 0, "dropped": 0}
