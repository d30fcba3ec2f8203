"""Whatever befalls an overlay in the middle of an operation, that operation is whole or absent.

Killed or failed at each system call that changes something, without space, interrupted: the lower layers are never
touched, no half of anything is shown, and the next mount leaves nothing of it in the work directory. What an
operation comes to is told by a plain directory of the same content.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness import Layers, loop_filesystem, open_directory, wait_until, write_tree
from harness.calls import RENAME_EXCHANGE, renameat2
from harness.faults import Recording, Step, failed_at, killed_at, outcome, recorded, set_old, shown, untouched
from harness.layered import Tree, litter

MIB = 1 << 20


def nothing(path: Path) -> None:
    pass


class Operation(NamedTuple):
    """What is done in a directory with a lower tree, after some changes made through the mount."""

    lower: Tree
    act: Callable[[Path], object]
    first: Callable[[Path], object] = nothing
    has_two_ways: bool = False
    """Natively, or by workers where the disk lets that wait: each with other calls."""


def full_of_attributes(path: Path) -> None:
    path.write_bytes(b"begin")
    os.truncate(path, MIB)
    with path.open("ab") as file:
        file.write(b"end" * 1000)
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "trusted.two", b"2" * 300)
    os.chown(path, 1000, 2000)
    path.chmod(0o4751)


def linked_to_a(path: Path) -> None:
    os.link(path.parent / "a", path)


def whiteouts_only(path: Path) -> None:
    for file in (path / "directory").iterdir():
        file.unlink()
    for other in path.glob("directory2"):
        other.chmod(0o700)


def half_upper(path: Path) -> None:
    (path / "directory/upper").mkdir()
    (path / "directory/x").chmod(0o600)


def both_up(path: Path) -> None:
    (path / "directory").chmod(0o700)
    (path / "file").chmod(0o700)


def bring_up_a(path: Path) -> None:
    (path / "a").chmod(0o600)


def b_for_a(path: Path) -> None:
    (path / "b").chmod(0o600)
    remove_a(path)


def exchange(path: Path) -> None:
    renameat2(path / "directory", path / "file", RENAME_EXCHANGE)


def create(path: Path) -> None:
    (path / "a").touch(0o640, exist_ok=False)


def remove_a(path: Path) -> None:
    (path / "a").unlink()


def append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


DIRECTORY: Tree = {"directory": {"x": b"x", "y": {"z": b"z"}}}
FLAT: Tree = {"directory": {"x": b"x", "y": b"y"}}
LINKED: Tree = {"a": b"content", "b": linked_to_a}
TWO: Tree = {"a": b"first", "b": b"second"}

# What else comes up before something is renamed, linked or removed, comes up first: copy-up has tests of its own.
OPERATIONS = {
    "copy-up of a file": Operation({"file": full_of_attributes}, lambda at: (at / "file").chmod(0o640)),
    "copy-up with a parent": Operation(
        {"parent": {"file": b""}}, lambda at: (at / "parent/file").chmod(0o600), has_two_ways=True
    ),
    "copy-up of a small file": Operation(TWO, lambda at: (at / "b").chmod(0o640), bring_up_a, True),
    "copy-up of a file that is appended to": Operation(TWO, lambda at: append(at / "b"), bring_up_a, True),
    "copy-up of a symlink": Operation({"s": Path("to")}, lambda at: os.lchown(at / "s", 1000, 1000)),
    "copy-up of a hard link": Operation(LINKED, lambda at: (at / "a").chmod(0o600)),
    "link": Operation(LINKED, lambda at: os.link(at / "a", at / "c"), bring_up_a),
    "link over a whiteout": Operation(TWO, lambda at: os.link(at / "b", at / "a"), b_for_a),
    "unlink": Operation(TWO, remove_a),
    "unlink of a copied-up file": Operation(TWO, remove_a, bring_up_a),
    "unlink of a hard link": Operation(LINKED, remove_a, bring_up_a),
    "unlink of a hard link that is not up": Operation(LINKED, lambda at: (at / "b").unlink(), bring_up_a),
    "rmdir of a merged directory": Operation(FLAT, lambda at: (at / "directory").rmdir(), whiteouts_only),
    "rename": Operation(TWO, lambda at: (at / "a").rename(at / "c"), bring_up_a),
    "rename over a file": Operation(TWO, lambda at: (at / "a").rename(at / "b"), bring_up_a),
    "rename of a merged directory": Operation(DIRECTORY, lambda at: (at / "directory").rename(at / "to"), half_upper),
    "rename over an emptied directory": Operation(
        {**FLAT, "directory2": {"x": b"x"}}, lambda at: (at / "directory2").rename(at / "directory"), whiteouts_only
    ),
    "exchange": Operation({**DIRECTORY, "file": b"x"}, exchange, both_up),
    "create over a whiteout": Operation({"a": b"content"}, create, remove_a),
    "mkdir over a whiteout": Operation({"a": {}}, lambda at: (at / "a").mkdir(), lambda at: (at / "a").rmdir()),
    "symlink over a whiteout": Operation({"a": b""}, lambda at: (at / "a").symlink_to("to"), remove_a),
}


UNDISTURBED = Step("none", 0)


class Told(NamedTuple):
    """An operation's tree before and after it."""

    before: dict[str, Any]
    after: dict[str, Any]

    def which(self, seen: dict[str, Any], step: Step) -> str:
        if seen == self.after:
            return "all"
        assert seen == self.before, f"neither all nor nothing: {step}"
        return "nothing"


class Undisturbed(NamedTuple):
    """What the process calls for an operation: for the first since it was mounted, and for a later one."""

    first: Recording
    later: Recording


@pytest.fixture(scope="module", params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> Operation:
    return OPERATIONS[request.param]


@pytest.fixture(scope="module")
def base(area: Path) -> Iterator[Path]:
    path = open_directory("faults-")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def told(operation: Operation, base: Path) -> Told:
    """By a plain directory."""
    path = Path(tempfile.mkdtemp(dir=base)) / "plain"
    make(operation, path)
    operation.first(path)
    before = shown(path)
    operation.act(path)
    return Told(before, shown(path))


@pytest.fixture(scope="module")
def undisturbed(operation: Operation, told: Told, base: Path) -> Undisturbed:
    layers = Layers(Path(tempfile.mkdtemp(dir=base)))
    make_cases(operation, layers, 5)
    recordings = []
    for number in range(0, 4, 2):
        with layers.mount() as mount:
            for each in (number, number + 1):
                assert shown(mount.path / str(each)) == told.after
                with recorded(mount.pid) as recording:
                    operation.act(mount.path / str(each + 1))
                recordings.append(recording)
            assert shown(mount.path / str(number + 2)) == told.after
            assert litter(layers.work) == []
    # The kernel asks once more for what it knows where the machine is slow: the one with the fewest answers is without.
    first = min(recordings[::2], key=lambda recording: recording.steps()[-1].nth)
    return Undisturbed(first, recordings[1])


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def make(operation: Operation, path: Path) -> None:
    path.mkdir()
    write_tree(path, operation.lower)
    set_old(path)


def make_cases(operation: Operation, layers: Layers, count: int) -> dict[str, Any]:
    """Directories with numbers: in the first the operation is done, in the others it will be disturbed. All are in
    the upper layer, so that but one operation tries what copying up a parent is. The lower layer as it is."""
    for number in range(count):
        make(operation, layers.lower / str(number))
    with layers.mount() as mount:
        for number in range(count):
            (mount.path / str(number)).chmod(0o700)
            operation.first(mount.path / str(number))
        operation.act(mount.path / "0")
    return untouched(layers.lower)


def test_killed_at_any_step(operation: Operation, told: Told, undisturbed: Undisturbed, layers: Layers) -> None:
    """What was done in one directory is seen on the next mount, before the next one is killed."""
    steps = [UNDISTURBED, *undisturbed.first.steps()]
    lower = make_cases(operation, layers, len(steps))
    outcomes, killed = [], [True]
    for number, step in enumerate(steps):
        following = number + 1
        with layers.mount(foreground=True) as mount:
            assert litter(layers.work) == [], step
            outcomes.append(told.which(shown(mount.path / str(number)), step))
            if following < len(steps):
                with killed_at(mount.pid, steps[following]):
                    killed.append(outcome(operation.act, mount.path / str(following)) is not None)
                assert killed[-1] or operation.has_two_ways, f"not killed: {steps[following]}"
        assert untouched(layers.lower) == lower, step
    assert outcomes[0] == "all"
    assert all(seen == "all" for seen, was in zip(outcomes, killed, strict=True) if not was)
    if not operation.has_two_ways:
        assert outcomes[1:] == sorted(outcomes[1:], reverse=True), list(zip(steps, outcomes, strict=True))
        assert outcomes[-1] == "all"
    assert killed.count(True) > len(steps) / 2
    with layers.mount(kind="kernel") as mount:
        for number, step in enumerate(steps):
            assert told.which(shown(mount.path / str(number)), step) == outcomes[number]


def test_failed_at_any_step(operation: Operation, told: Told, undisturbed: Undisturbed, layers: Layers) -> None:
    steps = undisturbed.later.changes()
    lower = make_cases(operation, layers, len(steps) + 2)
    with layers.mount() as mount:
        assert shown(mount.path / "0") == told.after
        operation.act(mount.path / "1")
        for number, step in enumerate(steps, 2):
            shown(mount.path / str(number - 1))
            left = litter(layers.work)
            with failed_at(mount.pid, step, "EIO"):
                error = outcome(operation.act, mount.path / str(number))
            seen = told.which(shown(mount.path / str(number)), step)
            assert (error, seen) == (None, "all") or (error and error.errno, seen) == (errno.EIO, "nothing"), step
            assert litter(layers.work) == left or step.name == "unlinkat", step
    assert untouched(layers.lower) == lower
    with layers.mount():
        assert litter(layers.work) == []


# --- no space ---


def test_no_space_for_a_copy_leaves_nothing_of_it(tmp_path: Path, layers: Layers) -> None:
    (layers.lower / "large").write_bytes(os.urandom(48 * MIB))
    (layers.lower / "small").write_bytes(b"small")
    lower = untouched(layers.lower)
    with loop_filesystem("ext4", 32) as small:
        on_small = Layers(small)
        on_small.lowers = layers.lowers
        with on_small.mount() as mount:
            free = os.statvfs(small).f_bfree
            content = (layers.lower / "large").read_bytes()
            for attempt in (append, lambda path: path.chmod(0o600)):
                error = outcome(attempt, mount.path / "large")
                assert error and error.errno == errno.ENOSPC
                assert (os.listdir(on_small.upper), litter(on_small.work)) == ([], [])
                wait_until(lambda: os.statvfs(small).f_bfree == free, "its space to be given back")
                assert (mount.path / "large").read_bytes() == content
            append(mount.path / "small")
            assert (on_small.upper / "small").read_bytes() == b"smallx"
    assert untouched(layers.lower) == lower
