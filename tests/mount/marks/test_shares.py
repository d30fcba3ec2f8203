"""What the mounts of a mark share in its process, each has a part of, whatever another takes: descriptors, workers,
memory. With few of them it is tight."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

import harness.shifted
from harness import Layers, wait_until
from harness.attacking import LIMIT, attacker, descriptors, expect_all_well, leased
from harness.marks import OTHER, Container, Marked, container, hidden_directory, marked, named, with_memory

FEW = 1024
"""Open files that the process may have."""
WAITING = 100
MEMORY = 4 << 20


@contextmanager
def two(mark: Marked) -> Iterator[tuple[Container, Container]]:
    """Users who have mounted it."""
    with container() as user, container((0, 300000, 65536), owner=OTHER) as other:
        user.mount(mark.path)
        other.mount(mark.path)
        yield user, other


REMOVED = {
    "files": "fds.append(os.open('f', os.O_CREAT | os.O_RDWR)); os.unlink('f')",
    "directories": "os.mkdir('d'); fds.append(os.open('d', os.O_RDONLY)); os.rmdir('d')",
    "unnamed": "fds.append(os.open('.', os.O_TMPFILE | os.O_RDWR))",
    "replaced": "fds.append(os.open('g', os.O_CREAT | os.O_RDWR)); open('h', 'w').close(); os.rename('h', 'g')",
}


@pytest.mark.parametrize("what", REMOVED)
def test_who_keeps_removed_files_open_leaves_others_room_for_theirs(what: str) -> None:
    script = f"""
import errno
os.mkdir(f"{{TARGET}}/{{os.getpid()}}")
os.chdir(f"{{TARGET}}/{{os.getpid()}}")
fds = []
try:
    for _ in range({FEW}):
        {REMOVED[what]}
    tell("none")
except OSError as error:
    tell(errno.errorcode[error.errno], len(fds))
stay()
"""
    with marked(descriptors=FEW) as mark, two(mark) as (user, other):
        with attacker(mark, user, script) as told:
            assert told[0] == "ENFILE" and int(told[1]) >= 8
            with attacker(mark, other, script.replace(f"range({FEW})", "range(8)")) as others:
                assert others == ["none"]
            expect_all_well(mark, other)
        wait_until(lambda: mark.mount.status()["descriptors"]["unlinked"] == 0, "none is kept", LIMIT)


def opening(flags: str) -> str:
    """What opens many files, and keeps them open."""
    return f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
os.chdir(TARGET)
fds = [os.open(str(number), os.{flags}) for number in range({FEW})]
tell("open")
stay()
"""


def test_who_keeps_what_another_removes_hinders_him_in_nothing() -> None:
    with marked(descriptors=FEW) as mark, two(mark) as (user, other):
        other.shell(f"i=0; while [ $i -lt {FEW} ]; do echo > $i; i=$((i+1)); done")
        with attacker(mark, user, opening("O_RDONLY")):
            other.shell("rm *", limit=LIMIT)
            assert os.listdir(mark.source) == []
            expect_all_well(mark, other)


def test_who_has_many_files_open_leaves_others_theirs() -> None:
    """Where each keeps a descriptor, for it may be removed behind the mount."""
    with marked("open=serve", descriptors=FEW) as mark, two(mark) as (user, other):
        for number in range(FEW):
            (mark.source / str(number)).write_bytes(b"content")
        with attacker(mark, user, opening("O_RDWR")) as told:
            assert told == ["open"]
            assert descriptors(mark) < FEW * 3 // 4
            names = [f"behind{number}" for number in range(5)]
            for name in names:
                (mark.source / name).write_bytes(b"content")
            reading = f"""
os.chdir(TARGET)
files = [open(name, "rb") for name in {names}]
tell("open")
while os.path.exists({names[-1]!r}):
    time.sleep(0.02)
with open("read", "wb") as result:
    result.write(b"".join(file.read() for file in files))
os.rename("read", "done")
stay()
"""
            with attacker(mark, other, reading) as others:
                assert others == ["open"]
                for name in names:
                    (mark.source / name).unlink()
                wait_until((mark.source / "done").exists, "they are read", LIMIT)
                assert (mark.source / "done").read_bytes() == b"content" * 5
            expect_all_well(mark, other)


# Workers


def test_who_waits_for_many_files_at_once_holds_up_nobody_else() -> None:
    """More of them than there are workers; what others need one for (a file of which others hold a lease that they do
    give up, a flush to the disk) is done meanwhile."""
    script = f"""
def write(number):
    with open(f"{{TARGET}}/leased{{number}}", "r+b") as file:
        file.write(b"written")
for number in range({WAITING}):
    threading.Thread(target=write, args=(number,), daemon=True).start()
time.sleep(1)
tell("waiting")
stay()
"""
    with marked() as mark, two(mark) as (user, other):
        paths = [mark.source / f"leased{number}" for number in range(WAITING)]
        for path in paths:
            path.write_bytes(b"content")
        with ExitStack() as stack:
            held = stack.enter_context(ExitStack())
            held.enter_context(leased(paths))
            told = stack.enter_context(attacker(mark, user, script))
            stack.callback(held.close)  # before: whoever waits cannot be killed
            assert told == ["waiting"]
            other.run("dd", "if=/dev/zero", f"of={other.target}/big", "bs=1M", "count=4", "conv=fsync", limit=LIMIT)
            expect_all_well(mark, other)
            assert [path.read_bytes() for path in paths[:3]] == [b"content"] * 3, "they wait"
        wait_until(lambda: mark.mount.status()["waiting"] == 0, "nothing waits", LIMIT)


# Memory


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process believes that the machine has little."""
    monkeypatch.setattr(harness.shifted, "SHIFTFS", with_memory(MEMORY))


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("layers", [False, True])
def test_a_mount_of_which_too_much_is_known_ends_and_no_other(layers: bool) -> None:
    """Its kernel has it all in mind; one whose owner keeps from us what is forgotten comes to the same."""
    source = hidden_directory()
    options = named(Layers(source)) if layers else []
    with marked(*options, source=source) as mark, two(mark) as (user, other):
        other.shell("mkdir own; touch own/1 own/2; ls -l own")
        before = descriptors(mark)
        # Nothing that is opened: what is closed is news to the other. What the kernel has forgotten is looked up again.
        again = "for n in $(seq 20); do ls -l >/dev/null || break; sleep 1; done; ls -l"
        script = f"mkdir many; cd many; seq {MEMORY >> 10} | xargs mkfifo; {again}"
        said = user.run("sh", "-c", f"cd {user.target}; {script}", check=False, limit=60)
        assert "not connected" in said.stderr or "connection abort" in said.stderr
        assert other.shell("ls own") == "1\n2\n"
        expect_all_well(mark, other)
        user.unmount()
        wait_until(lambda: descriptors(mark) < before, "it has let go", LIMIT)
        user.mount(mark.path)
        assert user.shell("ls own") == "1\n2\n"
