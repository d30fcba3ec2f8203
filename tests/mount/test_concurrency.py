"""What takes long delays nobody else: copies, reads that wait for their layer, and what is waited for can be given up.

Asserted by what completes meanwhile, never by the clock: the machine may be busy. bench/mounts measures it.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Mount, errno_of, mounted, newest_mount, open_directory, run, unmount, wait_until

GIB = 1 << 30
LIMIT = 30.0


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A layer that is fast and needs no disk."""
    path = open_directory("memory-")
    run(["mount", "-t", "tmpfs", "-o", "size=6g", "none", path])
    entry = newest_mount(path)
    try:
        (path / "large").touch()
        os.truncate(path / "large", 4 * GIB)  # all hole, but copied byte by byte
        (path / "other").write_text("content")
        (path / "directory").mkdir()
        yield path
    finally:
        unmount(entry)
        path.rmdir()


def work_elsewhere(mount: Mount) -> None:
    """Requests to other inodes, all of which reach the process."""
    os.stat(mount.path / "other")
    errno_of(lambda: os.stat(mount.path / "absent"))
    os.listdir(mount.path / "directory")
    (mount.path / "directory" / "new").touch()
    (mount.path / "directory" / "new").unlink()


@pytest.mark.parametrize("options", [[], ["open=serve"]], ids=["refuse", "serve"])
def test_a_large_copy_delays_nobody(memory: Path, options: list[str]) -> None:
    with mounted(memory, None, "watch=off", "timeout=0", *options) as mount:
        process = begun(mount)
        # A copy that held everybody up would be over after the first of these.
        for _ in range(50):
            work_elsewhere(mount)
        assert process.poll() is None
        process.kill()
        process.communicate(timeout=LIMIT)
        (mount.path / "copy").unlink()


COPY = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
reading, writing = os.open("large", os.O_RDONLY), os.open("copy", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
print("begins", flush=True)
print(os.copy_file_range(reading, writing, 4 << 30))
"""


def begun(mount: Mount) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", COPY], cwd=mount.path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begins\n"
    wait_until(lambda: (mount.source / "copy").stat().st_size > 0, "the copy to begin", LIMIT)
    return process


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_an_interrupted_copy_ends_early(memory: Path, number: signal.Signals) -> None:
    with mounted(memory) as mount:
        process = begun(mount)
        process.send_signal(number)
        out, _ = process.communicate(timeout=LIMIT)
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert 0 < int(out) < 4 * GIB
            assert (memory / "copy").stat().st_size == int(out)
        wait_until(lambda: mount.status()["waiting"] == 0, "the copy's end", LIMIT)
        assert (memory / "copy").stat().st_size < 4 * GIB
        (mount.path / "copy").unlink()


# --- a layer that does not answer ---


@pytest.fixture
def stalling() -> Iterator[tuple[Mount, "subprocess.Popen[bytes]"]]:
    """A mount with bindfs in its source, which can be stopped: reads from there then wait, as on a lost server.

    The kernel has the attributes already, so that a read is the only request.
    """
    source, beneath = open_directory("layer-"), open_directory("beneath-")
    (beneath / "slow").write_bytes(os.urandom(1 << 20) * 32)
    (source / "server").mkdir()
    (source / "other").write_text("content")
    (source / "directory").mkdir()
    server = subprocess.Popen(["bindfs", "-f", "-o", "direct_io", beneath, source / "server"])
    try:
        wait_until(lambda: os.path.ismount(source / "server"), "bindfs")
        entry = newest_mount(source / "server")
        try:
            with mounted(source, None, "timeout=1000") as mount:
                yield mount, server
                server.send_signal(signal.SIGCONT)
        finally:
            server.send_signal(signal.SIGCONT)
            unmount(entry)
    finally:
        server.kill()
        server.wait(10)
        run(["rm", "-rf", source, beneath])


WAITING = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
fd = os.open("server/slow", os.O_RDWR)
os.pread(fd, 1, 0)
os.pwrite(fd, b"x", 0)
eval(sys.argv[1])
print("begins", flush=True)
input()
print(eval(sys.argv[2]), flush=True)
"""
# What makes that call the only request: before a read the kernel wants attributes that are fresh, before a change to
# know that there are no capabilities to be removed.
READ = ("os.fstat(fd)", "len(os.pread(fd, 4096, 24 << 20))")
CALLS = {
    "read": READ,
    "fsync": ("None", "os.fsync(fd)"),
    "fallocate": ("os.pwrite(fd, b'x', 0)", "os.posix_fallocate(fd, 0, 4096)"),
}


@contextmanager
def waiting(
    mount: Mount, server: "subprocess.Popen[bytes]", call: tuple[str, str] = READ
) -> Iterator["subprocess.Popen[str]"]:
    """A process whose call waits for its layer."""
    command = [sys.executable, "-c", WAITING, *call]
    process = subprocess.Popen(command, cwd=mount.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        server.send_signal(signal.SIGSTOP)
        process.stdin.write("\n")
        process.stdin.flush()
        wait_until(lambda: mount.status()["waiting"] > 0, "the call to wait", LIMIT)
        yield process
    finally:
        server.send_signal(signal.SIGCONT)
        process.communicate(timeout=LIMIT)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_waits_delays_nobody(stalling: tuple[Mount, "subprocess.Popen[bytes]"], call: str) -> None:
    mount, server = stalling
    with waiting(mount, server, CALLS[call]) as process:
        for _ in range(50):
            work_elsewhere(mount)
        assert mount.status()["waiting"] > 0
        assert process.poll() is None


@pytest.mark.parametrize("call", CALLS)
def test_whoever_is_killed_is_let_go(stalling: tuple[Mount, "subprocess.Popen[bytes]"], call: str) -> None:
    mount, server = stalling
    with waiting(mount, server, CALLS[call]) as process:
        process.kill()
        assert process.wait(LIMIT) == -signal.SIGKILL
        assert (mount.path / "other").read_text() == "content"
    assert len((mount.path / "server" / "slow").read_bytes()) == 32 << 20


def test_a_signal_does_not_cut_a_read_short(stalling: tuple[Mount, "subprocess.Popen[bytes]"]) -> None:
    """As on a local disk, whose reads are not interrupted."""
    mount, server = stalling
    with waiting(mount, server) as process:
        process.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        server.send_signal(signal.SIGCONT)
        assert process.stdout is not None and process.stdout.readline() == "4096\n"


def test_as_many_readers_as_workers_delay_nobody(stalling: tuple[Mount, "subprocess.Popen[bytes]"]) -> None:
    mount, server = stalling
    file = os.open(mount.path / "server" / "slow", os.O_RDONLY)
    os.pread(file, 1, 0)
    server.send_signal(signal.SIGSTOP)
    threads = [threading.Thread(target=os.pread, args=(file, 1, (1 + number) << 19)) for number in range(20)]
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: mount.status()["waiting"] >= len(threads), "the reads to wait", LIMIT)
        for _ in range(50):
            work_elsewhere(mount)
    finally:
        server.send_signal(signal.SIGCONT)
        for thread in threads:
            thread.join(LIMIT)
        os.close(file)


def test_clients_at_once_see_one_tree(memory: Path) -> None:
    """Each makes, renames and removes names of its own in one directory; nobody's get lost, and nothing is left."""
    script = (
        "import os, sys\n"
        "for number in range(150):\n"
        "    name = f'{sys.argv[1]}-{number}'\n"
        "    with open(name, 'x') as file: file.write(name)\n"
        "    os.rename(name, name + '.new')\n"
        "    assert name + '.new' in os.listdir('.')\n"
        "    assert open(name + '.new').read() == name\n"
        "    os.unlink(name + '.new')\n"
    )
    with mounted(memory) as mount:
        clients = [
            subprocess.Popen([sys.executable, "-c", script, str(number)], cwd=mount.path / "directory")
            for number in range(4)
        ]
        assert [client.wait(60) for client in clients] == [0] * len(clients)
        assert os.listdir(mount.path / "directory") == os.listdir(memory / "directory") == []
