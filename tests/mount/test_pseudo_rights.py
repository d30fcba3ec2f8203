"""Pseudo-files are the host's: a mount gives nobody more of them than he has without it, and under a map less."""

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness import Caller, Mount, as_user, mounted, newest_mount, open_directory, run, unmount
from harness.calls import opened, refuses
from harness.mounts import new_cgroup

PROC = Path("/proc")
DOMAIN = "sys/kernel/domainname"
MAPS = ("uidmapping=0:100000:65536", "gidmapping=0:100000:65536")
ROOT, INSIDE, NOBODY = Caller(0, 0), Caller(100000, 100000), Caller(65534, 65534)


@contextmanager
def with_proc(*options: str) -> Iterator[Mount]:
    """A mount of a tree with a procfs inside."""
    source = open_directory("layer-")
    with ExitStack() as stack:
        stack.callback(run, ["rm", "-rf", "--one-file-system", source])
        (source / "proc").mkdir()
        run(["mount", "-t", "proc", "none", source / "proc"])
        stack.callback(unmount, newest_mount(source / "proc"))
        yield stack.enter_context(mounted(source, None, *options))


@pytest.fixture(scope="module")
def shifted() -> Iterator[Mount]:
    with with_proc(*MAPS) as mount:
        yield mount


@pytest.fixture(scope="module")
def plain() -> Iterator[Mount]:
    with with_proc() as mount:
        yield mount


def write(path: Path, text: str, flags: int = os.O_WRONLY) -> None:
    with opened(path, flags) as fd:
        os.write(fd, text.encode())


def shows_addresses(kallsyms: bytes) -> bool:
    return any(not line.startswith(b"0000000") for line in kallsyms.splitlines())


@pytest.mark.parametrize("caller", [ROOT, INSIDE], ids=["root", "container root"])
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
def test_under_a_map_nothing_is_written(shifted: Mount, caller: Caller, flags: int) -> None:
    before = (PROC / DOMAIN).read_bytes()
    with subprocess.Popen(["sleep", "60"]) as child:
        adjusted = f"{child.pid}/oom_score_adj"
        try:
            refuses(errno.EROFS, caller, write, shifted.path / "proc" / DOMAIN, "changed", flags)
            refuses(errno.EROFS, caller, write, shifted.path / "proc" / adjusted, "7", flags)
            assert (PROC / adjusted).read_text() == "0\n"
            assert (PROC / DOMAIN).read_bytes() == before
        finally:
            child.send_signal(signal.SIGKILL)
            (PROC / DOMAIN).write_bytes(before)


@pytest.mark.parametrize("caller", [ROOT, INSIDE], ids=["root", "container root"])
def test_under_a_map_nobody_is_told_more_than_anybody(shifted: Mount, caller: Caller) -> None:
    native = NOBODY((PROC / "kallsyms").read_bytes)
    assert shows_addresses((PROC / "kallsyms").read_bytes()), "root sees them"
    assert caller((shifted.path / "proc/kallsyms").read_bytes) == native
    assert not shows_addresses(native)
    # What only its owner may read, and what procfs shows to its euid 0: neither is container root's.
    for name in ("1/environ", "1/maps", "1/io", "sys/kernel/usermodehelper/bset"):
        refuses(errno.EACCES, caller, (shifted.path / "proc" / name).read_bytes)


@pytest.mark.parametrize("name", ["version", "cpuinfo", "filesystems", "sys/kernel/ostype", "sys/fs/file-max"])
def test_under_a_map_what_all_may_read_is_read_in_full(shifted: Mount, name: str) -> None:
    real = (PROC / name).read_bytes()
    for caller in (ROOT, INSIDE, Caller(100007, 100007)):
        seen = caller((shifted.path / "proc" / name).read_bytes)
        assert len(seen.splitlines()) == len(real.splitlines())
        assert seen.splitlines()[:3] == real.splitlines()[:3]


def test_ordinary_files_beside_it_are_written_under_a_map(shifted: Mount) -> None:
    (shifted.source / "file").touch()
    INSIDE((shifted.path / "file").write_text, "content")
    assert (shifted.source / "file").read_text() == "content"


def test_without_a_map_a_user_is_told_what_he_may_know(plain: Mount) -> None:
    for name in ("kallsyms", "version"):
        assert NOBODY((plain.path / "proc" / name).read_bytes) == NOBODY((PROC / name).read_bytes)
    refuses(errno.EACCES, NOBODY, (PROC / "1/maps").read_bytes)
    refuses(errno.EACCES, NOBODY, (plain.path / "proc/1/maps").read_bytes)


def test_nobody_is_told_more_while_reading(plain: Mount, shifted: Mount) -> None:
    """These fields are anybody's to read, and say as much as the reader may know of the process (proc(5))."""

    me = str(os.getpid())

    def addresses(path: Path) -> list[str]:
        return (path / me / "stat").read_text().rpartition(")")[2].split()[23:26]  # startcode, endcode, startstack

    native = NOBODY(addresses, PROC)
    assert addresses(PROC) != native
    assert addresses(plain.path / "proc") == addresses(PROC)
    assert NOBODY(addresses, plain.path / "proc") == native
    assert INSIDE(addresses, shifted.path / "proc") == native


def test_without_a_map_a_user_has_what_is_his(plain: Mount) -> None:
    """A program of its own: what has changed its ids belongs to root (proc(5), /proc/PID)."""
    script = """
        own=$0/proc/$$
        echo 500 >$own/oom_score_adj; cat /proc/$$/oom_score_adj
        for name in maps environ io; do cat $own/$name >/dev/null && echo $name; done
    """
    said = as_user(65534, ["sh", "-ec", script, plain.path])
    assert said.stdout.split() == ["500", "maps", "environ", "io"]


def test_without_a_map_root_reads_and_writes_as_ever(plain: Mount) -> None:
    assert (plain.path / "proc/kallsyms").read_bytes() == (PROC / "kallsyms").read_bytes()
    before = (PROC / DOMAIN).read_text()
    try:
        (plain.path / "proc" / DOMAIN).write_text("shiftfs.test")
        assert (PROC / DOMAIN).read_text() == "shiftfs.test\n"
    finally:
        (PROC / DOMAIN).write_text(before)
    assert (plain.path / "proc" / DOMAIN).read_text() == before


def test_a_delegated_group_takes_no_processes_from_outside() -> None:
    """Who may write cgroup.procs may not thereby move processes out of a group that is not his (cgroups(7))."""
    with new_cgroup() as own:
        for path in (own, own / "cgroup.procs"):
            os.chown(path, NOBODY.uid, NOBODY.gid)
        with (
            mounted(own) as mount,
            subprocess.Popen(["sleep", "60"], user=NOBODY.uid, group=NOBODY.gid, extra_groups=[]) as child,
        ):
            try:
                for path in (own, mount.path):
                    refuses(errno.EACCES, NOBODY, write, path / "cgroup.procs", str(child.pid))
                assert (own / "cgroup.procs").read_text() == ""
                write(mount.path / "cgroup.procs", str(child.pid))
                assert (own / "cgroup.procs").read_text() == f"{child.pid}\n"
            finally:
                child.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("options", [(), MAPS])
def test_nothing_of_them_is_shared_where_nobody_opens(options: tuple[str, ...]) -> None:
    """With open=refuse there is no handle, and the process's own rights are nobody's to use."""
    domain = (PROC / DOMAIN).read_text()
    caller = INSIDE if options else ROOT
    with with_proc("open=refuse", *options) as mount:
        refuses(errno.EACCES, lambda: caller(write, mount.path / "proc" / DOMAIN, "changed"))
    assert (PROC / DOMAIN).read_text() == domain
