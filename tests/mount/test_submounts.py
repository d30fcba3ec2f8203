"""What is mounted in the source when it is mounted: shown as part of one filesystem, with the borders it really has."""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Mount, mounted, newest_mount, open_directory, run, unmount, wait_until
from harness.calls import RENAME_EXCHANGE, drop_dentries, opened, refuses, renameat2, watching
from harness.shifted import start_time


@pytest.fixture(scope="module", params=["open=refuse", "open=serve"])
def mount(request: pytest.FixtureRequest) -> Iterator[Mount]:
    """`tmpfs` is a filesystem of its own; `bound` and `twice` are one directory in two places."""
    source = open_directory("layer-")
    with ExitStack() as stack:
        stack.callback(run, ["rm", "-rf", source])
        for name in ("tmpfs", "bound", "twice", "dir"):
            (source / name).mkdir()
        for name, *args in (("tmpfs", "-t", "tmpfs", "none"), ("twice", "--bind", str(source / "bound"))):
            run(["mount", *args, source / name])
            stack.callback(unmount, newest_mount(source / name))
        yield stack.enter_context(mounted(source, None, request.param))


def test_one_device_and_no_number_twice(mount: Mount) -> None:
    for directory in (mount.source, mount.source / "tmpfs", mount.source / "bound"):
        for i in range(5):
            (directory / f"file{i}").touch()
    seen: dict[int, Path] = {}
    for above, names, files in os.walk(mount.path):
        for path in (Path(above, name) for name in names + files):
            if "twice" not in path.parts:
                assert path.stat().st_dev == mount.path.stat().st_dev
                assert seen.setdefault(path.stat().st_ino, path) == path
    assert len(seen) == 3 + 15


def test_work_inside(mount: Mount) -> None:
    inside = mount.path / "tmpfs/work"
    inside.mkdir()
    (inside / "file").write_text("content")
    os.link(inside / "file", inside / "link")
    (inside / "file").rename(inside / "moved")
    with opened(inside / "moved", os.O_RDWR) as fd:
        (inside / "link").unlink()
        (inside / "moved").unlink()
        drop_dentries()
        assert os.read(fd, 100) == b"content"
        os.fsync(fd)
    inside.rmdir()
    assert not (mount.source / "tmpfs/work").exists()


def test_the_border_is_where_it_is(mount: Mount) -> None:
    (mount.path / "here").touch()
    (mount.path / "tmpfs/there").touch()
    for call in (os.rename, os.link):
        refuses(errno.EXDEV, call, mount.path / "here", mount.path / "tmpfs/new")
        refuses(errno.EXDEV, call, mount.path / "tmpfs/there", mount.path / "new")
    refuses(errno.EXDEV, renameat2, mount.path / "here", mount.path / "tmpfs/there", RENAME_EXCHANGE)
    run(["mv", mount.path / "here", mount.path / "tmpfs/came"])
    assert (mount.source / "tmpfs/came").exists()
    refuses(errno.EBUSY, os.rmdir, mount.path / "tmpfs")
    refuses(errno.EBUSY, os.rename, mount.path / "tmpfs", mount.path / "other")
    assert os.statvfs(mount.path / "tmpfs").f_files == os.statvfs(mount.source / "tmpfs").f_files


def test_copies_cross_it(mount: Mount) -> None:
    (mount.path / "source").write_bytes(b"content" * 10_000)
    with opened(mount.path / "source") as fd, opened(mount.path / "tmpfs/copy", os.O_CREAT | os.O_WRONLY) as out:
        done = 0
        while done < 70_000:
            done += os.copy_file_range(fd, out, 70_000 - done)
    assert (mount.source / "tmpfs/copy").read_bytes() == b"content" * 10_000


def test_a_directory_in_two_places_is_two_and_its_files_are_one(mount: Mount) -> None:
    (mount.source / "bound/dir").mkdir(exist_ok=True)
    (mount.source / "bound/dir/file").write_text("content")
    for _ in range(3):
        for place in ("bound", "twice"):
            with opened(mount.path / place / "dir", os.O_PATH) as fd:
                assert os.readlink(f"/proc/self/fd/{fd}") == str(mount.path / place / "dir")
    with watching(mount.path / "bound/dir/file", 2) as watch:
        with opened(mount.path / "twice/dir/file", os.O_WRONLY) as fd:
            os.write(fd, b"CONTENT")
        assert watch.events() == [2]
    assert (mount.path / "bound/dir/file").read_text() == "CONTENT"


def test_a_dead_mount_is_listed(tmp_path: Path) -> None:
    """It cannot be looked at, and is there; amid others, since what comes last is asked for without attributes."""
    others = [f"alive{number}" for number in range(50)]
    for name in ("other", "source/dead", *(f"source/{name}" for name in others)):
        (tmp_path / name).mkdir(parents=True)
    with mounted(tmp_path / "other", tmp_path / "source/dead", "timeout=0") as inner:
        os.kill(inner.pid, signal.SIGKILL)
        wait_until(lambda: not start_time(inner.pid), "the end of the inner one")
        with mounted(tmp_path / "source") as outer:
            for _ in range(2):
                assert sorted(os.listdir(outer.path)) == sorted(["dead", *others])
            with pytest.raises(OSError) as caught:
                (outer.path / "dead").stat()
            assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def test_what_is_mounted_later_is_not_entered(mount: Mount) -> None:
    """The mount shows the source as it was, so it may itself lie in its source."""
    (mount.source / "dir/below").touch()
    run(["mount", "-t", "tmpfs", "none", mount.source / "dir"])
    entry = newest_mount(mount.source / "dir")
    try:
        assert os.listdir(mount.path / "dir") == ["below"]
    finally:
        unmount(entry)
