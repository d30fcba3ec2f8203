"""The harness on shiftfs itself: a mount is there, is counted, and a daemon that does not end fails the test."""

import os
import pwd
import signal
from pathlib import Path

import pytest

from harness import CommandFailed, Leftover, as_user, mount_table, mounted, mounts, requests_during, shifted
from harness.shifted import start_time


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    (path / "file").write_text("content")
    return path


@pytest.mark.parametrize("foreground", [False, True])
def test_mounted(source: Path, foreground: bool) -> None:
    with mounted(source, None, "fsname=some thing", foreground=foreground) as mount:
        assert (mount.path / "file").read_text() == "content"
        assert mount.entry.source == "some thing"
        assert mount.status()["pid"] == mount.pid
        assert os.readlink(f"/proc/{mount.pid}/exe") == os.path.realpath("/proc/self/exe")
    assert mount.entry not in mount_table()
    assert not start_time(mount.pid)


def test_over_its_own_source(source: Path) -> None:
    with mounted(source, source, "uidmapping=0:100000:65536") as mount:
        assert (mount.path / "file").stat().st_uid == 100000
    assert (source / "file").stat().st_uid == 0


def test_by_an_ordinary_user(source: Path) -> None:
    user = pwd.getpwnam("daemon").pw_uid
    with mounted(source, user=user) as mount:
        assert Path(f"/proc/{mount.pid}").stat().st_uid == user
        assert as_user(user, ["cat", mount.path / "file"]).stdout == "content"


def test_requests_are_counted(source: Path) -> None:
    with mounted(source) as mount:
        with requests_during(mount) as counts:
            (mount.path / "absent").exists()
        assert counts["LOOKUP"] == 1
        with requests_during(mount) as counts:
            pass
        assert not counts


def test_a_refusal_is_reported_with_its_reason(source: Path) -> None:
    with pytest.raises(CommandFailed, match="no-such-option"), mounted(source, None, "no-such-option"):
        pass


def test_a_daemon_that_does_not_end_fails_the_test(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "UNMOUNT_LIMIT", 1.0)
    monkeypatch.setattr(mounts, "BUSY_LIMIT", 0.5)
    monkeypatch.setattr(shifted, "EXIT_LIMIT", 0.5)
    with pytest.raises(Leftover, match="killed"), mounted(source) as mount:
        os.kill(mount.pid, signal.SIGSTOP)
    assert not start_time(mount.pid)
