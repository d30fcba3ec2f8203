"""Names: lookup, creation, removal, links; on a plain directory and on mounts alike."""

import errno
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from harness.calls import (
    all_dirents,
    drop_dentries,
    opened,
    refuses,
)
from harness.places import Place

NAMES = [b"x" * 255, b"\xff\xfe\x80", "ü-名".encode(), b"new\nline", b" ", b"-rf", b"...", b"back\\slash", b".wh.x"]
DEEP = 40  # levels of names of 200 bytes: twice PATH_MAX


def named(place: Place, name: bytes) -> Path:
    return place.path / os.fsdecode(name)


# Lookup.


def test_an_absent_name(place: Place) -> None:
    refuses(errno.ENOENT, os.stat, place.path / "absent")
    refuses(errno.ENOENT, os.unlink, place.path / "absent")
    refuses(errno.ENOENT, os.mkdir, place.path / "absent/beneath")
    refuses(errno.ENOTDIR, os.stat, place.new("file") / "beneath")


def test_dot_and_dot_dot(place: Place) -> None:
    (place.path / "a/b").mkdir(parents=True)
    assert os.path.samefile(place.path / "a/b/..", place.path / "a")
    with opened(place.path / "a/b", os.O_PATH) as below:
        os.rename(place.path / "a/b", place.path / "b")
        assert os.path.samestat(os.stat("..", dir_fd=below), os.stat(place.path))


@pytest.mark.parametrize("name", NAMES)
def test_any_name_for_anything(place: Place, name: bytes) -> None:
    path = named(place, name)
    path.write_bytes(b"content")
    assert (place.layer / path.name).read_bytes() == b"content"
    assert os.listdir(os.fsencode(place.path)) == [name]
    path.rename(place.path / "plain")
    os.link(place.path / "plain", path)
    assert path.stat().st_nlink == 2
    path.unlink()
    path.mkdir()
    assert (place.layer / path.name).is_dir()
    path.rmdir()
    path.symlink_to(os.fsdecode(name))
    assert os.readlink(os.fsencode(path)) == name
    os.unlink(path)
    assert os.listdir(place.layer) == ["plain"]


@pytest.mark.parametrize("length", [256, 1024, 1025, 4000])
def test_names_that_are_too_long(place: Place, length: int) -> None:
    there = place.new("there")
    long = place.path / ("n" * length)
    for call in (os.stat, os.listdir, os.mkdir, os.rmdir, os.unlink, os.mkfifo, os.readlink):
        refuses(errno.ENAMETOOLONG, call, long)
    refuses(errno.ENAMETOOLONG, os.open, long, os.O_CREAT | os.O_WRONLY)
    refuses(errno.ENAMETOOLONG, os.symlink, "target", long)
    refuses(errno.ENAMETOOLONG, os.link, there, long)
    refuses(errno.ENAMETOOLONG, os.rename, there, long)
    refuses(errno.ENAMETOOLONG, os.rename, long, there)
    refuses(errno.ENAMETOOLONG, os.stat, long / "beneath")
    assert os.listdir(place.path) == ["there"]


def test_paths_beyond_path_max(place: Place) -> None:
    """Reached step by step, as find and rm -r do; also when the kernel has forgotten the way."""
    name = "d" * 200
    levels = [os.open(place.path, os.O_PATH)]
    try:
        for _ in range(DEEP):
            os.mkdir(name, dir_fd=levels[-1])
            levels.append(os.open(name, os.O_PATH, dir_fd=levels[-1]))
        bottom = levels[-1]
        for _ in range(2):
            with opened(Path("file"), os.O_CREAT | os.O_RDWR | os.O_APPEND, dir_fd=bottom) as fd:
                os.write(fd, b"down here")
            while len(levels) > 2:
                os.close(levels.pop(1))
            drop_dentries()
            assert os.stat("file", dir_fd=bottom).st_nlink == 1
        assert os.stat("file", dir_fd=bottom).st_size == 2 * len(b"down here")
        os.mkfifo("fifo", dir_fd=bottom)
        os.symlink("file", "link", dir_fd=bottom)
        os.rename("file", "renamed", src_dir_fd=bottom, dst_dir_fd=levels[0])
        with opened(Path("."), os.O_RDONLY, dir_fd=bottom) as fd:
            assert {d.name for d in all_dirents(fd)} == {b".", b"..", b"fifo", b"link"}
        assert (place.layer / "renamed").read_bytes() == b"down here" * 2
        refuses(errno.ENAMETOOLONG, os.stat, place.path / "/".join([name] * DEEP))
    finally:
        for fd in levels:
            os.close(fd)


def test_beyond_path_max_by_chdir(place: Place) -> None:
    """The shell's way: whoever goes down step by step can work there."""
    down = (
        "import os, sys\n"
        f"for _ in range({DEEP}): os.mkdir(sys.argv[1]); os.chdir(sys.argv[1])\n"
        "os.execvp('sh', ['sh', '-c', 'echo content >file; mv file moved; cat moved; rm moved; ls -A'])"
    )
    done = subprocess.run(
        ["python3", "-c", down, "c" * 200], cwd=place.path, capture_output=True, timeout=60, check=True
    )
    assert done.stdout == b"content\n"


# Symbolic links.


@pytest.mark.parametrize("target", [b"t", b"../x/./y", b"/absolute", b"\xff\xfe not UTF-8\n", b"t" * 4095])
def test_symlink(place: Place, target: bytes) -> None:
    link = os.fsencode(place.path / "link")
    os.symlink(target, link)
    assert os.readlink(link) == os.readlink(os.fsencode(place.layer / "link")) == target
    assert os.lstat(link).st_size == len(target)
    assert stat.S_ISLNK(os.lstat(link).st_mode)
    refuses(errno.EEXIST, os.symlink, target, link)
    os.unlink(link)
    refuses(errno.ENOENT, os.readlink, link)


def test_symlinks_are_followed_by_the_kernel(place: Place) -> None:
    place.new("file", b"content")
    (place.path / "link").symlink_to("file")
    assert (place.path / "link").read_bytes() == b"content"
    (place.path / "link").write_bytes(b"through it")
    assert (place.layer / "file").read_bytes() == b"through it"
    (place.path / "loop").symlink_to("loop")
    refuses(errno.ELOOP, os.stat, place.path / "loop")
    refuses(errno.ELOOP, os.open, place.path / "link", os.O_RDONLY | os.O_NOFOLLOW)
    refuses(errno.ENOENT, os.symlink, "", place.path / "empty")
    refuses(errno.EINVAL, os.readlink, place.path / "file")


# Creation and removal.


def test_mkdir_and_rmdir(place: Place) -> None:
    made = place.path / "dir"
    made.mkdir(0o751)
    assert stat.S_IMODE((place.layer / "dir").stat().st_mode) == 0o751
    refuses(errno.EEXIST, os.mkdir, made)
    (made / "file").touch()
    refuses(errno.ENOTEMPTY, os.rmdir, made)
    refuses(errno.ENOTDIR, os.rmdir, made / "file")
    refuses(errno.EISDIR, os.unlink, made)
    (made / "file").unlink()
    with opened(made, os.O_RDONLY | os.O_DIRECTORY) as fd:
        made.rmdir()
        assert not (place.layer / "dir").exists()
        assert os.fstat(fd).st_nlink == 0
        refuses(errno.ENOENT, os.mkdir, f"/proc/self/fd/{fd}/beneath")
        refuses(errno.ENOENT, all_dirents, fd)


def test_a_removed_name_can_be_taken_again(place: Place) -> None:
    path = place.path / "name"
    for round_number in range(3):
        path.write_text(f"file {round_number}")
        assert path.read_text() == f"file {round_number}"
        path.unlink()
        path.mkdir()
        assert path.is_dir()
        path.rmdir()
        path.symlink_to("nowhere")
        assert path.is_symlink()
        path.unlink()
    assert os.listdir(place.layer) == []


@pytest.mark.parametrize(
    ("kind", "rdev"),
    [
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFREG, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFCHR, os.makedev(4095, 1048575)),
        (stat.S_IFBLK, os.makedev(259, 70000)),
    ],
)
@pytest.mark.parametrize("umask", [0, 0o027])
def test_mknod(place: Place, kind: int, rdev: int, umask: int) -> None:
    path = place.path / "node"
    before = os.umask(umask)
    try:
        os.mknod(path, kind | 0o666, rdev)
    finally:
        os.umask(before)
    for found in (path.lstat(), (place.layer / "node").lstat()):
        assert found.st_mode == kind | (0o666 & ~umask)
        assert found.st_rdev == rdev
    refuses(errno.EEXIST, os.mknod, path, kind | 0o666, rdev)


def test_a_device_works(place: Place) -> None:
    os.mknod(place.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(place.path / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (place.path / "null").write_bytes(b"away")
    assert (place.path / "null").read_bytes() == b""
    with opened(place.path / "zero") as fd:
        assert os.read(fd, 100) == bytes(100)


def test_a_fifo_joins_two_openers(place: Place) -> None:
    os.mkfifo(place.path / "fifo")
    with (
        opened(place.path / "fifo", os.O_RDONLY | os.O_NONBLOCK) as reading,
        opened(place.path / "fifo", os.O_WRONLY) as writing,
    ):
        os.write(writing, b"through")
        assert os.read(reading, 100) == b"through"


def test_a_socket_is_found_by_its_name(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.settimeout(10)
        server.bind(str(place.path / "socket"))
        server.listen()
        client.connect(str(place.path / "socket"))
        with server.accept()[0] as peer:
            peer.sendall(b"hello")
            assert client.recv(100) == b"hello"
    assert stat.S_ISSOCK((place.layer / "socket").lstat().st_mode)


# Hard links.


def test_link(place: Place) -> None:
    one, two = place.new("one", b"content"), place.path / "two"
    os.link(one, two)
    assert os.path.samefile(one, two)
    assert one.stat().st_nlink == two.stat().st_nlink == (place.layer / "one").stat().st_nlink == 2
    two.write_bytes(b"by the other name")
    assert one.read_bytes() == b"by the other name"
    refuses(errno.EEXIST, os.link, one, two)
    one.unlink()
    assert two.stat().st_nlink == 1
    assert two.read_bytes() == b"by the other name"


def test_links_of_what_is_no_file(place: Place) -> None:
    (place.path / "dir1").mkdir()
    (place.path / "link1").symlink_to("target")
    os.mkfifo(place.path / "fifo")
    refuses(errno.EPERM, os.link, place.path / "dir1", place.path / "dir2")
    os.link(place.path / "link1", place.path / "link2", follow_symlinks=False)
    assert os.readlink(place.layer / "link2") == "target"
    os.link(place.path / "fifo", place.path / "fifo2")
    assert (place.layer / "fifo2").lstat().st_nlink == 2


def link_open_file(fd: int, path: Path) -> None:
    """linkat(2), as open(2) has it for O_TMPFILE. Python follows the link only if a directory is given."""
    with opened(path.parent, os.O_PATH) as directory:
        os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=directory, follow_symlinks=True)


def test_a_file_without_a_name_gets_one(place: Place) -> None:
    with opened(place.path, os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        os.write(fd, b"content")
        assert os.fstat(fd).st_nlink == 0
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
        assert os.listdir(place.layer) == []
        link_open_file(fd, place.path / "named")
        assert os.fstat(fd).st_nlink == 1
        assert os.path.samestat(os.fstat(fd), (place.path / "named").stat())
        os.write(fd, b", and more")
    drop_dentries()
    assert (place.path / "named").read_bytes() == (place.layer / "named").read_bytes() == b"content, and more"
    (place.path / "named").unlink()
    assert os.listdir(place.layer) == []


def test_a_file_without_a_name_may_be_refused_one(place: Place) -> None:
    with opened(place.path, os.O_TMPFILE | os.O_EXCL | os.O_WRONLY) as fd:
        refuses(errno.ENOENT, link_open_file, fd, place.path / "named")
    assert os.listdir(place.layer) == []
