"""Files whose size is 0 although they have content: procfs, sysfs, cgroup2, by themselves and inside another tree."""

import errno
import mmap
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Mount, mounted, newest_mount, run, unmount
from harness.calls import birth_time, drop_dentries, in_child, opened, refuses, unshare_mounts
from harness.mounts import new_cgroup

PROC = ["version", "cpuinfo", "filesystems", "sys/kernel/ostype", "sys/fs/file-max", "1/status", "kallsyms"]


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    run(["mount", "--bind", source, target])
    entry = newest_mount(target)
    try:
        yield
    finally:
        unmount(entry)


@contextmanager
def tree_with_proc(path: Path) -> Iterator[None]:
    """An ordinary tree with procfs inside."""
    (path / "proc").mkdir()
    (path / "file").write_text("content")
    with bound(Path("/proc"), path / "proc"):
        yield


@pytest.fixture(scope="module")
def proc() -> Iterator[Mount]:
    with mounted(Path("/proc")) as mount:
        yield mount


def test_open_is_served_where_sizes_lie(proc: Mount, tmp_path: Path) -> None:
    assert proc.status()["options"]["open"] == "serve"
    with mounted(tmp_path) as plain:
        assert plain.status()["options"]["open"] == "refuse"


@pytest.mark.parametrize("name", PROC)
def test_a_file_of_procfs_is_read_in_full(proc: Mount, name: str) -> None:
    assert (proc.path / name).stat().st_size == 0
    real = (Path("/proc") / name).read_bytes()
    seen = (proc.path / name).read_bytes()
    if name in ("1/status", "cpuinfo"):  # these change by themselves
        assert seen.splitlines()[:3] == real.splitlines()[:3]
        assert len(seen.splitlines()) == len(real.splitlines())
    else:
        assert seen == real


def test_a_long_file_is_read_in_any_pieces(proc: Mount) -> None:
    real = Path("/proc/kallsyms").read_bytes()
    with opened(proc.path / "kallsyms") as fd, opened(Path("/proc/kallsyms")) as native:
        for size in (100, 4096, 200_000):
            assert os.pread(fd, size, 0) == os.pread(native, size, 0) != b""
            os.lseek(fd, 0, os.SEEK_SET)
            pieces: list[bytes] = []
            while sum(map(len, pieces)) < 300_000 and (piece := os.read(fd, size)):
                pieces.append(piece)
            content = b"".join(pieces)
            assert content == real[: len(content)]


def test_each_open_reads_the_present(proc: Mount) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        path = proc.path / str(child.pid) / "oom_score_adj"
        real = Path("/proc") / str(child.pid) / "oom_score_adj"
        for value in ("10", "200"):
            real.write_text(value)
            assert path.read_text() == f"{value}\n"
        path.write_text("300")
        assert real.read_text() == "300\n"
        with opened(path) as fd:
            assert os.pread(fd, 100, 0) == b"300\n"
            real.write_text("301")
            assert os.pread(fd, 100, 0) == b"301\n"
        assert child.stdin is not None
        child.stdin.close()
        child.wait(10)
    with pytest.raises(FileNotFoundError):
        (Path("/proc") / str(child.pid) / "comm").read_text()
    drop_dentries()
    assert not path.exists()


def test_an_invalid_value_is_refused_as_by_the_kernel(proc: Mount) -> None:
    with opened(proc.path / "self" / "oom_score_adj") as fd:
        assert os.read(fd, 10)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        with pytest.raises(OSError, match="Invalid argument"):
            (proc.path / str(child.pid) / "oom_score_adj").write_text("not a number")
        assert child.stdin is not None
        child.stdin.close()


@pytest.mark.parametrize("via", ["mount", "procfs itself"])
def test_a_change_of_the_mounts_wakes_who_polls(proc: Mount, tmp_path: Path, via: str) -> None:
    """In a mount namespace of its own, where nobody else mounts meanwhile."""
    root = proc.path if via == "mount" else Path("/proc")

    def poll_while_mounts_come_and_go() -> list[int]:
        unshare_mounts()
        with opened(root / str(os.getpid()) / "mounts") as fd:
            poller = select.poll()
            poller.register(fd, select.POLLPRI)
            seen = [len(poller.poll(0))]
            for command in (["mount", "--bind"], ["umount"]):
                run([*command, *[tmp_path] * len(command)])
                seen += [sum(event for _, event in poller.poll(10_000)), len(poller.poll(50))]
            return seen

    woken = select.POLLPRI | select.POLLERR
    assert in_child(poll_while_mounts_come_and_go) == [0, woken, 0, woken, 0]


def test_who_already_polls_is_woken(proc: Mount, tmp_path: Path) -> None:
    with opened(proc.path / str(os.getpid()) / "mounts") as fd:
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        with subprocess.Popen(["sh", "-c", 'sleep 0.2; mount --bind "$0" "$0"; umount "$0"', tmp_path]):
            assert poller.poll(10_000)


def test_what_has_no_poll_is_always_ready(proc: Mount) -> None:
    with opened(proc.path / "version") as fd:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        assert poller.poll(0) == [(fd, select.POLLIN)]


def test_listings_of_procfs(proc: Mount) -> None:
    seen = {name for name in os.listdir(proc.path) if not name.isdigit()}
    assert seen == {name for name in os.listdir("/proc") if not name.isdigit()}
    assert str(os.getpid()) in os.listdir(proc.path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert str(child.pid) in os.listdir(proc.path)
        assert child.stdin is not None
        child.stdin.close()


def test_sysfs_is_read_in_full() -> None:
    with mounted(Path("/sys/kernel")) as mount:
        assert mount.status()["options"]["open"] == "serve"
        for name in ("uevent_seqnum", "fscaps", "mm/transparent_hugepage/enabled"):
            real = Path("/sys/kernel") / name
            if real.exists():
                assert (mount.path / name).read_bytes() == real.read_bytes()


@pytest.fixture(scope="module")
def cgroups() -> Iterator[tuple[Mount, Path]]:
    """A control group of one's own, and its mount."""
    with new_cgroup() as group, mounted(group) as mount:
        yield mount, group


def test_cgroup_files_are_read_in_full(cgroups: tuple[Mount, Path]) -> None:
    mount, real = cgroups
    assert mount.status()["options"]["open"] == "serve"
    for name in ("cgroup.events", "cgroup.stat", "cgroup.type", "cgroup.max.depth"):
        assert (mount.path / name).read_text() == (real / name).read_text() != ""


def test_groups_come_and_go(cgroups: tuple[Mount, Path]) -> None:
    mount, real = cgroups
    (mount.path / "group").mkdir()
    assert (real / "group/cgroup.procs").exists()
    assert sorted(os.listdir(mount.path / "group")) == sorted(os.listdir(real / "group"))
    (mount.path / "group/cgroup.max.depth").write_text("3")
    assert (real / "group/cgroup.max.depth").read_text() == "3\n"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        (mount.path / "group/cgroup.procs").write_text(str(child.pid))
        assert (mount.path / "group/cgroup.procs").read_text() == f"{child.pid}\n"
        assert "populated 1" in (mount.path / "group/cgroup.events").read_text()
        with pytest.raises(OSError, match="busy"):
            (mount.path / "group").rmdir()
        assert child.stdin is not None
        child.stdin.close()
        child.wait(10)
    (mount.path / "group").rmdir()
    assert not (real / "group").exists()
    (real / "other").mkdir()
    assert (mount.path / "other").is_dir()
    (real / "other").rmdir()


def test_cgroup_events_wake_who_polls(cgroups: tuple[Mount, Path]) -> None:
    mount, real = cgroups
    (real / "polled").mkdir()
    with opened(mount.path / "polled/cgroup.events") as fd:
        assert b"populated 0" in os.read(fd, 1000)
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        assert poller.poll(0) == []
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
            (real / "polled/cgroup.procs").write_text(str(child.pid))
            assert poller.poll(10_000)
            assert b"populated 1" in os.pread(fd, 1000, 0)
            assert child.stdin is not None
            child.stdin.close()
            child.wait(10)
        assert poller.poll(10_000)
    (real / "polled").rmdir()


@pytest.fixture
def traces(tmp_path: Path) -> Iterator[Path]:
    """A trace buffer of one's own."""
    run(["mount", "-t", "tracefs", "none", tmp_path])
    entry = newest_mount(tmp_path)
    try:
        own = tmp_path / "instances" / f"shiftfs-test-{os.getpid()}"
        own.mkdir()
        try:
            yield own
        finally:
            own.rmdir()
    finally:
        unmount(entry)


def test_a_stream_gives_what_there_is(traces: Path) -> None:
    """And neither waits to fill the buffer, nor where the caller does not want to wait."""
    with mounted(traces) as mount, opened(mount.path / "trace_pipe", os.O_NONBLOCK) as fd:
        for text in ("first", "second"):
            (traces / "trace_marker").write_text(text)
            assert text.encode() in os.read(fd, 10_000)
            refuses(errno.EAGAIN, os.read, fd, 10_000)


@pytest.mark.parametrize(("kind", "name"), [("binfmt_misc", "status"), ("fusectl", "{device}/waiting")])
def test_other_filesystems_without_sizes(tmp_path: Path, kind: str, name: str) -> None:
    for place in ("real", "empty"):
        (tmp_path / place).mkdir()
    run(["mount", "-t", kind, "none", tmp_path / "real"])
    entry = newest_mount(tmp_path / "real")
    try:
        with mounted(tmp_path / "empty") as any_fuse, mounted(tmp_path) as mount:
            assert mount.status()["options"]["open"] == "serve"
            path = Path("real") / name.format(device=any_fuse.entry.device)
            assert (mount.path / path).stat().st_size == 0
            assert (mount.path / path).read_bytes() == (tmp_path / path).read_bytes() != b""
    finally:
        unmount(entry)


@pytest.mark.parametrize("inside", [False, True], ids=["as the source", "inside the source"])
def test_through_another_fuse_filesystem(tmp_path: Path, inside: bool) -> None:
    """Its own sizes are 0 as well, and what lies behind cannot be seen."""
    source, beside = tmp_path / "source", tmp_path / "beside"
    for path in (source, beside / "inner"):
        path.mkdir(parents=True)
    maps = ("uidmapping=0:100000:65536", "gidmapping=0:100000:65536")
    with (
        tree_with_proc(source),
        mounted(source, beside / "inner") as inner,
        mounted(beside if inside else inner.path) as outer,
        mounted(inner.path, None, *maps) as shifted,
    ):
        assert outer.status()["options"]["open"] == "serve"
        root = outer.path / "inner" if inside else outer.path
        for name in ("version", "kallsyms", "sys/kernel/ostype"):
            assert (root / "proc" / name).stat().st_size == 0
            assert (root / "proc" / name).read_bytes() == (Path("/proc") / name).read_bytes()
        os.listdir(root / "proc")
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
            assert str(child.pid) in os.listdir(root / "proc")
            assert child.stdin is not None
            child.stdin.close()
        # Nobody is told more for there being two.
        native = in_child(Path("/proc/kallsyms").read_bytes, uid=65534)
        assert in_child((root / "proc/kallsyms").read_bytes, uid=65534) == native
        assert in_child((shifted.path / "proc/kallsyms").read_bytes, uid=100000) == native


def test_empty_files_of_another_fuse_filesystem(tmp_path: Path) -> None:
    """They are read past the cache until they have a size, and mapped and written as ever."""
    with mounted(tmp_path) as inner, mounted(inner.path) as outer:
        path = outer.path / "file"
        (tmp_path / "file").touch()
        with opened(path) as early, opened(path, os.O_RDWR) as fd:
            assert os.read(early, 100) == b""
            os.ftruncate(fd, 10)
            with mmap.mmap(fd, 10) as shared:
                shared[:5] = b"hello"
                shared.flush()
            assert os.pread(early, 100, 0) == b"hello" + bytes(5)
        assert (tmp_path / "file").read_bytes() == path.read_bytes() == b"hello" + bytes(5)
        for mode in (0o000, 0o020):
            (tmp_path / "hidden").touch()
            (tmp_path / "hidden").chmod(mode)
            assert (outer.path / "hidden").read_bytes() == b""


def test_a_pseudo_filesystem_inside_an_ordinary_tree(tmp_path: Path) -> None:
    """What a container's root looks like: open=auto sees it, and ordinary files beside it are cached as ever."""
    with tree_with_proc(tmp_path), mounted(tmp_path) as mount:
        assert mount.status()["options"]["open"] == "serve"
        assert (mount.path / "proc/version").read_bytes() == Path("/proc/version").read_bytes()
        assert (mount.path / "file").read_text() == "content"
        assert os.stat(mount.path / "proc").st_ino != os.stat(mount.path / "file").st_ino
        assert os.stat(mount.path / "proc").st_dev == os.stat(mount.path / "file").st_dev
        assert birth_time(mount.path / "proc/version") == birth_time(Path("/proc/version"))
