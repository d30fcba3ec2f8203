"""sshfs as a lower layer: what changes on the other machine tells nobody, and shows within `timeout=` all the same.

The other machine is this one: sshfs speaks over loopback to an sftp-server of the test's own.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Layers,
    Mount,
    layered,
    mounted,
    read_tree,
    requests_during,
    wait_until,
    write_tree,
)
from harness.calls import opened
from harness.remote import LIMIT, sshfs_at
from harness.served import ServedStage

SOON = "timeout=0.2"
REMOTE: dict[str, Any] = {"d": {"one": b"1", "two": b"22", "sub": {"deep": b""}}, "f": b"remote", "l": Path("f")}


@pytest.fixture
def remote(our_layers: Layers) -> Iterator[Path]:
    """The directory on the other machine, the topmost lower layer."""
    path = our_layers.base / "remote"
    path.mkdir()
    write_tree(path, REMOTE)
    our_layers.add_lower({"d": {"local": b"local"}, "g": b"local"})
    with sshfs_at(our_layers.lower, path):
        yield path


@pytest.fixture(params=["upper", "lowers alone", "single"])
def shown(request: pytest.FixtureRequest, our_layers: Layers, remote: Path) -> Iterator[tuple[Mount, bool]]:
    """A mount of it, and whether the local layer is merged with it."""
    if request.param == "single":
        with mounted(our_layers.lower, None, SOON) as mount:
            yield mount, False
        return
    is_writable = request.param == "upper"
    upper = (our_layers.upper, our_layers.work) if is_writable else (None, None)
    with layered(our_layers.lowers, *upper, SOON) as mount:
        if is_writable:
            (mount.path / "d/mine").write_bytes(b"mine")
            (mount.path / "d/mine").unlink()
        yield mount, True


def move_and_replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"replaced, and longer")
    path.with_name("new").rename(path)


def replace_link(path: Path) -> None:
    """In another second: sshfs knows no finer times, and tells the two apart by nothing else."""
    path.unlink()
    path.symlink_to("d")
    os.utime(path, (1000, 2000), follow_symlinks=False)


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a new file": lambda path: (path / "d/new").write_bytes(b"new"),
    "a new directory": lambda path: (path / "d/newdir").mkdir(),
    "a new symlink": lambda path: (path / "d/newlink").symlink_to("one"),
    "one removed": lambda path: (path / "d/one").unlink(),
    "one renamed": lambda path: (path / "d/one").rename(path / "d/renamed"),
    "one moved away": lambda path: (path / "d/one").rename(path / "moved"),
    "one written": lambda path: (path / "d/one").write_bytes(b"longer than before"),
    "one appended to": lambda path: (path / "f").open("ab").write(b"more"),
    "one cut off": lambda path: os.truncate(path / "f", 2),
    "one replaced": lambda path: move_and_replace(path / "f"),
    "a directory in its place": lambda path: [(path / "f").unlink(), (path / "f").mkdir()],  # type: ignore[func-returns-value]
    "a tree removed": lambda path: [(path / "d/sub/deep").unlink(), (path / "d/sub").rmdir()],  # type: ignore[func-returns-value]
    "another link": lambda path: replace_link(path / "l"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changes_show_within_the_timeout(shown: tuple[Mount, bool], remote: Path, kind: str) -> None:
    mount, is_merged = shown

    def expected() -> dict[str, Any]:
        tree = read_tree(remote)
        if is_merged:
            tree["g"] = b"local"
            tree["d"] = {**tree["d"], "local": b"local"}
        return tree

    assert read_tree(mount.path) == expected()
    CHANGES[kind](remote)

    def is_shown() -> bool:
        try:
            return read_tree(mount.path) == expected()
        except FileNotFoundError:  # it was listed, and has gone
            return False

    wait_until(is_shown, f"{kind} shows", LIMIT)


def test_attributes_show_within_the_timeout(shown: tuple[Mount, bool], remote: Path) -> None:
    mount, _ = shown
    for name in ("f", "d/one", "d/sub"):
        (mount.path / name).stat()
        (remote / name).chmod(0o711)
        os.utime(remote / name, (1000, 2000))

        def is_shown(name: str = name) -> bool:
            found = (mount.path / name).stat()
            return (found.st_mode & 0o777, found.st_mtime) == (0o711, 2000)

        wait_until(is_shown, f"{name} has the new attributes", LIMIT)


@pytest.mark.parametrize("shown", ["single"], indirect=True)
def test_closing_asks_the_other_machine(shown: tuple[Mount, bool]) -> None:
    """What has become of the writes there, close(2) is to report."""
    mount, _ = shown
    with requests_during(mount) as requests:
        for _ in range(10):
            (mount.path / "f").write_bytes(b"written")
    assert requests["FLUSH"] == 10


def test_an_open_file_follows(shown: tuple[Mount, bool], remote: Path) -> None:
    """As `tail -f` reads a log that grows on the other machine."""
    mount, _ = shown
    with opened(mount.path / "f") as fd:
        assert os.read(fd, 100) == b"remote"
        for line in (b" one", b" two"):
            with (remote / "f").open("ab") as file:
                file.write(line)
            found = b""

            def has_come(line: bytes = line) -> bool:
                nonlocal found
                found += os.read(fd, 100)
                return found == line

            wait_until(has_come, f"{line!r} is read", LIMIT)


def test_what_is_written_on_the_mount_stays_on_it(our_layers: Layers, remote: Path) -> None:
    with layered(our_layers.lowers, our_layers.upper, our_layers.work, SOON) as mount:
        (mount.path / "f").write_bytes(b"mine")
        (mount.path / "d/two").unlink()
        (mount.path / "d/one").rename(mount.path / "d/renamed")
        (remote / "f").write_bytes(b"theirs")
        (remote / "d/two").write_bytes(b"theirs")
        (remote / "d/three").write_bytes(b"3")
        wait_until((mount.path / "d/three").exists, "what is new shows", LIMIT)
        assert read_tree(mount.path) == {
            "d": {"local": b"local", "renamed": b"1", "sub": {"deep": b""}, "three": b"3"},
            "f": b"mine", "g": b"local", "l": Path("f"),
        }  # fmt: skip
    assert (remote / "d/one").read_bytes() == b"1"


@pytest.mark.parametrize("layered_", [False, True], ids=["single", "overlay"])
def test_locks_in_the_layers_are_that_filesystem_s(our_layers: Layers, remote: Path, layered_: bool) -> None:
    """This machine's kernel keeps those of sshfs: they meet who works on that mount, and nobody on the other side."""
    mounting = our_layers.mount("locks=layers") if layered_ else mounted(our_layers.lower, None, "locks=layers")
    with mounting as mount, ServedStage(mount.path / "f", mount.path) as stage:
        stage.play(f"""
            H opens f both {our_layers.lower / "f"}
            I opens f both {remote / "f"}
            A opens f read
            A posix read 0-9
            A flock exclusive
            H posix write 5-5 -> EAGAIN
            H flock shared -> EAGAIN
            I posix write 5-5
            I flock exclusive
            A flock none
            A dies
            H posix write 0-9
            H flock exclusive
            B opens f read
            B flock shared -> EAGAIN
            B posix read 0-0 -> EAGAIN
        """)
