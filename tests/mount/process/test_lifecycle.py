"""From the command's return to the daemon's end, however that comes; and what a mount says of itself meanwhile."""

import errno
import json
import os
import pwd
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from harness import (
    SHIFTFS,
    Mount,
    as_user,
    environment,
    errno_of,
    mount_table,
    mounted,
    newest_mount,
    open_directory,
    run,
    shiftfs,
    shiftfsctl,
    unmount,
    unmount_by_force,
    wait_until,
)
from harness.commands import SHIFTFSCTL
from harness.shifted import start_time

DAEMON = pwd.getpwnam("daemon").pw_uid
LIMIT = 20.0


@contextmanager
def daemonized(source: Path, place: Path, *options: str) -> Iterator[int]:
    """A mount that the body is to end; the daemon's process id."""
    shiftfs(*options, source, place)
    pid = int(json.loads(shiftfsctl("status", "--json", place).stdout)["pid"])
    try:
        yield pid
    finally:
        if is_mounted(place):
            unmount_by_force(newest_mount(place))
        wait_until(lambda: not start_time(pid), "the daemon's end")


def is_mounted(place: Path) -> bool:
    return any(entry.path == str(place) for entry in mount_table())


@contextmanager
def in_foreground(source: Path, place: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a mount that the body is to end; its output goes to pipes."""
    args = [*SHIFTFS, "-f", *options, str(source), str(place)]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    try:
        wait_until(lambda: is_mounted(place), "a mount", LIMIT)
        os.listdir(place)  # which waits until it is served
        yield process
        process.wait(LIMIT)
    finally:
        process.kill()
        process.communicate()
        if is_mounted(place):
            unmount_by_force(newest_mount(place))


# --- beginning ---


def test_streams_reach_their_end_once_the_command_returns(source: Path, place: Path) -> None:
    """A parent that reads to the end, as containers/storage does, is freed while the mount is served."""
    process = subprocess.Popen(
        [*SHIFTFS, source, place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, err) == (0, b"", b"")
    pid = int(json.loads(shiftfsctl("status", "--json", place).stdout)["pid"])
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid != os.getsid(0)
    unmount(newest_mount(place))
    wait_until(lambda: not start_time(pid), "the daemon's end")


def test_it_serves_from_the_moment_the_command_returns(source: Path, place: Path) -> None:
    with daemonized(source, place):
        assert (place / "file").read_text() == "content"
        assert run(["stat", "--file-system", "--format=%t", place]).stdout == "65735546\n"  # FUSE_SUPER_MAGIC


def test_the_limit_of_open_files_is_raised(source: Path, place: Path) -> None:
    run(["sh", "-c", 'ulimit -S -n 64; exec "$@"', "sh", *SHIFTFS, source, place])
    pid = int(json.loads(shiftfsctl("status", "--json", place).stdout)["pid"])
    try:
        _, soft, hard = next(
            line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in line
        ).rsplit(maxsplit=3)[:3]
        assert soft == hard
    finally:
        unmount(newest_mount(place))
        wait_until(lambda: not start_time(pid), "the daemon's end")


def test_it_gives_up_the_right_to_pass_quotas(source: Path, place: Path) -> None:
    """What it writes is its callers', whose limits are to hold."""
    with daemonized(source, place) as pid:
        words = run(["grep", "Cap[EP]", f"/proc/{pid}/status"]).stdout.split()
        for word in words[1::2]:
            assert not int(word, 16) >> 24 & 1  # CAP_SYS_RESOURCE


def test_closed_standard_streams_do_no_harm(source: Path, place: Path) -> None:
    run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *SHIFTFS, source, place])
    assert (place / "file").read_text() == "content"
    pid = int(json.loads(shiftfsctl("status", "--json", place).stdout)["pid"])
    unmount(newest_mount(place))
    wait_until(lambda: not start_time(pid), "the daemon's end")


# --- end ---


@pytest.mark.parametrize("command", [["umount"], ["umount", "-l"], ["fusermount3", "-u"], ["fusermount3", "-u", "-z"]])
def test_unmounting_ends_the_process(source: Path, place: Path, command: list[str]) -> None:
    with daemonized(source, place) as pid:
        run([*command, place])
        assert not is_mounted(place)
        wait_until(lambda: not start_time(pid), "the daemon's end")
    # The mountpoint is free for whatever its owner does next.
    place.rename(place.with_name("moved"))


def test_a_user_unmounts_his_own(source: Path) -> None:
    with mounted(source, user=DAEMON) as mount:
        as_user(DAEMON, ["fusermount3", "-u", mount.path])
        assert not is_mounted(mount.path)


def test_a_lazy_unmount_lasts_until_the_last_file_is_closed(source: Path, place: Path) -> None:
    with daemonized(source, place) as pid:
        with (place / "file").open("r+") as file:
            run(["umount", "-l", place])
            assert file.read() == "content"
            file.write(" and more")
            file.flush()
            assert (source / "file").read_text() == "content and more"
            assert start_time(pid)
        wait_until(lambda: not start_time(pid), "the daemon's end")


def test_a_busy_mount_stays(source: Path, place: Path) -> None:
    with daemonized(source, place), (place / "file").open():
        assert run(["umount", place], check=False).returncode != 0
        assert (place / "file").read_text() == "content"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("how", ["daemon", "foreground", "busy"])
def test_signals_unmount(source: Path, place: Path, number: signal.Signals, how: str) -> None:
    if how == "foreground":
        with in_foreground(source, place) as process:
            process.send_signal(number)
            assert process.wait(LIMIT) == 0
            assert process.communicate() == (b"", b"")
            assert not is_mounted(place)
        return
    with daemonized(source, place) as pid:
        busy = os.open(place / "file", os.O_RDONLY) if how == "busy" else -1
        os.kill(pid, number)
        wait_until(lambda: not is_mounted(place), "the mount's end")
        wait_until(lambda: not start_time(pid), "the daemon's end")
        if busy >= 0:
            assert errno_of(lambda: os.pread(busy, 1, 0)) == errno.ENOTCONN
            assert errno_of(lambda: os.close(busy)) in (0, errno.ENOTCONN)


def test_kill_leaves_a_mount_that_says_so_and_can_be_unmounted(source: Path, place: Path) -> None:
    with daemonized(source, place) as pid:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not start_time(pid), "the daemon's end")
        # The first to come may meet the connection's very end, ECONNABORTED.
        wait_until(lambda: errno_of(lambda: os.listdir(place)) == errno.ENOTCONN, "ENOTCONN")
        run(["umount", place])
        assert not is_mounted(place)
    assert (source / "file").read_text() == "content"


def test_f_stays_and_ends_with_the_mount(source: Path, place: Path) -> None:
    with in_foreground(source, place) as process:
        assert (place / "file").read_text() == "content"
        assert process.poll() is None
        unmount(newest_mount(place))
        assert process.wait(LIMIT) == 0
        assert process.communicate() == (b"", b"")


def test_another_mount_on_the_same_place_is_left_alone(source: Path, place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "upper").touch()
    with mounted(other, place), daemonized(source, place) as pid:
        assert os.listdir(place) == ["file"]
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not start_time(pid), "the daemon's end")
        assert os.listdir(place) == ["upper"]


def test_the_next_mount_on_the_same_place_is_left_alone(source: Path, place: Path) -> None:
    """The kernel gives it the numbers of the one before, unless somebody else is given them first; and that one's
    process may not have noticed its end yet."""
    no_agent = ("-o", "watch=off")  # which would have the filesystem, and so its numbers, until the process lets go
    had_same_numbers = False
    for _ in range(20):
        run(["mount", "--bind", source, source])
        spare = newest_mount(source)
        with daemonized(source, place, *no_agent) as before:
            unmount(spare)  # the private copy of the next one's layer takes its number, as the one before has its own
            numbers = newest_mount(place)
            os.kill(before, signal.SIGSTOP)
            try:
                run(["umount", "--lazy", "--no-canonicalize", place])
                with daemonized(source, place, *no_agent) as pid:
                    had_same_numbers = newest_mount(place) == numbers
                    os.kill(before, signal.SIGCONT)
                    wait_until(lambda: not start_time(before), "the daemon's end")
                    assert is_mounted(place) and os.listdir(place) == ["file"]
                    os.kill(pid, signal.SIGTERM)
            finally:
                with suppress(ProcessLookupError):  # as it is to be
                    os.kill(before, signal.SIGCONT)
        if had_same_numbers:
            return
    pytest.fail("no mount was given the numbers of the one before")


@pytest.mark.parametrize("option", ["watch=auto", "watch=off"])
def test_what_is_ended_by_force_does_not_stay(source: Path, place: Path, option: str) -> None:
    """umount -f ends the connection, and fails where somebody is at work in the mount: nobody would serve that."""
    with daemonized(source, place, "-o", option) as pid:
        busy = os.open(place / "file", os.O_RDONLY)
        try:
            run(["umount", "--force", place], check=False)
            wait_until(lambda: not start_time(pid), "the daemon's end")
            assert not is_mounted(place)
        finally:
            with suppress(OSError):
                os.close(busy)


def test_a_remount_as_the_refusal_of_ours_advises(source: Path) -> None:
    with mounted(source) as mount:
        run(["mount", "-i", "-o", "remount,bind,ro", mount.path])
        assert errno_of(lambda: (mount.path / "new").touch()) == errno.EROFS
        run(["mount", "-i", "-o", "remount,bind,rw", mount.path])
        (mount.path / "new").touch()


# --- what a mount says of itself ---


def read_line(process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
    """What the process says on standard error until `wanted` is in it."""
    assert process.stderr is not None
    said = b""
    while wanted not in said:
        assert select.select([process.stderr], [], [], LIMIT)[0], said
        said += os.read(process.stderr.fileno(), 65536)
    return said


def test_sigusr1_prints_statistics(source: Path, place: Path) -> None:
    with in_foreground(source, place) as process:
        process.send_signal(signal.SIGUSR1)
        said = read_line(process, b"memory_kib")
        assert b"LOOKUP" in said or b"READDIRPLUS" in said
        assert (place / "file").read_text() == "content"
        unmount(newest_mount(place))


def test_d_says_each_request_and_stays(source: Path, place: Path) -> None:
    with in_foreground(source, place, "-d", "-o", "kernel_cache") as process:
        assert errno_of(lambda: os.stat(place / "absent")) == errno.ENOENT
        said = read_line(process, b"LOOKUP")
        assert b"kernel_cache does nothing here" in said
        unmount(newest_mount(place))


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    options = ("uidmapping=0:100000:10:10:200000:5", "gidmapping=5:50:5", "timeout=60", "fsname=some name", "nosuid")
    source = open_directory("layer-")
    (source / "file").write_text("content")
    os.chown(source / "file", 0, 5)
    with mounted(source, None, *options) as mount:
        yield mount
    (source / "file").unlink()
    source.rmdir()


def test_status(mount: Mount) -> None:
    status = mount.status()
    assert status["source"] == str(mount.source)
    assert status["mountpoint"] == str(mount.path)
    assert status["version"] == shiftfs("--version").stdout.split()[1]
    assert status["uidmapping"] == "0:100000:10:10:200000:5"
    assert status["gidmapping"] == "5:50:5"
    options = {"read_only": False, "suid": False, "dev": False, "exec": True, "allow_other": True, "timeout": 60.0}
    assert options.items() <= status["options"].items()
    assert status["options"]["open"] == "refuse" and status["options"]["fsname"] == "some name"
    protocol = status["protocol"]
    assert protocol["minor"] >= 31 and protocol["max_write"] >= 4096
    assert {"POSIX_ACL", "DONT_MASK", "HANDLE_KILLPRIV_V2"} <= set(protocol["flags"])
    assert "WRITEBACK_CACHE" not in protocol["flags"]
    assert [layer["path"] for layer in status["layers"]] == [str(mount.source)]


def test_stats(mount: Mount) -> None:
    before = mount.stats()
    for number in range(7):
        errno_of(lambda number=number: os.stat(mount.path / f"absent {number}"))  # type: ignore[misc]
    with (mount.path / "file").open("a") as file:
        file.write("x")
    after = mount.stats()
    assert after["requests"]["LOOKUP"]["count"] >= before["requests"].get("LOOKUP", {"count": 0})["count"] + 7
    assert after["requests"]["WRITE"]["count"] == 1
    for name, counter in after["requests"].items():
        assert counter["count"] >= counter["errors"] >= 0, name
        assert counter["max_us"] >= counter["mean_us"] > 0, name
    assert after["inodes"] >= 2
    # Its listing of them has the descriptor that the listing is read through.
    assert 0 <= after["descriptors"]["open"] - len(os.listdir(f"/proc/{mount.pid}/fd")) <= 2
    resident = next(
        int(line.split()[1]) for line in Path(f"/proc/{mount.pid}/status").read_text().splitlines() if "VmRSS" in line
    )
    assert 0.5 < after["memory_kib"] / resident < 2


@pytest.mark.parametrize("report", ["status", "stats"])
def test_reports_for_people(mount: Mount, report: str) -> None:
    said = shiftfsctl(report, mount.path).stdout
    assert f"pid: {mount.pid}" in said
    assert ("uidmapping: 0:100000:10:10:200000:5" in said) == (report == "status")
    assert ("LOOKUP" in said) == (report == "stats")


@pytest.mark.parametrize(
    ("user", "what", "reason"),
    [
        (5555, "mount", "only root"),
        (None, "inside", "not the root of"),
        (None, "source", "not the root of"),
        (None, "absent", "No such"),
    ],
)
def test_who_asks_what(mount: Mount, user: int | None, what: str, reason: str) -> None:
    (mount.source / "inside").mkdir(exist_ok=True)
    path = {"mount": mount.path, "inside": mount.path / "inside", "source": mount.source, "absent": mount.path / "no"}[
        what
    ]
    try:
        args = [] if user is None else ["setpriv", f"--reuid={user}", "--clear-groups", "--"]
        said = run([*args, *SHIFTFSCTL, "status", path], check=False)
        assert said.returncode == 1 and said.stderr.count("\n") == 1 and reason in said.stderr
    finally:
        (mount.source / "inside").rmdir()
