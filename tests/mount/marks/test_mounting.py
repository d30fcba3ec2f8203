"""Users mount in their own namespaces what root has marked."""

import os
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import pytest

from harness import SHIFTFS, wait_until
from harness.marks import FIRST, Container, Marked, container, marked


def test_ids_inside_are_the_ids_on_disk(mark: Marked, user: Container) -> None:
    (mark.source / "root's").write_bytes(b"content")
    (mark.source / "five's").write_bytes(b"content")
    os.chown(mark.source / "five's", 5, 6)
    user.mount(mark.path)
    assert user.shell("stat -c %u:%g *").split() == ["5:6", "0:0"]
    user.shell("""
        touch new
        mkdir directory
        chown 7:8 new
        mknod fifo p
        ln -s target link
        ln new second
    """)
    found = {path.name: path.lstat() for path in mark.source.iterdir()}
    assert [(found[name].st_uid, found[name].st_gid) for name in ("new", "directory", "fifo", "link")] == [
        (7, 8), (0, 0), (0, 0), (0, 0)
    ]  # fmt: skip
    assert found["second"].st_nlink == 2
    user.shell("touch two", uid=0)
    user.shell("chmod 0777 directory; true")
    user.shell("echo mine > directory/mine", uid=1000)
    assert (mark.source / "directory/mine").stat().st_uid == 1000


def test_the_kernel_checks_rights(mark: Marked, user: Container) -> None:
    secret = mark.source / "secret"
    secret.write_bytes(b"secret")
    secret.chmod(0o600)
    user.mount(mark.path)
    assert user.shell("cat secret") == "secret"
    assert user.run("cat", user.target / "secret", uid=1000, check=False).returncode != 0


def test_nobody_outside_the_namespace_may_use_it(mark: Marked, user: Container) -> None:
    """Not even root: what the container makes of its mount is its own."""
    (mark.source / "file").write_bytes(b"content")
    user.mount(mark.path)
    with pytest.raises(PermissionError):
        os.listdir(f"/proc/{user.pid}/root{user.target}")


def test_the_mark_itself_is_roots_alone(mark: Marked, user: Container) -> None:
    (mark.source / "file").write_bytes(b"content")
    assert (mark.path / "file").read_bytes() == b"content"
    for uid in (0, 1000):
        assert "Permission denied" in user.run("ls", mark.path, uid=uid, check=False).stderr
    flags = os.statvfs(mark.path).f_flag
    assert flags & os.ST_NOSUID and flags & os.ST_NODEV and flags & os.ST_NOEXEC


def test_one_process_serves_all(mark: Marked) -> None:
    with container() as one, container((0, 300000, 1000)) as other:
        for user in (one, other):
            user.mount(mark.path)
        one.shell("echo first > file; mkdir d")
        assert other.shell("cat file; ls") == "first\nd\nfile\n"
        other.shell("echo second > file; mv file d/moved")
        wait_until(lambda: one.shell("ls d") == "moved\n", "what the other has moved", 5)
        assert one.shell("cat d/moved") == "second\n"
        assert mark.mount.status()["descriptors"]["open"] < 100


def test_what_is_changed_in_the_layer_shows_at_once(mark: Marked, user: Container) -> None:
    (mark.source / "file").write_bytes(b"old")
    user.mount(mark.path)
    assert user.shell("cat file; ls") == "oldfile\n"
    (mark.source / "file").write_bytes(b"newer")
    (mark.source / "more").mkdir()
    wait_until(lambda: user.shell("cat file; ls") == "newerfile\nmore\n", "the change", 5)


def test_it_ends_for_new_users_with_its_mount_and_for_others_with_theirs(user: Container) -> None:
    with marked() as mark, container() as here, container() as late:
        here.mount(mark.path)
        process = Path(f"/proc/{mark.mount.pid}")
        os.system(f"umount {mark.path}")
        assert here.shell("echo still > file; cat file") == "still\n"
        refused = late.mount(mark.path, check=False)
        assert refused.returncode == 1
        assert process.exists()
        here.unmount()
        wait_until(lambda: not process.exists(), "the end of the process", 10)


def test_set_id_files_are_honoured_inside_alone(mark: Marked, user: Container) -> None:
    user.mount(mark.path)
    user.shell("cp /usr/bin/id id; chmod 4755 id")
    made = (mark.source / "id").stat()
    assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (0, 0o4755)
    assert user.shell("./id -u", uid=1000) == "0\n"
    assert FIRST > 0


@contextmanager
def heard(user: Container, said: Path) -> Iterator[None]:
    """What is heard on his mount, as lines of a file."""
    said.touch()
    said.chmod(0o666)
    watching = subprocess.Popen(user.command(["inotifywait", "-q", "-m", "--format", "%e %f", "-o", said, user.target]))
    try:
        wait_until(lambda: "inotify" in os.readlink(f"/proc/{watching.pid}/exe"), "the watcher", 5)
        time.sleep(0.5)
        yield
    finally:
        watching.kill()
        watching.wait()


def test_changes_raise_events_inside(mark: Marked, user: Container) -> None:
    """Made in the layer, or on another mount of the mark."""
    (mark.source / "file").write_bytes(b"old")
    user.mount(mark.path)
    said = user.target.parent / "events"
    with container((0, 300000, 1000)) as other:
        other.mount(mark.path)
        with heard(user, said):
            (mark.source / "file").write_bytes(b"new")
            (mark.source / "made").mkdir()
            other.shell("echo more > theirs")
            user.shell("echo more > ours")
            expected = [
                *("MODIFY file", "CLOSE_WRITE,CLOSE file", "CREATE,ISDIR made"),
                *("CREATE theirs", "MODIFY theirs", "CLOSE_WRITE,CLOSE theirs"),
            ]
            own = ["CREATE ours", "OPEN ours", "MODIFY ours", "CLOSE_WRITE,CLOSE ours"]
            wait_until(lambda: {*expected, *own} <= set(said.read_text().splitlines()), "the events", 5)
            time.sleep(0.5)
            # What is changed twice may be told twice: inotify merges what nobody has read yet.
            opened = ("OPEN file", "OPEN theirs")
            told = [event for event, _ in groupby(said.read_text().splitlines()) if event not in opened]
            assert [event for event in told if "ours" in event] == own
            assert [event for event in told if "ours" not in event] == expected


def test_what_one_mount_is_told_it_does_not_tell_in_turn() -> None:
    """Whoever raises the event that a file has been closed opens and closes it, on each of the mounts."""
    with marked("open=serve") as mark, container() as user, container((0, 300000, 1000)) as other:
        for one in (user, other):
            one.mount(mark.path)
        said = user.target.parent / "events"
        with heard(user, said):
            other.shell("echo more > theirs")
            wait_until(lambda: "CLOSE_WRITE,CLOSE theirs" in said.read_text(), "the events", 5)
            time.sleep(1)
            assert max(Counter(said.read_text().splitlines()).values()) <= 2
        reflected = mark.mount.status()["live"]["reflected"]
        time.sleep(0.5)
        assert mark.mount.status()["live"]["reflected"] == reflected


def test_who_debugs_is_told_why_no_events_are_raised(mark: Marked, user: Container) -> None:
    """Here no process can be left to do so."""
    alone = ["prlimit", "--nproc=1:1", "--", *SHIFTFS]
    assert user.run(*alone, mark.path, user.target).stderr == ""
    user.unmount()
    said = user.run(*alone, "-d", mark.path, user.target).stderr
    assert "no events are raised here of what others change (Resource temporarily unavailable)" in said
    (mark.source / "file").write_bytes(b"content")
    assert user.shell("cat file") == "content"
