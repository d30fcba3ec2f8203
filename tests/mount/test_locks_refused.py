"""`locks=layers` where a lock cannot be had: over a filesystem that refuses all, and of more files than is allowed."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Layers, read_tree, wait_until, write_tree
from harness.calls import opened, refuses
from harness.layer_locks import KINDS, SERVED, locks_of, nothing_is_held, shown
from harness.lockers import LIMIT, Stage
from harness.refusing import refusing_at
from harness.served import ServedStage

# A filesystem that refuses.


ERRORS = {"ENOLCK": errno.ENOLCK, "EOPNOTSUPP": errno.EOPNOTSUPP}


@pytest.fixture(params=ERRORS)
def refused(request: pytest.FixtureRequest, our_layers: Layers) -> Iterator[int]:
    """The errno with which the lower answers."""
    backing = our_layers.base / "backing"
    backing.mkdir()
    write_tree(backing, {"file": b"content", "other": b"other"})
    error = ERRORS[request.param]
    with refusing_at(our_layers.lower, backing, error):
        with opened(our_layers.lower / "file", os.O_RDWR) as fd:
            expect_refusals(fd, error, fcntl.LOCK_EX)
        yield error


def expect_refusals(fd: int, error: int, kind: int) -> None:
    for waits in (0, fcntl.LOCK_NB):
        for lock in (fcntl.lockf, fcntl.flock):
            refuses(error, lock, fd, kind | waits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_layer_refuses_is_refused(our_layers: Layers, refused: int, kind: str) -> None:
    """With its very errno; all else works, and nothing is held."""
    name = errno.errorcode[refused]
    found = (our_layers.lower / "file").stat()
    device = os.major(found.st_dev) << 20 | os.minor(found.st_dev)
    place = f"{device:x}-{found.st_ino:x}-"
    how, range_ = ("both", "write") if kind == "source" else ("read", "read")  # opening for writing copies it up
    with shown(our_layers, kind, SERVED) as mount, ServedStage(mount.path / "file", mount.path) as stage:
        stage.play(f"""
            A opens f {how}
            A posix {range_} 0-9 -> {name}
            A ofd {range_} 0-9 -> {name}
            A waits posix {range_} 0-9 -> {name}, at once
            A asks posix {range_} 0-9 -> {name}
            A flock exclusive -> {name}
            A waits flock shared -> {name}, at once
            A posix none 0-9
            A flock none
            held:
            A reads -> content
        """)
        file = mount.path / "file"
        with opened(file) as fd:
            expect_refusals(fd, refused, fcntl.LOCK_SH)
        assert nothing_is_held(mount)
        with opened(file, os.O_RDWR) as fd:
            if kind == "source":
                expect_refusals(fd, refused, fcntl.LOCK_EX)
            assert os.pwrite(fd, b"changed", 0) == 7
            os.fsync(fd)
            os.ftruncate(fd, 6)
            assert os.pread(fd, 10, 0) == b"change"
        file.chmod(0o600)
        assert (file.stat().st_size, file.stat().st_mode & 0o777) == (6, 0o600)
        file.rename(mount.path / "renamed")
        (mount.path / "new").write_bytes(b"new")
        assert read_tree(mount.path) == {"new": b"new", "other": b"other", "renamed": b"change"}
        (mount.path / "renamed").unlink()
        assert nothing_is_held(mount)
    assert not any(path.name.startswith(place) for path in Path("/run/shiftfs/locks").iterdir())


# How many.


MOST = 64
DESCRIPTORS = 16 * MOST


@pytest.mark.parametrize("kind", ["range", "flock"])
@pytest.mark.parametrize("layer", KINDS)
def test_as_many_files_as_descriptors_allow_are_locked(our_layers: Layers, layer: str, kind: str) -> None:
    """One more is refused, and costs those that are held nothing."""
    names = [f"file{number}" for number in range(MOST + 1)]
    write_tree(our_layers.lower, {name: b"content" for name in names})

    def lock(fd: int) -> None:
        (fcntl.lockf if kind == "range" else fcntl.flock)(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    with shown(our_layers, layer, SERVED, descriptors=DESCRIPTORS) as mount, ExitStack() as stack:
        files = [stack.enter_context(open(mount.path / name, "rb")) for name in names]
        for file in files[:MOST]:
            lock(file.fileno())
        for _ in range(2):
            refuses(errno.ENOLCK, lock, files[MOST].fileno())
        lock(files[0].fileno())  # another lock of a file that is locked already
        assert {one["path"] for one in locks_of(mount.path)["locks"]} == {f"/{name}" for name in names[:MOST]}
        with Stage(our_layers.lower / names[0]) as stage:
            stage.play("A posix write 0-0 -> EAGAIN" if kind == "range" else "A flock exclusive -> EAGAIN")

        (mount.path / "new").write_bytes(b"new")
        assert (mount.path / "new").read_bytes() == b"new"
        assert files[MOST].read() == b"content"
        assert len(os.listdir(mount.path)) == MOST + 2

        files[0].close()

        def locks_again() -> bool:
            """flock(2)'s are let go of a moment after the last close."""
            try:
                lock(files[MOST].fileno())
            except OSError as error:
                assert error.errno == errno.ENOLCK
                return False
            return True

        wait_until(locks_again, "a lock again", LIMIT)
        assert {one["path"] for one in locks_of(mount.path)["locks"]} == {f"/{name}" for name in names[1:]}
