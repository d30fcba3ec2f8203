"""Which inode a name is: one for all names of a file, the same for as long as it lives, and never another's."""

import errno
import itertools
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Mount, loop_filesystem, mounted, wait_until
from harness.calls import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_IGNORED,
    IN_MODIFY,
    birth_time,
    drop_dentries,
    opened,
    watching,
)
from harness.places import Place

TIMEOUT = 0.1

_numbers = itertools.count()


def write(path: Path, content: bytes = b"x") -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, content)


# Names of one file.


@pytest.mark.parametrize("forgotten", [False, True], ids=["", "dentries dropped"])
@pytest.mark.parametrize("made", ["here", "in the layer"])
def test_a_watch_sees_what_is_done_by_another_name(place: Place, forgotten: bool, made: str) -> None:
    at = place.path if made == "here" else place.layer
    (at / "dir").mkdir()
    (at / "one").touch()
    os.link(at / "one", at / "dir/two")
    with watching(place.path / "one", IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB) as watch:
        if forgotten:
            drop_dentries()
        write(place.path / "dir/two")
        assert {IN_MODIFY, IN_CLOSE_WRITE} <= set(watch.events())
        (place.path / "dir/two").chmod(0o600)
        assert IN_ATTRIB in watch.events()


def test_a_watch_outlives_names_until_the_last_is_gone(place: Place) -> None:
    one, two = place.new("one"), place.path / "two"
    os.link(one, two)
    with watching(one, IN_MODIFY | IN_DELETE_SELF) as watch:
        one.unlink()
        drop_dentries()
        write(two)
        assert watch.events() == [IN_MODIFY]
        two.rename(place.path / "three")
        drop_dentries()
        write(place.path / "three")
        assert watch.events() == [IN_MODIFY]
        (place.path / "three").unlink()
        wait_until(lambda: watch.events(0.1)[-1:] == [IN_IGNORED], "the watch's end")


def test_a_watch_on_a_directory_survives_eviction(place: Place) -> None:
    (place.path / "dir").mkdir()
    with watching(place.path / "dir", IN_CREATE | IN_DELETE) as watch:
        for _ in range(3):
            drop_dentries()
            (place.path / "dir/new").touch()
            assert watch.events() == [IN_CREATE]
            drop_dentries()
            (place.path / "dir/new").unlink()
            assert watch.events() == [IN_DELETE]


def test_names_of_one_file_share_their_pages(place: Place) -> None:
    one, two = place.new("one", b"a" * mmap.PAGESIZE), place.path / "two"
    os.link(one, two)
    with opened(one, os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        drop_dentries()
        write(two, b"through the other name")
        assert view[:22] == b"through the other name"
        view[0:1] = b"T"
        assert two.read_bytes()[:1] == b"T"


def test_numbers_stay_when_all_is_forgotten(place: Place) -> None:
    (place.path / "dir").mkdir()
    paths = [place.new("file"), place.path / "dir", place.new("dir/in")]
    before = [(path.stat().st_ino, path.stat().st_dev, birth_time(path)) for path in paths]
    drop_dentries()
    assert [(path.stat().st_ino, path.stat().st_dev, birth_time(path)) for path in paths] == before


# Changes behind the mount.


@pytest.fixture(scope="module", params=["watch=auto", "watch=off"])
def watch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["open=refuse", "open=serve"])
def quick(request: pytest.FixtureRequest, watch: str, source: Path) -> Iterator[Mount]:
    """A mount that soon sees what has changed in the layer."""
    with mounted(source, None, watch, f"timeout={TIMEOUT}", request.param) as mount:
        yield mount


@pytest.fixture
def pair(quick: Mount, source: Path) -> tuple[Path, Path]:
    """A directory on the mount, and the same in the layer."""
    name = f"pair{next(_numbers)}"
    (source / name).mkdir()
    return quick.path / name, source / name


def shows(path: Path, content: bytes) -> None:
    def content_is() -> bool:
        try:
            return path.read_bytes() == content
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.ESTALE)
            return False

    wait_until(content_is, f"{path.name} reads {content!r}")


@pytest.mark.parametrize("was_read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["", "dentries dropped"])
def test_an_open_file_stays_itself_when_the_layer_renames(
    quick: Mount, pair: tuple[Path, Path], was_read: bool, forgotten: bool
) -> None:
    """And another takes its name. Where OPEN is refused and nobody watches, one never read is lost until it is seen
    under its new name."""
    path, layer = pair
    (layer / "file").write_bytes(b"the first")
    (layer / "elsewhere").mkdir()
    is_watched = quick.status()["options"]["watch"] != "off"
    if is_watched:
        assert (path / "elsewhere").is_dir()
        quick.settled()
    with opened(path / "file", os.O_RDWR) as fd:
        if was_read:
            assert os.pread(fd, 100, 0) == b"the first"
        number = os.fstat(fd).st_ino
        (layer / "file").rename(layer / "elsewhere/moved")
        (layer / "file").write_bytes(b"the second")
        if forgotten:
            drop_dentries()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        shows(path / "file", b"the second")
        if not was_read and not is_watched and quick.status()["options"]["open"] == "refuse":
            with pytest.raises(OSError) as caught:
                os.pread(fd, 100, 0)
            assert caught.value.errno == errno.ESTALE
            (path / "elsewhere/moved").stat()
        assert os.pread(fd, 100, 0) == b"the first"
        assert os.fstat(fd).st_ino == number
        os.pwrite(fd, b"THE", 0)
        os.fchmod(fd, 0o640)
        os.fsync(fd)
    assert (layer / "elsewhere/moved").read_bytes() == b"THE first"
    assert (layer / "elsewhere/moved").stat().st_mode & 0o777 == 0o640
    assert (layer / "file").read_bytes() == b"the second"
    shows(path / "elsewhere/moved", b"THE first")


@pytest.mark.parametrize("what", ["file", "directory"])
def test_an_open_file_stays_itself_when_it_is_moved_to_where_nobody_has_looked(
    quick: Mount, pair: tuple[Path, Path], what: str
) -> None:
    """Itself, or with a directory above it. Whoever hears of it hears what has been moved; else, where OPEN is refused,
    one never read is lost until it is seen again."""
    path, layer = pair
    (layer / "directory").mkdir()
    (layer / "elsewhere").mkdir()
    name = "directory/file" if what == "directory" else "file"
    (layer / name).write_bytes(b"content")
    is_watched = quick.status()["options"]["watch"] != "off"
    if is_watched:
        quick.settled()
    with opened(path / name, os.O_RDWR) as fd:
        (layer / what).rename(layer / "elsewhere/moved")
        if is_watched:
            quick.settled()
        wait_until(lambda: not (path / name).exists(), "the old name to be gone")
        drop_dentries()
        # A directory that was gone through is open.
        if what == "file" and not is_watched and quick.status()["options"]["open"] == "refuse":
            with pytest.raises(OSError) as caught:
                os.pread(fd, 100, 0)
            assert caught.value.errno == errno.ESTALE
            list(path.rglob("*"))
        assert os.pread(fd, 100, 0) == b"content"
        os.pwrite(fd, b"CON", 0)
        os.fsync(fd)
    moved = "elsewhere/moved/file" if what == "directory" else "elsewhere/moved"
    assert (layer / moved).read_bytes() == b"CONtent"
    shows(path / moved, b"CONtent")


@pytest.mark.parametrize("gone", ["one", "two"])
def test_a_last_name_removed_here_after_the_layer_removed_the_other(pair: tuple[Path, Path], gone: str) -> None:
    """Who has the file open goes on, whichever name was seen last."""
    path, layer = pair
    (layer / "one").write_bytes(b"content")
    os.link(layer / "one", layer / "two")
    assert os.path.samefile(path / "one", path / "two")
    (left,) = {"one", "two"} - {gone}
    with opened(path / left) as fd:
        (layer / gone).unlink()
        (path / left).unlink()
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 100, 0) == b"content"


@pytest.mark.parametrize("was_read", [False, True], ids=["unread", "read"])
def test_files_swapped_in_the_layer(quick: Mount, pair: tuple[Path, Path], was_read: bool) -> None:
    path, layer = pair
    for name in (b"one", b"two"):
        (layer / os.fsdecode(name)).write_bytes(name)
    if quick.status()["options"]["watch"] != "off":
        quick.settled()
    with opened(path / "one") as one, opened(path / "two") as two:
        if was_read:
            assert (os.pread(one, 9, 0), os.pread(two, 9, 0)) == (b"one", b"two")
        (layer / "one").rename(layer / "tmp")
        (layer / "two").rename(layer / "one")
        (layer / "tmp").rename(layer / "two")
        shows(path / "one", b"two")
        shows(path / "two", b"one")
        assert (os.pread(one, 9, 0), os.pread(two, 9, 0)) == (b"one", b"two")


def test_a_directory_renamed_in_the_layer(pair: tuple[Path, Path]) -> None:
    """Whoever is inside stays inside, and the directory that takes the name is another."""
    path, layer = pair
    (layer / "dir/sub").mkdir(parents=True)
    (layer / "dir/sub/file").write_bytes(b"first")
    with opened(path / "dir/sub", os.O_PATH) as inside, opened(path / "dir/sub/file") as fd:
        (layer / "dir").rename(layer / "moved")
        (layer / "dir/sub").mkdir(parents=True)
        (layer / "dir/sub/file").write_bytes(b"second")
        shows(path / "dir/sub/file", b"second")
        shows(path / "moved/sub/file", b"first")
        assert os.pread(fd, 100, 0) == b"first"
        drop_dentries()
        with opened(Path("made"), os.O_CREAT | os.O_WRONLY, dir_fd=inside):
            pass
    assert (layer / "moved/sub/made").exists()
    assert not (layer / "dir/sub/made").exists()


def test_another_type_is_another_inode(pair: tuple[Path, Path]) -> None:
    path, layer = pair
    (layer / "name").write_text("file")
    makers: list[Callable[[], object]] = [
        (layer / "name").mkdir,
        lambda: (layer / "name").symlink_to("target"),
        lambda: os.mkfifo(layer / "name"),
        lambda: (layer / "name").write_text("again"),
    ]
    for make in makers:
        (path / "name").lstat()
        remove(layer / "name")
        make()
        wait_until(lambda: same_inode(path / "name", layer / "name"), "the new inode")
        assert (path / "name").lstat().st_mode == (layer / "name").lstat().st_mode


def same_inode(path: Path, layer: Path) -> bool:
    return (path.lstat().st_ino, birth_time(path)) == (layer.lstat().st_ino, birth_time(layer))


@pytest.mark.parametrize("was_read", [False, True], ids=["unread", "read"])
def test_a_file_deleted_in_the_layer(quick: Mount, pair: tuple[Path, Path], was_read: bool) -> None:
    """Is gone by name. Who has it open goes on where OPEN is served, or where it has been read, and never gets
    another's content."""
    path, layer = pair
    (layer / "file").write_bytes(b"content")
    with opened(path / "file") as fd:
        if was_read:
            assert os.pread(fd, 100, 0) == b"content"
        (layer / "file").unlink()
        (layer / "file").write_bytes(b"another")
        shows(path / "file", b"another")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if was_read or quick.status()["options"]["open"] == "serve":
            assert os.pread(fd, 100, 0) == b"content"
        else:
            with pytest.raises(OSError) as caught:
                os.pread(fd, 100, 0)
            assert caught.value.errno == errno.ESTALE


# Inode numbers used again.


@pytest.fixture(scope="module")
def small() -> Iterator[Path]:
    """An ext4 of its own, which gives a number out again at once."""
    with loop_filesystem("ext4", 8) as source:  # one block group, so that there is one next number
        yield source


@pytest.fixture(scope="module", params=["open=refuse", "open=serve"])
def on_small(request: pytest.FixtureRequest, watch: str, small: Path) -> Iterator[Mount]:
    with mounted(small, None, watch, f"timeout={TIMEOUT}", request.param) as mount:
        yield mount


def replace_with_same_number(path: Path, make: Callable[[Path], object]) -> None:
    """Remove what is there, and make things until one has got its number; that one takes the name."""
    number = path.lstat().st_ino
    remove(path)
    made = []
    for i in range(100):
        made.append(path.with_name(f"candidate{i}"))
        make(made[-1])
        if made[-1].lstat().st_ino == number:
            made.pop().rename(path)
            break
        time.sleep(0.01)  # a forgotten inode is let go soon, not at once
    for other in made:
        remove(other)
    assert path.lstat().st_ino == number, "somebody holds the old inode"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


@pytest.mark.parametrize("was_read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["", "dentries dropped"])
def test_a_reused_number_does_not_revive_the_old_file(
    on_small: Mount, small: Path, was_read: bool, forgotten: bool
) -> None:
    name = f"file{next(_numbers)}"
    layer, path = small / name, on_small.path / name
    layer.write_bytes(b"old content")
    if on_small.status()["options"]["watch"] != "off":
        on_small.settled()
    with opened(path) as fd, watching(path, IN_MODIFY) as watch:
        if was_read:
            assert os.pread(fd, 100, 0) == b"old content"
            held = True
        else:
            held = on_small.status()["options"]["open"] == "serve"
        if held:
            # The daemon holds the old inode, so ext4 cannot give its number out again.
            layer.unlink()
            layer.write_bytes(b"new")
        else:
            replace_with_same_number(layer, lambda path: path.write_bytes(b"new"))
        if forgotten:
            drop_dentries()
        shows(path, b"new")
        assert birth_time(path) == birth_time(layer)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            assert os.pread(fd, 100, 0) == b"old content"
        except OSError as error:
            assert error.errno == errno.ESTALE
        write(path, b"NEW")
        assert watch.events(0.3) == []
    assert layer.read_bytes() == b"NEW"
    layer.unlink()


def test_a_reused_number_of_a_directory(on_small: Mount, small: Path) -> None:
    layer, path = small / "dir", on_small.path / "dir"
    layer.mkdir()
    with opened(path, os.O_PATH) as fd:
        replace_with_same_number(layer, lambda path: path.mkdir())
        wait_until(lambda: same_inode(path, layer), "the new directory")
        with pytest.raises(OSError) as caught:
            os.mkdir("beneath", dir_fd=fd)
        assert caught.value.errno in (errno.ESTALE, errno.ENOENT)
        assert os.listdir(layer) == []
    layer.rmdir()


def test_a_reused_number_of_a_symlink(on_small: Mount, small: Path) -> None:
    """Its target is cached for good, as a target never changes."""
    layer, path = small / "link", on_small.path / "link"
    layer.symlink_to("one")
    assert os.readlink(path) == "one"
    for target in ("two", "three"):
        drop_dentries()  # lets the daemon forget it, and ext4 use the number again
        replace_with_same_number(layer, lambda path, target=target: path.symlink_to(target))  # type: ignore[misc]
        wait_until(lambda target=target: os.readlink(path) == target, "the other symlink")  # type: ignore[misc]
        assert os.readlink(path) == target
    layer.unlink()


def test_a_number_reused_through_the_mount(on_small: Mount, small: Path) -> None:
    """Nothing needs to time out then."""
    path = on_small.path / "file"
    for number in range(20):
        path.write_bytes(b"%d" % number)
        assert path.read_bytes() == b"%d" % number
        assert birth_time(path) == birth_time(small / "file")
        path.unlink()
        path.mkdir()
        assert path.stat().st_ino == (small / "file").stat().st_ino
        path.rmdir()
