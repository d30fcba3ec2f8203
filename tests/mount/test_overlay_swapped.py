"""Layers that somebody changes under the mount, so that its process would follow them elsewhere: it never does."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Layers, errno_of, read_tree, write_tree
from harness.calls import RENAME_EXCHANGE, opened, renameat2
from harness.outside import attempt, new_outside, untouched


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return new_outside(tmp_path)


CALLS: dict[str, Callable[[Path], object]] = {
    "read": lambda path: (path / "secret").read_bytes(),
    "write": lambda path: (path / "secret").write_bytes(b"overwritten"),
    "append": lambda path: (path / "secret").open("ab").write(b"more"),
    "truncate": lambda path: os.truncate(path / "secret", 0),
    "chmod": lambda path: (path / "secret").chmod(0o777),
    "chown": lambda path: os.chown(path / "secret", 5555, 5555),
    "utime": lambda path: os.utime(path / "secret"),
    "setxattr": lambda path: os.setxattr(path / "secret", "user.x", b""),
    "list": lambda path: os.listdir(path),
    "create": lambda path: (path / "new").touch(),
    "mkdir": lambda path: (path / "newdir").mkdir(),
    "symlink": lambda path: (path / "newlink").symlink_to("x"),
    "link": lambda path: os.link(path / "secret", path / "linked"),
    "rename": lambda path: (path / "secret").rename(path / "other"),
    "unlink": lambda path: (path / "victim").unlink(),
    "rmdir": lambda path: [(path / "sub/in").unlink(), (path / "sub").rmdir()],  # type: ignore[func-returns-value]
    "exchange": lambda path: renameat2(path / "secret", path / "victim", RENAME_EXCHANGE),
    "attributes of the directory": lambda path: path.chmod(0o777),
}
INNOCENT: dict[str, Any] = {"secret": b"innocent", "sub": {"in": b""}, "victim": b"innocent"}


@pytest.mark.parametrize("watch", ["auto", "off"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "forgotten"])
@pytest.mark.parametrize("layer", ["upper", "lower"])
@pytest.mark.parametrize("swapped", ["dir", "dir/secret", "dir/sub"])
def test_what_became_a_symlink_leads_nowhere(
    our_layers: Layers, outside: Path, swapped: str, layer: str, known: bool, watch: str
) -> None:
    trees: dict[str, Any] = {name: {"dir": INNOCENT} for name in CALLS} | {"good": b"good"}
    for place in (our_layers.lower, our_layers.upper) if layer == "upper" else (our_layers.lower,):
        write_tree(place, trees)
    target = outside / swapped.partition("/")[2]
    changed = our_layers.upper if layer == "upper" else our_layers.lower
    with our_layers.mount(f"watch={watch}") as mount:
        if known:
            for name in CALLS:
                assert read_tree(mount.path / name) == {"dir": INNOCENT}
        for name in CALLS:
            path = changed / name / swapped
            path.rename(path.with_name("away"))
            path.symlink_to(target)
        mount.settled()  # or it could be this process that follows one, which `at` had not seen
        with untouched(outside):
            for name, call in CALLS.items():
                attempt(lambda call=call, name=name: at(mount.path / name / "dir", call))  # type: ignore[misc]
        assert (mount.path / "good").read_bytes() == b"good"


def at(directory: Path, call: Callable[[Path], object]) -> object:
    """The call on a directory, as long as the mount shows no symlink on the way, which would lead any caller out."""
    for path in (directory, directory / "secret", directory / "sub"):
        if path.is_symlink():
            return None
    return call(directory)


def test_directories_that_flicker_into_symlinks_lead_nowhere(our_layers: Layers, outside: Path) -> None:
    """As fast as somebody can exchange the two, in both layers, and in the work directory."""
    write_tree(our_layers.lower, {"dir": INNOCENT, "good": b"good"})
    write_tree(our_layers.upper, {"dir": INNOCENT})
    ended = threading.Event()

    def flicker() -> None:
        while not ended.is_set():
            for layer in (our_layers.lower, our_layers.upper):
                renameat2(layer / "dir", layer / "link", RENAME_EXCHANGE)
                renameat2(layer / "link", layer / "dir", RENAME_EXCHANGE)

    with our_layers.mount() as mount, opened(mount.path / "dir") as fd:
        for layer in (our_layers.lower, our_layers.upper):
            (layer / "link").symlink_to(outside)
        thread = threading.Thread(target=flicker)
        with untouched(outside):
            thread.start()
            try:
                for number in range(40):
                    for call in CALLS.values():
                        # By a descriptor: by its path it would be this process that follows the symlink.
                        errno_of(lambda call=call: call(Path(f"/proc/self/fd/{fd}")))  # type: ignore[misc]
                    errno_of(lambda number=number: os.mkdir(f"made{number}", dir_fd=fd))  # type: ignore[misc]
            finally:
                ended.set()
                thread.join()
        assert (mount.path / "good").read_bytes() == b"good"


@pytest.mark.parametrize("which", ["work", "work/work", "work/index", "upper"])
def test_the_directories_of_the_mount_may_be_swapped(our_layers: Layers, outside: Path, which: str) -> None:
    """They are open: by their names nothing is looked up any more."""
    write_tree(our_layers.lower, {"file": b"lower", "dir": {"in": b""}, "a": b"linked"})
    os.link(our_layers.lower / "a", our_layers.lower / "b")
    with our_layers.mount() as mount:
        swapped = our_layers.base / which
        away = swapped.with_name("away")
        swapped.rename(away)
        swapped.symlink_to(outside)
        try:
            with untouched(outside):
                (mount.path / "file").write_bytes(b"new")
                (mount.path / "dir").rename(mount.path / "moved")
                (mount.path / "a").unlink()
                (mount.path / "new").mkdir()
                assert read_tree(mount.path) == {"b": b"linked", "file": b"new", "moved": {"in": b""}, "new": {}}
        finally:
            swapped.unlink()
            away.rename(swapped)


NOT_WAITING: dict[str, Callable[[Path], object]] = {
    "read": lambda path: at_once(path, os.O_RDONLY),
    "write": lambda path: at_once(path, os.O_RDWR),
    "truncate": lambda path: os.truncate(path, 3),
    "chmod": lambda path: path.chmod(0o600),
    "link": lambda path: os.link(path, path.with_name("link")),
}


def at_once(path: Path, flags: int) -> None:
    with opened(path, flags | os.O_NONBLOCK) as fd:
        os.write(fd, b"new") if flags & os.O_RDWR else os.read(fd, 3)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_file_that_became_something_else_is_not_waited_for(
    our_layers: Layers, make: Callable[[Path], object]
) -> None:
    """Though the kernel still takes it for a file. What comes of the call depends on when it looks again."""
    write_tree(our_layers.lower, {**{name: b"content" for name in NOT_WAITING}, "good": b"good"})
    with our_layers.mount("watch=off", "timeout=600") as mount:
        for name, call in NOT_WAITING.items():
            (mount.path / name).stat()
            (our_layers.lower / name).unlink()
            make(our_layers.lower / name)
            errno_of(lambda call=call, name=name: call(mount.path / name))  # type: ignore[misc]
            assert (mount.path / "good").read_bytes() == b"good"
