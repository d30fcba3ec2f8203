"""Who locks a file on his mount of a mark stops those who lock it on theirs, unless the mark was told otherwise."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import Layers, run, wait_until
from harness.attacking import attacker, expect_all_well
from harness.commands import SHIFTFSCTL
from harness.marks import Container, container, hidden_directory, marked, named

LOCK = """
import fcntl, os, struct, sys
path, kind, mode = sys.argv[1:]
exclusive, shared = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH | fcntl.LOCK_NB
lock = exclusive if mode == "exclusive" else shared
fd = os.open(path, os.O_RDWR)
try:
    if kind == "flock":
        fcntl.flock(fd, lock)
    elif kind == "posix":
        fcntl.lockf(fd, lock, 10, 5)
    else:
        F_OFD_SETLK = 37
        type = fcntl.F_WRLCK if mode == "exclusive" else fcntl.F_RDLCK
        fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", type, os.SEEK_SET, 5, 10, 0))
except BlockingIOError:
    print("taken")
else:
    print("got it", flush=True)
    sys.stdin.read()
"""


class Shared(NamedTuple):
    """A file, where it lies and on the mounts of two users."""

    file: Path
    one: Container
    other: Container


@pytest.fixture(params=["directory", "layers", "for good"])
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    with ExitStack() as stack:
        if request.param == "layers":
            layers = Layers(hidden_directory())
            tree = layers.lower
            mark = stack.enter_context(marked(*named(layers), source=layers.base)).path
        else:
            tree = hidden_directory()
            if request.param == "directory":
                mark = stack.enter_context(marked(source=tree)).path
            else:
                request.getfixturevalue("server")
                run([*SHIFTFSCTL, "mark", tree])
                stack.callback(run, [*SHIFTFSCTL, "unmark", tree])
                mark = tree
        (tree / "file").write_bytes(b"content")
        one, other = (stack.enter_context(container((0, first, 65536))) for first in (100000, 300000))
        for user in (one, other):
            user.mount(mark)
        yield Shared(tree / "file", one, other)


@contextmanager
def locking(user: Container, kind: str, mode: str) -> Iterator[str]:
    """What came of it; where he got the lock he has it until the end."""
    command = user.command([sys.executable, "-c", LOCK, user.target / "file", kind, mode])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def gets(user: Container, kind: str, mode: str) -> bool:
    with locking(user, kind, mode) as came:
        return came == "got it"


def test_locks_of_two_users_meet(shared: Shared) -> None:
    for kind, others in [("posix", "posix"), ("ofd", "ofd"), ("posix", "ofd"), ("flock", "flock")]:
        with locking(shared.one, kind, "exclusive") as came:
            assert came == "got it", (kind, others)
            assert not gets(shared.other, others, "exclusive"), (kind, others)
            assert not gets(shared.other, others, "shared"), (kind, others)
        wait_until(partial(gets, shared.other, others, "exclusive"), f"{others} is free", 5)
        wait_until(partial(gets, shared.one, kind, "exclusive"), f"{kind} is free again", 5)
        with locking(shared.one, kind, "shared") as came:
            assert came == "got it", (kind, others)
            assert gets(shared.other, others, "shared"), (kind, others)
            assert not gets(shared.other, others, "exclusive"), (kind, others)


def test_who_waits_has_it_when_it_is_free(shared: Shared) -> None:
    with locking(shared.one, "flock", "exclusive"):
        waiting = subprocess.Popen(
            shared.other.command(["flock", shared.other.target / "file", "echo", "mine"]), stdout=subprocess.PIPE
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)
    assert waiting.communicate(timeout=10)[0] == b"mine\n"


def test_the_host_meets_them_too(shared: Shared) -> None:
    with locking(shared.one, "flock", "exclusive"):
        found = [file for file in (shared.file, shared.file.parent.parent / "upper/file") if file.exists()]
        assert [run(["flock", "-n", file, "true"], check=False).returncode for file in found] == [1] * len(found)


def test_who_locks_much_leaves_others_room_for_theirs() -> None:
    """Descriptors are what many locked files take, and the time of the process what many ranges of one do."""
    script = """
import errno
os.chdir(TARGET)
files, ranges, said = [], 0, []
try:
    while True:
        files.append(open(f"{len(files)}", "w"))
        fcntl.flock(files[-1], fcntl.LOCK_EX)
except OSError as error:
    said.append(errno.errorcode[error.errno])
try:
    while True:
        fcntl.lockf(files[0], fcntl.LOCK_EX, 1, 2 * ranges)
        ranges += 1
except OSError as error:
    said.append(errno.errorcode[error.errno])
tell(*said, len(files), ranges)
stay()
"""
    with marked(descriptors=1024) as mark, container() as user, container((0, 300000, 65536)) as other:
        (mark.source / "file").touch()
        for one in (user, other):
            one.mount(mark.path)
        with attacker(mark, user, script) as told:
            assert told[:2] == ["ENOLCK", "ENOLCK"]
            assert 8 <= int(told[2]) <= 32 and int(told[3]) <= 10_000
            with locking(other, "posix", "exclusive") as came, locking(other, "flock", "exclusive") as too:
                assert (came, too) == ("got it", "got it")
            expect_all_well(mark, other)
