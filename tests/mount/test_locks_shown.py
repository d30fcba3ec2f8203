"""What is said of locks and open files: F_GETLK, /proc/PID/fd, maps, exe, /proc/locks, fuser, lsof; and what it costs.

Rows L3 and L5 of the problems. Locks, and what /proc shows of them, are the kernel's own: nobody is asked.
"""

import fcntl
import mmap
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import fewest_requests, requests_during, run, wait_until
from harness.calls import opened
from harness.lockable import KINDS, Ground, ground
from harness.lockers import Stage

HOLDERS = {
    "nobody": """
        A asks posix write 0-end -> free
        A posix write 0-9
        A asks posix write 0-end -> free
        B asks posix write 10-end -> free
        A posix read 0-9
        B asks posix read 0-end -> free
    """,
    "who holds what": """
        A posix write 3-9
        B posix read 20-end
        C asks posix read 0-5 -> write 3-9 by A
        C asks posix write 10-100 -> read 20-end by B
        A asks posix write 5-25 -> read 20-end by B
        B asks posix write 0-end -> write 3-9 by A
        C asks posix read 10-end -> free
    """,
    "a child, and a thread": """
        A forks B
        B posix write 0-9
        A asks posix write 0-9 -> write 0-9 by B
        A starts T
        T posix write 20-29
        B asks posix write 10-end -> write 20-29 by A
    """,
    "a holder that is no process": """
        A ofd write 0-9
        A asks posix read 0-end -> write 0-9 by -1
        B asks posix read 0-end -> write 0-9 by -1
        B asks ofd read 0-end -> write 0-9 by -1
        A asks ofd read 0-end -> free
        B posix write 10-19
        A asks ofd read 0-end -> write 10-19 by B
    """,
    "in another pid namespace": """
        A posix write 0-9
        B forks C apart
        C posix write 20-29
        C forks D
        A asks posix write 10-end -> write 20-29 by C
        D asks posix write 20-end -> write 20-29 by C
        D asks posix write 0-end -> write 0-9 by 0
        D posix read 40-end
        C asks posix write 30-end -> read 40-end by D
        B asks posix write 30-end -> read 40-end by D
    """,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_who_holds_it(each_ground: Ground, name: str) -> None:
    with Stage(each_ground.file().path) as stage:
        stage.play(HOLDERS[name])


# /proc


def rename(path: Path) -> Path:
    return path.rename(path.with_name("other"))


def change_mode(path: Path) -> Path:
    path.chmod(0o750)
    return path


CHANGES: dict[str, Callable[[Path], Path]] = {"chmod": change_mode, "rename": rename}


def number(path: Path) -> tuple[str, int]:
    """Device and inode number, as maps has them."""
    status = path.stat()
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", status.st_ino


def mapped(pid: int | str) -> set[tuple[str, tuple[str, int]]]:
    """The files in a process's maps."""
    lines = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {(words[5], (words[3], int(words[4]))) for words in lines if len(words) == 6 and words[5].startswith("/")}


@pytest.mark.parametrize("change", CHANGES)
def test_the_paths_of_what_is_open_and_mapped(each_ground: Ground, change: str) -> None:
    """Before the change, and after it, which is what copies up the file of a lower."""
    path = each_ground.file().path
    with opened(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:

        def shown() -> None:
            assert os.readlink(f"/proc/self/fd/{fd}") == str(path)
            assert (str(path), number(path)) in mapped("self")
            assert os.path.samestat(os.stat(f"/proc/self/fd/{fd}"), path.stat())
            assert view[:7] == b"content"

        shown()
        path = CHANGES[change](path)
        shown()
        path.unlink()
        assert os.readlink(f"/proc/self/fd/{fd}") == f"{path} (deleted)"


@pytest.mark.parametrize("change", CHANGES)
def test_the_path_of_what_runs(each_ground: Ground, change: str) -> None:
    path = each_ground.file(Path("/bin/sleep").read_bytes(), 0o755).path
    program = subprocess.Popen([path, "60"])

    def shown() -> None:
        # It is mapped a little later than exec closes what lets Popen return.
        wait_until(lambda: (str(path), number(path)) in mapped(program.pid), f"{path} in its maps")
        assert os.readlink(f"/proc/{program.pid}/exe") == str(path)

    try:
        shown()
        path = CHANGES[change](path)
        shown()
        assert program.poll() is None
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("change", CHANGES)
def test_the_inode_of_a_lock(each_ground: Ground, change: str) -> None:
    """Major and minor number of the mount, and the number that stat(2) has, before and after."""

    def listed() -> bool:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        found = sorted(words[1:4] for words in lines if f"{number(file.path)[0]}:{inode}" in words)
        return found == [["FLOCK", "ADVISORY", "READ"], ["POSIX", "ADVISORY", "WRITE"]]

    file = each_ground.file()
    inode = file.path.stat().st_ino
    with opened(file.path, os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        wait_until(listed, "both, once each")  # others' locks may disturb the reading
        path = CHANGES[change](file.path)
        assert path.stat().st_ino == inode
        path.rename(file.path)
        wait_until(listed, "both, once each")


def users(*command: str | Path) -> set[int]:
    """The processes that a command names."""
    return {int(word) for word in run(command, check=False).stdout.split()}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(words, marks=pytest.mark.skipif(not shutil.which(words[0]), reason=f"no {words[0]}"), id=words[0])
        for words in (("fuser",), ("lsof", "-t"))
    ],
)
def test_the_users_of_a_file_are_found(each_ground: Ground, command: tuple[str, ...]) -> None:
    file = each_ground.file()
    with Stage(file.path) as stage:
        stage.play("""
            A posix write 0-9
            B opens f read
            C opens f read
            C closes f
        """)
        wanted = {stage["A"].pid, stage["B"].pid}
        assert users(*command, file.path) == wanted
        file.path.chmod(0o640)
        path = rename(file.path)
        assert users(*command, path) == wanted
        if each_ground.mount is not None:
            # fuser wants to be told that it is a mount, lsof sees it. The mount's own agent uses it, too.
            found = users(*command, *(["-m"] if command[0] == "fuser" else []), each_ground.path)
            assert found >= wanted
            assert {Path(f"/proc/{pid}/comm").read_text() for pid in found - wanted} <= {"shiftfs-agent\n"}


# What it costs.


def lock_in_all_ways(fd: int) -> None:
    for kind in (fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN):
        fcntl.flock(fd, kind)
        fcntl.lockf(fd, kind)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def test_locks_are_without_a_request(mounted_ground: Ground) -> None:
    assert mounted_ground.mount is not None
    with opened(mounted_ground.file().path, os.O_RDWR) as fd:
        assert not fewest_requests(mounted_ground.mount, lambda: lock_in_all_ways(fd))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.layer != "native" and not kind.serves])
def test_opening_it_for_that_is_too(name: str) -> None:
    """Where OPEN is refused; else the file is opened, flushed and released, as ever."""
    with ground(name) as place:
        assert place.mount is not None
        file = place.file()

        def lock() -> None:
            with opened(file.path, os.O_RDWR) as fd:
                lock_in_all_ways(fd)

        assert not fewest_requests(place.mount, lock)
        assert not file.is_copied_up


def test_waiting_is_without_a_request(mounted_ground: Ground) -> None:
    assert mounted_ground.mount is not None
    with Stage(mounted_ground.file().path) as stage:
        stage.play("""
            A posix read 0-9
            A flock shared
            B posix read 50-50
            B closes f
            B opens f both
            C posix none 0-9
        """)
        found: list[Counter[str]] = []

        def quiet() -> bool:
            with requests_during(mounted_ground.mount) as requests:  # type: ignore[arg-type]
                stage.play("""
                    A posix write 0-9
                    A ofd write 20-29
                    B asks posix write 0-9 -> write 0-9 by A
                    B waits posix read 0-9
                    C waits ofd write 20-29
                    A posix none 0-9
                    A ofd none 20-29
                    B gets it
                    C gets it
                    B posix none 0-9
                    C ofd none 20-29
                """)
            found.append(requests)
            return not requests

        # Others on the machine may have made the kernel drop its caches meanwhile.
        wait_until(quiet, f"no request of {found}")
