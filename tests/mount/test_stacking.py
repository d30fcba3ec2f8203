"""shiftfs on and under other filesystems, over itself, and mounted by those who are not root."""

import errno
import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness import (
    SHIFTFS,
    Caller,
    as_user,
    environment,
    errno_of,
    mounted,
    newest_mount,
    run,
    unmount,
    user_namespace,
    user_prefix,
    wait_until,
)
from harness.commands import SHIFTFSCTL
from harness.kinds import MAKERS, owner
from shiftfs.layer import Layer

DAEMON = pwd.getpwnam("daemon").pw_uid
MAPS = ("uidmapping=0:100000:65536", "gidmapping=0:100000:65536")
INSIDE = Caller(100005, 100005)
BACK = ("uidmapping=100000:0:65536", "gidmapping=100000:0:65536")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "directory").mkdir(parents=True)
    (path / "directory" / "old").write_text("content")
    (path / "directory").chmod(0o777)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "mountpoint"
    path.mkdir()
    return path


@contextmanager
def other(path: Path, kind: str, options: str = "") -> Iterator[None]:
    """A mount of another filesystem."""
    run(["mount", "-t", kind, *(["-o", options] if options else []), "none", path])
    try:
        yield
    finally:
        unmount(newest_mount(path))


@contextmanager
def overlay(path: Path, lower: Path, scratch: Path) -> Iterator[None]:
    for name in ("upper", "work"):
        (scratch / name).mkdir(parents=True)
    with other(path, "overlay", f"lowerdir={lower},upperdir={scratch / 'upper'},workdir={scratch / 'work'}"):
        yield


def works(path: Path, caller: Caller = INSIDE) -> None:
    """All kinds of work in its directory, by the caller."""

    def work() -> None:
        place = path / "directory"
        assert sorted(os.listdir(place)) == ["old"]
        assert (place / "old").read_text() == "content"
        for name, make in MAKERS.items():
            make(place / name)
        (place / "fifo").rename(place / "renamed")
        with (place / "log").open("a+") as log:
            log.write("line\n")
            log.flush()
            os.fsync(log.fileno())
            log.seek(0)
            assert log.read() == "line\n"
        os.link(place / "log", place / "link")
        assert (place / "link").stat().st_nlink == 2
        assert owner(place / "log") == (caller.uid, caller.gid)
        for name in [*os.listdir(place)]:
            if name != "old":
                (os.rmdir if name == "directory" else os.unlink)(place / name)
        assert os.listdir(place) == ["old"]

    caller(work)


# --- over itself ---


def test_over_its_own_source(source: Path) -> None:
    with mounted(source, source, *MAPS):
        assert owner(source / "directory" / "old") == (100000, 100000)
        works(source)
        assert run(["find", source]).stdout.count("\n") == 3
    assert owner(source / "directory" / "old") == (0, 0)


def test_over_its_own_source_twice(source: Path) -> None:
    with mounted(source, source, *MAPS), mounted(source, source, *BACK):
        assert owner(source / "directory" / "old") == (0, 0)
        works(source, Caller(5, 5))


def test_inside_its_source(source: Path) -> None:
    """The mount shows its mountpoint as it was before, so no tree without an end."""
    (source / "inside").mkdir()
    with mounted(source, source / "inside", *MAPS) as mount:
        works(mount.path)
        assert os.listdir(mount.path / "inside") == []
        assert run(["find", source, "-name", "old"]).stdout.count("\n") == 2


def test_the_source_inside_its_mountpoint(tmp_path: Path, source: Path) -> None:
    with mounted(source, tmp_path, *MAPS) as mount:
        works(mount.path)
        assert os.listdir(tmp_path) == ["directory"]


# --- on other filesystems ---


def test_on_shiftfs(source: Path) -> None:
    with mounted(source, None, *MAPS) as inner, mounted(inner.path, None, *BACK) as outer:
        assert owner(outer.path / "directory" / "old") == (0, 0)
        works(outer.path, Caller(5, 5))


def test_three_deep(source: Path) -> None:
    """FUSE does not count the filesystems beneath it, so there is no limit to reach."""
    with ExitStack() as stack:
        path = source
        for options in (MAPS, BACK, MAPS):
            path = stack.enter_context(mounted(path, None, *options)).path
        works(path)


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_on_memory(tmp_path: Path, kind: str) -> None:
    layer = tmp_path / "memory"
    layer.mkdir()
    with other(layer, kind):
        (layer / "directory").mkdir()
        (layer / "directory").chmod(0o777)
        (layer / "directory" / "old").write_text("content")
        with mounted(layer, None, *MAPS) as mount:
            works(mount.path)


def test_on_overlayfs(source: Path, tmp_path: Path, place: Path) -> None:
    with overlay(place, source, tmp_path / "scratch"), mounted(place, None, *MAPS) as mount:
        works(mount.path)
        file = mount.path / "directory" / "old"
        before = file.stat()
        with file.open() as early:  # of the lower one
            with file.open("a") as late:
                late.write(" and more")
            os.chown(file, 100007, 100008)
            # Copied up by now, and still the same file to all who have it open.
            assert early.read() == "content and more"
            assert os.fstat(early.fileno()).st_ino == before.st_ino == file.stat().st_ino
            assert os.fstat(early.fileno()).st_uid == 100007
        assert owner(tmp_path / "scratch/upper/directory/old") == (7, 8)
        file.unlink()
        assert os.listdir(mount.path / "directory") == []


def test_on_overlayfs_a_reused_number_is_another_inode(source: Path, tmp_path: Path, place: Path) -> None:
    """Birth times there change at copy-up; handles do not, and do with each new inode."""
    (source / "low").write_bytes(b"")
    with overlay(place, source, tmp_path / "scratch"):
        layer = Layer(os.fsencode(place))
        low = layer.look(layer.root.fd, b"low")[0]
        (place / "low").write_bytes(b"copied up")
        assert layer.look(layer.root.fd, b"low")[0] == low
        seen = set()
        for _ in range(20):
            (place / "new").write_bytes(b"")
            seen.add(layer.look(layer.root.fd, b"new")[0])
            (place / "new").unlink()
        del layer
    assert len(seen) == 20
    assert len({number for _, number, _, _ in seen}) < 20, "ext4 gives numbers out again"


def test_under_overlayfs(source: Path, tmp_path: Path, place: Path) -> None:
    with mounted(source, None, *MAPS) as mount, overlay(place, mount.path, tmp_path / "scratch"):
        works(place)
        file = place / "directory" / "old"
        assert owner(file) == (100000, 100000)
        file.write_text("changed")
        assert owner(tmp_path / "scratch/upper/directory/old") == (100000, 100000)
        assert (source / "directory" / "old").read_text() == "content"
        file.unlink()
        assert not file.exists() and (source / "directory" / "old").exists()


@contextmanager
def bindfs(source: Path, place: Path) -> Iterator[None]:
    server = subprocess.Popen(["bindfs", "-f", source, place])
    try:
        wait_until(lambda: os.path.ismount(place), "bindfs")
        yield
    finally:
        unmount(newest_mount(place))
        server.wait(10)


def test_on_another_fuse_filesystem(source: Path, place: Path) -> None:
    with bindfs(source, place), mounted(place, None, *MAPS) as mount:
        assert owner(mount.path / "directory" / "old") == (100000, 100000)
        file = mount.path / "directory" / "new"
        Caller(100000, 100000)(file.write_text, "content")
        os.chown(file, 100007, 100008)
        file.chmod(0o640)
        file.rename(file.with_name("renamed"))
        assert owner(source / "directory" / "renamed") == (7, 8)
        assert sorted(os.listdir(mount.path / "directory")) == ["old", "renamed"]


def test_over_mounts_in_the_source(source: Path) -> None:
    """They are part of the source if they were there before; their inode numbers do not collide with the others."""
    (source / "memory").mkdir()
    with other(source / "memory", "tmpfs"):
        (source / "memory" / "file").touch()
        with mounted(source) as mount:
            assert (mount.path / "memory" / "file").exists()
            found = [path.lstat() for path in mount.path.rglob("*")]
            assert len({status.st_ino for status in found}) == len(found) == 4
            assert {status.st_dev for status in found} == {mount.path.stat().st_dev}
            assert errno_of(lambda: os.rename(mount.path / "memory" / "file", mount.path / "file")) == errno.EXDEV
            run(["mv", mount.path / "memory" / "file", mount.path / "moved"])
            assert errno_of(lambda: os.rmdir(mount.path / "memory")) == errno.EBUSY
    assert (source / "moved").exists()


def test_beside_a_mount_whose_type_is_not_text(source: Path, place: Path) -> None:
    """Every user may mount one, and everybody's table of mounts has it."""
    kind = os.fsdecode(b"\xff some\\kind")
    with mounted(source, place, f"subtype={kind.replace(chr(92), chr(92) * 2)}") as mount:
        assert mount.entry.kind == f"fuse.{kind}"
        with mounted(source) as other:
            works(other.path, Caller(5, 5))


# --- by others than root ---


def test_by_a_user(source: Path) -> None:
    os.chown(source, DAEMON, DAEMON)
    with mounted(source, user=DAEMON) as mount:
        script = "cd $0; cat directory/old; mkdir new; echo x >new/file; ls new; mv new/file ."
        as_user(DAEMON, ["sh", "-ec", script, mount.path])
        works(mount.path, Caller(DAEMON, DAEMON))
    assert owner(source / "file") == (DAEMON, DAEMON)


def test_by_a_user_over_its_own_source(source: Path) -> None:
    """Which is not inside it: the process goes by what it has opened before."""
    os.chown(source, DAEMON, DAEMON)
    with mounted(source, source, user=DAEMON):
        works(source, Caller(DAEMON, DAEMON))
        assert Caller(DAEMON, DAEMON)(os.listdir, source) == ["directory"]


def test_by_a_user_with_a_map(source: Path) -> None:
    """Who may not act as others creates as himself alone: anybody else's file would have the wrong owner."""
    os.chown(source, DAEMON, DAEMON)
    with mounted(source, None, f"uidmapping={DAEMON}:{DAEMON}:1:0:5000:1", user=DAEMON) as mount:
        me = Caller(DAEMON, DAEMON)
        assert me(owner, mount.path / "directory") == (5000, 0)
        me((mount.path / "mine").touch)
        assert owner(source / "mine") == (DAEMON, DAEMON)
    with mounted(source, None, f"uidmapping=0:{DAEMON}:1", user=DAEMON) as mount:
        assert errno_of(lambda: me((mount.path / "directory" / "roots").touch)) == errno.EPERM
    assert sorted(os.listdir(source)) == ["directory", "mine"]


def test_in_a_user_namespace(source: Path, place: Path) -> None:
    """An unprivileged user, root of a namespace that maps it alone."""
    os.chown(source, DAEMON, DAEMON)
    script = """
        "$@" source mountpoint
        cd mountpoint; id -u; stat -c '%u %n' . directory; cat directory/old; echo
        mkdir new; echo line >new/file; ln -s x new/link; mv new moved; ls moved; rm -r moved
        touch own; chmod 640 own; stat -c '%u %a' own
        cd ..; umount mountpoint
    """
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script, "sh", *SHIFTFS]
    said = run([*user_prefix(DAEMON), *inside], cwd=source.parent, env=environment()).stdout
    assert said.splitlines() == ["0", "0 .", "65534 directory", "content", "file", "link", "0 640"]
    assert owner(source / "own") == (DAEMON, DAEMON)


def test_in_a_user_namespace_with_ranges(source: Path, place: Path) -> None:
    """As rootless container engines have it: the daemon is root of the namespace and may act as its users."""
    for path, number in ((source, 300000), (source / "directory", 300005), (place, 300000)):
        os.chown(path, number, number)
    script = f"""
        "$@" -o uidmapping=0:1000:100,gidmapping=0:1000:100 source mountpoint
        {" ".join(SHIFTFSCTL)} status --json mountpoint | grep -c '"uidmapping": "0:1000:100"'
        cd mountpoint; stat -c '%u %g' directory
        setpriv --reuid=1005 --regid=1005 --clear-groups sh -c 'cd directory; >mine; stat -c "%u %g" mine'
        touch roots && echo "unmapped root created something"
        cd ..; umount mountpoint
    """
    with user_namespace((0, 300000, 65536)) as namespace:
        command = namespace.command(["unshare", "--mount", "sh", "-c", script, "sh", *SHIFTFS])
        said = run(command, cwd=source.parent, env=environment())
    assert said.stdout.splitlines() == ["1", "1005 1005", "1005 1005"]
    assert owner(source / "directory" / "mine") == (300005, 300005)
