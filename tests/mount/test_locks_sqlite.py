"""sqlite3 on `locks=layers`: several processes at once change one database on the mount, in the layer, or in both.

Each adds 1 to a counter and a row to a table, in one transaction. Nothing may be lost of what was committed.

In WAL mode they have a mapping in common besides, NAME-shm. With `passthrough=off` a mapping on the mount is the page
cache of the mount, and not that of the layer: then all of them are on the mount (else the database is "malformed"
within a second).
"""

import fcntl
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import pytest

from harness import Layers, mounted

SERVED = "locks=layers"
SECONDS = 1.2  # as all here
LIMIT = 60.0  # for all of them to end
JOURNALS = ["delete", "truncate", "persist", "wal"]

Lock = Callable[[IO[bytes], int], object]

_HEAD = """
import random, sqlite3, sys, time

def do(statement, *values):  # sqlite itself would wait longer each time, while others have their turn
    while True:
        try:
            return database.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            # Who may not write cannot tell a journal that has just gone from one that is to be rolled back.
            if not any(word in str(error) for word in ("locked", "readonly")):
                raise
        time.sleep(0.001)

path, seconds = sys.argv[1], float(sys.argv[2])
end, done = time.monotonic() + seconds, 0
"""
WRITES = (
    _HEAD
    + """
database = sqlite3.connect(path, timeout=0, isolation_level=None)
do("pragma synchronous=off")  # nobody pulls the plug, and the disk is not what is tested
while time.monotonic() < end:
    do("begin immediate")
    do("update counter set value = value + 1")
    do("insert into said select value, ? from counter", "word" * 50)
    do("commit")
    done += 1
    time.sleep(random.uniform(0, 0.02))  # somebody else's turn
print(done)
"""
)
READS = (
    _HEAD
    + """
database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0, isolation_level=None)
before = 0
while time.monotonic() < end:
    do("begin")
    (value,), = do("select value from counter")
    (count, last), = do("select count(*), max(value) from said")
    do("commit")
    assert before <= value == count == (last or 0), (before, value, count, last)
    before = value
    done += 1
    time.sleep(random.uniform(0, 0.005))
print(done)
"""
)


def create(path: Path, journal: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        assert database.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
        database.execute("create table counter (value integer)")
        database.execute("create table said (value integer primary key, words text)")
        database.execute("insert into counter values (0)")


@contextmanager
def working(script: str, paths: Sequence[Path], seconds: float = SECONDS) -> Iterator[list["subprocess.Popen[str]"]]:
    """A process on each of the paths."""
    started: list[subprocess.Popen[str]] = []
    try:
        for path in paths:
            command = [sys.executable, "-c", script, str(path), str(seconds)]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        yield started
    finally:
        for process in started:
            with process:
                process.kill()


def done(processes: Sequence["subprocess.Popen[str]"]) -> int:
    """How much by all of them together. All have ended well."""
    said = [process.communicate(timeout=LIMIT) for process in processes]
    failed = [error for _, error in said if error]
    assert not failed, "\n".join(failed)
    return sum(int(output) for output, _ in said)


def written(*paths: Path) -> int:
    with working(WRITES, paths) as processes:
        return done(processes)


def expect(path: Path, count: int) -> None:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert database.execute("select value from counter").fetchone() == (count,)
        assert database.execute("select count(*), ifnull(max(value), 0) from said").fetchone() == (count, count)


@pytest.mark.parametrize("options", [SERVED, f"{SERVED},watch=inotify"])
@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf])
def test_what_the_layer_writes_under_a_lock_is_read_under_the_next(tmp_path: Path, options: str, lock: Lock) -> None:
    """All that sqlite does rests on this."""
    (tmp_path / "file").write_bytes(_number(0))
    with (
        mounted(tmp_path, None, *options.split(",")) as mount,
        open(tmp_path / "file", "r+b", buffering=0) as inside,
        open(mount.path / "file", "r+b", buffering=0) as shown,
    ):
        for number in range(1, 1000):
            lock(inside, fcntl.LOCK_EX)
            os.pwrite(inside.fileno(), _number(number), 0)
            lock(inside, fcntl.LOCK_UN)
            lock(shown, fcntl.LOCK_EX)
            assert os.pread(shown.fileno(), 8, 0) == _number(number)
            lock(shown, fcntl.LOCK_UN)


def _number(number: int) -> bytes:
    return b"%08d" % number


# A single directory.


@pytest.mark.parametrize("journal", JOURNALS)
def test_mount_and_layer_change_one_database(tmp_path: Path, journal: str) -> None:
    inside = tmp_path / "database"
    create(inside, journal)
    with mounted(tmp_path, None, SERVED) as mount:
        shown = mount.path / "database"
        count = written(shown, inside, shown, inside)
        mount.settled()
        expect(shown, count)
        expect(inside, count)


def test_the_mount_reads_while_the_layer_changes_it(tmp_path: Path) -> None:
    """And sees each transaction whole, none undone."""
    inside = tmp_path / "database"
    create(inside, "delete")
    with mounted(tmp_path, None, SERVED) as mount, working(READS, [mount.path / "database"] * 2) as readers:
        count = written(inside, inside)
        assert done(readers) > 0
    expect(inside, count)


def test_the_mount_reads_the_log_of_the_layer(tmp_path: Path) -> None:
    inside = tmp_path / "database"
    create(inside, "wal")
    with mounted(tmp_path, None, SERVED) as mount, working(READS, [mount.path / "database", inside]) as readers:
        count = written(inside, mount.path / "database")
        assert done(readers) > 0
    expect(inside, count)


def test_with_a_log_on_the_mount(tmp_path: Path) -> None:
    """The layer has it when they are done."""
    inside = tmp_path / "database"
    create(inside, "wal")
    with mounted(tmp_path, None, SERVED, "passthrough=off") as mount:
        shown = mount.path / "database"
        count = written(shown, shown, shown)
        expect(shown, count)
    expect(inside, count)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["database"]


# In an overlay.


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_it_is_copied_up_while_it_is_read(our_layers: Layers, journal: str) -> None:
    """First processes in the lower change it, then on the mount; those who read it on the mount see both."""
    lower, upper = our_layers.lower / "database", our_layers.upper / "database"
    create(lower, journal)
    with our_layers.mount(SERVED) as mount:
        shown = mount.path / "database"
        with working(READS, [shown, shown], 3 * SECONDS) as readers:
            before = written(lower, lower)
            assert not upper.exists()
            mount.settled()
            count = before + written(shown, shown)
            assert upper.exists()
            assert done(readers) > 0
        expect(shown, count)
    expect(lower, before)
    expect(upper, count)


def test_it_is_copied_up_with_a_log(our_layers: Layers) -> None:
    """By the first who opens it, together with what is not in the database yet, but in the log."""
    lower, upper = our_layers.lower / "database", our_layers.upper / "database"
    create(lower, "wal")
    with closing(sqlite3.connect(lower, isolation_level=None)) as database:
        database.execute("update counter set value = value + 1")
        database.execute("insert into said values (1, '')")
        with our_layers.mount(SERVED) as mount:
            shown = mount.path / "database"
            count = 1 + written(shown, shown, shown)
            expect(shown, count)
    expect(upper, count)
    expect(lower, 1)


@pytest.mark.parametrize("journal", JOURNALS)
def test_first_in_the_lower_then_on_the_mount_and_then_in_the_upper_too(our_layers: Layers, journal: str) -> None:
    """It comes up in between, with the log if there is one, while somebody has it open in the lower."""
    lower, upper = our_layers.lower / "database", our_layers.upper / "database"
    create(lower, journal)
    with our_layers.mount(SERVED) as mount:
        shown = mount.path / "database"
        with closing(sqlite3.connect(lower, isolation_level=None)) as database:
            before = written(lower, lower)
            database.execute("select value from counter").fetchall()
            mount.settled()
            count = before + written(shown)
        assert upper.exists()
        count += written(shown, upper, shown, upper)
        mount.settled()
        expect(shown, count)
        expect(upper, count)
    expect(lower, before)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_mount_and_upper_change_what_has_been_copied_up(our_layers: Layers, journal: str) -> None:
    """After it has been mounted anew. The lower has no journal: the upper would have a whiteout for that, as soon as it
    is removed, which no process there can open."""
    lower, upper = our_layers.lower / "database", our_layers.upper / "database"
    create(lower, journal)
    with our_layers.mount(SERVED) as mount:
        count = written(*[mount.path / "database"] * 2)
    with our_layers.mount(SERVED) as mount:
        shown = mount.path / "database"
        count += written(shown, upper, shown, upper)
        mount.settled()
        expect(shown, count)
    expect(lower, 0)
    expect(upper, count)
