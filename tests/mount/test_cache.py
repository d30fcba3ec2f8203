"""What the kernel answers by itself, counted in requests to the process; and how soon a change of the layer shows."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Mount, fewest_requests, mounted, requests_during, wait_until
from harness.calls import opened
from harness.places import Place, new_place

ROUNDS = 20


@pytest.fixture(scope="module", params=["", "uidmapping=0:0:1000", "watch=off,timeout=3600"])
def undisturbed(request: pytest.FixtureRequest, source: Path) -> Iterator[Mount]:
    """A mount whose layer nobody else changes."""
    with mounted(source, None, *filter(None, request.param.split(","))) as mount:
        yield mount


@pytest.fixture
def still(undisturbed: Mount, source: Path) -> Place:
    place = new_place(source, undisturbed, "default")
    (place.layer / "dir").mkdir()
    for i in range(50):
        (place.layer / f"dir/file{i}").write_bytes(b"content" * 1000)
    (place.layer / "dir/link").symlink_to("file1")
    return place


def fails(call: Callable[[Path], object], path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        call(path)


def read(path: Path) -> None:
    """Path.read_bytes asks by ioctl whether it is a terminal, and the kernel passes that on."""
    with opened(path) as fd:
        assert len(os.read(fd, 10_000)) == 7000


def read_all(path: Path) -> None:
    for entry in path.iterdir():
        read(entry)


def listed_with_attributes(path: Path) -> list[os.stat_result]:
    return [entry.stat(follow_symlinks=False) for entry in os.scandir(path)]


def open_only(path: Path) -> None:
    with opened(path):
        pass


def read_attribute(path: Path) -> None:
    os.access(path, os.R_OK)


HOT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "stat": ("dir/file1", os.stat),
    "stat of a directory": ("dir", os.stat),
    "lstat of a symlink": ("dir/link", os.lstat),
    "stat through a symlink": ("dir/link", os.stat),
    "lstat of an absent name": ("dir/absent", lambda path: fails(os.lstat, path)),
    "open of an absent name": ("dir/absent", lambda path: fails(open_only, path)),
    "below an absent directory": ("absent/file", lambda path: fails(os.stat, path)),
    "access": ("dir/file1", read_attribute),
    "readdir": ("dir", os.listdir),
    "readdir with attributes": ("dir", listed_with_attributes),
    "readlink": ("dir/link", os.readlink),
    "open and close": ("dir/file1", open_only),
    "open, read and close": ("dir/file1", read),
    "read of many": ("dir", read_all),
    "read through a symlink": ("dir/link", read),
}


@pytest.mark.parametrize("what", HOT)
def test_hot_is_without_a_request(undisturbed: Mount, still: Place, what: str) -> None:
    name, call = HOT[what]
    assert not fewest_requests(undisturbed, lambda: call(still.path / name))


def test_a_walk_is_without_a_request(undisturbed: Mount, still: Place) -> None:
    for i in range(5):
        (still.layer / f"d{i}/e").mkdir(parents=True)
        (still.layer / f"d{i}/e/file").touch()

    def walk() -> int:
        return sum(1 for _, names, files in os.walk(still.path) for _ in names + files)

    assert not fewest_requests(undisturbed, walk)
    assert walk() == 5 * 3 + 52


def test_what_changes_here_shows_at_once(undisturbed: Mount, still: Place) -> None:
    """However long names and attributes are trusted."""
    directory = still.path / "dir"
    for i in range(10):
        assert (directory / "absent").exists() is False
        names = set(os.listdir(directory))
        (directory / "absent").write_bytes(b"x" * i)
        assert (directory / "absent").stat().st_size == i
        assert set(os.listdir(directory)) == names | {"absent"}
        os.link(directory / "absent", directory / "other")
        assert (directory / "absent").stat().st_nlink == 2
        (directory / "absent").unlink()
        assert (directory / "other").stat().st_nlink == 1
        (directory / "other").write_bytes(b"longer content")
        assert (directory / "other").read_bytes() == b"longer content"
        (directory / "other").unlink()
        assert set(os.listdir(directory)) == names
    with opened(directory / "file1", os.O_RDWR) as fd:
        os.ftruncate(fd, 5)
        assert (directory / "file1").read_bytes() == b"conte"


def test_writing_costs_one_request_each(undisturbed: Mount, still: Place) -> None:
    """No attributes are asked for between writes."""
    with opened(still.path / "dir/file1", os.O_RDWR) as fd:
        os.pwrite(fd, b"first", 0)
        with requests_during(undisturbed) as requests:
            for i in range(ROUNDS):
                os.pwrite(fd, b"x" * 4096, i * 4096)
    assert requests["WRITE"] == ROUNDS
    assert not requests.keys() - {"WRITE", "FORGET", "BATCH_FORGET"}


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_closing_is_told_once(source: Path, flags: int) -> None:
    """Where OPEN is served RELEASE tells of it; FLUSH, for which close(2) would wait, has nothing to say."""
    (source / "file").write_bytes(b"content")
    with mounted(source, None, "open=serve") as mount, requests_during(mount) as requests:
        for _ in range(ROUNDS):
            os.close(os.open(mount.path / "file", flags))
        wait_until(lambda: mount.stats()["handles"] == 0, "all are closed")
    assert requests["OPEN"] == requests["RELEASE"] == ROUNDS
    assert requests["FLUSH"] == 0


# Changes of the layer.


@pytest.fixture(scope="module", params=["watch=auto", "watch=off"])
def watch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["open=refuse", "open=serve"])
def live(request: pytest.FixtureRequest, watch: str, source: Path) -> Iterator[Mount]:
    with mounted(source, None, watch, "timeout=0.2", request.param) as mount:
        yield mount


@pytest.fixture
def changing(live: Mount, source: Path) -> Place:
    place = new_place(source, live, "default")
    for name, content in (("file", b"content"), ("goes", b""), ("grows", b"short")):
        (place.layer / name).write_bytes(content)
    (place.layer / "dir").mkdir()
    (place.layer / "link").symlink_to("one")
    return place


def replace_link(layer: Path) -> None:
    (layer / "link").unlink()
    (layer / "link").symlink_to("two")


def replace_by_rename(layer: Path) -> None:
    (layer / "new").write_bytes(b"renamed")
    (layer / "new").rename(layer / "file")


def change_in_place(layer: Path) -> None:
    with opened(layer / "file", os.O_WRONLY) as fd:
        os.write(fd, b"CONTENT")


CHANGES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "new file": (lambda layer: (layer / "new").write_bytes(b"new"), lambda path: (path / "new").read_bytes() == b"new"),
    "new in a listing": (lambda layer: (layer / "new").touch(), lambda path: "new" in os.listdir(path)),
    "removal": (lambda layer: (layer / "goes").unlink(), lambda path: not (path / "goes").exists()),
    "removal in a listing": (lambda layer: (layer / "goes").unlink(), lambda path: "goes" not in os.listdir(path)),
    "content": (change_in_place, lambda path: (path / "file").read_bytes() == b"CONTENT"),
    "growth": (
        lambda layer: (layer / "grows").write_bytes(b"x" * 9000),
        lambda path: (path / "grows").read_bytes() == b"x" * 9000,
    ),
    "truncation": (lambda layer: os.truncate(layer / "file", 3), lambda path: (path / "file").read_bytes() == b"con"),
    "mode": (lambda layer: (layer / "file").chmod(0o604), lambda path: (path / "file").stat().st_mode & 0o777 == 0o604),
    "owner": (lambda layer: os.chown(layer / "file", 7, 8), lambda path: (path / "file").stat().st_gid == 8),
    "time": (lambda layer: os.utime(layer / "file", (5, 6)), lambda path: (path / "file").stat().st_mtime == 6),
    "link count": (
        lambda layer: os.link(layer / "file", layer / "two"),
        lambda path: (path / "file").stat().st_nlink == 2,
    ),
    "replacement": (replace_by_rename, lambda path: (path / "file").read_bytes() == b"renamed"),
    "symlink": (replace_link, lambda path: os.readlink(path / "link") == "two"),
    "rename": (lambda layer: (layer / "dir").rename(layer / "moved"), lambda path: (path / "moved").is_dir()),
    "extended attribute": (
        lambda layer: os.setxattr(layer / "file", "user.x", b"1"),
        lambda path: os.listxattr(path / "file") == ["user.x"],
    ),
}


def look_at_all(path: Path) -> None:
    for entry in os.scandir(path):
        entry.stat(follow_symlinks=False)
    (path / "file").read_bytes()
    (path / "grows").read_bytes()
    os.readlink(path / "link")
    (path / "new").exists()


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_the_layer_shows_soon(changing: Place, what: str) -> None:
    change, shows = CHANGES[what]
    look_at_all(changing.path)
    look_at_all(changing.path)

    def is_shown() -> bool:
        try:
            return bool(shows(changing.path))
        except OSError:
            return False

    assert not is_shown()
    change(changing.layer)
    wait_until(is_shown, f"{what} in the layer seen on the mount")


def test_without_a_timeout_changes_show_at_once_though_nobody_watches(source: Path) -> None:
    with mounted(source, None, "watch=off", "timeout=0") as mount:
        for what, (change, shows) in CHANGES.items():
            place = new_place(source, mount, "default")
            for name, content in (("file", b"content"), ("goes", b""), ("grows", b"short")):
                (place.layer / name).write_bytes(content)
            (place.layer / "dir").mkdir()
            (place.layer / "link").symlink_to("one")
            look_at_all(place.path)
            change(place.layer)
            assert shows(place.path), what


def test_unwatched_a_timeout_keeps_what_is_known_for_its_time(source: Path) -> None:
    """What nobody says has changed is trusted: that is what a long timeout= is for."""
    with mounted(source, None, "watch=off", "timeout=3600") as mount:
        still = new_place(source, mount, "default")
        path, layer = still.path / "file", still.layer / "file"
        layer.touch()
        before = path.stat()
        os.utime(layer, (1, 1))
        time.sleep(0.01)
        assert path.stat() == before
