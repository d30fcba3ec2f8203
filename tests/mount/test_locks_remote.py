"""`locks=layers` over layers that are another such mount, or sshfs; and leases on files whose layer nobody watches."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import Layers, Mount, layered, mounted, open_directory, run, wait_until
from harness.layer_locks import KINDS, SERVED, locks_of, nothing_is_held, shown
from harness.lockers import LIMIT, Stage
from harness.recorded import append
from harness.remote import sshfs_at
from harness.served import ServedStage

_numbers = itertools.count()


@contextmanager
def new_layers() -> Iterator[Layers]:
    base = open_directory("locks-")
    try:
        yield Layers(base)
    finally:
        run(["rm", "-rf", base])


def new_file(directory: Path) -> Path:
    path = directory / f"file{next(_numbers)}"
    path.write_bytes(b"content")
    return path


# Another mount of ours.


class Stacked(NamedTuple):
    """One file: in a directory (`real`), on the `inner` mount of that, on the `outer` mount of the inner one."""

    real: Path
    inner: Mount
    outer: Mount
    stage: ServedStage

    def play(self, script: str) -> None:
        """A and B are on the outer mount, S on the inner one, H and I in the directory."""
        self.stage.play(script.format(real=self.real, inner=self.inner.path / self.real.name))

    def expect_nothing(self) -> None:
        """Not even a waiter, on either mount."""
        wait_until(lambda: nothing_is_held(self.inner) and nothing_is_held(self.outer), "all is free", LIMIT)


@pytest.fixture(scope="module")
def two_mounts(area: Path) -> Iterator[tuple[Mount, Mount]]:
    with (
        new_layers() as layers,
        mounted(layers.lower, None, SERVED) as inner,
        mounted(inner.path, None, SERVED) as outer,
    ):
        yield inner, outer


@pytest.fixture
def stacked(two_mounts: tuple[Mount, Mount]) -> Iterator[Stacked]:
    inner, outer = two_mounts
    real = new_file(inner.source)
    with ServedStage(outer.path / real.name, outer.path) as stage:
        yield Stacked(real, inner, outer, stage)


def test_ranges_on_a_mount_of_a_mount_reach_the_directory(stacked: Stacked) -> None:
    stacked.play("""
        H opens f both {real}
        S opens f both {inner}
        A posix write 0-9
        H posix read 5-5 -> EAGAIN
        S posix read 5-5 -> EAGAIN
        H posix write 10-19
        A posix write 10-10 -> EAGAIN
        A asks posix write 10-10 -> write 10-19 by 0
        S posix write 20-29
        A posix read 20-20 -> EAGAIN
        H posix read 20-20 -> EAGAIN
        A asks posix write 20-25 -> write 20-29 by 0
        held: write 0-9
        A posix read 0-9
        H posix read 0-9
        S posix read 0-9
        H posix none 0-9
        S posix none 0-9
        A posix none 0-4
        H posix write 0-4
        H posix write 5-9 -> EAGAIN
        A dies
        H posix write 5-9
    """)
    stacked.play("H dies\nS dies")
    stacked.expect_nothing()


def test_flock_on_a_mount_of_a_mount_reaches_the_directory(stacked: Stacked) -> None:
    stacked.play("""
        H opens f read {real}
        S opens f read {inner}
        A flock exclusive
        H flock shared -> EAGAIN
        S flock shared -> EAGAIN
        A flock shared
        B flock shared
        H flock shared
        S flock exclusive -> EAGAIN
        A flock none
        B flock none
        H flock exclusive
        A flock shared -> EAGAIN
        H flock none
        A flock exclusive
        H waits flock exclusive
        A closes f
        H gets it
    """)
    stacked.expect_nothing()


@pytest.mark.parametrize("holder", ["H", "S"])
@pytest.mark.parametrize("lock", ["posix {} 0-9", "ofd {} 0-9", "flock {}"])
def test_who_is_two_mounts_away_is_waited_for(stacked: Stacked, holder: str, lock: str) -> None:
    exclusive = lock.format("exclusive" if lock.startswith("flock") else "write")
    shared = lock.format("shared" if lock.startswith("flock") else "read")
    free = lock.format("none")
    stacked.play(f"{holder} opens f both {'{real}' if holder == 'H' else '{inner}'}")
    stacked.play(f"""
        {holder} {exclusive}
        A waits {exclusive}
        {holder} {free}
        A gets it
        {holder} waits {shared}
        A {free}
        {holder} gets it
        A waits {exclusive}
        {holder} dies
        A gets it
        A {free}
    """)
    stacked.expect_nothing()


@pytest.mark.parametrize("lock", ["posix {} 0-9", "flock {}"])
@pytest.mark.parametrize("end", ["A is signalled\nA gets EINTR", "A dies"])
def test_who_waits_two_mounts_away_is_called_off(stacked: Stacked, end: str, lock: str) -> None:
    """On both mounts, while the holder holds on: so that nothing is locked later on behalf of nobody."""
    exclusive = lock.format("exclusive" if lock.startswith("flock") else "write")
    stacked.play(f"H opens f both {{real}}\nH {exclusive}\nA waits {exclusive}")
    wait_until(lambda: locks_of(stacked.inner.path)["waiting"] == 1, "a waiter on the inner mount", LIMIT)
    stacked.play(end)
    stacked.expect_nothing()
    stacked.play(f"""
        H {lock.format("none")}
        I opens f both {{real}}
        I {exclusive}
    """)
    stacked.play("H dies\nI dies")
    stacked.expect_nothing()


# sshfs, whose locks the kernel of this machine keeps.


class Remote(NamedTuple):
    """A `mount` of sshfs, that at `local`, and the directory on the other machine."""

    mount: Mount
    local: Path
    other: Path


@pytest.fixture(scope="module", params=KINDS)
def remote(request: pytest.FixtureRequest, area: Path) -> Iterator[Remote]:
    with new_layers() as layers:
        other = layers.base / "other"
        other.mkdir()
        with sshfs_at(layers.lower, other), shown(layers, request.param, SERVED, "timeout=0.1") as mount:
            yield Remote(mount, layers.lower, other)


def test_locks_meet_those_on_sshfs(remote: Remote) -> None:
    """test_remote_lower.py has who is refused; here, also who waits."""
    mount, local, other = remote
    name = new_file(other).name
    with ServedStage(mount.path / name, mount.path) as stage:
        stage.play(f"""
            A opens f read
            H opens f both {local / name}
            H posix write 0-9
            H flock exclusive
            A posix read 5-5 -> EAGAIN
            A flock shared -> EAGAIN
            A asks posix read 5-5 -> write 0-9 by H
            A waits posix read 5-14
            H posix none 0-9
            A gets it
            H posix write 14-14 -> EAGAIN
            A waits flock exclusive
            H flock none
            A gets it
            H waits flock shared
            A closes f
            H gets it
            H posix write 0-end
            B opens f read
            B waits posix read 0-0
            B is signalled
            B gets EINTR
            B waits posix read 0-0
            B dies
            H posix none 0-end
            held:
        """)
        wait_until(lambda: nothing_is_held(mount), "all is free", LIMIT)


def test_a_lock_on_sshfs_holds_over_copy_up(remote: Remote) -> None:
    """As long as somebody has the file open."""
    mount, local, other = remote
    name = new_file(other).name
    with ServedStage(mount.path / name, mount.path) as stage:
        stage.play(f"""
            A opens f read
            A flock exclusive
            A posix read 0-9
            B opens f both
            B writes
            H opens f both {local / name}
            H flock shared -> EAGAIN
            H posix write 5-5 -> EAGAIN
            A flock none
            A posix none 0-9
            H flock shared
            H posix write 5-5
        """)


# Leases where nobody tells.


def test_what_has_come_up_from_another_mount_is_locked_there_too(our_layers: Layers) -> None:
    """No file handle leads to where it came from: its name does."""
    (our_layers.lower / "file").write_bytes(b"content")
    with (
        mounted(our_layers.lower, None, SERVED) as inner,
        layered([inner.path], our_layers.upper, our_layers.work, SERVED) as mount,
    ):
        append(mount.path / "file", b"more")
        with ServedStage(mount.path / "file", mount.path) as stage:
            stage.play(f"""
                H opens f both {our_layers.lower / "file"}
                A flock exclusive
                A posix write 0-9
                H flock shared -> EAGAIN
                H posix read 5-5 -> EAGAIN
                A flock none
                A posix none 0-9
                H flock exclusive
                H posix write 5-5
                A flock shared -> EAGAIN
                A posix read 5-5 -> EAGAIN
            """)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lease_on_what_is_not_watched(our_layers: Layers, kind: str) -> None:
    with shown(our_layers, kind, SERVED, "watch=off", "timeout=0.1") as mount:
        expect_lease_of_the_mount_alone(mount, our_layers.lower)


def test_a_lease_on_what_is_on_another_machine(remote: Remote) -> None:
    expect_lease_of_the_mount_alone(remote.mount, remote.other)


def expect_lease_of_the_mount_alone(mount: Mount, layer: Path) -> None:
    """It stays when the file changes in the layer, and who opens it for writing on the mount breaks it."""
    changed = new_file(layer)
    file = mount.path / changed.name
    with Stage(file) as stage:
        stage.play("""
            A opens f read
            A lease read
        """)
        append(changed, b", more")
        wait_until(lambda: file.stat().st_size == 13, "the size", LIMIT)
        stage.play("""
            A hears nothing
            held: lease read by A
            B waits opens f write
            A hears SIGIO
            held: lease breaking by A
            A lease none
            B gets it
            held:
        """)
        assert file.read_bytes() == b"content, more"
