"""Large writes, one after another: their bytes go from the kernel to the layer's file through a pipe, unseen."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import Layers, Mount, errno_of, layered, mounted, wait_until
from harness.calls import in_child, opened
from harness.listening import small_filesystem

pytestmark = pytest.mark.root

KIB = 1 << 10
MIB = 1 << 20
MOST = 3 * MIB
DATA = os.urandom(MIB)
LIMIT = 20.0
OPTIONS = ("passthrough=off", "max_write=524288")
"""Whoever may not have a pipe for more than 1 MiB (pipe(7)) may have one for these."""


class Shown(NamedTuple):
    mount: Mount
    layer: Path
    """Where it is all stored."""


@pytest.fixture(scope="module", params=["source", "overlay", "overlay writeback"])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    at = tmp_path_factory.mktemp("large")
    if request.param == "source":
        with mounted(at, None, *OPTIONS) as mount:
            yield Shown(mount, at)
        return
    layers = Layers(at)
    (layers.lowers[0] / "low").write_bytes(DATA[: 300 * KIB])
    options = ["writeback"] * ("writeback" in request.param)
    with layered(layers.lowers, layers.upper, layers.work, *OPTIONS, *options) as mount:
        yield Shown(mount, layers.upper)


def read_by(mount: Mount) -> int:
    """The bytes that the process has got by read(2), and not through a pipe (proc(5))."""
    lines = Path(f"/proc/{mount.pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_all_but_the_first_go_through_the_pipe(tmp_path: Path) -> None:
    """Else nothing would be shown below."""

    def all_but_one_are_moved() -> bool:
        file.seek(0)
        before = read_by(mount)
        for _ in range(8):
            file.write(DATA[: 256 * KIB])
        assert (tmp_path / "file").read_bytes() == 8 * DATA[: 256 * KIB]
        return read_by(mount) - before < 2 * 256 * KIB

    with mounted(tmp_path, None, *OPTIONS) as mount, open(mount.path / "file", "wb", buffering=0) as file:
        wait_until(all_but_one_are_moved, "a disk that is not busy", LIMIT)


def test_small_ones_in_between(shown: Shown) -> None:
    name = shown.mount.path / "mixed"
    expected = b""
    with open(name, "wb", buffering=0) as file:
        for number in range(12):
            part = DATA[number : number + (700 * KIB if number % 3 else 10)]
            file.write(part)
            expected += part
            (shown.mount.path / f"beside{number}").write_bytes(b"small")
            assert name.stat().st_size == len(expected)
    assert (shown.layer / "mixed").read_bytes() == expected
    for number in range(12):
        assert (shown.layer / f"beside{number}").read_bytes() == b"small"


def test_what_is_appended_is_at_the_end(shown: Shown) -> None:
    expected = b""
    with opened(shown.mount.path / "appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as fd:
        for number in range(6):
            part = DATA[number : number + 256 * KIB + number]
            assert os.write(fd, part) == len(part)
            expected += part
    assert (shown.layer / "appended").read_bytes() == expected


def test_a_lower_file_comes_up_first(shown: Shown) -> None:
    low = shown.mount.path / "low"
    if not low.exists():
        low.write_bytes(DATA[: 300 * KIB])  # there is no lower
    with open(low, "r+b", buffering=0) as file:
        for at in (100 * KIB, 200 * KIB + 1, 500 * KIB):
            file.seek(at)
            file.write(DATA[-128 * KIB :])
    expected = bytearray(DATA[: 300 * KIB].ljust(628 * KIB, b"\0"))
    for at in (100 * KIB, 200 * KIB + 1, 500 * KIB):
        expected[at : at + 128 * KIB] = DATA[-128 * KIB :]
    assert (shown.layer / "low").read_bytes() == bytes(expected)


@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["at the start", "at the end"])
def test_a_lower_file_comes_up_in_between(tmp_path: Path, flags: int) -> None:
    """By a write that is just large enough for the pipe, behind one that was moved through it."""
    layers = Layers(tmp_path)
    for number in range(4):
        (layers.lowers[0] / f"low{number}").write_bytes(b"lower" * 100)
    with (
        layered(layers.lowers, layers.upper, layers.work, *OPTIONS) as mount,
        open(mount.path / "large", "wb", buffering=0) as large,
    ):
        for number in range(4):
            with opened(mount.path / f"low{number}", os.O_WRONLY | flags) as fd:
                large.write(DATA[: 256 * KIB])
                large.write(DATA[: 256 * KIB])
                assert os.write(fd, DATA[number : number + 64 * KIB]) == 64 * KIB
            expected = b"lower" * 100 * bool(flags) + DATA[number : number + 64 * KIB]
            assert (layers.upper / f"low{number}").read_bytes() == expected
        assert (layers.upper / "large").read_bytes() == DATA[: 256 * KIB] * 8


USER = 1000
MODES = (0o666, 0o4777, 0o2777, 0o6777)


def files_of_a_user(at: Path) -> None:
    at.chmod(0o777)
    for name in ("own", "other"):
        (at / name).touch()
        os.chown(at / name, USER, USER)


def written_by_a_user(shown: Path, layer: Path) -> list[int]:
    """The counts of large writes, and the modes after those to a file that has been given set-id bits in the layer. The
    kernel does not know of them yet, and would else ask for capabilities at first: so each of these comes right behind
    another large one."""
    found = []
    with opened(shown / "own", os.O_WRONLY) as own, opened(shown / "other", os.O_WRONLY) as other:
        for mode in MODES:
            for fd in (own, other, other):
                found.append(os.write(fd, DATA[: 256 * KIB]))
            os.chmod(layer / "own", mode)
            for fd in (own, other, own):
                found.append(os.write(fd, DATA[: 256 * KIB]))
                found.append((layer / "own").stat().st_mode)
    return found


def stored(at: Path) -> list[tuple[int, bytes]]:
    return [(path.stat().st_mode, path.read_bytes()) for path in sorted(at.iterdir())]


@pytest.mark.parametrize("kind", ["source", "overlay"])
@pytest.mark.parametrize("way", ["native", "plain Python"])
def test_whoever_may_not_keep_set_id_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    """They go with his writes (FUSE_WRITE_KILL_SUIDGID), as in a plain directory."""
    if way == "plain Python":
        monkeypatch.setenv("SHIFTFS_PURE", "1")
    plain = tmp_path / "plain"
    plain.mkdir()
    layers = Layers(tmp_path)
    for at in (plain, layers.upper):
        files_of_a_user(at)
    expected = in_child(lambda: written_by_a_user(plain, plain), USER)
    with (
        mounted(layers.upper, None, *OPTIONS)
        if kind == "source"
        else layered(layers.lowers, layers.upper, layers.work, *OPTIONS)
    ) as mount:
        assert in_child(lambda: written_by_a_user(mount.path, layers.upper), USER) == expected
        assert stored(layers.upper) == stored(plain)


def test_those_of_a_user_go_through_the_pipe(tmp_path: Path) -> None:
    """But for those that take set-id bits, and the first ones."""
    files_of_a_user(tmp_path)

    def most_are_moved() -> bool:
        before = read_by(mount)
        in_child(lambda: written_by_a_user(mount.path, tmp_path), USER)
        return read_by(mount) - before < len(MODES) * 4 * 256 * KIB

    with mounted(tmp_path, None, *OPTIONS) as mount:
        wait_until(most_are_moved, "a disk that is not busy", LIMIT)


def many_writes(write: Callable[[int, bytes], int], room: int) -> list[int]:
    """The counts of large writes that come to more than the filesystem has, and of small ones after that."""
    counts, at = [], 0
    while at <= room:
        try:
            counts.append(write(at, DATA[: 96 * KIB]))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            break
        at += counts[-1]
    return counts


@pytest.mark.parametrize("kind", ["source", "overlay"])
def test_a_full_disk(kind: str) -> None:
    """A write that there is room for in part has done that, as natively; the next says why not."""
    room = 1000 * KIB
    with small_filesystem(room) as path:
        layers = Layers(path)
        with opened(layers.upper / "native", os.O_RDWR | os.O_CREAT) as fd:
            expected = many_writes(lambda at, data: os.pwrite(fd, data, at), room)
        (layers.upper / "native").unlink()
        with (
            mounted(layers.upper, None, *OPTIONS)
            if kind == "source"
            else layered(layers.lowers, layers.upper, layers.work, *OPTIONS)
        ) as mount:
            with opened(mount.path / "file", os.O_RDWR | os.O_CREAT) as fd:
                found = many_writes(lambda at, data: os.pwrite(fd, data, at), room)
                assert errno_of(lambda: os.pwrite(fd, DATA, room)) == errno.ENOSPC
                assert os.pwrite(fd, b"other", 0) == 5
                assert os.fstat(fd).st_size == sum(found)
            stored = (layers.upper / "file").read_bytes()
            assert found == expected
            assert stored[5:] == (DATA[: 96 * KIB] * len(found))[: sum(found)][5:] and stored[:5] == b"other"


Steps = list[tuple[int, int, int]]
steps = st.lists(
    st.tuples(
        st.integers(0, MOST - MIB),
        st.sampled_from([1, 4095, 65535, 65536, 65537, 131072, 262145, 524288, MIB - 1, MIB]),
        st.integers(0, 255),
    ),
    min_size=2,
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_whatever_is_written_where(shown: Shown, steps: Steps) -> None:
    model = bytearray()
    path = shown.mount.path / "model"
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
        for at, size, value in steps:
            data = bytes([value]) * size
            assert os.pwrite(fd, data, at) == size
            model.extend(bytes(max(0, at + size - len(model))))
            model[at : at + size] = data
        assert os.pread(fd, MOST, 0) == bytes(model)
        os.fsync(fd)
    assert (shown.layer / "model").read_bytes() == bytes(model)
