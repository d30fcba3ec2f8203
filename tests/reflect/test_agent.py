"""The agent, with a plain directory in the place of its clone of the mount."""

import errno
import fcntl
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import environment, run, wait_until
from harness.shifted import start_time
from shiftfs.reflect.action import Verb
from shiftfs.reflect.agent import Agent, AgentThread
from shiftfs.reflect.agent_child import LONGEST_JOB

LIMIT = 10.0
OLD = (1_000_000_000, 1_000_000_000)


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    started = Agent.start(threads=3)
    started.meet()
    yield started
    assert started.close()


@pytest.fixture
def clone(agent: Agent, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "clone"
    path.mkdir()
    give(agent, path)
    yield path
    agent.drop()


def give(agent: Agent, path: Path) -> None:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    agent.give(fd)
    os.close(fd)


def outcomes(thread: AgentThread, count: int = 1) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    end = time.monotonic() + LIMIT
    while len(found) < count and time.monotonic() < end and not thread.ended:
        poll = select.poll()
        poll.register(thread.fd, select.POLLIN)
        poll.poll(LIMIT * 1000)
        found += thread.receive()
    return found


def done(agent: Agent, verb: int, *paths: bytes, mode: int = 0) -> int:
    """The errno of one job."""
    thread = agent.threads[0]
    assert thread.send(7, verb, *paths, mode=mode)
    ((job, number),) = outcomes(thread)
    assert job == 7
    return number


def children(pid: int) -> list[int]:
    return [int(name) for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# --- what it is ---


def test_its_threads_are_those_it_tells_of(agent: Agent) -> None:
    tids = {thread.tid for thread in agent.threads}
    assert len(tids) == 3
    assert tids | {agent.pid} == {int(name) for name in os.listdir(f"/proc/{agent.pid}/task")}
    assert Path(f"/proc/{agent.pid}/task/{min(tids)}/comm").read_text() == "shiftfs-agent\n"


def test_it_holds_nothing_of_its_parent(agent: Agent, clone: Path) -> None:
    assert done(agent, Verb.MKNOD, b"a", mode=stat.S_IFREG) == 0
    held = {int(name): os.readlink(f"/proc/{agent.pid}/fd/{name}") for name in os.listdir(f"/proc/{agent.pid}/fd")}
    others = sorted(held.pop(number) for number in range(3))
    assert others == ["/dev/null"] * 3
    assert os.readlink(f"/proc/{agent.pid}/cwd") == "/"
    sockets = [target for target in held.values() if target.startswith("socket:")]
    assert sorted(held.values()) == sorted([*sockets, str(clone)])
    assert len(sockets) == 4


def test_it_does_not_keep_what_it_was_given(agent: Agent, clone: Path) -> None:
    agent.drop()
    assert done(agent, Verb.MKNOD, b"a", mode=stat.S_IFREG) == errno.ENODEV
    held = {os.readlink(f"/proc/{agent.pid}/fd/{name}") for name in os.listdir(f"/proc/{agent.pid}/fd")}
    assert str(clone) not in held
    give(agent, clone)
    assert done(agent, Verb.MKNOD, b"a", mode=stat.S_IFREG) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_it_does_not_end_before_its_parent(agent: Agent, clone: Path, number: signal.Signals) -> None:
    os.kill(agent.pid, number)
    assert done(agent, Verb.MKDIR, b"a") == 0


PARENT = """
import signal, sys, time
from shiftfs.reflect.agent import Agent
agent = Agent.start()
print(agent.pid, flush=True)
if sys.argv[1] == "kill":
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_it_ends_with_its_parent(how: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, how], stdout=subprocess.PIPE, env=environment(), text=True
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if how == "kill":
            assert start_time(pid)
            parent.kill()
    finally:
        parent.communicate(timeout=LIMIT)
    wait_until(lambda: not start_time(pid), "the agent's end")


def test_its_end_is_noticed(tmp_path: Path) -> None:
    agent = Agent.start(threads=1)
    agent.meet()
    (thread,) = agent.threads
    assert not select.select([agent.fd], [], [], 0)[0]
    os.kill(agent.pid, signal.SIGKILL)
    assert select.select([agent.fd], [], [], LIMIT)[0]
    assert outcomes(thread) == [] and thread.ended
    assert not thread.send(1, Verb.UNLINK, b"a")
    agent.drop()
    assert agent.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(agent.pid, os.WNOHANG)


def test_one_that_does_not_start_is_noticed() -> None:
    agent = Agent.start(threads=1)
    os.kill(agent.pid, signal.SIGKILL)
    time.sleep(0.05)
    try:
        agent.meet()
    except OSError:
        pass
    assert agent.close()


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftfs.reflect.agent._END_SECONDS", 0.2)
    agent = Agent.start(threads=1)
    agent.meet()
    os.kill(agent.pid, signal.SIGSTOP)
    assert agent.close()
    assert not start_time(agent.pid)


def test_a_number_of_its_own_after_many_others(agent: Agent) -> None:
    """The child closes descriptors of any number."""
    here, there = socket.socketpair()
    with here, there:
        high = fcntl.fcntl(there.fileno(), fcntl.F_DUPFD_CLOEXEC, 900)
        other = Agent.start(threads=1)
        try:
            other.meet()
            os.close(high)
            there.close()
            here.settimeout(LIMIT)
            assert here.recv(1) == b""
        finally:
            assert other.close()


# --- what it does ---


def test_names_are_made(agent: Agent, clone: Path) -> None:
    (clone / "sub").mkdir()
    for at in (b"", b"sub/"):
        assert done(agent, Verb.MKNOD, at + b"file", mode=stat.S_IFREG | 0o604) == 0
        assert done(agent, Verb.MKNOD, at + b"fifo", mode=stat.S_IFIFO | 0o600) == 0
        assert done(agent, Verb.MKNOD, at + b"socket", mode=stat.S_IFSOCK | 0o600) == 0
        assert done(agent, Verb.MKDIR, at + b"dir", mode=stat.S_IFDIR | 0o705) == 0
        assert done(agent, Verb.SYMLINK, at + b"link", mode=stat.S_IFLNK) == 0
        assert done(agent, Verb.LINK, at + b"file", b"linked" + at.replace(b"/", b"")) == 0
        modes = {name: (clone / os.fsdecode(at) / name).lstat().st_mode for name in ("file", "fifo", "socket", "dir")}
        assert modes == {
            "file": stat.S_IFREG | 0o604, "fifo": stat.S_IFIFO | 0o600, "socket": stat.S_IFSOCK | 0o600,
            "dir": stat.S_IFDIR | 0o705,
        }  # fmt: skip
        assert os.readlink(clone / os.fsdecode(at) / "link") == "x"
        assert (clone / os.fsdecode(at) / "file").stat().st_nlink == 2


def test_a_symlink_is_linked_itself(agent: Agent, clone: Path) -> None:
    (clone / "link").symlink_to("nowhere")
    assert done(agent, Verb.LINK, b"link", b"other") == 0
    assert os.readlink(clone / "other") == "nowhere"


def test_names_are_taken_away(agent: Agent, clone: Path) -> None:
    (clone / "sub/dir").mkdir(parents=True)
    (clone / "sub/file").touch()
    assert done(agent, Verb.UNLINK, b"sub/dir") == errno.EISDIR
    assert done(agent, Verb.RMDIR, b"sub/file") == errno.ENOTDIR
    assert done(agent, Verb.RMDIR, b"sub") == errno.ENOTEMPTY
    assert done(agent, Verb.UNLINK, b"sub/file") == 0
    assert done(agent, Verb.RMDIR, b"sub/dir") == 0
    assert done(agent, Verb.RMDIR, b"sub") == 0
    assert done(agent, Verb.UNLINK, b"sub/file") == errno.ENOENT
    assert os.listdir(clone) == []


def test_names_are_moved(agent: Agent, clone: Path) -> None:
    (clone / "a").mkdir()
    (clone / "b").mkdir()
    (clone / "a/one").write_text("one")
    (clone / "two").write_text("two")
    assert done(agent, Verb.RENAME, b"a/one", b"b/moved") == 0
    assert (clone / "b/moved").read_text() == "one"
    assert done(agent, Verb.EXCHANGE, b"b/moved", b"two") == 0
    assert (clone / "b/moved").read_text() == "two" and (clone / "two").read_text() == "one"
    assert done(agent, Verb.RENAME, b"two", b"b/moved") == 0
    assert (clone / "b/moved").read_text() == "one" and not (clone / "two").exists()
    assert done(agent, Verb.EXCHANGE, b"a", b"absent") == errno.ENOENT
    assert done(agent, Verb.RENAME, b"a", b"absent/a") == errno.ENOENT


def test_times(agent: Agent, clone: Path) -> None:
    (clone / "sub").mkdir()
    (clone / "sub/file").touch()
    (clone / "link").symlink_to("sub/file")
    for path in (b"sub/file", b"link", b"sub", b""):
        real = os.fsencode(clone) + b"/" + path if path else os.fsencode(clone)
        for verb in (Verb.MODIFIED, Verb.ATTRIBUTES):
            os.utime(real, ns=(OLD[0], OLD[1]), follow_symlinks=False)
            assert done(agent, verb, path) == 0
            status = os.lstat(real)
            assert status.st_mtime_ns > OLD[1]
            assert (status.st_atime_ns == OLD[0]) is (verb is Verb.MODIFIED)
    assert done(agent, Verb.MODIFIED, b"absent") == errno.ENOENT


def test_events(agent: Agent, clone: Path) -> None:
    (clone / "file").touch()
    watching = subprocess.Popen(
        ["inotifywait", "-m", "-q", "--format", "%e", clone / "file"], stdout=subprocess.PIPE, text=True
    )
    try:
        # It says with -q not when it has begun.
        wait_until(lambda: "inotify wd" in "".join(
            path.read_text() for path in Path(f"/proc/{watching.pid}/fdinfo").iterdir()
        ), "a watch")  # fmt: skip
        assert done(agent, Verb.MODIFIED, b"file") == 0
        assert done(agent, Verb.ATTRIBUTES, b"file") == 0
        assert done(agent, Verb.CLOSED, b"file") == 0
        assert done(agent, Verb.UNLINK, b"file") == 0
        assert watching.stdout is not None
        said = [watching.stdout.readline().strip() for _ in range(5)]
        assert said == ["MODIFY", "ATTRIB", "OPEN", "CLOSE_WRITE,CLOSE", "ATTRIB"]
    finally:
        watching.kill()
        watching.communicate()


def test_a_file_that_is_leased_is_not_waited_for(agent: Agent, clone: Path) -> None:
    (clone / "file").touch()
    with (clone / "file").open() as file:
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert done(agent, Verb.CLOSED, b"file") == errno.EAGAIN
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        signal.signal(signal.SIGIO, before)
    assert done(agent, Verb.CLOSED, b"file") == 0


def test_what_cannot_be_opened_for_writing(agent: Agent, clone: Path) -> None:
    run(["cp", "/bin/sleep", clone / "program"])
    os.mkfifo(clone / "fifo")
    (clone / "link").symlink_to("program")
    process = subprocess.Popen([clone / "program", "60"])
    try:
        # Popen returns once it runs.
        assert done(agent, Verb.CLOSED, b"program") == errno.ETXTBSY
    finally:
        process.kill()
        process.wait()
    assert done(agent, Verb.CLOSED, b"fifo") == errno.ENXIO
    assert done(agent, Verb.CLOSED, b"link") == errno.ELOOP
    (clone / "dir").mkdir()
    assert done(agent, Verb.CLOSED, b"dir") == errno.EISDIR


# --- where it goes ---


@pytest.mark.parametrize("verb", list(Verb))
def test_it_follows_no_symlink_in_the_way(agent: Agent, clone: Path, tmp_path: Path, verb: Verb) -> None:
    outside = tmp_path / "outside"
    (outside / "dir").mkdir(parents=True)
    (outside / "file").write_text("outside")
    (clone / "away").symlink_to(outside)
    (clone / "near").mkdir()
    (clone / "near/file").touch()
    (clone / "back").symlink_to("near")
    before = run(["find", outside, "-printf", "%p %T@ %C@\n"]).stdout
    for path in (b"away/new", b"away/file", b"back/file", b"../outside/file", b"../outside/new"):
        assert done(agent, verb, path, b"new", mode=stat.S_IFREG) in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR)
    assert run(["find", outside, "-printf", "%p %T@ %C@\n"]).stdout == before
    assert sorted(os.listdir(clone)) == ["away", "back", "near"]


def test_paths_beyond_path_max(agent: Agent, clone: Path) -> None:
    name = b"d" * 200
    depth = 70
    for count in range(1, depth + 1):
        assert done(agent, Verb.MKDIR, b"/".join([name] * count), mode=0o700) == 0
    deep = b"/".join([name] * depth)
    assert len(deep) > 3 * 4096
    before = len(os.listdir(f"/proc/{agent.pid}/fd"))
    assert done(agent, Verb.MKNOD, deep + b"/file", mode=stat.S_IFREG | 0o600) == 0
    assert done(agent, Verb.LINK, deep + b"/file", deep + b"/linked") == 0
    assert done(agent, Verb.RENAME, deep + b"/file", b"file") == 0
    assert (clone / "file").stat().st_nlink == 2
    for verb in (Verb.CLOSED, Verb.MODIFIED, Verb.ATTRIBUTES, Verb.UNLINK):
        assert done(agent, verb, deep + b"/linked") == 0
    assert (clone / "file").stat().st_nlink == 1
    assert len(os.listdir(f"/proc/{agent.pid}/fd")) == before
    assert done(agent, Verb.RMDIR, deep) == 0
    run(["rm", "-rf", clone / os.fsdecode(name)])


@pytest.mark.parametrize("length", [4094, 4095, 4096, 4097, 8190, 8191, 8192])
def test_paths_of_about_path_max(agent: Agent, clone: Path, length: int) -> None:
    names = [b"a" * 99] * (length // 100)
    path = b"/".join([*names, b"b" * (length - 100 * len(names))]).rstrip(b"/")
    parts = path.split(b"/")
    for count in range(1, len(parts)):
        assert done(agent, Verb.MKDIR, b"/".join(parts[:count]), mode=0o700) == 0
    assert done(agent, Verb.MKNOD, path, mode=stat.S_IFREG | 0o600) == 0
    assert done(agent, Verb.CLOSED, path) == 0
    assert done(agent, Verb.UNLINK, path) == 0
    run(["rm", "-rf", clone / os.fsdecode(parts[0])])


def test_a_path_that_no_packet_takes(agent: Agent, clone: Path) -> None:
    assert done(agent, Verb.MKNOD, b"a/" * LONGEST_JOB, mode=stat.S_IFREG) == errno.ENAMETOOLONG
    assert done(agent, Verb.MKNOD, b"a/" * (LONGEST_JOB // 2 - 20) + b"b", mode=stat.S_IFREG) == errno.ENOENT


def test_a_job_that_makes_no_sense(agent: Agent, clone: Path) -> None:
    assert done(agent, 200, b"a") == errno.EIO
    assert done(agent, Verb.RENAME, b"a") == errno.EIO
    assert done(agent, Verb.MKDIR, b"a", mode=0o700) == 0


# --- order ---


def test_each_thread_does_its_jobs_in_their_order(agent: Agent, clone: Path) -> None:
    rounds = 40
    for number, thread in enumerate(agent.threads):
        name = b"%d" % number
        for step in range(rounds):
            assert thread.send(2 * step, Verb.MKNOD, name, mode=stat.S_IFREG)
            assert thread.send(2 * step + 1, Verb.UNLINK, name)
    for thread in agent.threads:
        assert outcomes(thread, 2 * rounds) == [(job, 0) for job in range(2 * rounds)]


def test_a_full_socket_is_not_waited_for(agent: Agent, clone: Path) -> None:
    thread = agent.threads[0]
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        sent = 0
        while thread.send(sent, Verb.MKNOD, b"%d" % sent, mode=stat.S_IFREG):
            sent += 1
        assert sent > 50
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert outcomes(thread, sent) == [(job, 0) for job in range(sent)]
    assert len(os.listdir(clone)) == sent
