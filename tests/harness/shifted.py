"""shiftfs mounts made with the real command.

Owns the mount and its daemon from the command's return to the daemon's end. Never lets a test pass whose
daemon had to be killed.
"""

import json
import os
import select
import signal
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.commands import (
    EXIT_LIMIT,
    SHIFTFS,
    SHIFTFSCTL,
    Argument,
    CommandFailed,
    environment,
    open_directory,
    report,
    run,
    user_prefix,
    wait_until,
)
from harness.mounts import Leftover, MountEntry, is_mounted, mount_table, newest_mount, unmount
from shiftfs.asking import CtlError, ask

_ROUNDS = 20

MOUNT_LIMIT = 30.0
SETTLE_LIMIT = 60.0
# A daemon ends with the last copy of its mount, and whatever another process of this run has in a mount namespace of
# its own may have one, for as long as it lasts.
END_LIMIT = 40.0


@dataclass
class Mount:
    """A shiftfs mount and the process that serves it."""

    source: Path
    path: Path
    entry: MountEntry
    user: int | None = None
    pid: int = 0

    def status(self) -> dict[str, Any]:
        return self._ask("status")

    def stats(self) -> dict[str, Any]:
        return self._ask("stats")

    def settled(self) -> None:
        """Wait until all that has been done in the layers has been told on the mount."""
        heard = [-1]

        def nothing_new() -> bool:
            status = self.status()
            before, heard[0] = heard[0], status["journal"]["total"]
            return status["live"] is None or (heard[0] == before and status["live"]["waiting"] == 0)

        wait_until(nothing_new, "all changes told on the mount", SETTLE_LIMIT)

    def requests(self) -> Counter[str]:
        """How many requests of each opcode the process has answered."""
        counts = self.stats()["requests"]
        return Counter({name: int(value["count"]) for name, value in counts.items()})

    def _ask(self, command: str) -> dict[str, Any]:
        if self.user is None:
            text = ask(str(self.path), command)
        else:  # a user's mount admits nobody else, not even root
            args: list[Argument] = [*_prefix(self.user), *SHIFTFSCTL, command, self.path, "--json"]
            text = run(args, limit=EXIT_LIMIT).stdout
        answer: dict[str, Any] = json.loads(text)
        return answer


def _prefix(user: int | None) -> list[str]:
    return [] if user is None else user_prefix(user)


@contextmanager
def requests_during(mount: Mount) -> Iterator[Counter[str]]:
    """The requests that the body causes, by opcode, filled in when it ends. What reading the counters itself
    costs is measured before, and left out; so is what is still to be told of earlier changes in the layers."""
    mount.settled()
    first = mount.requests()
    before = mount.requests()
    reading = before - first
    counts: Counter[str] = Counter()
    yield counts
    counts.update(mount.requests() - before - reading)


@contextmanager
def mounted(
    source: Path,
    mountpoint: Path | None = None,
    *options: str,
    user: int | None = None,
    foreground: bool = False,
    descriptors: int | None = None,
) -> Iterator[Mount]:
    """Mount with the real command, and unmount at the end. `user` is the id of who mounts, one with a name in
    /etc/passwd, since fusermount3 asks for it; `descriptors` the hard limit of open files that the command gets.

    The mountpoint is a new directory unless given. Leftover when, at the end, the mount does not go, or the
    daemon has not ended END_LIMIT seconds after it.
    """
    path = mountpoint or open_directory("mnt-")
    if mountpoint is None and user is not None:
        os.chown(path, user, user)
    limits = [] if descriptors is None else ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    args = [*_prefix(user), *limits, *SHIFTFS, *(["-f"] if foreground else [])]
    args += [*(["-o", ",".join(options)] if options else []), str(source), str(path)]
    known = set(mount_table())  # not the ids alone: another's mount goes meanwhile, and ours gets its id
    with _in_foreground(args, path) if foreground else _daemonized(args):
        mount = Mount(source, path, newest_mount(path), user)
        assert mount.entry not in known, f"the command returned, and mounted nothing at {path}"
        started = ""
        try:
            mount.pid = int(mount.status()["pid"])
            started = start_time(mount.pid)
            yield mount
            _expect_no_faults(mount, started)
        finally:
            try:
                unmount(mount.entry)
            finally:
                _expect_end(mount.pid, started)
    if mountpoint is None:
        path.rmdir()


def _expect_no_faults(mount: Mount, started: str) -> None:
    """Nothing has gone wrong that nobody expected, as far as the mount can still be asked; a user's is not."""
    if mount.user is None and is_mounted(mount.entry) and start_time(mount.pid) == started:
        try:
            faults = mount.stats()["faults"]
        except (OSError, CtlError):
            return
        assert faults == 0, f"{faults} errors in the process, which it has logged"


@contextmanager
def _daemonized(args: Sequence[str]) -> Iterator[None]:
    run(args, limit=MOUNT_LIMIT)
    yield


@contextmanager
def _in_foreground(args: Sequence[str], path: Path) -> Iterator[None]:
    """Once the command says that it serves, as it does to a service manager: before, the mount may be replaced."""

    def ended_or_serving() -> bool:
        return process.poll() is not None or bool(select.select([ready], [], [], 0)[0])

    with tempfile.TemporaryFile() as output, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        name = f"shiftfs-test-{os.getpid()}-{path}"
        ready.bind(f"\0{name}")
        told = {**environment(), "NOTIFY_SOCKET": f"@{name}"}
        process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=told)
        try:
            wait_until(ended_or_serving, f"a mount at {path}", MOUNT_LIMIT)
            if process.returncode is not None:
                output.seek(0)
                said = output.read().decode(errors="replace")
                raise CommandFailed(report(args, f"exit status {process.returncode}", "", said))
            yield
        finally:
            # The unmount has ended it already, unless it never mounted.
            if process.poll() is None:
                process.kill()
            process.wait(END_LIMIT)


def start_time(pid: int) -> str:
    """A process's start time, which with its number names it for good; empty when it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else fields[18]


def _expect_end(pid: int, started: str) -> None:
    """Wait for the daemon to end by itself; kill it, and Leftover, when it does not."""
    try:
        wait_until(
            lambda: not started or start_time(pid) != started, f"end of the daemon, process {pid}", END_LIMIT
        )
    except AssertionError as failure:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: start_time(pid) != started, f"end of process {pid}, killed", MOUNT_LIMIT)
        raise Leftover(f"killed: {failure}") from None


def fewest_requests(mount: Mount, call: Callable[[], object]) -> Counter[str]:
    """What twenty calls cost, of one that has been made before. Others on the machine may have made the kernel drop its
    caches meanwhile: so the best of some attempts counts."""
    fewest: Counter[str] | None = None
    for _ in range(5):
        call()
        call()
        with requests_during(mount) as requests:
            for _ in range(_ROUNDS):
                call()
        if fewest is None or requests.total() < fewest.total():
            fewest = requests
        if not fewest:
            break
    assert fewest is not None
    return fewest
