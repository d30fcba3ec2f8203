"""Descriptors of entries, on a real directory: bounded, found again, and closed when the last holder lets go."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import environment, run
from shiftfs.descriptors import Descriptors, Entry, is_directory
from shiftfs.layer import Layer

BOUND = 64
MANY = 2000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture(params=["handles", "names"])
def layer(source: Path, request: pytest.FixtureRequest) -> Iterator[Layer]:
    """Where inodes are recovered by file handles, and where only by names."""
    made = Layer(os.fsencode(source))
    if request.param == "handles" and not made.opens_by_handle:
        vars(made).clear()
        pytest.skip("needs CAP_DAC_READ_SEARCH and a filesystem with file handles")
    made.opens_by_handle = request.param == "handles"
    yield made
    vars(made).clear()  # pytest holds it longer than it may hold descriptors


@pytest.fixture
def held(layer: Layer) -> Iterator[Descriptors]:
    made = Descriptors(layer, BOUND, noatime=True)
    yield made
    vars(made).clear()


@pytest.fixture
def find(held: Descriptors, layer: Layer) -> Callable[..., Entry]:
    """The entry at a path of names."""

    def walk(*names: bytes) -> Entry:
        entry = held.root
        for name in names:
            entry = Entry(entry, name, layer.look(held.path(entry).fd, name)[0])
        return entry

    return walk


Find = Callable[..., Entry]


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def make_files(source: Path, count: int) -> list[bytes]:
    names = [b"f%d" % number for number in range(count)]
    for name in names:
        os.mknod(os.path.join(os.fsencode(source), name), 0o100600)
    return names


@pytest.fixture
def files(source: Path) -> list[bytes]:
    """More than may be held."""
    return make_files(source, BOUND * 2)


def evict_all(held: Descriptors, find: Find, files: list[bytes]) -> None:
    for name in files:
        entry = find(name)
        held.path(entry)
        held.data(entry, False)


def test_the_bound_holds_and_each_is_the_right_one(held: Descriptors, find: Find, source: Path) -> None:
    entries = [find(name) for name in make_files(source, MANY)]
    before = open_count()
    for entry in entries:
        for descriptor in (held.path(entry), held.data(entry, writable=entry.key[1] % 2 == 0)):
            assert os.fstat(descriptor.fd).st_ino == entry.key[1]
        del descriptor
        assert sum(held.count()[kind] for kind in ("paths", "data")) <= held.count()["bound"] == BOUND
    assert open_count() <= before + BOUND
    for entry in entries:
        held.release(entry)
    assert open_count() == before
    assert held.count() == {"paths": 0, "data": 0, "unlinked": 0, "bound": BOUND}


def test_a_deep_directory_is_reached_one_name_at_a_time(held: Descriptors, find: Find, source: Path) -> None:
    """Deeper than the bound, and than PATH_MAX."""
    directory = os.open(source, os.O_RDONLY)
    names = [b"n" * 100] * (BOUND + 10)
    for name in names:
        os.mkdir(name, dir_fd=directory)
        below = os.open(name, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    deepest = find(*names)
    assert is_directory(deepest.key)
    above: Entry | None = deepest
    while above is not None and above.parent is not None:
        held.release(above)
        above = above.parent
    assert os.fstat(held.path(deepest).fd).st_ino == deepest.key[1]


def test_eviction_never_closes_under_a_holder(held: Descriptors, find: Find, files: list[bytes]) -> None:
    first = find(b"f0")
    path, data = held.path(first), held.data(first, False)
    evict_all(held, find, files[1:])
    assert first.path is None and first.data is None
    for descriptor in (path, data):
        assert os.fstat(descriptor.fd).st_ino == first.key[1]
    del descriptor
    before = open_count()
    del path
    assert open_count() == before - 1
    del data
    assert open_count() == before - 2


def test_full_table_gives_back_and_goes_on(source: Path) -> None:
    make_files(source, 500)
    script = """
import os, resource, sys
from shiftfs.descriptors import Descriptors, Entry
from shiftfs.layer import Layer

layer = Layer(os.fsencode(sys.argv[1]))
held = Descriptors(layer, 10_000, noatime=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
for number in range(500):
    name = b"f%d" % number
    entry = Entry(held.root, name, layer.look(held.root.path.fd, name)[0])
    for descriptor in (held.path(entry), held.data(entry, number % 2 == 0)):
        assert os.fstat(descriptor.fd).st_ino == entry.key[1]
os.close(0), os.close(1)  # something else needs one, and the table is not full for good
"""
    run([sys.executable, "-c", script, source], env=environment())


def test_pinned_ones_are_kept(held: Descriptors, find: Find, files: list[bytes], source: Path) -> None:
    entry = find(b"f0")
    held.pin(entry)
    (source / "f0").unlink()
    evict_all(held, find, files[1:])
    assert os.fstat(held.path(entry).fd).st_nlink == 0
    assert os.fstat(held.data(entry, False).fd).st_ino == entry.key[1]
    assert held.count()["unlinked"] == 1
    held.release(entry)
    assert held.count()["unlinked"] == 0 and entry.path is None


@pytest.mark.parametrize("was_open", [False, True])
def test_so_are_those_that_were_opened_by_somebody_else(
    held: Descriptors, find: Find, files: list[bytes], source: Path, was_open: bool
) -> None:
    before = open_count()
    entry = find(b"f0")
    if was_open:
        held.path(entry)
    fd = os.open(source / "f0", os.O_PATH)
    (source / "f0").unlink()
    held.pin_opened(entry, fd, True)
    evict_all(held, find, files[1:])
    assert held.path(entry).fd == fd and os.fstat(fd).st_nlink == 0
    assert held.count()["unlinked"] == 1
    held.release(entry)
    assert held.count()["unlinked"] == 0
    assert open_count() <= before + BOUND


def test_unpinned_ones_are_bounded_again(held: Descriptors, find: Find, files: list[bytes]) -> None:
    entry = find(b"f0")
    held.pin(entry)
    held.unpin(entry)
    held.unpin(entry)
    assert held.count()["unlinked"] == 0
    evict_all(held, find, files[1:])
    assert entry.path is None


# Changes behind the mount


def moved(entry: Entry, held: Descriptors) -> int:
    """The inode found, with nothing held before."""
    held.release(entry)
    return os.fstat(held.path(entry).fd).st_ino


def test_renamed_beside_its_old_name(held: Descriptors, find: Find, source: Path) -> None:
    (source / "old").touch()
    entry = find(b"old")
    held.path(entry)
    (source / "old").rename(source / "new")
    (source / "old").touch()
    assert moved(entry, held) == entry.key[1] == (source / "new").stat().st_ino


def test_below_a_renamed_directory(held: Descriptors, find: Find, source: Path) -> None:
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "file").touch()
    entry = find(b"a", b"b", b"file")
    (source / "a" / "b").rename(source / "a" / "c")
    (source / "a").rename(source / "d")
    for known in (entry, entry.parent, entry.parent and entry.parent.parent):
        assert known is not None
        held.release(known)
    assert moved(entry, held) == (source / "d" / "c" / "file").stat().st_ino


def test_moved_to_another_directory(held: Descriptors, layer: Layer, find: Find, source: Path) -> None:
    (source / "elsewhere").mkdir()
    (source / "file").touch()
    entry = find(b"file")
    held.path(entry)
    (source / "file").rename(source / "elsewhere" / "file")
    if layer.opens_by_handle:
        assert moved(entry, held) == entry.key[1]
    else:
        with pytest.raises(OSError) as caught:
            moved(entry, held)
        assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("parent", ["there", "removed", "removed and held"])
def test_gone(held: Descriptors, find: Find, source: Path, parent: str) -> None:
    (source / "d").mkdir()
    (source / "d" / "file").touch()
    entry = find(b"d", b"file")
    held.path(entry)
    (source / "d" / "file").unlink()
    (source / "d" / "file").mkdir()  # another inode by its name
    if "removed" in parent:
        (source / "d" / "file").rmdir()
        (source / "d").rmdir()
        assert entry.parent is not None
        if "held" not in parent:
            held.release(entry.parent)
    with pytest.raises(OSError) as caught:
        moved(entry, held)
    assert caught.value.errno == errno.ESTALE


# Files open for writing


def test_a_writer_is_closed_a_second_after_its_last_use(held: Descriptors, find: Find, source: Path) -> None:
    (source / "file").touch()
    entry = find(b"file")
    reading = held.data(entry, False)
    assert not reading.writable and not held.tidy(time.monotonic() + 9)
    assert held.data(entry, False) is reading
    writing = held.data(entry, True)
    assert writing.writable and held.data(entry, False) is writing
    used = time.monotonic()
    assert held.tidy(used + 0.5) and entry.data is writing
    assert not held.tidy(used + 1) and entry.data is None
    assert not held.data(entry, False).writable


def test_a_writer_kept_from_elsewhere_is_closed_too(held: Descriptors, find: Find, source: Path) -> None:
    """As that of a file just created: nothing may ever be written to it."""
    (source / "file").touch()
    entry = find(b"file")
    held.keep_data(entry, held.open(held.path(entry), os.O_RDWR))
    assert held.tidy(time.monotonic())
    assert not held.tidy(time.monotonic() + 1) and entry.data is None


def test_use_of_a_writer_puts_off_its_end(held: Descriptors, find: Find, source: Path) -> None:
    (source / "file").touch()
    entry = find(b"file")
    held.data(entry, True)
    began = time.monotonic()
    held.data(entry, True)
    assert held.tidy(began + 0.99) or time.monotonic() > began + 0.5


def test_released_writers_are_forgotten(held: Descriptors, find: Find, source: Path) -> None:
    (source / "file").touch()
    entry = find(b"file")
    held.data(entry, True)
    held.release(entry)
    assert not held.tidy(time.monotonic())


def opened_to_read(held: Descriptors, entry: Entry, source: Path) -> None:
    opened_natively(held, entry, source, os.O_RDONLY)


def opened_natively(held: Descriptors, entry: Entry, source: Path, flags: int) -> None:
    held.opened(entry, os.open(os.path.join(os.fsencode(source), entry.name), flags), flags == os.O_RDWR)


def test_what_was_opened_to_be_read_is_bounded_as_well(held: Descriptors, find: Find, source: Path) -> None:
    entries = [find(name) for name in make_files(source, MANY)]
    before = open_count()
    for entry in entries:
        opened_to_read(held, entry, source)
    assert held.count()["data"] == BOUND // 2 == open_count() - before
    for entry in entries:
        held.release(entry)
    assert open_count() == before


def test_what_is_open_to_be_read_needs_no_name(held: Descriptors, find: Find, source: Path) -> None:
    make_files(source, 1)
    entry = find(b"f0")
    opened_to_read(held, entry, source)
    os.unlink(source / "f0")
    assert os.fstat(held.path(entry).fd).st_ino == entry.key[1]
    assert held.data(entry, writable=True).writable


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_what_was_opened_natively_is_found_again_elsewhere(
    held: Descriptors, layer: Layer, find: Find, source: Path, files: list[bytes], flags: int
) -> None:
    """Where handles lead to it; not all directories are looked through for it."""
    entry = find(files[0])
    opened_natively(held, entry, source, flags)
    if flags == os.O_RDWR:
        held.writers[entry] = time.monotonic() - 5
        held.tidy(time.monotonic())
    else:
        evict_all(held, find, files[1:])
    assert entry.data is None
    (source / "elsewhere").mkdir()
    os.rename(source / os.fsdecode(files[0]), source / "elsewhere" / "f")
    if layer.opens_by_handle:
        assert os.fstat(held.path(entry).fd).st_ino == entry.key[1]
        return
    with pytest.raises(OSError) as failed:
        held.path(entry)
    assert failed.value.errno == errno.ESTALE
