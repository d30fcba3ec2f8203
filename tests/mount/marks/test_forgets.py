"""Who has mounted has the connection too, and can read from it what is the process's to read. Here he takes away for
good what his kernel forgets: the process remembers it, until his mount is ended, and nobody else's."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import harness.shifted
from harness.attacking import LIMIT, attacker, expect_all_well
from harness.commands import wait_until
from harness.marks import OTHER, Container, Marked, container, hidden_directory, marked, with_memory

MEMORY = 4 << 20
"""What all mounts together may need, and so how many inodes: a KiB each."""
DIRECTORIES, FILES = 16, 1000

# Directory by directory is looked at, and the kernel made to forget it (a remount empties its cache), while what it
# says is read here. What is none of it is answered with an error, for only who has read a request can answer it.
SWALLOWING = f"""
import errno
REMOUNT, FORGETS = 32, (2, 42)
fd = made()
connection = hello()
socket.send_fds(connection, [b"connection"], [fd])
words, given = protocol.receive(connection)
os.set_blocking(fd, False)
forgetting = threading.Event()

def attempt(call, *args):
    try:
        return call(*args)
    except OSError:
        return ()

def swallow():
    room = bytearray(1 << 21)
    while forgetting.wait():
        if attempt(os.readv, fd, [room]):
            _, opcode, unique = struct.unpack_from("=IIQ", room)
            if opcode not in FORGETS:
                attempt(os.write, fd, struct.pack("=IiQ", 16, -errno.EAGAIN, unique))

threading.Thread(target=swallow, daemon=True).start()
tell(words[0].decode())
for number in range(1 << 20):
    directory = f"{{TARGET}}/{{number % {DIRECTORIES}}}"
    for name in range({FILES}):
        attempt(os.lstat, f"{{directory}}/{{name}}")
    forgetting.set()
    attempt(mounts.mount, b"own", os.fsencode(TARGET), b"fuse.own", REMOUNT | mounts.NODEV, b"")
    time.sleep(0.02)
    forgetting.clear()
"""


@contextmanager
def working(user: Container) -> Iterator[None]:
    """All the while he does something, and nothing of it fails."""
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.wait(0.1):
                assert user.shell("echo mine > own; cat own; rm own", limit=LIMIT) == "mine\n"
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failures == []


def connections(mark: Marked) -> int:
    """How many mounts the process serves."""
    count = 0
    for link in Path(f"/proc/{mark.mount.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(link) == "/dev/fuse"
    return count


def memory(pid: int, what: str) -> int:
    """In bytes, as /proc/PID/status has it."""
    found = re.search(rf"^{what}:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process believes that the machine has little."""
    monkeypatch.setattr(harness.shifted, "SHIFTFS", with_memory(MEMORY))


@pytest.mark.usefixtures("small_memory")
def test_who_takes_away_what_is_forgotten_loses_his_mount_and_nobody_else(area: Path) -> None:
    source = hidden_directory()
    for directory in range(DIRECTORIES):
        (source / str(directory)).mkdir()
        for number in range(FILES):
            os.mkfifo(source / str(directory) / str(number))
    users = container(), container((0, 300000, 65536), owner=OTHER)
    with marked(source=source) as mark, users[0] as user, users[1] as other:
        other.mount(mark.path)
        expect_all_well(mark, other)
        wait_until(lambda: connections(mark) == 2, "there are the mark's own mount and the other's", LIMIT)
        had = memory(mark.mount.pid, "VmRSS")
        with working(other), attacker(mark, user, SWALLOWING) as told:
            assert told == ["serving"] and connections(mark) == 3
            # His kernel has no more than one directory in mind at a time, which alone would be no reason.
            assert FILES << 10 < MEMORY // 3
            wait_until(lambda: connections(mark) == 2, "his mount is ended", 60)
        assert memory(mark.mount.pid, "VmHWM") - had < 2 * MEMORY
        expect_all_well(mark, other)
        user.run("umount", "-l", user.target)
        user.mount(mark.path)
        assert user.shell("ls | wc -l", limit=LIMIT).strip() == str(DIRECTORIES)
