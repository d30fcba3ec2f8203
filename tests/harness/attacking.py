"""Hostile clients of a mark, and the others, who shall not notice: in containers of two users.

Owns each client until its end.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.commands import EXIT_LIMIT, environment, open_directory, wait_until
from harness.marks import Container, Marked
from shiftfs.mark import client, protocol

LIMIT = 15.0

CLIENT = """
import array, fcntl, os, select, signal, socket, struct, subprocess, sys, threading, time
from shiftfs.mark import protocol
from shiftfs.sys import mounts

SYNC_INIT = 0xE503
PATH, TARGET = sys.argv[1:]

def asking():
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(30)
    connection.connect(PATH)
    return connection

def say(connection, text, *fds):
    socket.send_fds(connection, [text], fds)
    try:
        words, given = protocol.receive(connection)
    except ConnectionResetError:
        return ""
    for fd in given:
        os.close(fd)
    return b" ".join(words).decode()

def hello():
    connection = asking()
    assert say(connection, protocol.packed(b"hello", b"1", b"")) .startswith("ok")
    return connection

def made(target=TARGET, more=b""):
    fd = os.open("/dev/fuse", os.O_RDWR)
    data = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions" % fd
    mounts.mount(b"own", os.fsencode(target), b"fuse.own", mounts.NODEV, data + more)
    return fd

def tell(*words):
    print(*words, flush=True)

def stay():
    sys.stdin.read()
"""


@contextmanager
def attacker(mark: Marked, user: Container, script: str, pass_fds: Sequence[int] = ()) -> Iterator[list[str]]:
    """Runs until the end, unless it ends by itself; gives the words of its first line."""
    device = client.mark_at(os.fsencode(mark.path))
    assert device is not None
    path = protocol.path(device)
    args = user.command([sys.executable, "-P", "-c", CLIENT + script, path, str(user.target)])
    process = subprocess.Popen(
        args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), pass_fds=pass_fds, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "it failed"
        yield line.split()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()
        process.wait(EXIT_LIMIT)


def descriptors(mark: Marked) -> int:
    return len(os.listdir(f"/proc/{mark.mount.pid}/fd"))


def expect_all_well(mark: Marked, other: Container) -> None:
    assert other.shell("echo content > file; cat file; rm file", limit=LIMIT) == "content\n"
    again = open_directory("again-")
    other.mount(mark.path, target=again, limit=LIMIT)
    assert other.run("ls", again, limit=LIMIT).stdout == other.shell("ls", limit=LIMIT)
    other.unmount(again)


@contextmanager
def nothing_kept(mark: Marked, other: Container) -> Iterator[None]:
    """All goes on during it, and the process has no more descriptors in the end."""
    expect_all_well(mark, other)
    before = descriptors(mark)
    yield
    wait_until(lambda: descriptors(mark) <= before, "the process has closed all", 20)
    expect_all_well(mark, other)


def expect_served_apart(mark: Marked, user: Container, other: Container, script: str) -> None:
    """A client that tells what it was answered to a connection of its own is served, and nothing of that is kept."""
    with nothing_kept(mark, other):
        with attacker(mark, user, script) as told:
            assert told == ["serving"]
            expect_all_well(mark, other)
        user.run("umount", "-l", user.target)


@contextmanager
def leased(paths: list[Path]) -> Iterator[None]:
    """By somebody who does not let go: whoever is to write there waits, for as long as this lasts."""
    ignored = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        for fd in fds:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        yield
    finally:
        for fd in fds:
            os.close(fd)
        signal.signal(signal.SIGIO, ignored)
