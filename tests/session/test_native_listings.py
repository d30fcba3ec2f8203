"""Listings of plain directories, which the lane makes and tells: byte for byte those of plain Python."""

import errno
import gc
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness import Layers
from harness.device import Answer, Device, Served
from harness.overlaid import Overlay
from harness.twins import MAPS, following, in_plain_python
from shiftfs import native
from shiftfs.layer import Layer
from shiftfs.ops import directories
from shiftfs.shift.idmap import IDENTITY
from shiftfs.source import SourceTree
from shiftfs.tree import Tree
from shiftfs.wire.abi import ROOT_ID, Opcode

SIZES = (0, 24, 50, 160, 330, 700, 4096, 65536)
LONG = 250
PLUS = 128


class Row(NamedTuple):
    name: bytes
    number: int
    cookie: int
    kind: int


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets of requests that come to the handlers."""
    offsets: list[int] = []
    answer = directories._answer

    def noted(ctx: Any, inode: Any, request: Any, plus: bool) -> Any:
        offsets.append(request.offset)
        return answer(ctx, inode, request, plus)

    monkeypatch.setattr(directories, "_answer", noted)
    return offsets


def ask(device: Device, nodeid: int, offset: int, size: int, plus: bool) -> Answer:
    opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
    return device.ask(opcode, struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0), nodeid)


def rows(payload: bytes, plus: bool) -> Iterator[Row]:
    at = 0
    while at < len(payload):
        at += PLUS if plus else 0
        number, cookie, length, kind = struct.unpack_from("=QQII", payload, at)
        yield Row(payload[at + 24 : at + 24 + length], number, cookie, kind)
        at += 24 + length + 7 & ~7


def to_the_end(device: Device, nodeid: int, size: int, plus: bool, offset: int = 0) -> list[Answer]:
    """Up to the first answer without a name."""
    answers = []
    while True:
        answers.append(ask(device, nodeid, offset, size, plus))
        found = list(rows(answers[-1].payload, plus))
        if answers[-1].errno or not found:
            return answers
        offset = found[-1].cookie


def names(answers: list[Answer], plus: bool) -> list[bytes]:
    return [row.name for answer in answers for row in rows(answer.payload, plus)]


def layers_of_all_kinds(at: Path) -> Layers:
    made = Layers(at, lowers=2)
    for path in (made.upper, *made.lowers):
        alone = path / "d" / f"{path.name}-alone"
        for name in ("plain", "empty", "special", "hiding", "impure", "moved-in/sub"):
            (alone / name).mkdir(parents=True)
        for number in range(40):
            (alone / "plain" / f"{number}-{'x' * (number * 7 % 90)}").touch(0o640)
        (alone / "plain" / "sub").mkdir()
        (alone / "plain" / "link").symlink_to("target")
        os.mkfifo(alone / "special" / "fifo")
        os.mknod(alone / "special" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (alone / "special" / "one").touch()
        os.link(alone / "special" / "one", alone / "special" / "two")
        (alone / "hiding" / "file").touch()
        (alone / "hiding" / ".wh.other").touch()
        os.mknod(alone / "hiding" / "whiteout", stat.S_IFCHR, 0)
        (alone / "impure" / "file").touch()
        os.setxattr(alone / "impure", "trusted.overlay.impure", b"y")
        (path / "d" / "merged" / path.name).mkdir(parents=True)
        (path / "d" / "merged" / "common").mkdir()
    return made


def directories_below(device: Device, nodeid: int) -> list[int]:
    """All, and the one itself, in one order."""
    found = [nodeid]
    listed = [row for answer in to_the_end(device, nodeid, 4096, False) for row in rows(answer.payload, False)]
    for row in sorted(listed):
        if row.kind == stat.S_IFDIR >> 12 and row.name not in (b".", b".."):
            found += directories_below(device, device.look(row.name, nodeid))
    return found


def remembered(served: Served) -> list[object]:
    """What listing has left behind: inodes with their lookup counts, what is kept of listings, and when entries were
    listed."""
    ctx = served.session.context
    is_layered = ctx.tree.layered
    return [
        (inode.nodeid, inode.nlookup, sorted(inode.children or ()), [one[1:] for one in listed_of(inode, is_layered)])
        for inode in ctx.inodes.all()
    ] + [len(ctx.listings), ctx.listings.names]


def listed_of(inode: Any, is_layered: bool) -> tuple[Any, ...]:
    return (inode.entry.listed or ()) if is_layered and inode.is_directory else ()


def everything(tree: Tree, ids: str) -> tuple[list[Answer], list[object]]:
    with following(tree, MAPS[ids]) as served:
        device = served.device
        answers = []
        for nodeid in directories_below(device, device.look(b"d")):
            for plus in (False, True):
                for size in SIZES:
                    answers += to_the_end(device, nodeid, size, plus)
                answers += to_the_end(device, nodeid, 4096, plus, offset=1)
                answers += to_the_end(device, nodeid, 4096, plus, offset=2)
                answers.append(ask(device, nodeid, 1 << 61, 4096, plus))
                answers.append(ask(device, nodeid, (1 << 64) - 1, 4096, plus))
                answers.append(ask(device, nodeid, 0, 700, plus))  # nobody reads on
        return answers, remembered(served)


@pytest.mark.parametrize("ghost", ["keep", "drop"])
@pytest.mark.parametrize("ids", MAPS)
def test_listings_of_an_overlay(tmp_path: Path, ids: str, ghost: str) -> None:
    made = layers_of_all_kinds(tmp_path)

    def found() -> tuple[list[Answer], list[object]]:
        overlay = Overlay(made, ghost=ghost)
        try:
            return everything(overlay.tree, ids)
        finally:
            overlay.close()
            gc.collect()  # the upper is in use until then

    with in_plain_python():
        expected = found()
    assert found() == expected


@pytest.mark.parametrize("ids", MAPS)
def test_listings_of_a_single_layer(tmp_path: Path, ids: str) -> None:
    lower = layers_of_all_kinds(tmp_path).lowers[0]

    def found() -> tuple[list[Answer], list[object]]:
        return everything(SourceTree(Layer(os.fsencode(lower)), 64), ids)

    with in_plain_python():
        expected = found()
    assert found() == expected


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    made = Overlay(layers_of_all_kinds(tmp_path))
    yield made
    made.close()
    gc.collect()


def look_up(device: Device, path: str) -> int:
    nodeid = ROOT_ID
    for name in path.split("/"):
        nodeid = device.look(os.fsencode(name), nodeid)
    return nodeid


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("path", ["d/lower0-alone/plain", "d/upper-alone/plain", "d/lower1-alone/empty"])
def test_a_directory_that_one_layer_has_is_the_lanes(
    overlay: Overlay, handled: list[int], path: str, plus: bool
) -> None:
    with following(overlay.tree, IDENTITY) as served:
        nodeid = look_up(served.device, path)
        assert len(names(to_the_end(served.device, nodeid, 700, plus), plus)) == (2 if "empty" in path else 44)
        assert len(served.session.context.listings) == 0, "read to the end, it is let go"
    assert handled == []


@pytest.mark.parametrize("path", ["d/merged", "d/lower0-alone/hiding"])
def test_what_may_hide_something_is_the_handlers(overlay: Overlay, handled: list[int], path: str) -> None:
    with following(overlay.tree, IDENTITY) as served:
        to_the_end(served.device, look_up(served.device, path), 4096, True)
    assert handled[0] == 0


def test_numbers_that_have_to_be_looked_up_are_the_handlers(overlay: Overlay, handled: list[int]) -> None:
    with following(overlay.tree, IDENTITY) as served:
        nodeid = look_up(served.device, "d/upper-alone/impure")
        answers = to_the_end(served.device, nodeid, 4096, False)
        assert handled[0] == 0
        handled.clear()
        to_the_end(served.device, nodeid, 4096, True)
        assert handled == [], "all are looked up there"
    number = os.stat(overlay_upper(overlay) / "d/upper-alone/impure/file").st_ino
    assert (b"file", number) in [(row.name, row.number) for answer in answers for row in rows(answer.payload, False)]


def overlay_upper(overlay: Overlay) -> Path:
    return Path(os.fsdecode(overlay.tree._layers.layers[0].path))


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("begins", ["the lane", "the handlers"])
def test_either_goes_on_with_what_the_other_has_begun(
    overlay: Overlay, handled: list[int], begins: str, plus: bool
) -> None:
    with following(overlay.tree, IDENTITY) as served:
        live = served.session.context.live
        assert live is not None
        nodeid = look_up(served.device, "d/lower0-alone/plain")
        seen: list[bytes] = []
        offset, turn = 0, begins
        while True:
            live.viewed.clear()
            if turn == "the handlers":
                live.viewed[None] = None
            answer = ask(served.device, nodeid, offset, 700 if plus else 200, plus)
            found = list(rows(answer.payload, plus))
            if not found:
                break
            seen += [row.name for row in found]
            offset, turn = found[-1].cookie, "the lane" if turn == "the handlers" else "the handlers"
        live.viewed.clear()
        whole = names(to_the_end(served.device, nodeid, 4096, plus), plus)
    assert seen == whole and len(whole) == 44
    assert len(handled) > 2


@pytest.mark.parametrize("name", [b"fifo", b"one"])
def test_what_has_been_adopted_is_told_before_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    """Else the kernel would never forget it."""
    lower = layers_of_all_kinds(tmp_path).lowers[0]
    pack = directories.with_attributes

    def failing(ctx: Any, inode: Any, row: Any) -> bytes | None:
        if row[1] == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pack(ctx, inode, row)

    monkeypatch.setattr(directories, "with_attributes", failing)

    def found() -> list[object]:
        with following(SourceTree(Layer(os.fsencode(lower)), 64), IDENTITY) as served:
            nodeid = look_up(served.device, "d/lower0-alone/special")
            answers = to_the_end(served.device, nodeid, 4096, True)
            again = to_the_end(served.device, nodeid, 4096, True, offset=2)
            return [answers, again, remembered(served)]

    with in_plain_python():
        expected = found()
    assert found() == expected
    assert [answer.errno for answer in expected[0]] == [0, errno.EIO]  # type: ignore[attr-defined]


def test_a_directory_that_is_not_followed_is_the_handlers(tmp_path: Path, handled: list[int]) -> None:
    (tmp_path / "d").mkdir()
    with following(SourceTree(Layer(os.fsencode(tmp_path)), 64), IDENTITY) as served:
        nodeid = served.device.look(b"d")
        served.session.context.inodes.get(nodeid).watch = None
        to_the_end(served.device, nodeid, 4096, True)
    assert handled[0] == 0


def test_a_large_directory_is_listed_by_a_worker(tmp_path: Path, handled: list[int]) -> None:
    (tmp_path / "d").mkdir()
    for number in range(1100):
        (tmp_path / "d" / f"{number:04}{'x' * LONG}").touch()
    if os.stat(tmp_path / "d").st_size < directories._LARGE:
        pytest.skip("directories have other sizes here")
    with following(SourceTree(Layer(os.fsencode(tmp_path)), 64), IDENTITY) as served:
        nodeid = served.device.look(b"d")
        assert len(names(to_the_end(served.device, nodeid, 65536, False), False)) == 1102
        assert served.loop.workers == 1
    assert handled == [0], "the lane goes on with it"


@pytest.mark.parametrize("plus", [False, True])
def test_a_removed_directory(tmp_path: Path, plus: bool) -> None:
    def found() -> list[int]:
        (tmp_path / "d" / "sub").mkdir(parents=True)
        with following(SourceTree(Layer(os.fsencode(tmp_path)), 64), IDENTITY) as served:
            nodeid = look_up(served.device, "d/sub")
            ask(served.device, nodeid, 0, 4096, plus)
            (tmp_path / "d" / "sub").rmdir()
            errors = [ask(served.device, nodeid, offset, 4096, plus).errno for offset in (0, 2)]
        (tmp_path / "d").rmdir()
        return errors

    with in_plain_python():
        expected = found()
    assert found() == expected


@pytest.mark.parametrize("moved", ["to another name", "to another directory"])
def test_what_has_another_name_by_now_is_not_taken_for_what_it_was(tmp_path: Path, moved: str) -> None:
    """A directory is opened natively by its name, and compared with what is known of it."""
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    with following(SourceTree(Layer(os.fsencode(tmp_path)), 64), IDENTITY) as served:
        nodeid = look_up(served.device, "d/sub")
        os.rename(tmp_path / "d" / "sub", tmp_path / ("d/other" if "name" in moved else "elsewhere/sub"))
        (tmp_path / "d" / "sub").mkdir()
        (tmp_path / "d" / "sub" / "another").touch()
        answers = to_the_end(served.device, nodeid, 4096, True)
    if answers[0].errno:
        assert answers[0].errno == errno.ESTALE and "directory" in moved
    else:
        assert names(answers, True)[2:] == [b"file"]


def test_rows_are_a_sequence(tmp_path: Path) -> None:
    (tmp_path / "name").touch()
    tree = SourceTree(Layer(os.fsencode(tmp_path)), 64)
    parts = tree.plain_parts(tree.held(tree.root))
    assert parts is not None
    made = native.rows(*parts)
    assert (len(made), made[0][1], made[-1]) == (1, b"name", made[0])
    for index in (1, -2):
        with pytest.raises(IndexError):
            made[index]
    with pytest.raises(TypeError):
        type(made)()
