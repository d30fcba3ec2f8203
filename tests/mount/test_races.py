"""What happens when the kernel knows less than the layer, or the caller is killed in the middle."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Caller, Mount, errno_of, mounted, run, wait_until

NOBODY = Caller(65534, 65534)
OPEN_MODES = ["open=refuse", "open=serve"]


@pytest.fixture(params=OPEN_MODES)
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    """A mount that trusts what it has seen for long, and hears of nothing."""
    source = tmp_path / "source"
    source.mkdir()
    source.chmod(0o1777)
    with mounted(source, None, request.param, "watch=off", "timeout=3600") as made:
        yield made


class TestAFileThatAppearedBehind:
    """The kernel still believes that there is none of the name."""

    @pytest.fixture(autouse=True)
    def unseen(self, mount: Mount) -> None:
        assert errno_of(lambda: os.stat(mount.path / "file")) == errno.ENOENT
        (mount.source / "file").write_text("secret")
        (mount.source / "file").chmod(0o600)

    @pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY])
    def test_is_not_given_to_whoever_meant_to_create_it(self, mount: Mount, flags: int) -> None:
        assert errno_of(lambda: NOBODY(os.open, mount.path / "file", flags | os.O_CREAT, 0o666)) == errno.EACCES
        assert (mount.source / "file").read_text() == "secret"

    def test_is_opened_by_whoever_may(self, mount: Mount) -> None:
        fd = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.write(fd, b" kept")
        os.close(fd)
        assert (mount.source / "file").read_text() == "secret kept"

    def test_exists_for_whoever_insists_on_a_new_one(self, mount: Mount) -> None:
        assert errno_of(lambda: os.open(mount.path / "file", os.O_WRONLY | os.O_CREAT | os.O_EXCL)) == errno.EEXIST
        assert errno_of(lambda: os.mknod(mount.path / "file")) == errno.EEXIST


@pytest.mark.parametrize("max_write", [131072, 131073, 200_000])
def test_files_are_read_in_full_whatever_the_largest_write(tmp_path: Path, max_write: int) -> None:
    content = os.urandom(500_000)
    (tmp_path / "file").write_bytes(content)
    with mounted(tmp_path, None, f"max_write={max_write}") as mount:
        assert (mount.path / "file").read_bytes() == content
        (mount.path / "new").write_bytes(content)
    assert (tmp_path / "new").read_bytes() == content


def test_a_write_of_a_killed_caller_does_not_come_later(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with mounted(tmp_path) as mount:
        holder = os.open(file, os.O_RDONLY)
        ignored = signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        try:
            writing = "import os, sys; fd = os.open(sys.argv[1], os.O_WRONLY); os.pwrite(fd, b'ORPHAN', 8)"
            writer = subprocess.Popen([sys.executable, "-c", writing, mount.path / "file"])
            wait_until(lambda: mount.stats()["waiting"] > 0, "the write to wait for the lease", 20)
            writer.kill()
            writer.wait(20)
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            (mount.path / "file").write_text("NEW")
            wait_until(lambda: mount.stats()["waiting"] == 0, "all to be answered", 20)
        finally:
            signal.signal(signal.SIGIO, ignored)
            os.close(holder)
        assert file.read_text() == "NEW"


def test_listings_of_killed_callers_leave_no_inode_behind(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    for number in range(20_000):
        (large / f"a-name-of-some-length-{number}").touch()
    with mounted(tmp_path) as mount:
        for number in range(15):
            lister = subprocess.Popen(["ls", "-l", mount.path / "large"], stdout=subprocess.DEVNULL)
            time.sleep(0.01 + number * 0.006)
            lister.kill()
            lister.wait(20)
        run(["rm", "-rf", mount.path / "large"])

        def forgotten() -> bool:
            Path("/proc/sys/vm/drop_caches").write_text("2")
            return bool(mount.stats()["inodes"] <= 2 and mount.stats()["descriptors"]["unlinked"] == 0)

        wait_until(forgotten, "the kernel to forget all inodes", 30)


def test_removed_files_kept_open_do_not_exhaust_the_mount(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("content")
    with mounted(tmp_path, None, descriptors=600) as mount:
        kept = []
        refused = 0
        for number in range(400):
            path = mount.path / f"f{number}"
            kept.append(os.open(path, os.O_CREAT | os.O_RDWR))
            try:
                path.unlink()
            except OSError as error:
                assert error.errno == errno.ENFILE
                refused += 1
        assert refused
        assert (mount.path / "other").read_text() == "content"
        (mount.path / "new").touch()
        for fd in kept:
            os.close(fd)


def test_a_file_is_found_by_its_handle_when_the_way_to_it_is_gone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("old", "new", "many"):
        (source / name).mkdir(parents=True)
    (source / "old" / "file").write_text("content")
    for number in range(600):
        (source / "many" / str(number)).touch()
    with mounted(source, None, "watch=off", "timeout=0", descriptors=400) as mount:
        fd = os.open(mount.path / "old" / "file", os.O_RDONLY)
        os.fchmod(fd, 0o640)
        os.rename(source / "old" / "file", source / "new" / "file")
        (source / "old").rmdir()
        for number in range(600):
            os.chmod(mount.path / "many" / str(number), 0o600)
        assert os.fstat(fd).st_size == 7
        os.fchmod(fd, 0o600)
        os.close(fd)
    assert (source / "new" / "file").stat().st_mode & 0o777 == 0o600


def test_a_user_writes_to_what_is_created_unwritable(tmp_path: Path) -> None:
    user = 1
    source = tmp_path / "source"
    source.mkdir()
    os.chown(source, user, user)
    with mounted(source, user=user) as mount:
        caller = Caller(user, user)

        def write() -> None:
            fd = os.open(mount.path / "object", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o444)
            os.write(fd, b"content")
            time.sleep(2.5)  # beyond the idle time after which descriptors for writing are closed
            os.write(fd, b" and more")
            os.close(fd)

        caller(write)
    assert (source / "object").read_text() == "content and more"
