"""Reading and writing natively, and in plain Python: the same answers to the same questions, and the same files."""

import errno
import fcntl
import gc
import os
import signal
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Layers
from harness.bodies import reading, setting
from harness.device import ENTRY_NODEID, LIMIT, MAX_WRITE, Answer, Served
from harness.overlaid import Overlay
from harness.twins import following, in_plain_python
from shiftfs.layer import Layer
from shiftfs.ops.handles import OpenFile
from shiftfs.shift.idmap import IDENTITY
from shiftfs.source import SourceTree
from shiftfs.tree import Descriptor, Gate, Tree
from shiftfs.wire.abi import Fattr, Opcode, WriteFlag

KINDS = ["source", "overlay"]
SIZES = {b"empty": 0, b"small": 100, b"page": 4096, b"large": 3 * MAX_WRITE + 17}
FAR = 1 << 62
RANGES = ((0, 4096), (0, MAX_WRITE), (50, 10), (4096, 4096), (0, 0), (FAR, 10), (-1, 10), (0, 0xFFFFFFFF))
"""Offsets and sizes."""


def content(size: int, seed: int = 1) -> bytes:
    return bytes((number * seed >> 3) & 0xFF for number in range(size))


def writing(data: bytes, offset: int = 0, flags: int = os.O_WRONLY, write_flags: int = 0, fh: int = 0) -> bytes:
    return struct.pack("=QqIIQII", fh, offset, len(data), write_flags, 0, flags, 0) + data


def fill(at: Path) -> Layers:
    """The same in the upper as in a lower layer, under other names."""
    made = Layers(at, lowers=2)
    for prefix, path in ((b"", made.upper), (b"lower-", made.lowers[1])):
        (path / "d").mkdir(parents=True)
        for name, size in SIZES.items():
            (path / "d" / os.fsdecode(prefix + name)).write_bytes(content(size))
    (made.upper / "d" / "directory").mkdir()
    return made


def source(path: Path) -> Tree:
    return SourceTree(Layer(os.fsencode(path)), 1000)


@contextmanager
def serving(at: Path, kind: str) -> Iterator[Served]:
    """A session with fresh layers, or with their upper alone."""
    at.mkdir()
    made = fill(at)
    overlay = Overlay(made) if kind == "overlay" else None
    try:
        with following(overlay.tree if overlay else source(made.upper), IDENTITY) as session:
            yield session
        del session
    finally:
        if overlay is not None:
            overlay.close()
        gc.collect()  # the layers are in use until then


def asked(device: Any, prefixes: list[bytes]) -> list[Answer]:
    """All that a kernel may ask, and some that none does."""
    directory = device.look(b"d")
    nodes = [device.look(prefix + name, directory) for prefix in prefixes for name in SIZES]
    answers = []

    def read_all() -> None:
        for nodeid in [*nodes, directory, 999_999]:
            for offset, size in RANGES:
                answers.append(device.ask(Opcode.READ, reading(offset, size), nodeid))
        answers.append(device.ask(Opcode.READ, reading()[:-1], nodes[0]))

    def write_all(data: bytes) -> None:
        for nodeid in [*nodes, directory, 999_999]:
            for offset in (0, 10, 5000, -1):
                answers.append(device.ask(Opcode.WRITE, writing(data, offset), nodeid))
            answers.append(device.ask(Opcode.WRITE, writing(data, 7, os.O_WRONLY | os.O_DSYNC), nodeid))
            answers.append(device.ask(Opcode.WRITE, writing(data, 0, os.O_WRONLY | os.O_SYNC), nodeid))
            cached = writing(data, 3, os.O_WRONLY | os.O_APPEND, int(WriteFlag.CACHE))
            answers.append(device.ask(Opcode.WRITE, cached, nodeid))
            answers.append(device.ask(Opcode.WRITE, writing(data, 20, write_flags=int(WriteFlag.KILL_SUIDGID)), nodeid))
        answers.append(device.ask(Opcode.WRITE, writing(data) + b"x", nodes[0]))
        answers.append(device.ask(Opcode.WRITE, writing(b""), nodes[0]))

    read_all()
    read_all()
    write_all(b"some data")
    read_all()
    write_all(content(MAX_WRITE, 7))
    read_all()
    return answers


@pytest.mark.parametrize("is_busy", [False, True], ids=["a disk at rest", "a busy disk"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_files_are_the_same(tmp_path: Path, kind: str, is_busy: bool) -> None:
    """Where the disk is busy threads write natively, and workers in plain Python."""
    prefixes = [b""] if kind == "source" else [b"", b"lower-"]

    def outcome(at: Path) -> tuple[list[Answer], dict[str, bytes]]:
        with serving(at, kind) as made:
            if is_busy:
                context = made.session.context
                context.slow_until[context.inodes.root.key[0]] = time.monotonic() + 1000
            answers = asked(made.device, prefixes)
        return answers, {path.name: path.read_bytes() for path in (at / "upper" / "d").iterdir() if path.is_file()}

    with in_plain_python():
        expected = outcome(tmp_path / "python")
    assert outcome(tmp_path / "native") == expected
    assert len(expected[1]) == len(SIZES) * len(prefixes)


@pytest.fixture(params=KINDS)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "at", request.param) as made:
        yield made
    vars(made).clear()  # pytest holds it longer than it may hold descriptors
    gc.collect()


@pytest.fixture
def nodeid(served: Served) -> int:
    """A file that is open for reading and writing."""
    found = served.device.look(b"small", served.device.look(b"d"))
    assert served.device.ask(Opcode.WRITE, writing(b"0"), found).errno == 0
    served.session.context.slow_until.clear()  # the machine may be busy
    return found


@pytest.fixture
def handled(served: Served, nodeid: int) -> list[int]:
    """The opcodes that the handlers get from here on."""
    got: list[int] = []
    handlers = served.session._handlers

    def noted(opcode: int) -> Callable[[Any, Any, Any], Any]:
        def handler(ctx: Any, header: Any, request: Any) -> Any:
            got.append(opcode)
            return handlers[opcode](ctx, header, request)

        return handler

    served.session._handlers = {
        **handlers,
        **{opcode: noted(opcode) for opcode in (Opcode.READ, Opcode.WRITE, Opcode.GETATTR)},
    }
    return got


def test_what_is_plain_is_served_natively(served: Served, nodeid: int, handled: list[int]) -> None:
    for number in range(20):
        data = b"%d" % number
        written = served.device.ask(Opcode.WRITE, writing(data, number), nodeid)
        assert (written.errno, written.payload) == (0, struct.pack("=II", len(data), 0))
        assert served.device.ask(Opcode.READ, reading(number, len(data)), nodeid).payload == data
        served.session.context.slow_until.clear()  # the machine may be busy
    assert handled == []
    counters = served.session.counters
    assert (counters[Opcode.READ].count, counters[Opcode.WRITE].count) == (20, 21)


@pytest.mark.parametrize(
    ("mode", "kept", "by"), [(0o755, 0o755, []), (0o6755, 0o755, [Opcode.WRITE]), (0o2644, 0o2644, [Opcode.WRITE])]
)
def test_set_id_bits_go_with_what_somebody_writes(
    served: Served, nodeid: int, handled: list[int], tmp_path: Path, mode: int, kept: int, by: list[int]
) -> None:
    """Whoever is nobody's root is said to be so with each write: it is plain where the file has no such bits."""
    assert served.device.ask(Opcode.SETATTR, setting(Fattr.MODE, mode=stat.S_IFREG | mode), nodeid).errno == 0
    asked = writing(b"1", write_flags=int(WriteFlag.KILL_SUIDGID))
    assert served.device.ask(Opcode.WRITE, asked, nodeid).payload == struct.pack("=II", 1, 0)
    assert stat.S_IMODE((tmp_path / "at" / "upper" / "d" / "small").stat().st_mode) == kept
    assert handled == by


def test_a_writer_is_closed_a_while_after_its_last_write(served: Served, nodeid: int) -> None:
    context: Any = served.session.context
    writers = context.tree.plain().writers
    ((entry, before),) = writers.items()
    served.device.ask(Opcode.READ, reading(), nodeid)
    assert writers == {entry: before}
    assert served.device.ask(Opcode.WRITE, writing(b"1"), nodeid).errno == 0
    assert before < writers[entry] <= time.monotonic()
    assert context.tree.tidy(before + 1.0) and entry.data is not None
    assert not context.tree.tidy(writers[entry] + 1.0) and entry.data is None
    assert served.device.ask(Opcode.WRITE, writing(b"2"), nodeid).errno == 0


def viewed(context: Any, inode: Any) -> None:
    context.live.viewed[b"name"] = None


SPECIAL: dict[str, tuple[Callable[[Any, Any], None], list[int]]] = {
    "a name is shown differently": (viewed, [Opcode.READ, Opcode.WRITE]),
}


def test_a_file_that_is_used_is_found_natively(served: Served, nodeid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel looks for whatever a rename is to replace, known or not; until it is somewhere else."""
    directory = served.device.look(b"d")
    handlers, handled = served.session._handlers, []

    def look(ctx: Any, header: Any, request: Any) -> Any:
        handled.append(request.name)
        return handlers[Opcode.LOOKUP](ctx, header, request)

    monkeypatch.setattr(served.session, "_handlers", {**handlers, Opcode.LOOKUP: look})
    natively = served.device.ask(Opcode.LOOKUP, b"small\0", directory)
    assert (natively.errno, handled) == (0, [])
    assert ENTRY_NODEID.unpack_from(natively.payload)[0] == nodeid
    entry = served.session.context.inodes.get(nodeid).entry
    real = next(iter(getattr(entry, "reals", (entry,))))
    real.name = b"another"
    by_handler = served.device.ask(Opcode.LOOKUP, b"small\0", directory)
    assert handled == [b"small"]
    assert by_handler.payload == natively.payload


@pytest.mark.parametrize("why", SPECIAL)
def test_what_is_special_is_left_to_the_handlers(served: Served, nodeid: int, handled: list[int], why: str) -> None:
    context: Any = served.session.context
    prepare, expected = SPECIAL[why]
    prepare(context, context.inodes.get(nodeid))
    try:
        assert served.device.ask(Opcode.READ, reading(0, 1), nodeid).payload == b"0"
        assert served.device.ask(Opcode.WRITE, writing(b"1"), nodeid).errno == 0
    finally:
        context.live.viewed.clear()
    assert handled == expected


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC])
def test_writes_that_ask_for_more_are_the_handlers(served: Served, nodeid: int, handled: list[int], flags: int) -> None:
    assert served.device.ask(Opcode.WRITE, writing(b"1", 100, os.O_WRONLY | flags), nodeid).errno == 0
    assert handled == [Opcode.WRITE]


def test_what_is_appended_goes_to_the_end_of_the_layers_file(
    served: Served, nodeid: int, handled: list[int], tmp_path: Path
) -> None:
    """The kernel is told, where that is another than it thought."""
    path = tmp_path / "at/upper/d/small"
    size = path.stat().st_size
    assert served.device.ask(Opcode.WRITE, writing(b"one", size, os.O_APPEND), nodeid).errno == 0
    served.device.expect_nothing()
    served.session.context.slow_until.clear()  # the machine may be busy
    unique = served.device.send(Opcode.WRITE, writing(b"two", 5, os.O_APPEND), nodeid)
    answers = [served.device.receive_any(), served.device.receive_any()]
    notice = next(one for one in answers if one.unique == 0)
    assert next(one for one in answers if one.unique == unique).errno == 0
    assert struct.unpack_from("=Q", notice.payload) == (nodeid,)
    assert path.read_bytes()[size:] == b"onetwo"
    served.session.context.slow_until.clear()  # the machine may be busy
    cached = writing(b"0", 0, os.O_WRONLY | os.O_APPEND, int(WriteFlag.CACHE))  # the kernel's pages, as they are
    assert served.device.ask(Opcode.WRITE, cached, nodeid).errno == 0
    assert path.stat().st_size == size + 6
    assert handled == []


@pytest.mark.parametrize("is_own", [False, True])
def test_an_open_file_with_a_descriptor_of_its_own_is_the_handlers(
    served: Served, nodeid: int, handled: list[int], tmp_path: Path, is_own: bool
) -> None:
    (tmp_path / "own").write_bytes(b"its own")
    own = Descriptor(os.open(tmp_path / "own", os.O_RDONLY), os.close) if is_own else None
    served.session.context.handles[5] = OpenFile(own, None, writable=False)
    body = struct.pack("=Q", 5) + reading(0, 1)[8:]
    assert served.device.ask(Opcode.READ, body, nodeid).payload == (b"i" if is_own else b"0")
    assert handled == ([Opcode.READ] if is_own else [])


def test_the_agents_requests_are_the_handlers(served: Served, nodeid: int, handled: list[int]) -> None:
    served.session.agents[77] = lambda header, request: None
    served.device.ask(Opcode.READ, reading(), nodeid, pid=77)
    served.device.ask(Opcode.WRITE, writing(b"1"), nodeid, pid=77)
    served.device.ask(Opcode.READ, reading(), nodeid, pid=78)
    assert handled == [Opcode.READ, Opcode.WRITE]


def opened(entry: Any) -> Any:
    """What an entry has of the real inode with its content."""
    return entry if not hasattr(entry, "lowers") else entry.upper or entry.lowers[-1]


def test_a_file_is_opened_natively_at_the_first_read(served: Served, nodeid: int, handled: list[int]) -> None:
    large = served.device.look(b"large", served.device.look(b"d"))
    before = served.session.context.tree.descriptors()
    assert served.device.ask(Opcode.READ, reading(0, 10), large).payload == content(10)
    real = opened(served.session.context.inodes.get(large).entry)
    assert (real.path, real.data.writable) == (None, False)
    assert served.session.context.tree.descriptors() == {**before, "data": before["data"] + 1}
    assert served.device.ask(Opcode.READ, reading(10, 10), large).payload == content(20)[10:]
    assert served.device.ask(Opcode.GETATTR, struct.pack("=IIQ", 0, 0, 0), large).errno == 0
    assert handled == [] and real.path is None, "what is open of it does for its attributes, too"


@pytest.mark.parametrize("is_read_before", [False, True])
def test_a_file_is_opened_natively_at_the_first_write(
    served: Served, nodeid: int, handled: list[int], is_read_before: bool
) -> None:
    page = served.device.look(b"page", served.device.look(b"d"))
    if is_read_before:
        served.device.ask(Opcode.READ, reading(0, 10), page)
    context: Any = served.session.context
    assert served.device.ask(Opcode.WRITE, writing(b"new"), page).errno == 0
    assert served.device.ask(Opcode.READ, reading(0, 5), page).payload == b"new" + content(5)[3:]
    real = opened(context.inodes.get(page).entry)
    assert (real.path, real.data.writable) == (None, True)
    assert real in context.tree.plain().writers and handled == []
    held = context.tree.descriptors()
    assert held["data"] == 2, "of this one, and of the fixture's"


def test_a_name_that_leads_to_another_inode_is_not_read(
    served: Served, nodeid: int, handled: list[int], tmp_path: Path
) -> None:
    page = served.device.look(b"page", served.device.look(b"d"))
    (tmp_path / "another").write_bytes(b"another")
    os.rename(tmp_path / "another", tmp_path / "at" / "upper" / "d" / "page")
    answers: list[Answer] = []
    unique = served.device.send(Opcode.READ, reading(0, 10), page)
    while not answers or answers[-1].unique != unique:  # notices of the change may come before
        answers.append(served.device.receive_any())
    assert answers[-1].errno == errno.ESTALE and handled == [Opcode.READ]


def test_beneath_a_directory_that_is_not_open_the_handlers_find_it(
    served: Served, nodeid: int, handled: list[int]
) -> None:
    page = served.device.look(b"page", served.device.look(b"d"))
    real = opened(served.session.context.inodes.get(page).entry)
    real.parent.path = None
    assert served.device.ask(Opcode.READ, reading(0, 10), page).payload == content(10)
    assert handled == [Opcode.READ] and real.parent.path is not None


def test_a_lease_on_the_layer_is_waited_for_by_the_handlers(
    served: Served, nodeid: int, handled: list[int], tmp_path: Path
) -> None:
    page = served.device.look(b"page", served.device.look(b"d"))
    signals = signal.signal(signal.SIGIO, signal.SIG_IGN)
    file = os.open(tmp_path / "at" / "upper" / "d" / "page", os.O_RDWR)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        unique = served.device.send(Opcode.READ, reading(0, 10), page)
        served.device.expect_nothing()
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert served.device.receive() == (unique, 0, content(10))
    finally:
        os.close(file)
        signal.signal(signal.SIGIO, signals)
    assert handled == [Opcode.READ]


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.WRITE])
def test_what_somebody_listens_to_is_not_served_natively(served: Served, nodeid: int, opcode: int) -> None:
    heard: list[int] = []

    def wrapping(handlers: dict[int, Any]) -> dict[int, Any]:
        def handler(ctx: Any, header: Any, request: Any) -> Any:
            heard.append(header.opcode)
            return handlers[opcode](ctx, header, request)

        return {**handlers, opcode: handler}

    is_wrapped = threading.Event()

    def wrap(result: Any, error: BaseException | None) -> None:
        served.session.wrap(wrapping)
        is_wrapped.set()

    served.session.submit(lambda: None, wrap)  # where nothing else is served meanwhile
    assert is_wrapped.wait(10)
    assert served.session.context.lane is not None
    served.device.ask(Opcode.READ, reading(), nodeid)
    served.device.ask(Opcode.WRITE, writing(b"1"), nodeid)
    assert heard == [opcode]


def test_a_slow_write_leaves_the_next_ones_to_threads(served: Served, nodeid: int, tmp_path: Path) -> None:
    """It waits for somebody who holds the inode on the layer."""
    context = served.session.context
    much, stop = bytes(1 << 27), threading.Event()
    file = os.open(tmp_path / "at" / "upper" / "d" / "small", os.O_WRONLY)

    def write_much() -> None:
        while not stop.is_set():
            os.pwrite(file, much, 4096)

    other = threading.Thread(target=write_much)
    other.start()
    try:
        until = time.monotonic() + LIMIT
        while not context.slow_until and time.monotonic() < until:
            assert served.device.ask(Opcode.WRITE, writing(b"1"), nodeid).errno == 0
        assert list(context.slow_until) == [context.inodes.get(nodeid).key[0]]
    finally:
        stop.set()
        other.join(LIMIT)
        os.close(file)


def test_a_file_that_is_being_copied_up_is_not_written_to(tmp_path: Path) -> None:
    with serving(tmp_path / "at", "overlay") as made:
        nodeid = made.device.look(b"small", made.device.look(b"d"))
        assert made.device.ask(Opcode.WRITE, writing(b"0"), nodeid).errno == 0
        entry = made.session.context.inodes.get(nodeid).entry
        entry.gate = gate = Gate()
        unique = made.device.send(Opcode.WRITE, writing(b"1"), nodeid)
        assert made.device.ask(Opcode.READ, reading(0, 1), nodeid).payload == b"0"
        entry.gate = None
        made.session.submit(lambda: None, lambda result, error: gate.open())
        assert made.device.receive()[:2] == (unique, 0)
        assert made.device.ask(Opcode.READ, reading(0, 1), nodeid).payload == b"1"


def test_a_copy_up_changes_what_is_read(tmp_path: Path) -> None:
    """The descriptor is the one that the inode has now."""
    with serving(tmp_path / "at", "overlay") as made:
        nodeid = made.device.look(b"lower-large", made.device.look(b"d"))
        before = made.device.ask(Opcode.READ, reading(0, 10), nodeid).payload
        assert made.device.ask(Opcode.READ, reading(0, 10), nodeid).payload == before == content(10)
        assert made.device.ask(Opcode.WRITE, writing(b"x"), nodeid).errno == 0
        assert made.device.ask(Opcode.READ, reading(0, 10), nodeid).payload == b"x" + before[1:]
        assert (tmp_path / "at" / "lower1" / "d" / "lower-large").read_bytes()[:10] == before


def test_what_we_write_is_no_event(served: Served, nodeid: int) -> None:
    """MODIFY and CLOSE_WRITE, by way of our own copy of the layer's mounts; others come by another."""
    context: Any = served.session.context
    (watcher,) = context.live._watchers.descriptors
    layer = context.tree.path(context.inodes.root.entry).fd
    mount = next(
        line.split()[1] for line in Path(f"/proc/self/fdinfo/{layer}").read_text().splitlines() if "mnt_id" in line
    )
    marks = Path(f"/proc/self/fdinfo/{watcher}").read_text().splitlines()
    assert [line.split()[-1] for line in marks if f"mnt_id:{int(mount):x} " in line] == ["ignored_mask:a"]
