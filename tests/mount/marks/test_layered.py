"""Several mounts of one mark with layers: one upper, which they fill together."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from harness import Layers, run, wait_until
from harness.marks import Container, Marked, container, hidden_directory, marked, named

SOON = 5.0


class Shared(NamedTuple):
    """A mark, and two who have mounted it."""

    layers: Layers
    mark: Marked
    one: Container
    other: Container


@pytest.fixture(params=[["locks=mount"], []], ids=["locks=mount", "by default"])
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    layers = Layers(hidden_directory())
    (layers.lower / "file").write_text("lower\n")
    (layers.lower / "d").mkdir()
    (layers.lower / "d/inside").write_text("inside\n")
    with ExitStack() as stack:
        mark = stack.enter_context(marked(*named(layers), *request.param, source=layers.base))
        one, other = (stack.enter_context(container((0, first, 65536))) for first in (100000, 300000))
        for user in (one, other):
            user.mount(mark.path)
        yield Shared(layers, mark, one, other)


def test_what_one_copies_up_is_up_for_the_other(shared: Shared) -> None:
    """Who has read it reads what is written to it, under the number that it had."""
    number = shared.other.shell("cat file >/dev/null; stat -c %i file")
    shared.one.shell("echo more >> file")
    wait_until(lambda: shared.other.shell("cat file") == "lower\nmore\n", "what was written", SOON)
    assert shared.other.shell("stat -c %i file") == number
    shared.other.shell("echo again >> file")
    wait_until(lambda: shared.one.shell("cat file") == "lower\nmore\nagain\n", "what the other wrote", SOON)
    assert (shared.layers.upper / "file").read_text() == "lower\nmore\nagain\n"
    assert (shared.layers.lower / "file").read_text() == "lower\n"


def test_what_one_makes_in_a_directory_that_comes_up_is_there_for_the_other(shared: Shared) -> None:
    assert shared.other.shell("ls d") == "inside\n"
    shared.one.shell("echo new > d/new; rm d/inside; mkdir d/deeper")
    wait_until(lambda: shared.other.shell("ls d") == "deeper\nnew\n", "what is in the directory", SOON)
    shared.other.shell("mv d/new d/deeper/moved; mv d renamed")
    wait_until(lambda: shared.one.shell("find .") == shared.other.shell("find ."), "one tree", SOON)
    assert shared.one.shell("cat renamed/deeper/moved") == "new\n"


def test_who_has_a_file_open_reads_on(shared: Shared) -> None:
    """Another removes it, or puts another in its place."""
    reading = subprocess.Popen(
        shared.other.command(["sh", "-c", f"exec 3< {shared.other.target}/file; echo; read x; cat <&3"]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert reading.stdin is not None and reading.stdout is not None
    try:
        reading.stdout.readline()
        shared.one.shell("echo other > new; mv new file")
        wait_until(lambda: shared.other.shell("cat file") == "other\n", "the new one", SOON)
        assert reading.communicate("\n", timeout=10)[0] == "lower\n"
    finally:
        reading.kill()
        reading.wait()


def test_locks_stay_on_each_mount_if_the_mark_says_so(shared: Shared) -> None:
    meets = shared.mark.mount.status()["options"]["locks"] == "layers"
    with shared.one.locking("file"):
        assert shared.other.may_lock("file") is not meets
        assert (run(["flock", "-n", shared.layers.lower / "file", "true"], check=False).returncode == 1) is meets
    wait_until(lambda: shared.other.may_lock("file"), "it is free", SOON)


def test_both_at_once_lose_nothing(shared: Shared) -> None:
    """Each appends lines to a file that comes up under both."""
    script = "i=0; while [ $i -lt 100 ]; do echo line >> file; i=$((i+1)); done"
    working = [
        subprocess.Popen(user.command(["sh", "-euc", f"cd {user.target}; {script}"]))
        for user in (shared.one, shared.other)
    ]
    try:
        assert [process.wait(60) for process in working] == [0, 0]
    finally:
        for process in working:
            process.kill()
            process.wait()
    time.sleep(0.5)
    seen = [user.shell("cat file") for user in (shared.one, shared.other)]
    for read in (*seen, (shared.layers.upper / "file").read_text()):
        assert read == "lower\n" + "line\n" * 200


@pytest.mark.parametrize("layered", [True, False])
def test_what_changes_shows_everywhere_where_nobody_follows_it(layered: bool) -> None:
    """After `timeout`: what one of them does, and what is done in a lower part of a directory that merges, of which its
    own times say nothing."""
    layers = Layers(hidden_directory())
    (layers.lower / "d").mkdir()
    (layers.lower / "d/low").write_text("low\n")
    with ExitStack() as stack:
        options = named(layers) if layered else []
        source = layers.base if layered else layers.lower
        mark = stack.enter_context(marked("watch=off", "timeout=0.2", *options, source=source))
        users = [stack.enter_context(container((0, first, 65536))) for first in (100000, 200000, 300000)]
        for user in users:
            user.mount(mark.path)
        users[0].shell("echo high > d/high; ls d")

        def all_show(names: str) -> None:
            for user in (users[1], users[2], users[0]):  # each listing is made with what the one before has made of it
                wait_until(lambda user=user: user.shell("ls d") == names, names, SOON)  # type: ignore[misc]

        all_show("high\nlow\n")
        (layers.lower / "d/lower").write_text("")
        all_show("high\nlow\nlower\n")
        (layers.lower / "d/lower").unlink()
        all_show("high\nlow\n")
        users[1].shell("mv d/high d/higher; rm d/low; mkdir d/new")
        all_show("higher\nnew\n")
        users[2].shell("echo more >> d/higher; rmdir d/new")
        all_show("higher\n")
        wait_until(lambda: users[0].shell("cat d/higher") == "high\nmore\n", "what was written", SOON)
