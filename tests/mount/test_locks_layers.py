"""`locks=layers`: a lock on the mount is a lock on the real files, for who works there and for other mounts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import Layers, Mount, layered, mounted, run, wait_until, write_tree
from harness.calls import drop_dentries
from harness.served import ServedStage

SERVED = "locks=layers"


class Scene(NamedTuple):
    """One file: on the `mount`, in the layer that has it (`real`), and where it is once it has been copied up."""

    mount: Mount
    real: Path
    upper: Path
    stage: ServedStage

    def play(self, script: str) -> None:
        """A and B are on the mount, H and I in the layer, U in the upper, S on a second mount."""
        self.stage.play(script.format(real=self.real, upper=self.upper))


@contextmanager
def scene(mount: Mount, real: Path, upper: Path) -> Iterator[Scene]:
    with ServedStage(mount.path / "file", mount.path) as stage:
        yield Scene(mount, real, upper, stage)


@pytest.fixture(params=["source", "upper", "lower"])
def shown(request: pytest.FixtureRequest, our_layers: Layers) -> Iterator[Scene]:
    """Where the file is at the beginning."""
    layers = our_layers
    real = (layers.upper if request.param == "upper" else layers.lower) / "file"
    real.write_bytes(b"content")
    with ExitStack() as stack:
        mount = stack.enter_context(
            mounted(layers.lower, None, SERVED) if request.param == "source" else layers.mount(SERVED)
        )
        yield stack.enter_context(scene(mount, real, layers.upper / "file"))


RANGES = """
    H opens f both {real}
    A posix write 0-9
    H posix read 5-5 -> EAGAIN
    H posix write 10-19
    A posix write 10-10 -> EAGAIN
    A asks posix write 10-10 -> write 10-19 by H
    A posix write 20-end
    H posix none 10-19
    A posix write 10-19
    held: write 0-end
    A posix read 0-9
    H posix read 0-9
    H posix write 0-9 -> EAGAIN
    A dies
    H posix write 0-end
"""
WHOLE = """
    H opens f read {real}
    A flock exclusive
    H flock shared -> EAGAIN
    A flock shared
    B flock shared
    H flock shared
    A flock exclusive -> EAGAIN
    H flock none
    B flock none
    A flock exclusive
    H flock shared -> EAGAIN
    A flock none
    H flock exclusive
    B flock shared -> EAGAIN
"""

def test_who_works_in_the_layer_meets_ranges(shown: Scene) -> None:
    shown.play(RANGES)


def test_who_works_in_the_layer_meets_flock(shown: Scene) -> None:
    shown.play(WHOLE)


@pytest.mark.parametrize("kind", ["posix", "ofd"])
def test_a_lock_in_the_layer_is_waited_for(shown: Scene, kind: str) -> None:
    shown.play(f"""
        H opens f both {{real}}
        H {kind} write 0-9
        A waits {kind} write 5-14
        H {kind} none 0-9
        A gets it
        H waits {kind} read 14-20
        A {kind} none 5-14
        H gets it
        A waits {kind} write 20-20
        H dies
        A gets it
    """)


def test_flock_in_the_layer_is_waited_for(shown: Scene) -> None:
    shown.play("""
        H opens f read {real}
        H flock exclusive
        A waits flock shared
        B waits flock shared
        H flock none
        A gets it
        B gets it
        H waits flock exclusive
        A closes f
        B closes f
        H gets it
    """)


def test_who_waits_for_the_layer_is_called_off(shown: Scene) -> None:
    """By a signal, or killed: nothing is left of it, not even when the layer lets go."""
    shown.play("""
        H opens f both {real}
        H posix write 0-9
        A waits posix write 0-9
        A is signalled
        A gets EINTR
        B waits posix write 0-9
        B dies
        H posix none 0-9
        I opens f both {real}
        I posix write 0-end
        held:
    """)


def test_nobody_waits_for_those_who_wait(shown: Scene) -> None:
    """Other requests of the mount are answered."""
    shown.play("""
        H opens f both {real}
        H posix write 0-9
        A waits posix write 0-9
        B posix write 10-19
        B asks posix write 0-0 -> write 0-9 by H
        B reads -> content
        H dies
        A gets it
    """)
    assert (shown.mount.path / "file").stat().st_size == 7


def test_a_program_can_be_run_while_it_is_locked_for_reading(shown: Scene) -> None:
    """As long as nobody locks it for writing nothing of it is open for writing in the layer."""
    shown.real.write_bytes(Path("/bin/true").read_bytes())
    shown.real.chmod(0o755)
    shown.play("A opens f read\nA posix read 0-9\nA flock exclusive")
    run([shown.real])


# Copy-up.


CHANGES = {"write": "A writes", "truncate": "B truncates"}


@pytest.mark.parametrize("change", CHANGES)
def test_locks_hold_over_copy_up(our_layers: Layers, change: str) -> None:
    """On the file that it was copied up from and on the new one."""
    write_tree(our_layers.lower, {"file": b"content"})
    with our_layers.mount(SERVED) as mount, scene(mount, our_layers.lower / "file", our_layers.upper / "file") as shown:
        shown.play("""
            A opens f both
            A posix write 0-9
            A posix read 20-29
            B opens f read
            B flock exclusive
        """)
        with open(mount.path / "file", "r+b", buffering=0) as file:
            file.truncate(3) if change == "truncate" else file.write(b"changed")
        assert shown.upper.exists()
        shown.play("""
            H opens f both {real}
            U opens f both {upper}
            H posix read 5-5 -> EAGAIN
            U posix read 5-5 -> EAGAIN
            H posix read 20-20
            U posix read 20-20
            H posix write 25-25 -> EAGAIN
            U posix write 25-25 -> EAGAIN
            H flock shared -> EAGAIN
            U flock shared -> EAGAIN
            A posix none 0-end
            B flock none
            H posix write 0-9
            U posix write 0-9
            H flock exclusive
        """)


def test_who_comes_after_copy_up_locks_both(our_layers: Layers) -> None:
    """Also after the mount has been made anew."""
    write_tree(our_layers.lower, {"file": b"content"})
    for _ in range(2):
        with our_layers.mount(SERVED) as mount:
            with open(mount.path / "file", "r+b") as file:
                file.write(b"changed")
            drop_dentries()
            with scene(mount, our_layers.lower / "file", our_layers.upper / "file") as shown:
                shown.play("""
                    H opens f both {real}
                    U opens f both {upper}
                    A posix write 0-9
                    H posix read 5-5 -> EAGAIN
                    U posix read 5-5 -> EAGAIN
                    A closes f
                    H posix write 5-5
                    B posix read 5-5 -> EAGAIN
                """)


# Other mounts.


@contextmanager
def two(layers: Layers, tmp_path: Path, lower_options: str = "") -> Iterator[tuple[Scene, Path]]:
    """Two overlays that share a lower, each with an upper of its own; and the file on the second."""
    write_tree(layers.lower, {"file": b"content"})
    upper, work = tmp_path / "upper2", tmp_path / "work2"
    for path in (upper, work):
        path.mkdir()
    with ExitStack() as stack:
        if lower_options:
            run(["mount", "--bind", layers.lower, layers.lower])
            stack.callback(run, ["umount", layers.lower])
            run(["mount", "-o", f"remount,bind,{lower_options}", layers.lower])
        first = stack.enter_context(layers.mount(SERVED))
        second = stack.enter_context(layered([layers.lower], upper, work, SERVED))
        yield stack.enter_context(scene(first, layers.lower / "file", layers.upper / "file")), second.path / "file"


@pytest.mark.parametrize("lower", ["rw", "ro"])
def test_overlays_that_share_a_lower_lock_one_file(our_layers: Layers, tmp_path: Path, lower: str) -> None:
    """Also where the lower cannot be opened for writing, so that no lock for writing can be held on it."""
    with two(our_layers, tmp_path, lower) as (shown, other):
        shown.play(f"""
            S opens f both {other}
            A posix write 0-9
            S posix read 5-5 -> EAGAIN
            S posix write 10-19
            A posix read 10-10 -> EAGAIN
            A waits posix write 15-15
            S posix none 0-end
            A gets it
            S waits posix read 0-0
            A dies
            S gets it
            S flock exclusive
            B flock shared -> EAGAIN
            S flock none
            S posix none 0-end
            B flock exclusive
            B posix write 0-end
        """)


def test_they_do_after_one_has_copied_it_up(our_layers: Layers, tmp_path: Path) -> None:
    with two(our_layers, tmp_path) as (shown, other):
        shown.play(f"""
            S opens f read {other}
            A posix write 0-9
            A writes
            S posix read 5-5 -> EAGAIN
            S posix read 20-29
            B posix write 20-20 -> EAGAIN
            A posix none 0-end
            S posix read 0-9
            B posix write 0-0 -> EAGAIN
        """)


def test_the_shared_place_is_left_as_it_was(our_layers: Layers, tmp_path: Path) -> None:
    def places() -> set[str]:
        return {path.name for path in Path("/run/shiftfs/locks").iterdir()}

    with two(our_layers, tmp_path) as (shown, other):
        shown.play(f"S opens f read {other}\nA posix read 0-9\nS posix read 0-9")
        during = places()
        shown.play("A closes f")
        assert places() == during
        shown.play("S closes f")
        wait_until(lambda: len(places()) == len(during) - 1, "the place is gone", 5.0)
