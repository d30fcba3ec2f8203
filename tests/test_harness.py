"""The harness itself: what a test leaves behind is found, named and removed, and nothing waits for ever."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import (
    CommandFailed,
    Leftover,
    as_user,
    in_userns,
    leftovers,
    loop_filesystem,
    mount_table,
    mounts,
    newest_mount,
    open_directory,
    run,
    unmount,
    user_namespace,
    wait_until,
)
from harness.leftovers import belongings, left_behind
from harness.watchdog import Watchdog


def mountpoints() -> set[str]:
    return {entry.path for entry in mount_table()}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "GRACE", 0.2)


def test_finds_an_open_descriptor(area: Path) -> None:
    before = belongings(area)
    with open("/proc/self/status") as stream:
        (found,) = left_behind(before, area)
        assert found == f"descriptor {stream.fileno()}: /proc/{os.getpid()}/status"
    assert left_behind(before, area) == []


def test_finds_and_ends_a_child(area: Path) -> None:
    before = belongings(area)
    child = subprocess.Popen(["sleep", "100"])
    assert left_behind(before, area) == [f"process {child.pid}: sleep 100"]
    assert not Path(f"/proc/{child.pid}").exists()
    child.wait()


def test_finds_a_child_that_nobody_waited_for(area: Path) -> None:
    before = belongings(area)
    child = subprocess.Popen(["true"])
    assert left_behind(before, area) == [f"process {child.pid}: (ended, not waited for)"]
    child.wait()


@pytest.mark.root
def test_finds_and_removes_a_mount(area: Path, tmp_path: Path) -> None:
    before = belongings(area)
    run(["mount", "-t", "tmpfs", "none", tmp_path])
    assert left_behind(before, area) == [f"mount {tmp_path} (tmpfs, none)"]
    assert str(tmp_path) not in mountpoints()


@pytest.mark.root
def test_finds_and_frees_a_loop_device(area: Path, tmp_path: Path) -> None:
    before = belongings(area)
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 1 << 20)
    device = run(["losetup", "--find", "--show", image]).stdout.strip()
    assert left_behind(before, area) == [f"loop device {Path(device).name}"]
    assert left_behind(before, area) == []


def test_a_command_ends_at_its_limit_with_all_its_children() -> None:
    with pytest.raises(CommandFailed, match=r"did not end within 0\.3 s"):
        run(["sh", "-c", "sleep 98 & sleep 99"], limit=0.3)


def test_a_command_that_fails_says_all() -> None:
    with pytest.raises(CommandFailed, match=r"(?s)exit status 3.*stdout: out.*stderr: err"):
        run(["sh", "-c", "echo out; echo err >&2; exit 3"])


@pytest.mark.root
@pytest.mark.parametrize(("kind", "size_mb"), [("ext4", 16), ("xfs", 300), ("btrfs", 120)])
def test_loop_filesystem(kind: str, size_mb: int) -> None:
    with loop_filesystem(kind, size_mb, "noatime") as path:
        (path / "file").write_text("content")
        assert newest_mount(path).kind == kind
        assert path.stat().st_dev != path.parent.stat().st_dev


@pytest.mark.root
def test_mountpoints_are_unescaped() -> None:
    path = open_directory("a b\tc\\d\n")
    run(["mount", "-t", "tmpfs", "some thing", path])
    entry = newest_mount(path)
    unmount(entry)
    assert (entry.path, entry.source) == (str(path), "some thing")
    assert entry not in mount_table()
    path.rmdir()


@pytest.fixture
def hung_mount(tmp_path: Path) -> Iterator[Path]:
    """A FUSE mount whose process is stopped: not of shiftfs, for the harness has to work where that fails."""
    source, path = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    path.mkdir()
    server = subprocess.Popen(["bindfs", "-f", source, path])
    try:
        wait_until(lambda: str(path) in mountpoints(), f"a mount at {path}")
        server.send_signal(signal.SIGSTOP)
        yield path
    finally:
        server.kill()
        server.wait()
        for entry in leftovers.mounts_of(path):
            unmount(entry)


@pytest.mark.root
def test_a_hung_mount_is_unmounted_by_force(hung_mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "UNMOUNT_LIMIT", 1.0)
    monkeypatch.setattr(mounts, "BUSY_LIMIT", 0.5)
    with pytest.raises(Leftover, match="by force"):
        unmount(newest_mount(hung_mount))
    assert str(hung_mount) not in mountpoints()


@pytest.mark.root
def test_the_watchdog_frees_a_test_that_waits(hung_mount: Path) -> None:
    watchdog = Watchdog(hung_mount)
    watchdog.alarm(0.5)
    with pytest.raises(ConnectionAbortedError):
        (hung_mount / "name").stat()
    watchdog.end()


@pytest.mark.root
def test_the_watchdog_removes_what_a_killed_run_leaves(hung_mount: Path) -> None:
    Watchdog(hung_mount).end()
    assert str(hung_mount) not in mountpoints()


@pytest.mark.root
def test_a_user_has_no_rights() -> None:
    assert as_user(1234, ["id"]).stdout == "uid=1234 gid=1234 groups=1234\n"
    assert "0000000000000000" in as_user(1234, ["grep", "CapEff", "/proc/self/status"]).stdout


@pytest.mark.root
def test_root_of_a_user_namespace_is_the_first_id_outside(tmp_path: Path) -> None:
    os.chown(tmp_path, 100000, 100000)
    assert in_userns(
        ["sh", "-c", "id -u; >file; chown 5:7 file; stat -c %u:%g file"], cwd=tmp_path
    ).stdout == ("0\n5:7\n")
    status = (tmp_path / "file").stat()
    assert (status.st_uid, status.st_gid) == (100005, 100007)
    assert in_userns(["cat", "/etc/shadow"], check=False).returncode != 0


@pytest.mark.root
def test_a_user_namespace_of_several_ranges() -> None:
    with user_namespace((0, 200000, 10), (10, 300000, 5)) as namespace:
        lines = namespace.run(["cat", "/proc/self/uid_map", "/proc/self/gid_map"]).stdout.splitlines()
        assert [line.split() for line in lines] == [["0", "200000", "10"], ["10", "300000", "5"]] * 2
        assert namespace.run(["id", "-u"], uid=12, gid=3).stdout == "12\n"
        # An ordinary id keeps no capability of the one that entered.
        assert "0000000000000000" in namespace.run(["grep", "CapEff", "/proc/self/status"], uid=12).stdout
