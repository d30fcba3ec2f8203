"""Listings, also while what is listed changes; on a plain directory and on mounts alike."""

import errno
import os
import pwd
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Caller, Mount, mounted, run, wait_until
from harness.calls import Dirent, all_dirents, drop_dentries, getdents, opened, refuses
from harness.places import Place

HUGE = 40_000
DOTS = {b".", b".."}
DAEMON = pwd.getpwnam("daemon").pw_uid


def names(dirents: list[Dirent]) -> list[bytes]:
    return [d.name for d in dirents if d.name not in DOTS]


def nth(prefix: str, number: int) -> str:
    """Names of 4 to about 100 bytes."""
    return f"{prefix}{number}{'-' * (number * 7 % 90)}"


def fill(directory: Path, count: int, prefix: str = "entry") -> list[bytes]:
    """Make files in a directory, be it on the mount or in the layer."""
    made = [nth(prefix, number) for number in range(count)]
    with opened(directory, os.O_PATH) as fd:
        for name in made:
            os.mknod(name, dir_fd=fd)
    return [name.encode() for name in made]


# What a listing says.


def test_an_empty_directory(place: Place) -> None:
    assert os.listdir(place.path) == []
    with opened(place.path) as fd:
        assert [d.name for d in all_dirents(fd)] in ([b".", b".."], [b"..", b"."])


def test_each_entry_says_its_number_and_type(place: Place) -> None:
    (place.path / "dir/in").mkdir(parents=True)
    place.new("dir/file")
    (place.path / "dir/link").symlink_to("file")
    os.link(place.path / "dir/file", place.path / "dir/hard")
    os.mkfifo(place.path / "dir/fifo")
    os.mknod(place.path / "dir/socket", stat.S_IFSOCK)
    os.mknod(place.path / "dir/char", stat.S_IFCHR)
    os.mknod(place.path / "dir/block", stat.S_IFBLK)
    for _ in range(2):
        for plus in (False, True):
            with opened(place.path / "dir") as fd:
                found = all_dirents(fd, 200 if plus else 4096)
            assert len(found) == 10
            for dirent in found:
                seen = os.lstat(os.fsencode(place.path / "dir") + b"/" + dirent.name)
                assert (dirent.number, dirent.kind) == (seen.st_ino, seen.st_mode >> 12), dirent.name
        drop_dentries()


def test_what_is_mounted_on_shows_below_it(place: Place) -> None:
    """The number of the root's `..` is of no use to anybody, but must not be another inode's."""
    root = place.path.parent
    with opened(root) as fd:
        dots = {d.name: d.number for d in all_dirents(fd) if d.name in DOTS}
    assert dots[b"."] == root.stat().st_ino


@pytest.mark.parametrize("size", [280, 512, 4096, 65536, 1 << 20])
def test_any_size_of_buffer(place: Place, size: int) -> None:
    made = fill(place.layer, 300)
    made += [name.encode() for name in ("x" * 255, "y" * 254)]
    for name in made[-2:]:
        (place.layer / os.fsdecode(name)).touch()
    for _ in range(2):
        with opened(place.path) as fd:
            assert Counter(names(all_dirents(fd, size))) == Counter(made)


def test_rewinding_shows_the_present(place: Place) -> None:
    fill(place.path, 200)
    with opened(place.path) as fd:
        first = set(names(all_dirents(fd)))
        (place.path / "new").touch()
        (place.path / "entry0").unlink()
        assert getdents(fd) == []
        os.lseek(fd, 0, os.SEEK_SET)
        assert set(names(all_dirents(fd))) == first - {b"entry0"} | {b"new"}


def test_seeking_to_a_cookie(place: Place) -> None:
    fill(place.path, 300)
    with opened(place.path) as fd:
        found = all_dirents(fd)
        for index in (0, 1, 2, 150, 299, len(found) - 1):
            os.lseek(fd, found[index].cookie, os.SEEK_SET)
            assert all_dirents(fd) == found[index + 1 :]
        (place.path / os.fsdecode(found[150].name)).unlink()
        os.lseek(fd, found[150].cookie, os.SEEK_SET)
        assert names(all_dirents(fd)) == names(found[151:])
    with opened(place.path) as fd:
        os.lseek(fd, found[200].cookie, os.SEEK_SET)
        assert names(all_dirents(fd)) == names(found[201:])


def test_two_readers_do_not_disturb_each_other(place: Place) -> None:
    made = Counter(fill(place.path, 500))
    with opened(place.path) as one, opened(place.path) as two:
        seen_one, seen_two = names(getdents(one)), names(getdents(two, 1000))
        while part := getdents(one, 600):
            seen_one += names(part)
            seen_two += names(getdents(two, 900))
        assert Counter(seen_one) == made
        assert Counter(seen_two + names(all_dirents(two))) == made


def test_a_directory_that_may_be_read_and_not_searched(tmp_path: Path) -> None:
    """Its names are to be had, natively and on a mount of its owner, who has no right to pass over modes."""
    source = tmp_path / "source"
    (source / "closed").mkdir(parents=True)
    fill(source / "closed", 5)
    for path in (source, source / "closed"):
        os.chown(path, DAEMON, DAEMON)
    (source / "closed").chmod(0o400)
    me = Caller(DAEMON, DAEMON)
    with mounted(source, user=DAEMON) as mount:
        for _ in range(2):
            found = me(os.listdir, mount.path / "closed")
            assert sorted(found) == sorted(me(os.listdir, source / "closed"))
            assert len(found) == 5
        refuses(errno.EACCES, me, os.lstat, mount.path / "closed" / nth("entry", 0))


# Directories that change while they are read.


@pytest.mark.parametrize("where", ["here", "in the layer"])
@pytest.mark.parametrize("plus", [False, True], ids=["", "looked at"])
def test_what_stays_is_seen_exactly_once(place: Place, where: str, plus: bool) -> None:
    """Whatever else comes and goes meanwhile, seen already or not."""
    at = place.path if where == "here" else place.layer
    kept = set(fill(place.layer, 600, "kept"))
    fill(place.layer, 300, "goes")
    seen: Counter[bytes] = Counter()
    with opened(place.path) as fd:
        for number in range(10_000):
            part = getdents(fd)
            if not part:
                break
            seen.update(names(part))
            if plus:
                os.lstat(os.fsencode(place.path) + b"/" + part[-1].name)
            for going in (nth("goes", number), nth("goes", 299 - number)):
                (at / going).unlink(missing_ok=True)
            (at / f"comes{number}").touch()
            if number == 5:
                (at / "comes0").rename(at / "came")
                drop_dentries()
    assert {name: count for name, count in seen.items() if name in kept} == dict.fromkeys(kept, 1)
    assert all(count == 1 for count in seen.values())


@pytest.mark.parametrize("size", [280, 4096, 32768])
def test_removing_what_was_just_seen_misses_nothing(place: Place, size: int) -> None:
    """As rm -r does with a listing that takes many calls."""
    made = Counter(fill(place.path, 700))
    seen: Counter[bytes] = Counter()
    with opened(place.path) as fd:
        while part := getdents(fd, size):
            for name in names(part):
                seen[name] += 1
                os.unlink(name, dir_fd=fd)
    assert seen == made
    assert os.listdir(place.layer) == []


def test_rm_r(place: Place) -> None:
    for directory in ("tree", "tree/a", "tree/a/b", "tree/c"):
        (place.path / directory).mkdir()
        fill(place.path / directory, 300)
    run(["rm", "-r", place.path / "tree"])
    assert os.listdir(place.layer) == []
    assert os.listdir(place.path) == []


def test_a_walk_renames_everything(place: Place) -> None:
    """Nothing is lost, though what is renamed may show up again under its new name, as POSIX has it."""
    fill(place.path, 400)
    with opened(place.path) as fd:
        while part := getdents(fd):
            for name in names(part):
                if name.startswith(b"entry"):
                    os.rename(name, b"renamed" + name[5:], src_dir_fd=fd, dst_dir_fd=fd)
    assert {name[:7] for name in os.listdir(place.layer)} == {"renamed"}
    assert sorted(os.listdir(place.path)) == sorted(os.listdir(place.layer))


def test_a_listing_that_was_cached_shows_every_change_made_here(place: Place) -> None:
    expected: set[str] = set()
    for number in range(30):
        place.new(f"file{number}")
        expected.add(f"file{number}")
        assert set(os.listdir(place.path)) == expected
        if number % 3 == 0:
            (place.path / f"file{number}").unlink()
            expected.remove(f"file{number}")
            assert set(os.listdir(place.path)) == expected
        elif number % 3 == 1:
            (place.path / f"file{number}").rename(place.path / f"moved{number}")
            expected.remove(f"file{number}")
            expected.add(f"moved{number}")
            assert set(os.listdir(place.path)) == expected


def test_a_listing_that_was_cached_shows_changes_of_the_layer(shown: Place) -> None:
    """However often it is read, and though mtime may not tell two changes apart."""
    for number in range(5):
        (shown.layer / f"one{number}").touch()
        os.listdir(shown.path)
        (shown.layer / f"two{number}").touch()
        wait_until(
            lambda: sorted(os.listdir(shown.path)) == sorted(os.listdir(shown.layer)), "the listing of the layer"
        )


# Large ones.


@pytest.fixture(scope="module")
def huge(source: Path) -> Iterator[str]:
    (source / "huge").mkdir()
    fill(source / "huge", HUGE)
    yield "huge"
    shutil.rmtree(source / "huge")


@pytest.mark.parametrize("looks", [False, True], ids=["", "with attributes"])
def test_all_of_a_large_directory(each_kind: tuple[str, Mount | None], source: Path, huge: str, looks: bool) -> None:
    mount = each_kind[1]
    path = (mount.path if mount else source) / huge
    seen: Counter[bytes] = Counter()
    for entry in os.scandir(os.fsencode(path)):
        seen[entry.name] += 1
        assert entry.is_file(follow_symlinks=False)
        if looks:
            assert entry.stat(follow_symlinks=False).st_ino == entry.inode()
    assert len(seen) == HUGE
    assert set(seen.values()) == {1}


def test_a_large_directory_read_by_4_kib(each_kind: tuple[str, Mount | None], source: Path, huge: str) -> None:
    mount = each_kind[1]
    with opened((mount.path if mount else source) / huge) as fd:
        found = names(all_dirents(fd))
    assert len(found) == len(set(found)) == HUGE
