"""A mount whose process has an agent with a private clone of it: that keeps nothing alive and nothing open, and nobody
may change what is read-only though the clone can be written to."""

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Caller,
    Mount,
    errno_of,
    mount_table,
    mounted,
    newest_mount,
    run,
    shiftfs,
    shiftfsctl,
    unmount_by_force,
    user_namespace,
    wait_until,
)
from harness.calls import unshare_mounts
from harness.commands import SHIFTFS
from harness.namespaces import UserNamespace
from harness.shifted import start_time

LIMIT = 20.0


def is_mounted(place: Path) -> bool:
    return any(entry.path == str(place) for entry in mount_table())


def agents(pid: int) -> list[int]:
    """The agent of a daemon."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(name) for name in found if Path(f"/proc/{name}/comm").read_text() == "shiftfs-agent\n"]


def descriptors(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]


@contextmanager
def ending(source: Path, place: Path, *options: str) -> Iterator[tuple[int, int]]:
    """A mount that the body is to end, with all that belongs to it: the ids of the daemon and of its agent."""
    shiftfs(*options, source, place)
    pid = int(json.loads(shiftfsctl("status", "--json", place).stdout)["pid"])
    (agent,) = agents(pid)
    try:
        yield pid, agent
    finally:
        if is_mounted(place):
            unmount_by_force(newest_mount(place))
        wait_until(lambda: not start_time(pid), "the daemon's end")
        wait_until(lambda: not start_time(agent), "the agent's end")


# --- what the agent has ---


def test_the_agent_has_the_clone_and_nothing_of_the_daemon(source: Path, place: Path) -> None:
    with ending(source, place) as (pid, agent):
        held = [target for target in descriptors(agent) if not target.startswith("socket:")]
        assert held == ["/dev/null"] * 3 + ["/"]  # the root of a mount that is nowhere
        (clone,) = (n for n in os.listdir(f"/proc/{agent}/fd") if os.readlink(f"/proc/{agent}/fd/{n}") == "/")
        device = newest_mount(place).device
        found = run(["stat", "-L", "-c", "%Hd:%Ld", f"/proc/{agent}/fd/{clone}"]).stdout.strip()
        assert found == f"{device >> 20}:{device & 0xFFFFF}"
        assert "/dev/fuse" in descriptors(pid)
        assert not [target for target in descriptors(pid) if target.startswith(str(place))]
        assert run(["umount", place]).stdout == ""  # not busy


def test_without_watching_there_is_none(source: Path, place: Path) -> None:
    shiftfs("-o", "watch=off", source, place)
    pid = int(json.loads(shiftfsctl("status", "--json", place).stdout)["pid"])
    assert agents(pid) == []
    run(["umount", place])
    wait_until(lambda: not start_time(pid), "the daemon's end")


def test_a_mount_goes_on_when_its_agent_is_killed(source: Path, place: Path) -> None:
    with ending(source, place) as (pid, agent):
        os.kill(agent, signal.SIGKILL)
        wait_until(lambda: agents(pid) == [] and not start_time(agent), "the agent's end")
        assert (place / "file").read_text() == "content"
        before = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        time.sleep(0.5)
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        assert sum(map(int, after)) - sum(map(int, before)) < 20  # hundredths of a second: it does not spin
        run(["umount", place])


# --- how a mount ends ---


@pytest.mark.parametrize("command", [["umount"], ["umount", "-l"], ["fusermount3", "-u"], ["fusermount3", "-u", "-z"]])
@pytest.mark.parametrize("option", ["rw", "ro"])
def test_all_ends(source: Path, place: Path, command: list[str], option: str) -> None:
    with ending(source, place, "-o", option) as (pid, agent):
        run([*command, place])
        wait_until(lambda: not start_time(pid) and not start_time(agent), "the end")


def test_all_ends_with_the_last_file(source: Path, place: Path) -> None:
    with ending(source, place) as (pid, agent):
        with (place / "file").open("r+") as file:
            run(["umount", "-l", place])
            wait_until(lambda: "/" not in descriptors(agent), "the clone's end")
            assert file.read() == "content"
            file.write(" and more")
            file.flush()
            assert start_time(pid)
        wait_until(lambda: not start_time(pid) and not start_time(agent), "the end")
    assert (source / "file").read_text() == "content and more"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals(source: Path, place: Path, number: signal.Signals) -> None:
    with ending(source, place) as (pid, agent):
        busy = os.open(place / "file", os.O_RDONLY)
        os.kill(pid, number)
        wait_until(lambda: not start_time(pid) and not start_time(agent), "the end")
        if number == signal.SIGTERM:
            assert not is_mounted(place)
        else:
            wait_until(lambda: errno_of(lambda: os.listdir(place)) == errno.ENOTCONN, "ENOTCONN")
        assert errno_of(lambda: os.close(busy)) in (0, errno.ENOTCONN)
        if number == signal.SIGKILL:
            run(["umount", place])


def test_a_stopped_daemon_that_is_killed_leaves_nobody_waiting(source: Path, place: Path) -> None:
    with ending(source, place) as (pid, agent):
        os.kill(pid, signal.SIGSTOP)
        waiting = subprocess.Popen(["stat", place / "unknown"], stderr=subprocess.DEVNULL)
        time.sleep(0.1)
        assert waiting.poll() is None
        os.kill(pid, signal.SIGKILL)
        assert waiting.wait(LIMIT) != 0
        wait_until(lambda: not start_time(agent), "the agent's end")


def test_a_bind_mount_keeps_it(source: Path, place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with ending(source, place) as (pid, agent):
        run(["mount", "--bind", place, other])
        try:
            run(["umount", place])
            time.sleep(1)
            assert (other / "file").read_text() == "content"
            assert "/" in descriptors(agent) and start_time(pid)
        finally:
            run(["umount", other])
        wait_until(lambda: not start_time(pid) and not start_time(agent), "the end")


def test_a_moved_mount_keeps_it(source: Path, tmp_path: Path) -> None:
    around = tmp_path / "around"
    for name in ("place", "moved"):
        (around / name).mkdir(parents=True)
    run(["mount", "--bind", around, around])
    try:
        run(["mount", "--make-private", around])
        with ending(source, around / "place") as (pid, agent):
            run(["mount", "--move", around / "place", around / "moved"])
            time.sleep(1)
            assert (around / "moved/file").read_text() == "content"
            assert "/" in descriptors(agent)
            run(["umount", around / "moved"])
            wait_until(lambda: not start_time(pid) and not start_time(agent), "the end")
    finally:
        run(["umount", "--lazy", around])


def test_a_copy_in_another_mount_namespace_goes_on(source: Path, place: Path) -> None:
    with ending(source, place) as (pid, agent):
        elsewhere = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert elsewhere.stdin is not None and elsewhere.stdout is not None
        try:
            elsewhere.stdin.write(b"\n")
            elsewhere.stdin.flush()
            assert elsewhere.stdout.readline() == b"\n"
            run(["umount", place])
            wait_until(lambda: "/" not in descriptors(agent), "the clone's end")
            inside = ["nsenter", f"--mount=/proc/{elsewhere.pid}/ns/mnt", "sh", "-c"]
            assert run([*inside, f"cat {place}/file"]).stdout == "content"
            run([*inside, f"echo more > {place}/new"])
            assert (source / "new").read_text() == "more\n"
            assert start_time(pid) and not is_mounted(place)
        finally:
            elsewhere.kill()
            elsewhere.communicate(timeout=LIMIT)
        wait_until(lambda: not start_time(pid) and not start_time(agent), "the end")


def test_many_other_mounts_cost_little(source: Path, place: Path, tmp_path: Path) -> None:
    """The kernel tells of each change of the table, but not of which."""
    around = tmp_path / "around"
    around.mkdir()
    for number in range(50):
        (around / str(number)).mkdir()

    def spent() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    with ending(source, place) as (pid, _):
        before, began = spent(), time.monotonic()
        while time.monotonic() - began < 3:
            run(["sh", "-c", f"cd {around}; for n in *; do mount -t tmpfs none $n; done; umount *"])
        # Hundredths of a second, of the 300 that have passed.
        assert spent() - before < 60
        run(["umount", place])
        wait_until(lambda: not start_time(pid), "the daemon's end")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, "umount -l"])
@pytest.mark.parametrize("after", [0.0, 0.05, 0.2])
def test_in_the_midst_of_reflecting(source: Path, place: Path, end: int | str, after: float) -> None:
    """The agent is at something that waits for the daemon's answer, most probably."""
    with ending(source, place) as (pid, agent):
        os.listdir(place)
        changing = subprocess.Popen(
            ["sh", "-c", "i=0; while :; do : > $i; mv $i x$i; rm x$i; i=$((i + 1)); done"], cwd=source
        )
        try:
            time.sleep(0.2 + after)
            if isinstance(end, str):
                run([*end.split(), place])
            else:
                os.kill(pid, end)
            wait_until(lambda: not start_time(pid) and not start_time(agent), "the end")
        finally:
            changing.kill()
            changing.wait(LIMIT)
        if end == signal.SIGKILL:
            run(["umount", place])


# --- in a user namespace ---


@pytest.fixture
def namespace() -> Iterator[UserNamespace]:
    with user_namespace() as namespace:
        yield namespace


@pytest.mark.parametrize("option", ["rw", "ro"])
@pytest.mark.parametrize("end", ["umount", "lazy", "term", "kill"])
def test_in_a_user_namespace(namespace: UserNamespace, source: Path, place: Path, end: str, option: str) -> None:
    run(["chown", "-R", "100000:100000", source, place])

    def work() -> list[Any]:
        unshare_mounts()
        with ending(source, place, "-o", option) as (pid, _):
            flags = os.statvfs(place).f_flag & os.ST_RDONLY
            content = (place / "file").read_text()
            refused = errno_of(lambda: (place / "new").touch())
            if end in ("umount", "lazy"):
                run(["umount", *(["-l"] if end == "lazy" else []), place])
            else:
                os.kill(pid, signal.SIGTERM if end == "term" else signal.SIGKILL)
                wait_until(lambda: not start_time(pid), "the daemon's end")
                run(["umount", "-l", place], check=end == "kill")
        return [flags, content, refused]

    read_only = option == "ro"
    expected = [os.ST_RDONLY if read_only else 0, "content", errno.EROFS if read_only else 0]
    assert Caller(0, 0, namespace=namespace)(work) == expected


# --- read-only ---


def flags(place: Path) -> tuple[set[str], set[str]]:
    """Those of the mount, and those of its filesystem."""
    vfs, fs = run(["findmnt", "-n", "-o", "VFS-OPTIONS,FS-OPTIONS", place]).stdout.split()
    return set(vfs.split(",")), set(fs.split(","))


def opened(path: Path, flags: int, call: Callable[[int], object] = lambda fd: None) -> None:
    fd = os.open(path, flags)
    try:
        call(fd)
    finally:
        os.close(fd)


CALLS: dict[str, Callable[[Path], object]] = {
    "create": lambda path: path.touch(),
    "mkdir": lambda path: path.mkdir(),
    "mkfifo": os.mkfifo,
    "symlink": lambda path: path.symlink_to("x"),
    "link": lambda path: os.link(path.with_name("file"), path),
    "unlink": lambda path: path.with_name("file").unlink(),
    "rmdir": lambda path: path.with_name("dir").rmdir(),
    "rename": lambda path: path.with_name("file").rename(path),
    "write": lambda path: opened(path.with_name("file"), os.O_RDWR, lambda fd: os.write(fd, b"x")),
    "truncate": lambda path: os.truncate(path.with_name("file"), 1),
    "O_TRUNC": lambda path: opened(path.with_name("file"), os.O_RDONLY | os.O_TRUNC),
    "allocate": lambda path: opened(path.with_name("file"), os.O_RDWR, lambda fd: os.posix_fallocate(fd, 0, 100)),
    "chmod": lambda path: path.with_name("file").chmod(0o600),
    "chown": lambda path: os.chown(path.with_name("file"), 1, 1),
    "utime": lambda path: os.utime(path.with_name("file")),
    "setxattr": lambda path: os.setxattr(path.with_name("file"), "user.x", b""),
    "removexattr": lambda path: os.removexattr(path.with_name("file"), "user.there"),
    "tmpfile": lambda path: opened(path.parent, os.O_TMPFILE | os.O_RDWR),
    "flags": lambda path: run(["chattr", "+d", path.with_name("file")]),
}


def refusals(place: Path) -> dict[str, int]:
    def errno_after(call: Callable[[Path], object]) -> int:
        try:
            return errno_of(lambda: call(place / "new"))
        except AssertionError as failure:  # a command's
            return errno.EROFS if "Read-only" in str(failure) else 0

    return {name: errno_after(call) for name, call in CALLS.items()}


def listing(source: Path) -> str:
    return run(["find", source, "-printf", "%p %m %u %s %T@ %C@\n"]).stdout


@pytest.mark.parametrize("option", ["open=refuse", "open=serve"])
def test_nobody_changes_what_is_read_only(source: Path, tmp_path: Path, option: str) -> None:
    (source / "dir").mkdir()
    os.setxattr(source / "file", "user.there", b"")
    other = tmp_path / "other"
    other.mkdir()
    before = listing(source)
    with mounted(source, None, "ro", option) as mount:
        assert "ro" in flags(mount.path)[0] and "rw" in flags(mount.path)[1]
        assert os.statvfs(mount.path).f_flag & os.ST_RDONLY
        assert refusals(mount.path) == dict.fromkeys(CALLS, errno.EROFS)
        run(["mount", "--bind", mount.path, other])
        run(["mount", "-o", "remount,bind,rw", other])
        assert "rw" in flags(other)[0] and "ro" in flags(mount.path)[0]
        assert refusals(other) == dict.fromkeys(CALLS, errno.EROFS)
        run(["umount", other])
        run(["mount", "-i", "-o", "remount,rw", mount.path])
        assert refusals(mount.path) == dict.fromkeys(CALLS, errno.EROFS)
        assert (mount.path / "file").read_text() == "content"
        # Nor by the clone, if a request of the agent's is none that it was told to make.
        (agent,) = agents(mount.pid)
        (clone,) = (n for n in os.listdir(f"/proc/{agent}/fd") if os.readlink(f"/proc/{agent}/fd/{n}") == "/")
        assert refusals(Path(f"/proc/{agent}/fd/{clone}")) == dict.fromkeys(CALLS, errno.EROFS)
    assert listing(source) == before


def test_a_user_who_cannot_make_it_so(source: Path) -> None:
    """By fusermount3: the whole filesystem is."""
    with mounted(source, None, "ro", user=1) as mount:
        shown = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        (line,) = (words for words in shown if words[4] == str(mount.path))
        assert "ro" in line[5].split(",") and "ro" in line[-1].split(",")
        assert agents(mount.pid) == []


FAILS = """
import sys
from shiftfs import __main__, mount
def fails(*args, **options):
    raise OSError(22, "no")
mount.show_inner_root = fails
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_where_no_other_root_can_be_shown(source: Path, place: Path) -> None:
    run([SHIFTFS[0], "-P", "-c", FAILS, "-o", "ro", source, place])
    mount = Mount(source, place, newest_mount(place))
    mount.pid = int(mount.status()["pid"])
    try:
        assert "ro" in flags(place)[0] and mount.entry.root == "/"
        assert errno_of(lambda: (place / "new").touch()) == errno.EROFS
        (agent,) = agents(mount.pid)
        assert "/" in descriptors(agent)
    finally:
        run(["umount", place])
        wait_until(lambda: not start_time(mount.pid), "the daemon's end")
