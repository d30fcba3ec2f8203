"""What is compiled, and its twin in plain Python: the same answers, byte for byte, to the same questions."""

import contextlib
import errno
import gc
import os
import socket
import stat
import struct
import termios
from pathlib import Path
from typing import Any

import pytest

from harness import Layers
from harness.device import Answer, Device, served
from harness.overlaid import Overlay
from harness.twins import INIT, MAPS, all_names, asked, following, in_plain_python, listed, running
from shiftfs import native
from shiftfs.descriptors import Entry
from shiftfs.layer import Layer, list_names
from shiftfs.ops import directories, namespace
from shiftfs.shift.idmap import IDENTITY
from shiftfs.source import SourceTree
from shiftfs.sys import files, handles, xattrs
from shiftfs.tree import Attributes, RealKey
from shiftfs.wire import abi
from shiftfs.wire.abi import Opcode

MANY = 300
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)


def test_it_was_built() -> None:
    """`make test` installs a compiler; were this skipped, nothing below would be tested."""
    assert native.Lane is not None


def fill(directory: Path, prefix: str) -> None:
    """Some of everything."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(MANY):
        (directory / f"{prefix}{number:03}").write_bytes(b"x" * number)
    (directory / f"{prefix}link").symlink_to("anywhere")
    (directory / f"{prefix}directory").mkdir()
    os.mkfifo(directory / f"{prefix}fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(directory / f"{prefix}socket"))
    os.mknod(directory / f"{prefix}null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.link(directory / f"{prefix}000", directory / f"{prefix}hard")
    os.chown(directory / f"{prefix}001", 1234, 2345)
    os.chown(directory / f"{prefix}002", 70_000, 0)
    os.setxattr(directory / f"{prefix}003", "user.overlay.opaque", b"no matter")
    os.setxattr(directory / f"{prefix}004", "user.large", b"v" * 200)
    (directory / (prefix + "n" * (255 - len(prefix)))).touch()
    (directory / os.fsdecode(prefix.encode() + b"\xff\n ")).touch()
    os.utime(directory / f"{prefix}005", ns=(-5_000_000_001, 5_000_000_000_000_000_001))


def source(at: Path) -> Path:
    fill(at / "source" / "d", "f")
    return at / "source"


def layers(at: Path) -> Layers:
    """Names in each layer, in several, and hidden from above in both dialects."""
    made = Layers(at, lowers=3)
    for number, path in enumerate(made.lowers):
        fill(path / "d", f"lower{number}-")
        (path / "d" / "everywhere").write_text(f"lower{number}")
        (path / "d" / "sub").mkdir()
    fill(made.upper / "d", "upper-")
    (made.upper / "d" / "everywhere").write_text("upper")
    os.mknod(made.upper / "d" / "lower0-010", stat.S_IFCHR, 0)
    (made.upper / "d" / ".wh.lower1-011").touch()
    (made.lowers[0] / "d" / ".wh.lower2-012").touch()
    (made.lowers[2] / "d" / ".wh.lower0-013").touch()
    os.setxattr(made.lowers[0] / "d" / "lower0-014", "trusted.overlay.metacopy", b"")
    return made


@pytest.mark.parametrize("ids", MAPS)
def test_the_lane_on_one_directory(tmp_path: Path, ids: str) -> None:
    path = source(tmp_path)
    names = all_names(path / "d")

    def answers() -> list[Answer]:
        layer = Layer(os.fsencode(path))
        tree = SourceTree(layer, 1000)
        with running(tree, MAPS[ids]) as device:
            return asked(device, names)

    with in_plain_python():
        expected = answers()
    assert answers() == expected


@pytest.mark.parametrize("ids", MAPS)
def test_the_lane_on_an_overlay(tmp_path: Path, ids: str) -> None:
    made = layers(tmp_path)
    names = all_names(*(path / "d" for path in (made.upper, *made.lowers)))

    def answers() -> list[Answer]:
        overlay = Overlay(made)
        try:
            with running(overlay.tree, MAPS[ids]) as device:
                return asked(device, names)
        finally:
            overlay.close()
            gc.collect()  # the upper is in use until then

    with in_plain_python():
        expected = answers()
    assert answers() == expected


class Counted(SourceTree):
    lookups = 0

    def lookup(self, directory: Entry, name: bytes) -> tuple[RealKey, Attributes, None]:
        self.lookups += 1
        return super().lookup(directory, name)


def test_most_is_served_by_the_lane(tmp_path: Path) -> None:
    """Else nothing would be compared above."""
    path = tmp_path / "source"
    (path / "d").mkdir(parents=True)
    for number in range(MANY):
        (path / "d" / f"{number}").touch()
    counted = Counted(Layer(os.fsencode(path)), 1000)
    with running(counted, IDENTITY) as device:
        directory = device.look(b"d")
        before = counted.lookups
        for number in range(MANY):
            device.look(b"%d" % number, directory)
        listed(device, directory, 32768)
        assert counted.lookups == before


@pytest.mark.parametrize("kind", ["source", "overlay"])
def test_no_file_is_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Which isatty(3) asks of each file that Python opens."""
    made = layers(tmp_path)
    overlay = Overlay(made)
    tree: Any = overlay.tree if kind == "overlay" else SourceTree(Layer(os.fsencode(made.lowers[0])), 64)

    try:
        with following(tree, IDENTITY) as served_by:
            device, lane = served_by.device, served_by.session._lane
            assert lane is not None

            def asked_of(nodeid: int, request: int, announced: int = 0) -> int:
                return device.ask(Opcode.IOCTL, abi.IOCTL_IN.pack(0, 0, request, 0, announced, 64), nodeid).errno

            directory = device.look(b"d")
            known = [device.look(name, directory) for name in (b"lower0-007", b"lower0-fifo", b"lower0-hard")]
            for nodeid in (*known, directory):
                assert asked_of(nodeid, termios.TCGETS) == asked_of(nodeid, termios.TIOCGWINSZ) == errno.ENOTTY
            assert {opcode: count for opcode, count, *_ in lane.counts()}[Opcode.IOCTL] == 8, "all of that"
            assert asked_of(1 << 40, termios.TCGETS) == errno.ESTALE
            assert asked_of(known[0], termios.TCGETS, announced=4) == errno.EINVAL
            del tree, served_by
    finally:
        overlay.close()


@pytest.mark.parametrize("kind", ["source", "overlay"])
def test_what_was_only_looked_up_has_no_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:  # fmt: skip
    """Which the kernel asks for before the first write."""
    made = layers(tmp_path)
    overlay = Overlay(made)
    tree: Any = overlay.tree if kind == "overlay" else SourceTree(Layer(os.fsencode(made.lowers[0])), 64)
    asks = struct.pack("=II", 100, 0)

    def refuse(*arguments: object) -> bytes:
        raise OSError(errno.EXDEV, "not natively")

    def answers(device: Device, names: list[bytes], attribute: bytes) -> list[int]:
        known = [device.look(name, directory) for name in names]
        return [device.ask(Opcode.GETXATTR, asks + attribute + b"\0", nodeid).errno for nodeid in known]

    try:
        with following(tree, IDENTITY) as served:
            directory = served.device.look(b"d")
            served.device.look(b"absent", directory)  # opens the directory, in all layers
            os.setxattr(made.lowers[0] / "d" / "lower0-007", "security.capability", CAPABILITY)
            monkeypatch.setattr(type(tree), "getxattr", refuse)
            names = [b"lower0-006", b"lower0-007", b"lower0-008"]
            expected = [errno.ENODATA, errno.EXDEV, errno.ENODATA]
            assert answers(served.device, names, b"security.capability") == expected
            path = made.lowers[0] / "d" / "lower0-009"
            nodeid = served.device.look(b"lower0-009", directory)
            path.rename(path.with_name("elsewhere"))
            path.touch()
            unique = served.device.send(Opcode.GETXATTR, asks + b"security.capability\0", nodeid)
            while (answer := served.device.receive_any()).unique != unique:
                pass  # the news of it
            assert answer.errno == errno.EXDEV, "another has its name"
            del tree
    finally:
        overlay.close()


@pytest.mark.parametrize("kind", ["source", "overlay"])
def test_an_inode_gets_its_entry_when_it_is_asked_for(tmp_path: Path, kind: str) -> None:
    made = layers(tmp_path)
    overlay = Overlay(made)
    tree: Any = overlay.tree if kind == "overlay" else SourceTree(Layer(os.fsencode(made.lowers[0])), 64)
    try:
        with running(tree, IDENTITY) as device:
            directory = device.look(b"d")
            device.look(b"lower0-001", directory)
            nodeid = device.look(b"lower0-007", directory)
            answer = device.ask(Opcode.GETATTR, struct.pack("=IIQ", 0, 0, 0), nodeid)
            assert answer.errno == 0 and struct.unpack_from("=Q", answer.payload, 24)[0] == 7
            assert device.ask(Opcode.READLINK, b"", device.look(b"lower0-link", directory)).payload == b"anywhere"
    finally:
        overlay.close()


def test_looks(tmp_path: Path) -> None:
    directory = os.open(source(tmp_path) / "d", os.O_PATH)
    layer = Layer(os.fsencode(tmp_path / "source"))
    layer.look(directory, b"")  # the device is known from here on
    try:
        for name in [b"", b"absent", *all_names(tmp_path / "source" / "d")]:
            seen = layer.find(directory, name)
            with in_plain_python():
                assert layer.find(directory, name) == seen
                assert type(seen and seen[1]) is type(layer.find(directory, name) and layer.look(directory, name)[1])
            assert (seen is None) is (name == b"absent")
    finally:
        os.close(directory)


def test_calls(tmp_path: Path) -> None:
    path = source(tmp_path) / "d"
    directory = os.open(path, os.O_RDONLY)

    def results() -> list[object]:
        names = all_names(path)
        return [
            files.list_directory(directory),
            list_names(directory),
            [xattrs.names(directory, name) for name in names],
            [handles.of(directory, name) for name in [b"", *names]],
            [handles.identity(directory, name) for name in [b"", *names]],
        ]

    try:
        with in_plain_python():
            expected = results()
        assert results() == expected
    finally:
        os.close(directory)


@pytest.mark.parametrize("what", ["list_directory", "list_attributes"])
def test_calls_that_fail(tmp_path: Path, what: str) -> None:
    file = os.open(tmp_path, os.O_RDONLY)
    os.close(file)
    for serving in (in_plain_python, contextlib.nullcontext):
        with serving(), pytest.raises(OSError) as failed:
            files.list_directory(file) if what == "list_directory" else xattrs.names(file, b"x")
        assert failed.value.errno == errno.EBADF


@pytest.mark.parametrize("kind", ["source", "overlay"])
def test_rows(tmp_path: Path, kind: str) -> None:
    """Of directories that have nothing but what is plain, natively; of others it is None, and Python makes them."""
    made = Layers(tmp_path, lowers=2)
    for number, path in enumerate(made.lowers):
        (path / "d" / "common").mkdir(parents=True)
        for name in range(MANY):
            (path / "d" / f"{number}-{name}").touch()
    overlay = Overlay(made)
    tree: Any = overlay.tree if kind == "overlay" else SourceTree(Layer(os.fsencode(made.lowers[0])), 64)
    try:
        key, _, place = tree.lookup(tree.root, b"d")
        entry = tree.entry(tree.root, b"d", key, place)
        parts = tree.plain_parts(tree.held(entry))
        rows = native.rows(*parts)
        assert list(rows) == directories._sorted(tree.listing(tree.held(entry)))
        assert len(rows) == (2 * MANY + 1 if kind == "overlay" else MANY + 1)
        os.mknod(made.lowers[0] / "d" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert (native.rows(*parts) is None) is (kind == "overlay")
    finally:
        overlay.close()


def test_an_entry_of_what_was_found_in_a_directory_is_beneath_it(tmp_path: Path) -> None:
    layer = Layer(os.fsencode(tmp_path))
    tree = SourceTree(layer, 64)
    made: Entry = tree.root.entry_of(tree.root, b"name", (1, 2, 3, 8))
    assert (made.parent, made.name, made.key) == (tree.root, b"name", (1, 2, 3, 8))


def test_a_directory_is_looked_at_again_after_what_is_special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be made of others by then, or not be followed any more."""
    monkeypatch.setattr(directories, "with_attributes", lambda ctx, inode, row: setattr(inode, "watch", None))
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / "special")
    for name in ("first", "file"):
        (tmp_path / "d" / name).touch()
    with following(SourceTree(Layer(os.fsencode(tmp_path)), 64), IDENTITY) as made:
        directory = made.device.look(b"d")
        made.device.look(b"first", directory)  # opens the directory
        inode, lane = made.session.context.inodes.get(directory), made.session.context.lane
        assert lane is not None
        file, special = (3, b"file", 0, 8), (4, b"special", 0, 1)
        assert lane.pack(inode, [file], 0, 4096) != b""
        assert lane.pack(inode, [special, file], 0, 4096) == b""


def test_a_fault_while_forgetting_drops_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handlers get the request from its start."""
    dropped: list[tuple[int, int]] = []

    def drop(ctx: object, nodeid: int, count: int) -> None:
        dropped.append((nodeid, count))
        if len(dropped) == 2:
            raise RuntimeError("a fault")

    monkeypatch.setattr(namespace, "drop", drop)
    with following(SourceTree(Layer(os.fsencode(source(tmp_path))), 64), IDENTITY) as made:
        directory = made.device.look(b"d")
        known = [made.device.look(b"f%03d" % number, directory) for number in (1, 2, 3, 1, 2, 3)][:3]
        items = b"".join(struct.pack("=QQ", nodeid, 1) for nodeid in known)
        made.device.send(Opcode.BATCH_FORGET, struct.pack("=II", 3, 0) + items, 0)
        made.device.look(b"f001", directory)
        assert made.session._lane is None and "a fault" in made.log[0]
    assert dropped == [(known[0], 1), (known[1], 1), (known[0], 0), (known[1], 0), (known[2], 1)]


class FaultyLane:
    """Fails at the first request that it has read."""

    def __init__(self, fd: int, buffer: bytearray) -> None:
        self._fd, self._buffer = fd, buffer

    def serve(self) -> int:
        os.readv(self._fd, (self._buffer,))
        raise RuntimeError("a fault")

    def counts(self) -> list[tuple[int, int, int, int, int]]:
        return []

    def others(self) -> list[int]:
        return []

    def answered(self) -> bool:
        return False

    def pack(self, *what: Any) -> bytearray:
        raise RuntimeError("a fault")


def test_a_fault_of_native_code_costs_nothing_but_itself(tmp_path: Path) -> None:
    """Nor the request at which it shows: the handlers serve that, and all others."""
    path = source(tmp_path)
    with served(SourceTree(Layer(os.fsencode(path)), 64), trace=None) as made:
        assert made.device.ask(Opcode.INIT, INIT).errno == 0
        made.device.expect_nothing()
        made.session._lane = FaultyLane(made.device.fd, made.session._buffers.present)
        directory = made.device.look(b"d")
        assert made.session._lane is None
        made.device.look(b"f001", directory)
        assert "native code failed" in made.log[0] and "a fault" in made.log[0]
