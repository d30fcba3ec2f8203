"""Copy-up: all that a file is goes to the upper layer, at the first change and not before, and the lower stays."""

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Caller, Layers, Merged, layered, loop_filesystem, make_whiteout, read_tree, run
from harness.calls import KEEP_SIZE, fallocate, opened, refuses, utimensat
from harness.kinds import make_socket

MB = 1 << 20
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
OLD = ((1, 111), (1234567890, 123456789))


def make_old(path: Path, content: bytes = b"content") -> None:
    """A file that has something of everything."""
    path.write_bytes(content)
    os.chown(path, 33, 34)
    path.chmod(0o6751)
    os.setxattr(path, "user.name", b"value")
    os.setxattr(path, "trusted.name", b"\0binary\0")
    os.setxattr(path, "security.capability", CAPABILITY)
    utimensat(path, *OLD)


def attributes(path: Path) -> dict[str, Any]:
    """All but what a change of its xattrs or names touches."""
    status = path.lstat()
    fields = ("mode", "uid", "gid", "nlink", "size", "rdev", "atime_ns", "mtime_ns")
    names = [name for name in os.listxattr(path, follow_symlinks=False) if ".overlay." not in name]
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(names)}
    return {**{field: getattr(status, f"st_{field}") for field in fields}, "xattrs": xattrs}


def set_mark(path: Path) -> None:
    """Copies up, and changes nothing else."""
    os.setxattr(path, "trusted.mark", b"", follow_symlinks=False)


# --- when ---

CHANGES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda path: os.close(os.open(path, os.O_WRONLY)),
    "write": lambda path: path.open("r+b").write(b"x"),
    "append": lambda path: path.open("ab").write(b"x"),
    "open and truncate": lambda path: path.open("wb"),
    "truncate": lambda path: os.truncate(path, 3),
    "chmod": lambda path: path.chmod(0o600),
    "chown": lambda path: os.chown(path, 1, 1),
    "utime": lambda path: os.utime(path),
    "setxattr": lambda path: os.setxattr(path, "user.x", b""),
    "removexattr": lambda path: os.removexattr(path, "user.name"),
    "link": lambda path: os.link(path, path.with_name("link")),
    "rename": lambda path: path.rename(path.with_name("other")),
}
READS: dict[str, Callable[[Path], object]] = {
    "read": lambda path: path.read_bytes(),
    "stat": lambda path: path.stat(),
    "access": lambda path: os.access(path, os.W_OK),
    "xattrs": lambda path: os.getxattr(path, os.listxattr(path)[0]),
    "list": lambda path: list(path.parent.iterdir()),
    "lock": lambda path: fcntl.flock(path.open(), fcntl.LOCK_EX),
    "map": lambda path: map_for_reading(path),
}


def map_for_reading(path: Path) -> None:
    with opened(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
        assert view[:3] == b"con"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_leaves_the_lower_as_it_was(merged: Merged, change: Callable[[Path], object]) -> None:
    path = merged.write({"dir": {"file": make_old}})
    lower = merged.lower / "dir/file"
    before = attributes(lower), lower.stat().st_ctime_ns, (merged.lower / "dir").stat().st_mtime_ns
    change(path / "dir/file")
    assert (attributes(lower), lower.stat().st_ctime_ns, (merged.lower / "dir").stat().st_mtime_ns) == before
    assert lower.read_bytes() == b"content"
    if change is not CHANGES["open for writing"]:  # which may wait for the first write
        assert list((merged.upper / "dir").iterdir())


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_changes_nothing_copies_nothing(merged: Merged, read: Callable[[Path], object]) -> None:
    path = merged.write({"dir": {"file": make_old}})
    read(path / "dir/file")
    assert not merged.upper.exists()


FORBIDDEN: dict[str, tuple[int, Callable[[Path], object]]] = {
    "write": (errno.EACCES, lambda path: path.open("r+b")),
    "truncate": (errno.EACCES, lambda path: os.truncate(path, 0)),
    "chmod": (errno.EPERM, lambda path: path.chmod(0o777)),
    "chown": (errno.EPERM, lambda path: os.chown(path, 1000, 1000)),
    "utime": (errno.EPERM, lambda path: os.utime(path, (1, 1))),
    "setxattr": (errno.EACCES, lambda path: os.setxattr(path, "user.x", b"")),
    "unlink": (errno.EACCES, lambda path: path.unlink()),
    "rename": (errno.EACCES, lambda path: path.rename(path.with_name("other"))),
    "create": (errno.EACCES, lambda path: path.with_name("new").touch()),
}


@pytest.mark.parametrize(("number", "change"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_is_forbidden_copies_nothing(merged: Merged, number: int, change: Callable[[Path], object]) -> None:
    path = merged.write({"dir": {"file": make_old}})
    caller = Caller(5555, 5555)
    refuses(number, lambda: caller(lambda: change(path / "dir/file")))
    assert not merged.upper.exists()


# --- what ---


def test_a_copy_is_the_same_in_everything(merged: Merged) -> None:
    path = merged.write({"file": make_old})
    before = attributes(path / "file")
    set_mark(path / "file")
    after = attributes(path / "file")
    assert after["xattrs"].pop("trusted.mark") == b""
    assert after == before
    real = attributes(merged.upper / "file")
    assert real["xattrs"].pop("trusted.mark") == b""
    assert real == attributes(merged.lower / "file")
    assert (path / "file").read_bytes() == (merged.upper / "file").read_bytes() == b"content"


def test_acls_are_copied(merged: Merged) -> None:
    path = merged.write({"dir": {"file": b""}})
    run(["setfacl", "-m", "u:5:rwx,g:7:r-x,m:r-x", merged.lower / "dir/file"])
    run(["setfacl", "-m", "u:5:rwx,d:u:6:r-x,d:g:8:---", merged.lower / "dir"])
    acl = run(["getfacl", "-nR", "dir"], cwd=merged.lower).stdout
    set_mark(path / "dir/file")
    assert run(["getfacl", "-nR", "dir"], cwd=merged.upper).stdout == acl
    assert run(["getfacl", "-nR", "dir"], cwd=path).stdout == acl


KINDS: dict[str, Callable[[Path], object]] = {
    "symlink": lambda path: path.symlink_to("some/where"),
    "fifo": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o640, os.makedev(1, 3)),
    "block device": lambda path: os.mknod(path, stat.S_IFBLK | 0o640, os.makedev(7, 255)),
    "directory": os.mkdir,
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_kind_of_file_is_copied(merged: Merged, make: Callable[[Path], object]) -> None:
    path = merged.write({"x": make})
    lower = merged.lower / "x"
    os.setxattr(lower, "trusted.name", b"value", follow_symlinks=False)
    os.chown(lower, 33, 34, follow_symlinks=False)
    utimensat(lower, *OLD, follow=False)
    before = attributes(lower)
    set_mark(path / "x")
    # The upper's first: a mount is seen with its own link count of directories, and reading a symlink sets its atime.
    for after in (attributes(merged.upper / "x"), attributes(path / "x")):
        assert after["xattrs"].pop("trusted.mark") == b""
        assert {**after, "nlink": before["nlink"]} == before
    if make is KINDS["symlink"]:
        assert (path / "x").readlink() == (merged.upper / "x").readlink() == Path("some/where")


def directory_attributes(path: Path) -> dict[str, Any]:
    """Without those that say how it is stored."""
    return {name: value for name, value in attributes(path).items() if name not in ("nlink", "size")}


def test_directories_above_are_copied_and_keep_their_times(merged: Merged) -> None:
    path = merged.write({"one": {"two": {"three": {"file": b""}, "not": {}}}})
    names = ("one", "one/two", "one/two/three")
    for mode, name in enumerate(reversed(names)):
        os.chown(merged.lower / name, 33, 34 + mode)
        (merged.lower / name).chmod(0o3750 + mode)
        os.setxattr(merged.lower / name, "user.name", name.encode())
        utimensat(merged.lower / name, *OLD)
    merged.settled()
    before = {name: directory_attributes(path / name) for name in names}
    (path / "one/two/three/file").write_bytes(b"new")
    assert {name: directory_attributes(path / name) for name in names} == before
    assert {name: directory_attributes(merged.upper / name) for name in names} == before
    assert read_tree(merged.upper) == {"one": {"two": {"three": {"file": b"new"}}}}


# --- data ---


@pytest.mark.parametrize("size", [0, 1, 4096, 3 * MB + 17])
def test_the_rest_of_the_data_stays(merged: Merged, size: int) -> None:
    content = os.urandom(size)
    path = merged.write({"file": content})
    with opened(path / "file", os.O_RDWR) as fd:
        os.pwrite(fd, b"new", size // 2)
        expected = content[: size // 2] + b"new" + content[size // 2 + 3 :]
        assert os.pread(fd, size + 10, 0) == expected
    assert (path / "file").read_bytes() == (merged.upper / "file").read_bytes() == expected
    assert (merged.lower / "file").read_bytes() == content


def extents(path: Path) -> list[tuple[int, int]]:
    """Start and end of what holds data."""
    found: list[tuple[int, int]] = []
    with opened(path) as fd:
        end, size = 0, os.fstat(fd).st_size
        while end < size:
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                break
            end = os.lseek(fd, start, os.SEEK_HOLE)
            found.append((start, end))
    return found


def test_holes_stay_holes(merged: Merged) -> None:
    has_the_same_holes(merged, MB)


def test_small_holes_stay_holes(ours: Merged) -> None:
    has_the_same_holes(ours, 4096)


def has_the_same_holes(merged: Merged, size: int) -> None:
    path = merged.write({"file": b""})
    with opened(merged.lower / "file", os.O_WRONLY) as fd:
        for position in (MB, 5 * MB, 7 * MB):
            os.pwrite(fd, b"d" * size, position)
        os.ftruncate(fd, 40 * MB)
    set_mark(path / "file")
    before = extents(merged.lower / "file")
    assert before == [(position, position + size) for position in (MB, 5 * MB, 7 * MB)]
    assert extents(merged.upper / "file") == extents(path / "file") == before
    assert (merged.upper / "file").stat().st_size == 40 * MB


def test_a_shared_mapping_writes_to_the_copy(merged: Merged) -> None:
    path = merged.write({"file": b"a" * 5000})
    with opened(path / "file", os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        view[4090:4100] = b"b" * 10
    expected = b"a" * 4090 + b"b" * 10 + b"a" * 900
    assert (merged.upper / "file").read_bytes() == (path / "file").read_bytes() == expected
    assert (merged.lower / "file").read_bytes() == b"a" * 5000


@pytest.mark.parametrize("by_whom", ["its descriptor", "its other descriptor"])
def test_a_file_that_was_unlinked_can_be_written(merged: Merged, by_whom: str) -> None:
    path = merged.write({"dir": {"file": b"content"}})
    with opened(path / "dir/file", os.O_RDWR) as fd, opened(path / "dir/file", os.O_RDWR) as other:
        (path / "dir/file").unlink()
        os.pwrite(fd if by_whom == "its descriptor" else other, b"C", 0)
        os.ftruncate(fd, 20)
        os.fchmod(fd, 0o600)
        assert os.pread(fd, 100, 0) == os.pread(other, 100, 0) == b"Content".ljust(20, b"\0")
        status = os.fstat(other)
        assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_nlink) == (20, 0o600, 0)
    assert list((path / "dir").iterdir()) == []
    assert (merged.lower / "dir/file").read_bytes() == b"content"


def test_a_file_removed_while_open_for_reading_alone_is_still_read(merged: Merged) -> None:
    path = merged.write({"file": b"content"})
    with opened(path / "file") as fd:
        (path / "file").write_bytes(b"changed")
        (path / "file").unlink()
        assert os.pread(fd, 100, 0) == b"changed"
        assert os.fstat(fd).st_nlink == 0


# --- where there is little room ---


@contextmanager
def little_room(layers: Layers) -> Iterator[Path]:
    """An upper with less room than the file of the lower layer, 40 MB of data."""
    with opened(layers.lower / "file", os.O_CREAT | os.O_WRONLY) as fd:
        fallocate(fd, 0, 0, 40 * MB)
        for position in range(0, 40 * MB, MB):
            os.pwrite(fd, b"x" * MB, position)
    with loop_filesystem("ext4", 24) as path:
        layers.upper, layers.work = path / "upper", path / "work"
        layers.upper.mkdir()
        layers.work.mkdir()
        yield path


def free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bfree * status.f_bsize


def test_truncation_at_open_copies_no_data(layers: Layers) -> None:
    with little_room(layers) as path, layers.mount() as mount:
        (mount.path / "file").write_bytes(b"new")
        assert (mount.path / "file").read_bytes() == (path / "upper/file").read_bytes() == b"new"


def test_a_copy_that_does_not_fit_leaves_everything_as_it_was(layers: Layers) -> None:
    with little_room(layers) as path, layers.mount() as mount:
        before = attributes(mount.path / "file")
        room = free(path)
        refuses(errno.ENOSPC, set_mark, mount.path / "file")
        assert attributes(mount.path / "file") == before
        assert os.listdir(path / "upper") == os.listdir(path / "work/work") == []
        assert abs(free(path) - room) < MB
        (mount.path / "other").write_bytes(b"fits")


def test_with_metacopy_only_data_takes_room(layers: Layers) -> None:
    with little_room(layers) as path, layers.mount("metacopy=on") as mount:
        seen = mount.path / "file"
        seen.chmod(0o640)
        os.chown(seen, 33, 34)
        utimensat(seen, *OLD)
        set_mark(seen)
        assert "trusted.overlay.metacopy" in os.listxattr(path / "upper/file")
        status = seen.stat()
        assert (status.st_size, status.st_mode & 0o7777, status.st_uid) == (40 * MB, 0o640, 33)
        assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_111, 1_234_567_890_123_456_789)
        assert extents(path / "upper/file") == []
        assert seen.read_bytes()[-10:] == b"x" * 10
        refuses(errno.ENOSPC, os.truncate, seen, 39 * MB)
        assert seen.stat().st_size == 40 * MB


def test_with_metacopy_data_follows_at_the_first_write(layers: Layers) -> None:
    make_old(layers.lower / "file")
    with layers.mount("metacopy=on") as mount:
        before = attributes(mount.path / "file")
        os.utime(mount.path / "file", ns=(before["atime_ns"], before["mtime_ns"]))
        assert "trusted.overlay.metacopy" in os.listxattr(layers.upper / "file")
        assert attributes(mount.path / "file") == before
        with opened(mount.path / "file", os.O_RDWR) as fd:
            os.pwrite(fd, b"C", 0)
        assert "trusted.overlay.metacopy" not in os.listxattr(layers.upper / "file")
        after = attributes(mount.path / "file")
        assert (after["uid"], after["mode"] & 0o777, after["size"]) == (33, 0o751, 7)
    assert (layers.upper / "file").read_bytes() == b"Content"
    assert (layers.lower / "file").read_bytes() == b"content"


@pytest.mark.parametrize("kind", ["xfs", "btrfs", "tmpfs"])
def test_a_file_comes_from_another_filesystem(layers: Layers, kind: str) -> None:
    with other_filesystem(kind) as path:
        for name in ("file", "holes"):
            make_old(path / name, b"x" * MB)
        with opened(path / "holes", os.O_WRONLY) as fd:
            fallocate(fd, KEEP_SIZE | 2, 8192, 65536)
        utimensat(path / "holes", *OLD)
        os.setxattr(path / "holes", "security.capability", CAPABILITY)
        layers.lowers = [path]
        with layers.mount() as mount:
            for name in ("file", "holes"):
                before = attributes(mount.path / name)
                set_mark(mount.path / name)
                after = attributes(layers.upper / name)
                assert after["xattrs"].pop("trusted.mark") == b""
                assert after == before
                assert (layers.upper / name).read_bytes() == (path / name).read_bytes()


@contextmanager
def other_filesystem(kind: str) -> Iterator[Path]:
    if kind != "tmpfs":
        with loop_filesystem(kind, 320) as path:
            yield path
        return
    with loop_filesystem("ext4", 8) as path:
        run(["mount", "-t", "tmpfs", "tmpfs", path])
        try:
            yield path
        finally:
            run(["umount", path])


def test_whiteouts_are_not_copied_with_their_directory(merged: Merged) -> None:
    path = merged.write({"dir": {"gone": make_whiteout, "kept": b""}}, {"dir": {"gone": b""}})
    (path / "dir").chmod(0o700)
    assert list((merged.upper / "dir").iterdir()) == []
    assert os.listdir(path / "dir") == ["kept"]


def test_a_lower_filesystem_may_be_read_only(layers: Layers) -> None:
    with loop_filesystem("ext4", 16) as path:
        make_old(path / "file")
        run(["mount", "-o", "remount,ro", path])
        with layered([path], layers.upper, layers.work, kind=layers.kind) as mount:
            (mount.path / "file").write_bytes(b"new")
            assert (mount.path / "file").read_bytes() == b"new"
        assert (path / "file").read_bytes() == b"content"
