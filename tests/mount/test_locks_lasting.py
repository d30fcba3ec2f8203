"""Locks outlast what happens to the file beneath them: copy-up, changes behind the mount, dentries that go.

Row L1 of the problems. On a plain directory a change behind the mount is one like any other.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.calls import drop_dentries, in_child, opened
from harness.lockable import CONTENT, Ground, Lockable
from harness.lockers import Stage
from harness.recorded import append

LOCKS = {
    "posix": ("read", "posix read 0-9", "posix read 0-9 by A", "posix write 5-5"),
    "posix, for writing": ("both", "posix write 0-9", "posix write 0-9 by A", "posix read 5-5"),
    "ofd": ("read", "ofd read 0-9", "ofd read 0-9", "ofd write 5-5"),
    "flock": ("read", "flock exclusive", "flock exclusive by A", "flock shared"),
}
"""What A opens the file for, does, and holds then, and what the others cannot have meanwhile."""

READING = [name for name, (how, *_) in LOCKS.items() if how == "read"]


def play(place: Ground, file: Lockable, lock: str, change: Callable[[], Path]) -> None:
    """A has the lock when the file changes, and `change` says where it is then. What was held is held, for who opened
    the file before, B, and for who opens it now, C; B gets what it waits for when A lets go."""
    how, take, held, wanted = LOCKS[lock]
    other = "read" if lock == "flock" else "both"
    # Where OPEN is served, to open it for writing copies it up: that is for the change to do.
    late = place.upper is not None and place.serves and other == "both"
    waits = f"""
        B opens f {other}
        B waits {wanted}
    """
    with Stage(file.path) as stage:
        stage.play(f"""
            A opens f {how}
            A {take}
            {"" if late else waits}
        """)
        assert file.upper is None or file.is_copied_up is (place.serves and how == "both")
        key = stage.key
        stage.path = change()
        assert Stage(stage.path).key == key
        stage.play(f"""
            {waits if late else ""}
            held: {held}
            C opens f {other}
            C {wanted} -> EAGAIN
        """)
        if lock.startswith("posix"):
            stage.play(f"D asks {wanted} -> {held.removeprefix('posix ')}")
        stage.play(f"""
            C closes f
            A {take.split()[0]} none {"0-9" if "0-9" in take else ""}
            B gets it
            B closes f
            held:
        """)


def write_by_another(file: Lockable) -> Path:
    in_child(lambda: append(file.path, b"more"))
    return file.path


def chmod(file: Lockable) -> Path:
    file.path.chmod(0o640)
    return file.path


def truncate(file: Lockable) -> Path:
    os.truncate(file.path, 3)
    return file.path


def rename(file: Lockable) -> Path:
    return file.path.rename(file.path.with_name("other"))


def rename_away(file: Lockable) -> Path:
    directory = file.path.parent / "dir"
    directory.mkdir()
    return file.path.rename(directory / "other")


def link(file: Lockable) -> Path:
    other = file.path.with_name("other")
    other.hardlink_to(file.path)
    file.path.unlink()
    return other


def all_of_them(file: Lockable) -> Path:
    file = Lockable(rename(file), file.layer, file.upper)
    write_by_another(file)
    return chmod(file)


CHANGES: dict[str, Callable[[Lockable], Path]] = {
    "write": write_by_another,
    "chmod": chmod,
    "truncate": truncate,
    "rename": rename,
    "link": link,
    "rename, write, chmod": all_of_them,
}


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_on_the_mount(each_ground: Ground, change: str, lock: str) -> None:
    """Where the file is in a lower, this is what copies it up."""
    file = each_ground.file()

    def changed() -> Path:
        path = CHANGES[change](file)
        if each_ground.upper is not None:
            assert (each_ground.upper / path.relative_to(each_ground.path)).exists(), "not copied up"
        return path

    play(each_ground, file, lock, changed)


@pytest.mark.parametrize("lock", ["posix", "ofd"])
def test_a_write_by_the_holder(each_ground: Ground, lock: str) -> None:
    """By its own descriptor, which copies it up while it has it locked."""
    file = each_ground.file()
    with Stage(file.path) as stage:
        stage.play(f"""
            A {lock} write 0-9
            A writes
            B {lock} read 0-0 -> EAGAIN
            A {lock} none 0-9
            B {lock} read 0-0
            B reads -> written
        """)
    assert file.path.read_bytes() == b"written" + CONTENT[7:]


# Names that the kernel forgets, and asks for again.


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("copied", [False, True], ids=["as it is", "after copy-up"])
def test_dentries_are_dropped(each_ground: Ground, lock: str, copied: bool) -> None:
    """The file that is open under one name is found by another one."""
    file = each_ground.file(linked=True)

    def dropped() -> Path:
        if copied:
            chmod(file)
        drop_dentries()
        return file.path.with_name("link")

    play(each_ground, file, lock, dropped)


@pytest.mark.parametrize("lock", READING)
def test_dentries_are_dropped_after_a_rename(each_ground: Ground, lock: str) -> None:
    file = each_ground.file()

    def renamed() -> Path:
        path = rename_away(file)
        drop_dentries()
        return path

    play(each_ground, file, lock, renamed)


# Behind the mount.


def append_behind(place: Ground, file: Lockable) -> Path:
    append(file.layer, b"more")
    place.settled()
    return file.path


def chmod_behind(place: Ground, file: Lockable) -> Path:
    file.layer.chmod(0o640)
    place.settled()
    return file.path


def rename_behind(place: Ground, file: Lockable) -> Path:
    file.layer.rename(file.layer.with_name("other"))
    place.settled()
    assert not file.path.exists()
    return file.path.with_name("other")


@pytest.mark.parametrize("lock", READING)
@pytest.mark.parametrize("change", [append_behind, chmod_behind, rename_behind])
def test_a_change_behind_the_mount(
    each_ground: Ground, change: Callable[[Ground, Lockable], Path], lock: str
) -> None:  # fmt: skip
    file = each_ground.file()
    play(each_ground, file, lock, lambda: change(each_ground, file))


@pytest.mark.parametrize("lock", READING)
def test_a_file_that_is_replaced_behind_the_mount(each_ground: Ground, lock: str) -> None:
    """Who has the old one open, and has read of it, has it locked; the new one is another file."""
    file = each_ground.file()
    _, take, held, wanted = LOCKS[lock]
    with Stage(file.path) as stage, opened(file.path) as old:
        assert os.pread(old, 7, 0) == b"content"
        stage.play(f"""
            A opens f read
            A {take}
        """)
        new = file.layer.with_name("new")
        new.write_bytes(b"new")
        new.rename(file.layer)
        each_ground.settled()
        assert file.path.read_bytes() == b"new"
        stage.play(f"""
            B {wanted}
            held: {held}
        """)
        assert os.pread(old, 7, 0) == b"content"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_file_that_is_removed(each_ground: Ground, lock: str) -> None:
    """Nobody can open it any more; those who have it open go on."""
    file = each_ground.file()
    how, take, held, wanted = LOCKS[lock]
    with Stage(file.path) as stage:
        stage.play(f"""
            A opens f {how}
            A {take}
            B waits {wanted}
        """)
        file.path.unlink()
        drop_dentries()
        stage.play(f"""
            held: {held}
            A closes f
            B gets it
        """)
