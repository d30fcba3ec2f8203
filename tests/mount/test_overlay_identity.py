"""Copy-up makes no other file of it: what was open, mapped, locked or watched before goes on with what is now."""

import errno
import fcntl
import mmap
import os
import signal
import struct
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Caller, Layers, Merged, errno_of, loop_filesystem, run, write_tree
from harness.calls import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_MODIFY,
    all_dirents,
    drop_dentries,
    in_child,
    opened,
    watching,
)
from harness.layered import Tree

F_OFD_SETLK = 37
PAGE = mmap.PAGESIZE
IN_MOVED = 0xC0

# --- descriptors and mappings ---


def append(path: Path, content: bytes = b" and more") -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, content)


def test_an_old_descriptor_shows_the_new_state(merged: Merged) -> None:
    path = merged.write({"file": b"content"})
    with opened(path / "file") as fd:
        assert os.pread(fd, 100, 0) == b"content"
        before = os.fstat(fd)
        append(path / "file")
        after = os.fstat(fd)
        assert (after.st_size, after.st_ino, after.st_dev) == (16, before.st_ino, before.st_dev)
        assert after.st_mtime_ns > before.st_mtime_ns
        assert os.pread(fd, 100, 0) == b"content and more"
        (path / "file").chmod(0o600)
        os.setxattr(path / "file", "user.name", b"value")
        assert (os.fstat(fd).st_mode & 0o777, os.getxattr(fd, "user.name")) == (0o600, b"value")


def test_two_descriptors_agree(merged: Merged) -> None:
    """One for reading from before copy-up, one for writing."""
    path = merged.write({"file": b"a" * 3 * PAGE})
    with opened(path / "file") as reading, opened(path / "file", os.O_RDWR) as writing:
        for position in (0, PAGE, 3 * PAGE):
            os.pwrite(writing, b"new", position)
            assert os.pread(reading, 3, position) == b"new"
            assert os.fstat(reading) == os.fstat(writing)
        os.ftruncate(writing, PAGE)
        assert os.fstat(reading).st_size == PAGE
        assert os.pread(reading, 10, PAGE - 2) == b"aa"


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def test_a_mapping_from_before_shows_what_is_written(ours: Merged, flags: int) -> None:
    """The kernel's overlay goes on showing the lower file."""
    path = ours.write({"file": b"a" * 3 * PAGE})
    with opened(path / "file") as fd, mmap.mmap(fd, 3 * PAGE, flags, mmap.PROT_READ) as view:
        assert view[:1] == view[2 * PAGE : 2 * PAGE + 1] == b"a"
        with opened(path / "file", os.O_RDWR) as writing:
            os.pwrite(writing, b"new", 0)
            assert view[:4] == b"newa"
            os.pwrite(writing, b"new", PAGE)
            assert view[PAGE : PAGE + 4] == b"newa"
        drop_dentries()
        append(path / "file", b"b")
        assert (path / "file").read_bytes()[-2:] == b"ab"


def test_a_shared_mapping_writes_what_an_old_descriptor_reads(merged: Merged) -> None:
    path = merged.write({"file": b"a" * PAGE})
    with opened(path / "file") as reading, opened(path / "file", os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        view[10:13] = b"new"
        view.flush()
        assert os.pread(reading, 4, 10) == b"newa"
        assert (path / "file").read_bytes()[10:14] == b"newa"


def test_what_runs_from_it_goes_on(merged: Merged) -> None:
    """A program is a private mapping; while it runs nobody may write to it, and its attributes are copied up."""
    path = merged.write({"dir": {}})
    run(["cp", "/bin/busybox", merged.lower / "dir/busybox"])
    with subprocess.Popen([path / "dir/busybox", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        try:
            (path / "dir/busybox").chmod(0o700)
            assert errno_of(lambda: append(path / "dir/busybox")) == errno.ETXTBSY
            drop_dentries()
            process.stdin.write(b"still here\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"still here\n"
        finally:
            process.kill()


def test_tail_follows(merged: Merged) -> None:
    path = merged.write({"log": b"one\n"})
    with subprocess.Popen(["tail", "-n", "+1", "-f", path / "log"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == b"one\n"
            for line in (b"two\n", b"three\n"):
                append(path / "log", line)
                signal.alarm(20)  # a tail that sees nothing would wait for ever
                assert process.stdout.readline() == line
                signal.alarm(0)
        finally:
            process.kill()


def test_an_open_directory_goes_on(merged: Merged) -> None:
    path = merged.write({"dir": {"sub": {"one": b"1"}}})
    with opened(path / "dir/sub") as fd:
        before = os.fstat(fd)
        (path / "dir/sub/two").write_bytes(b"2")
        (path / "dir/sub/one").write_bytes(b"one")
        (path / "dir").rename(path / "moved")
        assert sorted(os.listdir(fd)) == ["one", "two"]
        assert os.fstat(fd).st_ino == before.st_ino
        with opened(Path("three"), os.O_CREAT | os.O_WRONLY, dir_fd=fd):
            pass
        assert sorted(os.listdir(path / "moved/sub")) == ["one", "three", "two"]
        with opened(Path("one"), dir_fd=fd) as one:
            assert os.read(one, 10) == b"one"


# --- watches and locks ---


def test_a_watch_goes_on(merged: Merged) -> None:
    path = merged.write({"dir": {"file": b"content"}})
    mask = IN_MODIFY | IN_ATTRIB | IN_CREATE | IN_DELETE | IN_MOVED
    with watching(path / "dir/file", mask | IN_CLOSE_WRITE) as watch, watching(path / "dir", mask) as above:
        drop_dentries()
        append(path / "dir/file")
        assert set(watch.events()) == {IN_MODIFY, IN_CLOSE_WRITE}
        drop_dentries()
        (path / "dir/file").chmod(0o600)
        assert watch.events() == [IN_ATTRIB]
        # Copy-up itself is no event: nothing that a watcher sees has changed.
        assert above.events() == [IN_MODIFY, IN_ATTRIB]
        (path / "dir/new").touch()
        assert above.events()[0] == IN_CREATE


def posix_lock(fd: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def ofd_lock(fd: int) -> None:
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("=hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def flock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("lock", [posix_lock, ofd_lock, flock])
def test_locks_are_held_over_copy_up(merged: Merged, lock: Callable[[int], None]) -> None:
    path = merged.write({"file": b"content"})

    def lock_in_vain() -> int:
        with opened(path / "file", os.O_RDWR) as fd:
            return errno_of(lambda: lock(fd))

    with opened(path / "file", os.O_RDWR) as fd:
        lock(fd)
        assert in_child(lock_in_vain) == errno.EAGAIN
        if lock is not posix_lock:  # which a process loses when it closes any descriptor of the file
            append(path / "file")
        os.pwrite(fd, b"C", 0)
        in_child(lambda: append(path / "file"))
        in_child(lambda: (path / "file").chmod(0o666))
        drop_dentries()
        assert in_child(lock_in_vain) == errno.EAGAIN
    assert in_child(lock_in_vain) == 0


# --- numbers ---


def numbers(path: Path) -> dict[str, int]:
    """Of all that is there, as stat and the listings of directories tell alike."""
    found = {}
    device = path.stat().st_dev
    for place, directories, files in os.walk(path):
        with opened(Path(place)) as fd:
            listed = {os.fsdecode(entry.name): entry.number for entry in all_dirents(fd)}
        assert listed["."] == os.lstat(place).st_ino
        for name in (*directories, *files):
            status = os.lstat(Path(place, name))
            assert (status.st_dev, status.st_ino) == (device, listed[name]), f"{place}/{name}"
            found[str(Path(place, name).relative_to(path))] = status.st_ino
    assert len(set(found.values())) == len(found)
    return found


TREE: Tree = {
    "merged": {"both": b"", "file": b"", "sub": {"file": b""}},
    "pure": {"file": b"", "deep": {"file": b""}},
    "link": Path("nowhere"),
    "fifo": os.mkfifo,
    "file": b"content",
}


def change_all(path: Path) -> None:
    """Copies up whatever there is."""
    for name in sorted(numbers(path)):
        os.setxattr(path / name, "trusted.mark", b"", follow_symlinks=False)


def test_numbers_stay_over_copy_up_and_remount(layers: Layers) -> None:
    write_tree(layers.lower, TREE)
    layers.add_lower({"merged": {"both": b"", "below": b"", "sub": {"below": b""}}})
    with layers.mount() as mount:
        first = numbers(mount.path)
        change_all(mount.path)
        assert numbers(mount.path) == first
        drop_dentries()
        assert numbers(mount.path) == first
        (mount.path / "merged/new").touch()
        first = numbers(mount.path)
    with layers.mount() as mount:
        assert numbers(mount.path) == first
        (mount.path / "pure").rename(mount.path / "moved")
        (mount.path / "file").rename(mount.path / "merged/sub/there")
        moved = numbers(mount.path)
        for old, new in {"pure": "moved", "pure/deep/file": "moved/deep/file", "file": "merged/sub/there"}.items():
            assert moved[new] == first[old]
    with layers.mount() as mount:
        assert numbers(mount.path) == moved


def test_numbers_are_unique_over_layers_on_several_devices(layers: Layers) -> None:
    """Filesystems made alike number their files alike."""
    with ExitStack() as stack:
        layers.lowers = [stack.enter_context(loop_filesystem("ext4", 16)) for _ in range(3)]
        for layer, lower in enumerate(layers.lowers):
            (lower / "lost+found").rmdir()
            write_tree(lower, {f"file{layer}": b"", f"dir{layer}": {"in": b""}, "merged": {f"in{layer}": b""}})
        assert len({(lower / f"file{layer}").stat().st_ino for layer, lower in enumerate(layers.lowers)}) == 1
        with layers.mount() as mount:
            first = numbers(mount.path)
            assert len(first) == 13
            change_all(mount.path)
            assert numbers(mount.path) == first
        with layers.mount() as mount:
            assert numbers(mount.path) == first


def test_a_directorys_parent_has_the_number_that_it_shows(ours: Merged) -> None:
    """The kernel's overlay tells that of a layer in some listings."""
    path = ours.write({"dir": {"sub": {}}, "pure": {}}, {"dir": {"sub": {"in": b""}}}, upper={"dir": {}})
    for name in ("dir", "dir/sub", "pure"):
        with opened(path / name) as fd:
            parent = {entry.name: entry.number for entry in all_dirents(fd)}[b".."]
        assert parent == (path / name).parent.stat().st_ino


# --- hard links ---


def make_links(path: Path) -> None:
    """Three names of one file, two of another."""
    path.mkdir()
    write_tree(path, {"a": b"one", "sub": {}, "x": b"two"})
    os.link(path / "a", path / "b")
    os.link(path / "a", path / "sub/c")
    os.link(path / "x", path / "sub/y")


def same(path: Path, *names: str, links: int, content: bytes) -> None:
    """Names of one file, that has so many in all."""
    status = {(path / name).stat() for name in names}
    assert len({(one.st_ino, one.st_dev) for one in status}) == 1
    assert {one.st_nlink for one in status} == {links}
    assert {(path / name).read_bytes() for name in names} == {content}


def unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def replace_link(path: Path, other: Path) -> None:
    os.link(path, other)
    path.unlink()
    append(other, b"!")


LINK_CHANGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], int, bytes]] = {
    "append": (lambda path: append(path / "b", b"!"), ("a", "b", "sub/c"), 3, b"one!"),
    "truncate": (lambda path: os.truncate(path / "sub/c", 2), ("a", "b", "sub/c"), 3, b"on"),
    "chmod": (lambda path: (path / "a").chmod(0o600), ("a", "b", "sub/c"), 3, b"one"),
    "unlink": (lambda path: (path / "a").unlink(), ("b", "sub/c"), 2, b"one"),
    "unlink two": (lambda path: unlink(path / "b", path / "sub/c"), ("a",), 1, b"one"),
    "link": (lambda path: os.link(path / "b", path / "d"), ("a", "b", "sub/c", "d"), 4, b"one"),
    "rename": (lambda path: (path / "b").rename(path / "sub/d"), ("a", "sub/c", "sub/d"), 3, b"one"),
    "replaced": (lambda path: (path / "x").rename(path / "a"), ("b", "sub/c"), 2, b"one"),
    "link, unlink": (lambda path: replace_link(path / "a", path / "sub/d"), ("b", "sub/c", "sub/d"), 3, b"one!"),
}


@pytest.mark.parametrize(("change", "names", "links", "content"), LINK_CHANGES.values(), ids=LINK_CHANGES)
def test_hard_links_survive_copy_up_and_remount(
    layers: Layers, change: Callable[[Path], object], names: tuple[str, ...], links: int, content: bytes
) -> None:
    make_links(layers.lower / "dir")
    with layers.mount() as mount:
        path = mount.path / "dir"
        number = (path / "a").stat().st_ino
        same(path, "a", "b", "sub/c", links=3, content=b"one")
        change(path)
        same(path, *names, links=links, content=content)
        assert (path / names[0]).stat().st_ino == number
        drop_dentries()
        same(path, *names, links=links, content=content)
    with layers.mount() as mount:
        path = mount.path / "dir"
        same(path, *names, links=links, content=content)
        assert (path / names[0]).stat().st_ino == number
        append(path / names[-1], b" more")
        same(path, *names, links=links, content=content + b" more")
        with opened(path / names[0]) as fd:
            for left in reversed(range(len(names))):
                (path / names[left]).unlink()
                assert os.fstat(fd).st_nlink == left
    lower = layers.lower / "dir"
    same(lower, "a", "b", "sub/c", links=3, content=b"one")


def test_users_links_survive_as_well(merged: Merged) -> None:
    path = merged.path
    make_links(merged.lower / "dir")
    uid = 101000 if merged.kind == "shifted" else 1000
    for name in ("dir", "dir/sub", "dir/a"):
        os.chown(merged.lower / name, 1000, 1000)
    merged.settled()
    Caller(uid, uid)(append, path / "dir/a", b"!")
    Caller(uid, uid)(os.link, path / "dir/b", path / "dir/d")
    same(path / "dir", "a", "b", "d", "sub/c", links=4, content=b"one!")
    # Which of its names it is copied up by is that which the kernel was told last.
    up = [name for name in ("dir/a", "dir/b", "dir/sub/c") if (merged.upper / name).exists()]
    assert up and {(merged.upper / name).stat().st_uid for name in up} == {1000}


def test_descriptors_of_several_names_agree(merged: Merged) -> None:
    make_links(merged.lower / "dir")
    path = merged.path / "dir"
    with opened(path / "a") as one, opened(path / "b") as two:
        append(path / "sub/c", b"!")
        assert os.pread(one, 10, 0) == os.pread(two, 10, 0) == b"one!"
        (path / "a").unlink()
        assert os.fstat(one) == os.fstat(two)
        assert os.fstat(one).st_nlink == 2
