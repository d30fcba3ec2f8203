"""Directories that root has marked for good, and the process that serves them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness import environment, errno_of, open_directory, run, wait_until
from harness.commands import SHIFTFSCTL
from harness.marks import OTHER, USER, Container, container, hidden_directory
from shiftfs.mark import permanent
from shiftfs.mark.permanent import Mark, NoMark, decode

UNITS = Path(__file__).parents[3] / "docs/systemd"
NEEDED = sum(1 << number for number in (0, 1, 2, 3, 4, 6, 7, 9, 19, 21, 27, 28, 31))
"""What capabilities(7) calls CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, LINUX_IMMUTABLE,
SYS_PTRACE, SYS_ADMIN, MKNOD, LEASE, SETFCAP."""


@pytest.mark.parametrize("users", [None, frozenset({0}), frozenset({5, 1000})])
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("exposed", [False, True])
@pytest.mark.parametrize("locks_stay", [False, True])
def test_what_is_written_is_read(
    users: frozenset[int] | None, read_only: bool, exposed: bool, locks_stay: bool
) -> None:  # fmt: skip
    mark = Mark(users, read_only, exposed, locks_stay)
    assert decode(mark.encode()) == mark


@pytest.mark.parametrize(
    "value",
    [b"", b"2", b"1 new", b"1 users=", b"1 users=-1", b"1 users=a", b"\xff", b"1  ro", b"1 locks=layers"],
)
def test_what_is_not_understood_is_no_mark(value: bytes) -> None:
    with pytest.raises(NoMark):
        decode(value)


PASSED = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1] + ".new")
os.chmod(sys.argv[1] + ".new", 0o666)
listener.listen()
os.rename(sys.argv[1] + ".new", sys.argv[1])
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_the_service_manager_may_have_opened_the_socket(directory: Path, permanent_socket: Path) -> None:
    """Whoever comes before the process has begun waits for it (sd_listen_fds(3))."""
    run([*SHIFTFSCTL, "mark", directory])
    permanent_socket.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [SHIFTFSCTL[0], "-c", PASSED, permanent_socket, *SHIFTFSCTL, "serve"], cwd="/", env=environment()
    )
    try:
        wait_until(permanent_socket.exists, "the socket", 10)
        with container() as user:
            user.mount(directory)
            assert user.shell("cat file") == "content"
    finally:
        process.terminate()
        process.wait(20)
        is_left = permanent_socket.exists()
        permanent_socket.unlink(missing_ok=True)
    assert is_left, "it is the service manager's"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_the_service_manager_understands_the_units(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/local/bin/shiftfsctl", "/bin/true")  # it need not be installed there
        (tmp_path / unit.name).write_text(text)
    said = run(["systemd-analyze", "verify", *tmp_path.iterdir()])
    assert said.stdout + said.stderr == ""


def test_the_server_keeps_no_more_rights_than_files_take(server: subprocess.Popen[bytes]) -> None:
    def status() -> dict[str, str]:
        lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    wait_until(lambda: status()["NoNewPrivs"] == "1", "that it gains nothing", 10)
    found = status()
    assert found["CapEff"] == found["CapPrm"] == f"{NEEDED:016x}"
    assert (found["CapInh"], int(found["CapBnd"], 16) & ~NEEDED) == ("0" * 16, 0)


@pytest.fixture
def directory() -> Iterator[Path]:
    made = hidden_directory()
    (made / "file").write_bytes(b"content")
    yield made
    if permanent.NAME.decode() in os.listxattr(made):
        run([*SHIFTFSCTL, "unmark", made])


def test_a_marked_directory_is_mounted_by_its_path(server: object, directory: Path) -> None:
    run([*SHIFTFSCTL, "mark", directory])
    with container() as one, container((0, 300000, 1000)) as other:
        for user in (one, other):
            user.mount(directory)
            assert user.shell("cat file") == "content"
        one.shell("echo mine > new; chown 7:8 new")
        assert (directory / "new").stat().st_uid == 7
        wait_until(lambda: other.shell("ls") == "file\nnew\n", "what the other has made", 5)


def test_locks_stay_on_each_mount_if_the_mark_says_so(server: object, directory: Path) -> None:
    run([*SHIFTFSCTL, "mark", "--locks=mount", directory])
    assert f"{directory}: everybody, locks stay on each mount\n" in run([*SHIFTFSCTL, "marks"]).stdout
    with container() as one, container((0, 300000, 1000)) as other:
        for user in (one, other):
            user.mount(directory)
        with one.locking("file"):
            assert other.may_lock("file")


def test_who_may_create_by_a_supplementary_group_may_do_so(server: object, directory: Path) -> None:
    (directory / "group's").mkdir(mode=0o770)
    os.chown(directory / "group's", 0, 55)
    (directory / "group's").chmod(0o2770)
    run([*SHIFTFSCTL, "mark", directory])
    with container() as user:
        user.mount(directory)
        user.run("setpriv", "--reuid=1000", "--regid=1000", "--groups=55", "touch", user.target / "group's/new")
        user.run("setpriv", "--reuid=1000", "--regid=1000", "--groups=55", "mkfifo", user.target / "group's/fifo")
    for name in ("new", "fifo"):
        found = (directory / "group's" / name).stat()
        assert (found.st_uid, found.st_gid) == (1000, 55)


def test_it_is_listed_and_unmarked(directory: Path) -> None:
    run([*SHIFTFSCTL, "mark", directory, "--users", f"root:{USER}", "--ro"])
    listed = json.loads(run([*SHIFTFSCTL, "marks", "--json"]).stdout)["marks"]
    assert {"directory": str(directory), "users": [0, USER], "read_only": True, "locks": "layers"} in listed
    assert f"{directory}: users 0 {USER}, read-only\n" in run([*SHIFTFSCTL, "marks"]).stdout
    run([*SHIFTFSCTL, "unmark", directory])
    assert str(directory) not in run([*SHIFTFSCTL, "marks"]).stdout
    again = run([*SHIFTFSCTL, "unmark", directory], check=False)
    assert (again.returncode, again.stderr) == (1, f"shiftfsctl: {directory}: is not marked\n")


def refused(user: Container, directory: Path) -> str:
    said = user.mount(directory, check=False)
    if said.returncode == 0:
        user.unmount()
    return said.stderr


def test_who_may_not_is_told_why_and_has_his_own_rights(server: object, directory: Path) -> None:
    with container() as user:
        assert "is not marked" in refused(user, directory)
        run([*SHIFTFSCTL, "mark", directory, "--users", "root"])
        assert "not for you" in refused(user, directory)
        link = directory.parent / "link"
        link.symlink_to(directory)
        assert "is not marked" in refused(user, link), "no symlink is followed"
        run([*SHIFTFSCTL, "mark", directory])
        user.mount(directory)
        assert user.shell("cat file") == "content"


def test_a_read_only_mark_makes_read_only_mounts(server: object, directory: Path) -> None:
    run([*SHIFTFSCTL, "mark", directory, "--ro"])
    with container() as user:
        user.mount(directory)
        assert "Read-only" in user.run("touch", user.target / "new", check=False).stderr
        user.run("mount", "-i", "-o", "remount,rw", user.target, check=False)
        assert "Read-only" in user.run("touch", user.target / "new", check=False).stderr


def test_what_others_can_come_to_is_not_marked(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    tmp_path.chmod(0o755)
    said = run([*SHIFTFSCTL, "mark", open_to_all], check=False)
    assert said.returncode == 1 and "others than root can come to it" in said.stderr
    assert errno_of(lambda: os.getxattr(open_to_all, permanent.NAME)) != 0


def test_marks_on_filesystems_of_others_count_for_nothing(directory: Path) -> None:
    run(["mount", "-t", "tmpfs", "-o", "nosuid", "none", directory])
    try:
        os.setxattr(directory, permanent.NAME, Mark().encode())
        with pytest.raises(NoMark, match="others may be behind"):
            permanent.find(bytes(directory))
    finally:
        run(["umount", directory])


def test_what_is_mounted_stays_when_it_is_unmarked(server: object, directory: Path) -> None:
    run([*SHIFTFSCTL, "mark", directory])
    with container() as user, container() as late:
        user.mount(directory)
        run([*SHIFTFSCTL, "unmark", directory])
        assert user.shell("cat file") == "content"
        assert "is not marked" in refused(late, directory)


def descriptors_on(server: "subprocess.Popen[bytes]", device: int) -> int:
    """How many the process has on a filesystem."""
    count = 0
    for link in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += link.stat().st_dev == device
    return count


def test_who_mounts_again_and_again_leaves_nothing_open(server: "subprocess.Popen[bytes]", directory: Path) -> None:
    """Neither while he does nor afterwards: the disk can be unmounted."""
    run(["mount", "-t", "tmpfs", "none", directory])
    try:
        run([*SHIFTFSCTL, "mark", directory])
        device = directory.stat().st_dev
        with container() as user:
            for _ in range(20):
                user.mount(directory)
                user.unmount()
                assert descriptors_on(server, device) < 10
        wait_until(lambda: descriptors_on(server, device) == 0, "all is closed", 10)
        run([*SHIFTFSCTL, "unmark", directory])
    finally:
        run(["umount", directory])


def test_the_disk_of_what_is_mounted_is_busy(server: object, directory: Path) -> None:
    run(["mount", "-t", "tmpfs", "none", directory])
    try:
        run([*SHIFTFSCTL, "mark", directory])
        with container() as user:
            user.mount(directory)
            assert "busy" in run(["umount", directory], check=False).stderr
            user.unmount()
        run([*SHIFTFSCTL, "unmark", directory])
    finally:
        wait_until(lambda: run(["umount", directory], check=False).returncode == 0, "it is free", 10)


def test_nobody_has_all_the_directories_that_can_be_mounted_to_himself(server: object) -> None:
    """16 at once, of which one user has half."""
    directories = [hidden_directory() for _ in range(9)]
    targets = [open_directory("target-") for _ in directories]
    try:
        for directory in directories:
            run([*SHIFTFSCTL, "mark", directory])
        with container() as user, container((0, 300000, 1000), owner=OTHER) as other:
            for directory, target in zip(directories[:8], targets, strict=False):
                user.mount(directory, target=target)
            assert "as many marked directories are mounted as can be" in refused(user, directories[8])
            other.mount(directories[8])
            user.mount(directories[8], target=targets[8])
    finally:
        for directory in directories:
            run([*SHIFTFSCTL, "unmark", directory], check=False)
