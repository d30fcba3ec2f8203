"""The socket of a mark whose process serves mounts of two users: what the one does there never touches the other's."""

import os
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from harness import SHIFTFS, mounted, open_directory, wait_until
from harness.attacking import LIMIT, attacker, expect_all_well, expect_served_apart, nothing_kept
from harness.marks import OTHER, USER, Container, Marked, container, hidden_directory, marked
from harness.shifted import start_time

NOBODY = 65534


# What is handed over


KINDS = {
    "a file": "os.open('/proc/self/cmdline', os.O_RDONLY)",
    "no device": "os.open('/dev/null', os.O_RDWR)",
    "a pipe": "os.pipe()[0]",
    "a socket": "socket.socketpair()[0].detach()",
    "never mounted": "os.open('/dev/fuse', os.O_RDWR)",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_connection(mark: Marked, user: Container, other: Container, kind: str) -> None:
    with nothing_kept(mark, other):
        script = f"tell('told', say(hello(), b'connection', {KINDS[kind]}))\nstay()"
        with attacker(mark, user, script) as told:
            assert told == ["told"]


def test_one_that_waits_until_it_is_mounted(mark: Marked, user: Container, other: Container) -> None:
    script = """
fd = os.open("/dev/fuse", os.O_RDWR)
fcntl.ioctl(fd, SYNC_INIT)
connection = hello()
socket.send_fds(connection, [b"connection"], [fd])
tell("sent")
stay()
"""
    with nothing_kept(mark, other), attacker(mark, user, script):
        expect_all_well(mark, other)


@pytest.mark.parametrize("step", ["b'hello'", "b'connection'"])
def test_a_file_whose_closing_is_never_answered(mark: Marked, user: Container, other: Container, step: str) -> None:
    """On a filesystem of his own. What is kept, as long as that lives, is his."""
    script = f"""
import mfusepy, stat
class Own(mfusepy.Operations):
    def getattr(self, path, fh=None):
        return dict(st_mode=stat.S_IFDIR | 0o755 if path == "/" else stat.S_IFREG | 0o644, st_nlink=1)
    def open(self, path, flags):
        return 1
    def flush(self, path, fh):
        time.sleep(3600)
server = os.fork()
if not server:
    mfusepy.FUSE(Own(), TARGET, foreground=True)
    os._exit(0)
while not os.path.ismount(TARGET):
    time.sleep(0.02)
fd = os.open(TARGET + "/file", os.O_RDONLY)
connection = hello() if {step} == b"connection" else asking()
socket.send_fds(connection, [{step}], [fd])
time.sleep(0.5)
tell("sent")
stay()
"""
    with nothing_kept(mark, other), attacker(mark, user, script):
        expect_all_well(mark, other)


def test_a_mount_of_the_initial_namespace(mark: Marked, user: Container, other: Container) -> None:
    """However it is taken, it is not his namespace's, and nothing of the others'."""
    target = open_directory("initial-")
    fd = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    subprocess.run(["mount", "-i", "-t", "fuse.own", "-o", data, "own", target], pass_fds=(fd,), check=True)
    with nothing_kept(mark, other):
        with attacker(mark, user, f"tell('told', say(hello(), b'connection', {fd}))", pass_fds=(fd,)) as told:
            assert told[0] == "told"
        os.close(fd)
        subprocess.run(["umount", target], check=True)


def test_one_whose_mount_is_gone(mark: Marked, user: Container, other: Container) -> None:
    script = """
fd = made()
mounts.unmount(os.fsencode(TARGET), mounts.MNT_DETACH)
tell("told", say(hello(), b"connection", fd))
stay()
"""
    with nothing_kept(mark, other), attacker(mark, user, script) as told:
        assert told == ["told"]


def test_one_that_is_handed_over_twice(mark: Marked, user: Container, other: Container) -> None:
    script = """
fd = made()
first, second = hello(), hello()
told = say(first, b"connection", fd)
socket.send_fds(second, [b"connection"], [fd])
for _ in range(20):
    subprocess.run(["timeout", "2", "ls", TARGET], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
tell(told)
stay()
"""
    expect_served_apart(mark, user, other, script)


DUPLICATES = {
    "blocks": "fcntl.fcntl(fd, fcntl.F_SETFL, 0)",
    "reads": "threading.Thread(target=lambda: [os.read(fd, 1 << 21) for _ in range(50)], daemon=True).start()",
    "writes": """
for size in range(4, 64):
    for word in (b"\\0", b"\\xff", b"\\1"):
        try:
            os.write(fd, word * size)
        except OSError:
            pass
""",
    "closes": "os.close(fd)",
}


@pytest.mark.parametrize("what", DUPLICATES)
def test_his_own_descriptor_of_it(mark: Marked, user: Container, other: Container, what: str) -> None:
    script = f"""
fd = made()
told = say(hello(), b"connection", fd)
{DUPLICATES[what]}
for _ in range(5):
    subprocess.run(["timeout", "-s", "KILL", "1", "ls", TARGET], stdout=subprocess.DEVNULL)
tell(told)
stay()
"""
    expect_served_apart(mark, user, other, script)


@pytest.mark.parametrize("most", [4096, 1 << 20, 1 << 30])
def test_one_who_has_settled_the_terms_himself(
    mark: Marked, user: Container, other: Container, most: int
) -> None:
    """INIT is answered by him: the process never hears what its buffers have to hold."""
    script = f"""
fd = made()
unique = struct.unpack_from("=IIQ", os.read(fd, 1 << 17))[2]
init = struct.pack("=IIIIHHIIHHI28x", 7, 40, 131072, 0, 64, 48, {most}, 1, 0, 0, 0)
os.write(fd, struct.pack("=IiQ", 16 + len(init), 0, unique) + init)
connection = hello()
socket.send_fds(connection, [b"connection"], [fd])
os.close(fd)
subprocess.run(["timeout", "-s", "KILL", "2", "ls", TARGET], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
tell("sent")
stay()
"""
    with nothing_kept(mark, other):
        with attacker(mark, user, script):
            expect_all_well(mark, other)
        user.run("umount", "-l", user.target, check=False)


# Who asks


@pytest.mark.parametrize("name", ["nobody", str(NOBODY), f"root:nobody:{OTHER}"])
def test_users_are_named(name: str) -> None:
    with (
        marked(f"mark_users={name}") as mark, container(owner=NOBODY) as named,
        container(owner=USER) as another, container(owner=0) as roots,
    ):  # fmt: skip
        named.mount(mark.path)
        roots.mount(mark.path)
        refused = another.mount(mark.path, check=False)
        assert refused.returncode == 1 and "not for you" in refused.stderr
        within = named.run("unshare", "-Urm", *SHIFTFS, mark.path, named.target, uid=1000, check=False)
        assert within.returncode == 1 and "not for you" in within.stderr


# Ends


@pytest.mark.parametrize(
    "when",
    [
        "connection = asking()",
        "connection = hello()",
        "fd = made(); connection = hello()",
        "fd = made(); connection = hello(); socket.send_fds(connection, [b'connection'], [fd])",
        "fd = made(); connection = hello(); assert say(connection, b'connection', fd) == 'serving'",
    ],
)
def test_a_client_that_is_killed(mark: Marked, user: Container, other: Container, when: str) -> None:
    """With its mount namespace, which is all that keeps its mount."""
    own = "import ctypes; assert not ctypes.CDLL(None).unshare(0x20000)"
    with nothing_kept(mark, other):
        for _ in range(3):
            with attacker(mark, user, f"{own}\n{when}\ntell('done')\nstay()") as told:
                assert told == ["done"]
    assert str(user.target) not in Path(f"/proc/{user.pid}/mountinfo").read_text()


def has_ended(pid: int) -> bool:
    return not start_time(pid)


def test_the_process_is_killed() -> None:
    """Whoever is on a mount is told so, and the mark can be made again at the same place."""
    source, place = hidden_directory(), open_directory("mark-")
    for _ in range(2):
        with mounted(source, place, "mark") as mount, container() as user:
            user.mount(place)
            assert user.shell("touch file; ls") == "file\n"
            with container() as late:
                os.kill(mount.pid, signal.SIGKILL)
                wait_until(partial(has_ended, mount.pid), "its end", LIMIT)
                said = user.run("ls", user.target, check=False, limit=LIMIT).stderr
                assert "not connected" in said or "connection abort" in said
                refused = late.mount(place, check=False, limit=LIMIT)
                assert refused.returncode == 1
            user.unmount()
    shutil.rmtree(place)


def test_a_user_who_is_stopped_in_the_middle_of_calls(mark: Marked, user: Container, other: Container) -> None:
    user.mount(mark.path)
    script = "import fcntl\n" + """
fd = os.open(TARGET + "/busy", os.O_RDWR | os.O_CREAT, 0o666)
for _ in range(8):
    threading.Thread(target=lambda: [os.pwrite(fd, b"x" * 300000, 0) + len(os.listdir(TARGET)) for _ in iter(int, 1)],
                     daemon=True).start()
fcntl.lockf(fd, fcntl.LOCK_EX)
tell(os.getpid())
stay()
"""
    with attacker(mark, user, script) as told:
        for _ in range(10):
            os.kill(int(told[0]), signal.SIGSTOP)
            assert other.shell("echo content > file; cat file; rm file", limit=LIMIT) == "content\n"
            os.kill(int(told[0]), signal.SIGCONT)
        os.kill(int(told[0]), signal.SIGSTOP)
        expect_all_well(mark, other)
