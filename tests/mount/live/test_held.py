"""What is in use on the mount while its layer changes: it is neither disturbed nor waited for."""

import fcntl
import mmap
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from harness import mount_table, newest_mount, run, unmount, wait_until
from harness.behind import Behind, Place
from harness.calls import in_children, opened
from harness.changes import OUTSIDE, TREE
from harness.events import Event, Recorder, Streams
from harness.recorded import append

LIMIT = 5.0


@contextmanager
def tmpfs_at(path: Path) -> Iterator[None]:
    run(["mount", "-t", "tmpfs", "none", path])
    entry = newest_mount(path)
    try:
        (path / "inside").touch()
        yield
        assert entry in mount_table(), "it was detached"
        assert os.listdir(path) == ["inside"]
    finally:
        unmount(entry)


def test_a_mount_inside_stays(place: Place) -> None:
    """Whatever happens around it, and to what it lies on."""
    on_layer = place.behind.mount is not None
    with tmpfs_at(place.shown / "dir/sub"):
        for path in ("dir", "dir/in", "."):
            (place.layer / path).chmod(0o700)
            os.utime(place.layer / path)
        append(place.layer / "dir/in", b"more")
        (place.layer / "dir/new").mkdir()
        (place.layer / "dir/in").rename(place.layer / "dir/moved")
        (place.layer / "dir/moved").unlink()
        if on_layer:
            (place.layer / "dir/sub").chmod(0o711)
            (place.layer / "dir/sub/deep").unlink()
            (place.layer / "dir/sub/new").touch()
        wait_until(lambda: sorted(os.listdir(place.shown / "dir")) == ["name of two", "new", "sub"], "changes", LIMIT)
    if on_layer:
        wait_until(lambda: os.listdir(place.shown / "dir/sub") == ["new"], "what changed beneath it", LIMIT)
    place.visible(counts=False)


def test_the_watch_of_the_other_name_lives(place: Place) -> None:
    """One of two hard links goes in the layer: the file is still there, and watched."""
    with place.recorder() as recorder:
        recorder.watch({"file": place.shown / "dir/name of two"})
        (place.layer / "file with two names").unlink()
        assert recorder.until(lambda streams: bool(streams["file"]))["file"] == [Event("ATTRIB")]
        append(place.layer / "dir/name of two", b"more")
        expected = [Event("ATTRIB"), Event("MODIFY"), Event("CLOSE_WRITE")]
        assert recorder.until(lambda streams: len(streams["file"]) >= 3)["file"] == expected
        place.visible()


# Natively whoever changes the file waits for the lease, and nobody can change what runs.
on_mounts = pytest.mark.parametrize("some", ["source", "upper merged"], indirect=True)


def changed_and_told(place: Place, recorder: Recorder, name: str, more: bytes, mode: int) -> Streams:
    """What is heard by the time that a later change, of another name, is."""
    append(place.layer / name, more)
    (place.layer / name).chmod(mode)
    (place.layer / "new").mkdir()
    done = Event("CREATE ISDIR", "new")
    heard = recorder.until(lambda streams: done in streams[""], 0.1, LIMIT)
    assert done in heard[""]
    assert {Event("MODIFY"), Event("ATTRIB")} <= set(heard[name])
    return heard


@on_mounts
@pytest.mark.parametrize("kind", [fcntl.F_RDLCK, fcntl.F_WRLCK])
def test_a_lease_is_not_waited_for(some: Behind, kind: int) -> None:
    """Its holder is told that somebody wants the file, and has its time."""
    place = some.new(TREE, OUTSIDE)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with place.recorder() as recorder, opened(place.shown / "file", os.O_RDONLY if not kind else os.O_RDWR) as fd:
            recorder.watch({"": place.shown, "file": place.shown / "file"})
            fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
            heard = changed_and_told(place, recorder, "file", b"more", 0o600)
            (place.layer / "file").rename(place.layer / "moved")
            # Whoever opened it here to look at it would wait for the lease.
            wait_until(lambda: "moved" in os.listdir(place.shown), "its new name", LIMIT)
            found = (place.shown / "moved").lstat()
            assert (found.st_size, found.st_mode & 0o777) == (len(b"contentmore"), 0o600)
            assert Event("CLOSE_WRITE") not in heard["file"]
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            closed = Event("CLOSE_WRITE")
            assert closed in recorder.until(lambda streams: closed in streams["file"], 0.1, LIMIT)["file"]
    finally:
        signal.signal(signal.SIGIO, before)


@on_mounts
def test_a_running_program_is_not_waited_for(some: Behind) -> None:
    """It cannot be opened for writing on the mount; that it changed is told all the same."""
    place = some.new({"program": lambda path: shutil.copy("/bin/sleep", path)})
    program = subprocess.Popen([place.shown / "program", "60"])
    try:
        with place.recorder() as recorder:
            recorder.watch({"": place.shown, "program": place.shown / "program"})
            changed_and_told(place, recorder, "program", b"\0", 0o700)
            place.visible(counts=False)
            (place.layer / "program").unlink()
            place.visible(counts=False)
        assert program.poll() is None
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("some", ["native", "serve", "upper merged"], indirect=True)
def test_a_program_runs_as_soon_as_it_is_there(some: Behind) -> None:
    """IN_CLOSE_WRITE is raised by opening the file for writing, which nobody who executes it is to notice."""
    place = some.new({})
    content = Path("/bin/true").read_bytes()
    with place.recorder() as recorder:
        recorder.watch({"": place.shown})
        for number in range(150):
            program = place.layer / f"program{number}"
            program.write_bytes(content)
            program.chmod(0o755)
            time.sleep(number % 15 / 1000)
            shown = place.shown / program.name
            wait_until(partial(os.access, shown, os.X_OK), "its mode", LIMIT)
            subprocess.run([shown], check=True)
        wanted = {f"program{number}" for number in range(150)}

        def closed(streams: Streams) -> set[str]:
            return {event.name for event in streams[""] if event.what == "CLOSE_WRITE"}

        assert closed(recorder.until(lambda streams: closed(streams) == wanted, 0.0, LIMIT)) == wanted


def test_files_that_are_open_and_mapped(place: Place) -> None:
    """What is open shows what it is now; what was replaced shows what it was."""
    with opened(place.shown / "file") as replaced, opened(place.shown / "log") as grown:
        append(place.layer / "log", b"two\n")
        place.visible()
        with mmap.mmap(grown, 0, prot=mmap.PROT_READ) as mapped:
            (place.layer / "tmp").write_bytes(b"another")
            (place.layer / "tmp").rename(place.layer / "file")
            place.visible()
            assert os.fstat(grown).st_size == 8
            assert os.pread(grown, 100, 0) == b"one\ntwo\n"
            assert mapped[:] == b"one\ntwo\n"
            with opened(place.layer / "log", os.O_WRONLY) as fd:
                os.write(fd, b"ONE")
            place.visible()
            assert mapped[:] == b"ONE\ntwo\n"
        assert os.pread(replaced, 100, 0) == b"content"
        assert os.fstat(replaced).st_nlink == 0


def test_a_removed_file_that_is_open(place: Place) -> None:
    """On the mount and in the layer: it is still written there and read here, and ends here when it is closed here."""
    with place.recorder() as recorder:
        recorder.watch({"file": place.shown / "file"})
        with opened(place.shown / "file") as held:
            assert os.pread(held, 100, 0) == b"content"
            with opened(place.layer / "file", os.O_WRONLY) as fd:
                (place.layer / "file").unlink()
                expected = [Event("ATTRIB")]
                assert recorder.until(lambda streams: streams["file"] == expected)["file"] == expected
                os.write(fd, b"CONTENT")
            wait_until(lambda: os.pread(held, 100, 0) == b"CONTENT", "what was written", LIMIT)
            assert os.fstat(held).st_nlink == 0
        gone = Event("DELETE_SELF")
        heard = recorder.until(lambda streams: gone in streams["file"])["file"]
        assert (heard[0], heard[-1]) == (Event("ATTRIB"), gone)
        # Nobody can tell of the writing: there is no name to do it by.
        assert set(heard[1:-1]) <= {Event("MODIFY"), Event("CLOSE_WRITE")}


def both_sides(place: Place, names: int, rounds: int) -> None:
    """The layer changes, and the mount is used, in one directory at the same time."""

    def change(side: str) -> None:
        for number in range(rounds):
            path = place.layer / f"{side}{number % names}"
            path.write_bytes(b"%d" % number)
            if number % 3 == 0:
                path.rename(place.layer / f"{side} renamed{number % names}")

    def use() -> None:
        for number in range(rounds):
            path = place.shown / f"own{number % names}"
            path.write_bytes(b"%d" % number)
            assert path.read_bytes() == b"%d" % number
            if number % 3 == 0:
                path.rename(place.shown / f"own renamed{number % names}")
            os.listdir(place.shown)

    in_children([lambda: change("one"), lambda: change("two"), use], 60.0)


def test_a_busy_directory(place: Place) -> None:
    """Own changes never fail for those behind the mount, nor wait for them for long."""
    with place.recorder() as recorder:
        recorder.watch({"": place.shown})
        with recorder.reading():
            both_sides(place, 20, 600)
        recorder.settled(0.5)
    place.visible(counts=False)
    for path in place.layer.iterdir():
        if path.is_file() and path.name.startswith("own"):
            assert (place.shown / path.name).read_bytes() == path.read_bytes()


def test_one_name_from_both_sides(place: Place) -> None:
    """Who comes first has it: nobody gets what nobody made."""
    names = [f"name{number}" for number in range(200)]

    def make(root: Path) -> int:
        made = 0
        for name in names:
            try:
                os.close(os.open(root / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                made += 1
            except FileExistsError:
                pass
        return made

    with place.recorder() as recorder:
        recorder.watch({"": place.shown})
        assert sum(in_children([lambda: make(place.shown), lambda: make(place.layer)])) == len(names)
        heard = recorder.settled(0.5)[""]
        created = [event.name for event in heard if event.what == "CREATE"]
        assert sorted(created) == sorted(names)
        place.visible(counts=False)
        # And going, each once.
        def remove(root: Path) -> int:
            removed = 0
            for name in names:
                try:
                    (root / name).unlink()
                    removed += 1
                except FileNotFoundError:
                    pass
            return removed

        assert sum(in_children([lambda: remove(place.shown), lambda: remove(place.layer)])) == len(names)
        gone = [event.name for event in recorder.settled(0.5)[""] if event.what == "DELETE"]
        assert sorted(gone) == sorted(names)
    place.visible(counts=False)
