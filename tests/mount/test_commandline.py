"""The command line where it works: what a mount is called, what its flags hold, and mount(8), fstab(5), helpers."""

import errno
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import (
    Argument,
    Caller,
    as_user,
    environment,
    errno_of,
    mounted,
    newest_mount,
    run,
    shiftfs,
    unmount,
    wait_until,
)
from harness.kinds import MAKERS

DAEMON = pwd.getpwnam("daemon").pw_uid


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    (path / "file").write_text("content")
    return path


# --- names ---


@pytest.mark.parametrize(
    ("given", "shown", "user"),
    [
        ("plain", "plain", None),
        (r"all\, of\\ them\,\,", r"all, of\ them,,", None),
        (r"all\, of\\ them\,\,", r"all, of\ them,,", DAEMON),
        ('"in, quotes"', "in, quotes", None),
        ("tab\tand\nline", "tab\tand\nline", None),
        ("#a=b ümläut", "#a=b ümläut", None),
    ],
)
def test_fsname(source: Path, given: str, shown: str, user: int | None) -> None:
    with mounted(source, None, f"fsname={given}", user=user) as mount:
        assert (mount.entry.source, mount.entry.kind) == (shown, "fuse.shiftfs")
        assert mount.status()["options"]["fsname"] == shown


def test_subtype_and_the_names_without(source: Path) -> None:
    with mounted(source, None, "subtype=fuse-overlayfs") as mount:
        assert (mount.entry.source, mount.entry.kind) == (str(source), "fuse.fuse-overlayfs")


@pytest.mark.parametrize("name", ["a,b\\c d", "new\nline\udcff"])
def test_names_of_source_and_mountpoint(tmp_path: Path, name: str) -> None:
    source, path = tmp_path / name, tmp_path / "mnt" / name
    source.mkdir()
    path.mkdir(parents=True)
    (source / "file").touch()
    with mounted(source, path) as mount:
        assert os.listdir(path) == ["file"]
        assert mount.entry.source == str(source)


@pytest.mark.parametrize("names", [("source", "mountpoint"), ("./source/.", "link"), ("link-to-source", "mountpoint/")])
def test_relative_names_and_symlinks(source: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / "mountpoint").mkdir()
    (tmp_path / "link").symlink_to("mountpoint")
    (tmp_path / "link-to-source").symlink_to("source")
    shiftfs(*names, cwd=tmp_path)
    try:
        assert os.listdir(tmp_path / "mountpoint") == ["file"]
    finally:
        unmount(newest_mount(tmp_path / "mountpoint"))


# --- flags ---


def flags(path: Path) -> set[str]:
    return set(run(["findmnt", "-n", "-o", "VFS-OPTIONS", path]).stdout.strip().split(","))


@pytest.mark.parametrize(
    ("given", "there", "absent"),
    [
        ("", {"rw", "nodev", "noatime"}, {"nosuid", "noexec"}),
        ("ro", {"ro"}, {"rw"}),
        ("nosuid,noexec", {"nosuid", "noexec"}, set()),
        ("allow_dev", set(), {"nodev"}),
        ("dev", {"nodev"}, set()),
        ("allow_dev,nodev", {"nodev"}, set()),
        ("atime", set(), {"noatime"}),
        ("sync,dirsync", set(), set()),
    ],
)
def test_flags_show(source: Path, given: str, there: set[str], absent: set[str]) -> None:
    with mounted(source, None, *filter(None, given.split(","))) as mount:
        assert there <= flags(mount.path)
        assert not absent & flags(mount.path)


def test_users_have_no_set_id_and_no_devices(source: Path) -> None:
    with mounted(source, None, "suid", "dev", user=DAEMON) as mount:
        assert {"nosuid", "nodev", "noatime"} <= flags(mount.path)


def test_ro_holds(source: Path) -> None:
    calls: dict[str, Callable[[Path], object]] = {
        **MAKERS,
        "write": lambda path: os.open(path.with_name("file"), os.O_WRONLY),
        "truncate": lambda path: os.truncate(path.with_name("file"), 0),
        "unlink": lambda path: os.unlink(path.with_name("file")),
        "rename": lambda path: os.rename(path.with_name("file"), path),
        "link": lambda path: os.link(path.with_name("file"), path),
        "chmod": lambda path: path.with_name("file").chmod(0o600),
        "chown": lambda path: os.chown(path.with_name("file"), 1, 1),
        "utime": lambda path: os.utime(path.with_name("file")),
        "setxattr": lambda path: os.setxattr(path.with_name("file"), "user.x", b""),
    }
    before = (source / "file").stat()
    with mounted(source, None, "ro") as mount:
        refusals = {name: errno_of(lambda call=call: call(mount.path / "new")) for name, call in calls.items()}  # type: ignore[misc]
        assert refusals == dict.fromkeys(calls, errno.EROFS)
        assert (mount.path / "file").read_text() == "content"
    assert os.listdir(source) == ["file"]
    assert (source / "file").stat().st_ctime_ns == before.st_ctime_ns


@pytest.mark.parametrize("option", ["suid", "nosuid"])
def test_suid_holds(source: Path, option: str) -> None:
    shutil.copy("/usr/bin/id", source / "id")
    (source / "id").chmod(0o4755)
    with mounted(source, None, option) as mount:
        assert as_user(5555, [mount.path / "id", "-u"]).stdout == ("0\n" if option == "suid" else "5555\n")


@pytest.mark.parametrize(("option", "expected"), [("allow_dev", 0), ("nodev", errno.EACCES), ("dev", errno.EACCES)])
def test_dev_holds(source: Path, option: str, expected: int) -> None:
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with mounted(source, None, option) as mount:
        assert (mount.path / "null").stat().st_rdev == os.makedev(1, 3)
        assert errno_of(lambda: (mount.path / "null").write_text("x")) == expected
        assert errno_of(lambda: os.mknod(mount.path / "new", stat.S_IFCHR | 0o666, os.makedev(1, 3))) == 0
    assert (source / "new").stat().st_rdev == os.makedev(1, 3)


@pytest.mark.parametrize("option", ["exec", "noexec"])
def test_exec_holds(source: Path, option: str) -> None:
    shutil.copy("/bin/true", source)
    with mounted(source, None, option) as mount:
        said = run(["sh", "-c", 'exec "$0"', mount.path / "true"], check=False)
        assert (said.returncode == 0) == (option == "exec")


@pytest.mark.parametrize(
    ("option", "uid", "expected"),
    [("allow_other", 5555, 0), ("allow_root", 5555, errno.EACCES), ("allow_root", 0, 0)],
)
def test_who_is_let_in(source: Path, option: str, uid: int, expected: int) -> None:
    with mounted(source, None, option) as mount:
        assert errno_of(lambda: Caller(uid, uid)((mount.path / "file").read_text)) == expected


def test_a_users_mount_is_the_users(source: Path) -> None:
    with mounted(source, user=DAEMON) as mount:
        assert Caller(DAEMON, DAEMON)((mount.path / "file").read_text) == "content"
        for uid in (0, 5555):
            assert errno_of(lambda uid=uid: Caller(uid, uid)((mount.path / "file").read_text)) == errno.EACCES  # type: ignore[misc]


# --- mount(8) ---

SCRIPT = """#!{python}
import sys
sys.path.insert(0, {path!r})
from shiftfs.{module} import main
sys.exit(main())
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory with the two commands as an installation makes them, for the shiftfs under test."""
    path = tmp_path / "bin"
    path.mkdir()
    for name, module in (("shiftfs", "__main__"), ("shiftfsctl", "ctl")):
        text = SCRIPT.format(python=sys.executable, path=environment()["PYTHONPATH"], module=module)
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    return path


# The helpers go where mount(8) looks, but in a layer over it that only a mount namespace sees.
PREPARE = """
    set -e
    sbin=$(readlink -f /sbin)
    mkdir scratch; mount -t tmpfs none scratch; mkdir scratch/upper scratch/work
    mount -t overlay none -o "lowerdir=$sbin,upperdir=scratch/upper,workdir=scratch/work" "$sbin"
    rm -f /sbin/mount.shiftfs /sbin/mount.fuse.shiftfs
"""
HELPERS = "bin/shiftfsctl install-helpers >/dev/null; bin/shiftfsctl install-helpers"
LINK = 'ln -s "$PWD/bin/shiftfs" /sbin/shiftfs'
MAPS = "uidmapping=0:100000:65536,gidmapping=0:200000:65536"
LINE = f"{{source}} {{mountpoint}} {{kind}} {MAPS},noauto,nofail,x-systemd.automount,_netdev,fsname=from-fstab 0 0"


@pytest.mark.parametrize(
    ("prepare", "command"),
    [
        (LINK, f"mount -t fuse.shiftfs -o {MAPS} source mountpoint"),
        (LINK, f"mount -t fuse.shiftfs source mountpoint -o {MAPS} -o ro,nosuid"),
        (HELPERS, f"mount -t fuse.shiftfs -o {MAPS} source mountpoint"),
        (HELPERS, f"mount -t shiftfs -o {MAPS} source mountpoint"),
        (HELPERS, f"mount -t shiftfs source mountpoint -v -n -s -o no-such-option,{MAPS}"),
        (f"{HELPERS}; echo '{LINE.replace('{kind}', 'shiftfs')}' >fstab", "mount -T fstab {mountpoint}"),
        (f"{HELPERS}; echo '{LINE.replace('{kind}', 'fuse.shiftfs')}' >fstab", "mount -T fstab --source {source}"),
        (f"{LINK}; echo '{LINE.replace('{kind}', 'fuse.shiftfs')}' >fstab", "mount --fstab fstab {mountpoint}"),
    ],
)
def test_mount_8(source: Path, tmp_path: Path, installed: Path, prepare: str, command: str) -> None:
    (tmp_path / "mountpoint").mkdir()
    script = f"{PREPARE}{prepare}\n{command}\n" + (
        "stat --printf '%u %g\\n' mountpoint/file; grep \" $PWD/mountpoint \" /proc/mounts; umount mountpoint"
    )
    script = script.format(source=source, mountpoint=tmp_path / "mountpoint")
    said = run(["unshare", "--mount", "sh", "-c", script], cwd=tmp_path).stdout.splitlines()
    assert said[-2] == "100000 200000"
    name, _, kind, options, *_ = said[-1].split()
    assert kind == "fuse.shiftfs"
    assert name == ("from-fstab" if "fstab" in command else str(source))
    assert ("nosuid" in options) == ("nosuid" in command)
    assert "nodev" in options


def test_helpers_are_put_in_place(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "sbin").mkdir()
    command: list[Argument] = [installed / "shiftfsctl", "install-helpers", "--directory", tmp_path / "sbin"]
    for _ in range(2):
        run(command)
        for name in ("mount.shiftfs", "mount.fuse.shiftfs"):
            assert os.readlink(tmp_path / "sbin" / name) == str(installed / "shiftfs")
    (tmp_path / "sbin/mount.shiftfs").unlink()
    (tmp_path / "sbin/mount.shiftfs").write_text("not ours")
    said = run(command, check=False)
    assert said.returncode == 1 and said.stderr.count("\n") == 1 and "mount.shiftfs" in said.stderr
    assert (tmp_path / "sbin/mount.shiftfs").read_text() == "not ours"


@pytest.mark.parametrize("name", ["source", "absent"])
def test_mount_f_does_all_but_mount(source: Path, tmp_path: Path, installed: Path, name: str) -> None:
    (tmp_path / "mountpoint").mkdir()
    script = f"{PREPARE}{HELPERS}; mount -f -t shiftfs {name} mountpoint"
    said = run(["unshare", "--mount", "sh", "-c", script], cwd=tmp_path, check=False)
    assert (said.returncode == 0) == (name == "source")
    assert ("absent" in said.stderr) == (name == "absent")
    wait_until(lambda: not run(["pgrep", "-f", str(tmp_path)], check=False).stdout, "no daemon")


@pytest.mark.parametrize(
    ("word", "pattern"), [("--help", "uidmapping="), ("-h", "usage: "), ("--version", "shiftfs "), ("-V", "shiftfs ")]
)
def test_help_and_version(word: str, pattern: str) -> None:
    said = shiftfs(word)
    assert pattern in said.stdout and said.stderr == ""
