"""Who stops in the middle of what he does, himself or his agent, stops nobody else: the others work on, under load."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness import run, shiftfsctl, wait_until
from harness.attacking import LIMIT, attacker, expect_all_well, leased, nothing_kept
from harness.commands import SHIFTFSCTL
from harness.marks import Container, Marked, container, marked

# $1 is a directory of its own. Goes on until there is a file `stop` beside it, twice at least.
LOAD = """
set -eu; mkdir "$1"; cd "$1"; rounds=0
while [ $rounds -lt 2 ] || ! [ -e ../stop ]; do
    i=0
    while [ $i -lt 30 ]; do
        echo $i > $i; mv $i moved; cat moved >> all; rm moved; mkdir d; rmdir d; i=$((i+1))
    done
    cksum < all; rm all; rounds=$((rounds+1))
done
"""


@contextmanager
def working(mark: Marked) -> Iterator[None]:
    """Three neighbours do as much as they can, from before what is done meanwhile until after it; nothing of it fails.
    """
    with ExitStack() as stack:
        users = [stack.enter_context(container((0, 400000 + 65536 * n, 65536))) for n in range(3)]
        for user in users:
            user.mount(mark.path)
        processes = [
            subprocess.Popen(
                user.command(["sh", "-c", LOAD, "sh", user.target / f"work{number}"]),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for number, user in enumerate(users)
        ]  # fmt: skip
        expected = run(["cksum"], stdin="".join(f"{number}\n" for number in range(30))).stdout.strip()
        try:
            yield
            (mark.source / "stop").touch()
            for process in processes:
                said = set(process.communicate(timeout=60)[0].splitlines())
                assert (process.returncode, said) == (0, {expected})
        finally:
            for process in processes:
                process.kill()
                process.wait()


def agents(user: Container) -> list[int]:
    """Processes left in a container to raise events."""
    found = []
    namespace = os.readlink(f"/proc/{user.pid}/ns/user")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text() == "shiftfs-agent\n" and os.readlink(process / "ns/user") == namespace:
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def live(user: Container) -> dict[str, int]:
    """What follows the layers for his mount."""
    said = user.run(*SHIFTFSCTL, "status", "--json", user.target, limit=LIMIT).stdout
    found: dict[str, int] = json.loads(said)["live"]
    return found


def test_an_agent_that_is_stopped(mark: Marked, user: Container) -> None:
    """What it has not done in time it is not waited for: he sees all changes, without events."""
    user.mount(mark.path)
    wait_until(lambda: agents(user), "the agent", LIMIT)
    (agent,) = agents(user)
    user.shell("ls")
    os.kill(agent, signal.SIGSTOP)
    try:
        with working(mark):
            wait_until(lambda: live(user)["agent"] is False, "it has been let go of", 30)
            assert user.shell("ls", limit=LIMIT)
        wait_until(lambda: live(user)["waiting"] == 0, "nothing waits for it", LIMIT)
        (mark.source / "last").touch()
        wait_until(lambda: "last" in user.shell("ls"), "what is changed", LIMIT)
    finally:
        os.kill(agent, signal.SIGCONT)
    wait_until(lambda: not agents(user), "it has ended", LIMIT)


def test_an_agent_that_never_says_a_word(mark: Marked, user: Container, other: Container) -> None:
    script = """
fd = made()
connection = hello()
socket.send_fds(connection, [b"connection"], [fd])
words, given = protocol.receive(connection)
os.listdir(TARGET)
tell(words[0].decode(), len(given))
stay()
"""
    with nothing_kept(mark, other), attacker(mark, user, script) as told:
        assert told[0] == "serving" and int(told[1]) > 0
        with working(mark):
            expect_all_well(mark, other)
        user.run("umount", "-l", user.target)


def test_a_user_who_is_stopped_while_much_of_his_waits(mark: Marked, user: Container, other: Container) -> None:
    """For leases that others hold in the layer, and for locks of his own."""
    user.mount(mark.path)
    paths = [mark.source / f"leased{number}" for number in range(20)]
    for path in paths:
        path.write_bytes(b"content")
    script = """
def write(number):
    with open(f"{TARGET}/leased{number % 20}", "r+b") as file:
        file.write(b"written")
def lock(number):
    with open(f"{TARGET}/locked", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(3600)
for number in range(100):
    for call in (write, lock):
        threading.Thread(target=call, args=(number,), daemon=True).start()
time.sleep(1)
tell(os.getpid())
stay()
"""
    with ExitStack() as stack:
        held = stack.enter_context(ExitStack())
        held.enter_context(leased(paths))
        told = stack.enter_context(attacker(mark, user, script))
        stack.callback(held.close)  # before: whoever waits cannot be killed
        os.kill(int(told[0]), signal.SIGSTOP)
        with working(mark):
            expect_all_well(mark, other)
    wait_until(lambda: mark.mount.status()["waiting"] == 0, "nothing waits", LIMIT)


def test_a_mount_is_ended_while_somebody_waits_for_a_lock_there() -> None:
    """By force; who holds the lock elsewhere keeps it, and nobody has it after him."""
    with marked("locks=layers") as mark, container() as user, container((0, 300000, 65536)) as other:
        (mark.source / "locked").touch()
        user.mount(mark.path)
        other.mount(mark.path)
        waiting = """
import fcntl, os, sys
with open("locked", "r+b") as file:
    print(flush=True)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
    except OSError as error:
        print(os.strerror(error.errno))
os._exit(0)
"""
        with (mark.source / "locked").open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            waiter = subprocess.Popen(
                user.command(["sh", "-c", 'cd "$1"; exec "$2" -c "$3"', "sh", user.target, sys.executable, waiting]),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            try:
                assert waiter.stdout is not None and waiter.stdout.readline() == "\n"
                wait_until(lambda: waits_for_lock(mark), "he waits", LIMIT)
                user.run("umount", "-f", user.target, check=False, limit=LIMIT)
                said = waiter.communicate(timeout=LIMIT)[0]
            finally:
                waiter.kill()
                waiter.wait()
            assert "abort" in said or "not connected" in said
            user.run("umount", "-l", user.target, check=False)
            assert tries_lock(other) == "taken"
            expect_all_well(mark, other)
        assert tries_lock(other) == "free"


def waits_for_lock(mark: Marked) -> bool:
    said: dict[str, int] = json.loads(shiftfsctl("locks", "--json", mark.path).stdout)
    return said["waiting"] > 0


def tries_lock(user: Container) -> str:
    script = f"import fcntl; fcntl.lockf(open('{user.target}/locked', 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    said = user.run(sys.executable, "-c", script, check=False).stderr
    return "taken" if "Resource temporarily unavailable" in said else said or "free"
