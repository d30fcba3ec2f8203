"""The units in docs/systemd, run by systemd in a machine of its own: it opens the socket, and begins, guards and ends
the process that serves what is marked for good."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import wait_until
from harness.systemd import ENVIRONMENT, USER, Machine, absent, booted

pytestmark = pytest.mark.skipif(bool(absent()), reason=f"not installed: {', '.join(absent())}")

UNITS = Path(__file__).parents[3] / "docs/systemd"
SERVICE, SOCKET = "shiftfs-marks.service", "shiftfs-marks.socket"
LIMIT = 20.0

MARK = """
mkdir -p -m 0700 /srv/images; mkdir -p /srv/images/"$1" /srv/mnt
echo content >/srv/images/"$1"/file
shiftfsctl mark /srv/images/"$1"
"""
INSIDE = """
exec unshare --user --map-root-user --mount --map-auto sh -euc '
    name=$1 script=$2; cd /; shiftfs "/srv/images/$name" /srv/mnt; cd /srv/mnt; eval "$script"' sh "$@"
"""

# What needs a right that the units must leave to the process, each by who is root inside.
WORK = """
chown 33:44 file; chmod 6755 file; stat -c "%u:%g %a" file
setcap cap_net_raw=ep program; getcap program
mkdir -m 1777 shared; setpriv --reuid=7 --regid=8 --clear-groups mkdir shared/mine; stat -c "%u:%g" shared/mine
mkdir -m 700 secret; chown 9:9 secret; touch secret/file; rm -r secret
flock -n file echo locked
mknod whiteout c 0 0
! mknod null c 1 3 2>/dev/null || exit 1
setfacl -m u:1000:rwx program; getfacl -cn program | grep 1000
python3 -c "import fcntl; print(fcntl.fcntl(open(\\"lib\\"), fcntl.F_SETLEASE, fcntl.F_RDLCK))"
touch -d @1000000000 file; stat -c "%Y" file
"""


@pytest.fixture(scope="module")
def machine(area: Path) -> Iterator[Machine]:
    with booted(UNITS) as made:
        made.shell(MARK, "tree")
        yield made


@pytest.fixture(autouse=True)
def listening(machine: Machine) -> None:
    """As after a boot: nobody has asked yet."""
    machine.run("systemctl", "stop", SERVICE, SOCKET)
    machine.run("systemctl", "enable", "--now", SOCKET)
    assert machine.unit(SERVICE, "ActiveState") == ["inactive"]


def mounted(machine: Machine, script: str, name: str = "tree") -> str:
    """What a user's script prints amid a marked directory, as root of his namespace."""
    return machine.run("sh", "-euc", INSIDE, "sh", name, script, user=USER, limit=LIMIT).stdout


def main_process(machine: Machine) -> str:
    return machine.unit(SERVICE, "MainPID")[0]


@contextmanager
def staying(machine: Machine) -> Iterator["subprocess.Popen[str]"]:
    """A user who has mounted, and tells at the end of his input what he still sees."""
    script = "ls; read line || true; ls 2>&1 || true"
    command = machine.command("sh", "-euc", INSIDE, "sh", "tree", script, user=USER)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "file\n"
        yield process
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


def test_who_asks_at_the_socket_has_the_service_begun(machine: Machine) -> None:
    assert mounted(machine, "cat file; touch new; chown 33:44 new") == "content\n"
    assert machine.shell("stat -c %u:%g /srv/images/tree/new") == "33:44\n"
    assert machine.unit(SERVICE, "ActiveState", "SubState", "NRestarts") == ["active", "running", "0"]


def test_the_process_may_do_what_its_mounts_take(machine: Machine) -> None:
    machine.shell("cp /bin/true /srv/images/tree/program; touch /srv/images/tree/lib")
    assert mounted(machine, WORK).splitlines() == [
        "33:44 6755", "program cap_net_raw=ep", "7:8", "locked", "user:1000:rwx", "0", "1000000000"
    ]  # fmt: skip
    assert machine.shell("stat -c '%u:%g %a' /srv/images/tree/file; getcap -n /srv/images/tree/program") == (
        "33:44 6755\n/srv/images/tree/program cap_net_raw=ep [rootid=1001]\n"
    )


# In the control group of the service: $1 is its path.
DEVICES = """
mknod /srv/log c 1 11 2>/dev/null || true
(: <>/srv/log)
echo $$ >/sys/fs/cgroup"$1"/cgroup.procs
(: <>/dev/fuse; : <>/dev/null)
! (: <>/srv/log) 2>/dev/null
"""


def test_it_has_no_more_than_that(machine: Machine) -> None:
    """And it is in the mount namespace of the machine, where marks are made."""
    mounted(machine, "ls")
    process, group = machine.unit(SERVICE, "MainPID", "ControlGroup")
    assert "NoNewPrivs:\t1\n" in machine.shell('cat "/proc/$1/status"', process)
    found = {
        name: machine.shell('readlink "/proc/$1/ns/$2" "/proc/1/ns/$2"', process, name).split()
        for name in ("net", "mnt", "user")
    }
    assert {name: own == first for name, (own, first) in found.items()} == {"net": False, "mnt": True, "user": True}
    machine.shell(DEVICES, group)


def test_what_is_mounted_on_the_machine_later_can_be_mounted(machine: Machine) -> None:
    """A disk with a marked directory; and it is not kept from being unmounted."""
    mounted(machine, "ls")
    machine.shell("mkdir -p /srv/images/disk; mount -t tmpfs none /srv/images/disk")
    try:
        machine.shell(MARK, "disk/tree")
        assert mounted(machine, "cat file", "disk/tree") == "content\n"
        machine.shell("shiftfsctl unmark /srv/images/disk/tree")
    finally:
        wait_until(
            lambda: machine.run("umount", "/srv/images/disk", check=False).returncode == 0, "the disk is free", LIMIT
        )


def test_it_is_begun_anew_however_often_it_is_killed(machine: Machine) -> None:
    """Whoever had mounted has lost that; whoever asks meanwhile waits."""
    with staying(machine) as user:
        for _ in range(7):
            machine.run("kill", "-KILL", main_process(machine))
            assert mounted(machine, "cat file") == "content\n"
        assert machine.unit(SERVICE, "ActiveState", "NRestarts") == ["active", "7"]
        assert "not connected" in user.communicate("\n", LIMIT)[0]


def test_it_is_stopped(machine: Machine) -> None:
    """What is mounted ends; whoever asks next has it begun again."""
    with staying(machine) as user:
        machine.run("systemctl", "stop", SERVICE)
        assert machine.unit(SERVICE, "ActiveState", "Result", "ExecMainStatus") == ["inactive", "success", "0"]
        assert "not connected" in user.communicate("\n", LIMIT)[0]
    assert mounted(machine, "cat file") == "content\n"
    assert machine.unit(SERVICE, "ActiveState") == ["active"]


def test_with_the_socket_all_ends(machine: Machine) -> None:
    mounted(machine, "ls")
    machine.run("systemctl", "stop", SOCKET)
    assert machine.unit(SERVICE, "ActiveState", "Result") == ["inactive", "success"]
    assert machine.shell("ls /run/shiftfs/marks") == ""


NONSENSE = """
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect("/run/shiftfs/marks/permanent")
    connection.send(b"nonsense")
    connection.recv(1)
"""


def test_what_it_complains_of_is_in_the_journal(machine: Machine) -> None:
    machine.run("python3", "-c", NONSENSE, user=USER)
    wait_until(lambda: f"uid {USER} asked for a mount, and was not" in machine.journal(SERVICE), "its words", LIMIT)
