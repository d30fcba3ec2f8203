"""Programs that people use follow what happens in a layer, as they do natively."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from harness import Layers, open_directory, wait_until, write_tree
from harness.behind import Behind, Place
from harness.clients import Client, chokidar, inotifywait, npm_install, tail, watchdog
from harness.recorded import append

TAILS = {
    "inotify, by name": ("-F",),
    "inotify, by descriptor": ("-f",),
    "polling, by name": ("---disable-inotify", "-F"),
    "polling, by descriptor": ("---disable-inotify", "-f"),
}
by_name = pytest.mark.parametrize("kind", [kind for kind in TAILS if "by name" in kind])


@pytest.fixture
def place(some: Behind) -> Place:
    return some.new({"log": b"first\n", "dir": {"file": b"content", "sub": {}}})


@pytest.mark.parametrize("kind", TAILS)
def test_tail(kind: str, place: Place) -> None:
    with tail(place.shown / "log", *TAILS[kind]) as client:
        for number in range(5):
            append(place.layer / "log", b"line %d\n" % number)
            client.waits_for(f"line {number}\n")
        assert client.said == "first\n" + "".join(f"line {number}\n" for number in range(5))


@by_name
def test_tail_over_a_log_rotation(kind: str, place: Place) -> None:
    with tail(place.shown / "log", *TAILS[kind]) as client:
        for number in range(3):
            (place.layer / "log").rename(place.layer / f"log.{number}")
            (place.layer / "log").write_bytes(b"new %d\n" % number)
            client.waits_for(f"new {number}\n")
            append(place.layer / "log", b"more %d\n" % number)
            client.waits_for(f"more {number}\n")


@by_name
def test_tail_over_an_atomic_save(kind: str, place: Place) -> None:
    with tail(place.shown / "log", *TAILS[kind]) as client:
        for number in range(3):
            (place.layer / ".log.tmp").write_bytes(b"saved %d\n" % number)
            (place.layer / ".log.tmp").rename(place.layer / "log")
            client.waits_for(f"saved {number}\n")


@pytest.mark.parametrize("kind", TAILS)
def test_tail_over_a_truncation(kind: str, place: Place) -> None:
    with tail(place.shown / "log", *TAILS[kind]) as client:
        append(place.layer / "log", b"a longer line, to be cut\n")
        client.waits_for("to be cut\n")
        os.truncate(place.layer / "log", 0)
        client.ready_says("truncated")
        append(place.layer / "log", b"new\n")
        client.waits_for("new\n")


@pytest.mark.parametrize("kind", TAILS)
def test_tail_over_copy_up(kind: str, our_layers: Layers) -> None:
    """The file is the lower's, then changes through the mount, then in the upper behind the mount."""
    write_tree(our_layers.lower, {"log": b"first\n"})
    with our_layers.mount() as mount, tail(mount.path / "log", *TAILS[kind]) as client:
        append(our_layers.lower / "log", b"in the lower\n")
        client.waits_for("in the lower\n")
        append(mount.path / "log", b"through the mount\n")
        client.waits_for("through the mount\n")
        append(our_layers.upper / "log", b"in the upper\n")
        client.waits_for("in the upper\n")
        append(mount.path / "log", b"and again\n")
        client.waits_for("and again\n")
        assert client.said == "first\nin the lower\nthrough the mount\nin the upper\nand again\n"


def edits(place: Path, says: Callable[[str, str], None]) -> None:
    """What people do to a tree; `says` waits until what happened ("created", …) to a path was printed."""
    append(place / "log", b"more\n")
    says("modified", "log")
    (place / "dir/new").write_bytes(b"new")
    says("created", "dir/new")
    (place / "dir/.file.tmp").write_bytes(b"saved")
    (place / "dir/.file.tmp").rename(place / "dir/file")
    says("replaced", "dir/file")
    (place / "log").rename(place / "log.1")
    (place / "log").write_bytes(b"rotated\n")
    says("created", "log.1")
    (place / "dir/sub/deep").mkdir()
    says("created directory", "dir/sub/deep")
    (place / "dir/sub/deep/file").write_bytes(b"")
    says("created", "dir/sub/deep/file")
    append(place / "dir/sub/deep/file", b"more")
    says("modified", "dir/sub/deep/file")
    (place / "dir/new").unlink()
    says("deleted", "dir/new")
    shutil.rmtree(place / "dir/sub")
    says("deleted directory", "dir/sub")


Words = dict[str, tuple[str, ...]]
INOTIFYWAIT: Words = {
    "modified": ("MODIFY",),
    "created": ("CREATE", "MOVED_TO"),
    "replaced": ("MOVED_TO",),
    "deleted": ("DELETE",),
    "created directory": ("CREATE,ISDIR",),
    "deleted directory": ("DELETE,ISDIR",),
}
WATCHDOG: Words = {
    "modified": ("modified",),
    "created": ("created", "moved"),
    "replaced": ("moved",),
    "deleted": ("deleted",),
    "created directory": ("created",),
    "deleted directory": ("deleted",),
}
CHOKIDAR: Words = {
    "modified": ("change",),
    "created": ("add",),
    "replaced": ("change", "add"),
    "deleted": ("unlink",),
    "created directory": ("addDir",),
    "deleted directory": ("unlinkDir",),
}


def follows(start: Callable[[Path], AbstractContextManager[Client]], words: Words, layer: Path, shown: Path) -> None:
    with start(shown) as client:

        def says(what: str, path: str) -> None:
            def said() -> bool:
                lines = client.said[position:].splitlines()
                return any(line.startswith(words[what]) and line.rstrip().endswith(str(shown / path)) for line in lines)

            wait_until(said, f"{what} {path}; it said {client.said[position:]}")

        position = 0
        edits(layer, says)


def test_inotifywait(place: Place) -> None:
    follows(inotifywait, INOTIFYWAIT, place.layer, place.shown)


def test_watchdog(place: Place) -> None:
    follows(watchdog, WATCHDOG, place.layer, place.shown)


@pytest.fixture(scope="session")
def modules(area: Path) -> Iterator[Path]:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node or npm is not installed")
    path = open_directory("npm-")
    npm_install(path, "chokidar")
    yield path
    shutil.rmtree(path)


def test_chokidar(place: Place, modules: Path) -> None:
    follows(lambda path: chokidar(path, modules), CHOKIDAR, place.layer, place.shown)


@pytest.mark.parametrize("start", [inotifywait, watchdog])
def test_over_copy_up(start: Callable[[Path], AbstractContextManager[Client]], our_layers: Layers) -> None:
    """Edits of the lower, of what came up from it, and of the upper behind the mount."""
    write_tree(our_layers.lower, {"log": b"", "dir": {"file": b"", "sub": {}}})
    with our_layers.mount() as mount, start(mount.path) as client:
        for number, root in enumerate([our_layers.lower, mount.path, our_layers.upper, mount.path, our_layers.upper]):
            before = len(client.said)
            append(root / "log", b"%d" % number)
            wait_until(lambda: str(mount.path / "log") in client.said[before:], f"an edit in {root}")  # noqa: B023
            before = len(client.said)
            (root / "dir").mkdir(exist_ok=True)
            (root / f"dir/file{number}").write_bytes(b"")
            wait_until(lambda: f"dir/file{number}" in client.said[before:], f"a new file in {root}")  # noqa: B023
