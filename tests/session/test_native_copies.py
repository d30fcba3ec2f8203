"""Small files come up natively: the same answers and the same files as where Python brings them up."""

import errno
import gc
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from harness import Layers, write_tree
from harness.commands import EXIT_LIMIT
from harness.device import Served
from harness.layered import Tree, litter
from harness.overlaid import Overlay
from harness.twins import MAPS, following, in_plain_python
from overlay.copyup import CopyUp
from overlay.workdir import WorkDirectory
from shiftfs.shift.idmap import IDENTITY, IdMap
from shiftfs.wire import abi
from shiftfs.wire.abi import Fattr, Opcode, WriteFlag

OLD_NS: Final = 10**18 + 123_456_789
LARGEST: Final = 64 * 1024
CAPABILITY: Final = struct.pack("<IIIII", 0x2000001, 1, 0, 0, 0)
NOBODY: Final = 0xFFFFFFFF
ACL: Final = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, NOBODY), (2, 4, 1000), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))
)


def filled(size: int) -> bytes:
    return bytes(number * 7 & 0xFF for number in range(size))


def with_mode(mode: int, uid: int = 100_001, gid: int = 100_002) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(b"#!/bin/true\n")
        os.chown(path, uid, gid)
        path.chmod(mode)

    return make


def with_attribute(name: str, value: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(b"content")
        os.setxattr(path, name, value)

    return make


def with_a_hole(path: Path) -> None:
    path.write_bytes(b"begin")
    os.truncate(path, 3 * 8192)
    with path.open("ab") as file:
        file.write(b"end")


def with_two_names(path: Path) -> None:
    path.write_bytes(b"content")
    os.link(path, path.with_name(path.name + " again"))


PLAIN: Tree = {
    "small": b"small content",
    "empty": b"",
    "one page": filled(4096),
    "largest": filled(LARGEST),
    "of somebody": with_mode(0o604),
    "set-id": with_mode(0o6751),
    "unreadable": with_mode(0),
}
SPECIAL: Tree = {
    "larger": filled(LARGEST + 1),
    "user attribute": with_attribute("user.one", b"1"),
    "capability": with_attribute("security.capability", CAPABILITY),
    "access list": with_attribute("system.posix_acl_access", ACL),
    "hole": with_a_hole,
    "two names": with_two_names,
}
STRANGE: Tree = {"stranger": with_mode(0o644, 7, 7)}
"""Nobody on a mount whose ids are mapped."""


class Asked(NamedTuple):
    """A request, without its header."""

    opcode: int
    body: bytes


def changing(valid: int, **to: int) -> Asked:
    get = to.get
    times = (get("atime", 0), get("mtime", 0), 0, get("atimensec", 0), get("mtimensec", 0), 0)
    return Asked(
        Opcode.SETATTR, abi.SETATTR_IN.pack(valid, 0, 0, 0, *times, get("mode", 0), get("uid", 0), get("gid", 0))
    )  # fmt: skip


def writing(data: bytes, offset: int, flags: int = 0, write_flags: int = 0) -> Asked:
    body = struct.pack("=QqIIQII", 0, offset, len(data), write_flags, 0, os.O_WRONLY | flags, 0) + data
    return Asked(Opcode.WRITE, body)


OPERATIONS: dict[str, Asked] = {
    "mode": changing(Fattr.MODE, mode=stat.S_IFREG | 0o4711),
    "owner": changing(Fattr.UID | Fattr.GID, uid=100_005, gid=100_006),
    "owner and mode": changing(Fattr.UID | Fattr.MODE, uid=100_005, mode=stat.S_IFREG | 0o2755),
    "times": changing(Fattr.ATIME | Fattr.MTIME, atime=1, atimensec=2, mtime=3, mtimensec=999_999_999),
    "one time": changing(Fattr.MTIME | Fattr.MODE, mtime=-1, mode=stat.S_IFREG | 0o600),
    "now": changing(Fattr.ATIME | Fattr.ATIME_NOW | Fattr.MTIME | Fattr.MTIME_NOW),
    "begin": writing(b"written", 0),
    "append": writing(b"appended", 7, os.O_APPEND),  # but at the end
    "far": writing(b"far", 100_000),
    "as somebody": writing(b"x", 1, write_flags=int(WriteFlag.KILL_SUIDGID)),
}


def tree_of(files: Tree) -> Tree:
    """One of each for each operation."""
    return {f"{name}, {operation}": what for name, what in files.items() for operation in OPERATIONS}


@contextmanager
def serving(at: Path, files: Tree, ids: IdMap = IDENTITY, **options: Any) -> Iterator[tuple[Served, Layers, int]]:
    """Layers with these files in a directory of the lower one, into which something has come up already: that is
    Python's. The nodeid of the directory."""
    at.mkdir(exist_ok=True)
    made = Layers(at)
    write_tree(made.lower, {"d": {"first": b"first", **files}})
    for path in (made.lower, *made.lower.rglob("*")):
        os.utime(path, ns=(OLD_NS, OLD_NS))
    overlay = Overlay(made, **options)
    try:
        with following(overlay.tree, ids) as served:
            directory = served.device.look(b"d")
            first = served.device.look(b"first", directory)
            assert ask(served, changing(Fattr.MTIME, mtime=1), first).errno == 0
            yield served, made, directory
        del served
    finally:
        overlay.close()
        gc.collect()  # the layers are in use until then


def asked_of(name: str, made: Layers) -> Asked:
    """What is done to a file, as its name says."""
    operation = name.partition(", ")[2]
    if operation == "append":
        return writing(b"appended", (made.lower / "d" / name).stat().st_size, os.O_APPEND)
    return OPERATIONS[operation]


def ask(served: Served, asked: Asked, nodeid: int) -> Any:
    return served.device.ask(asked.opcode, asked.body, nodeid)


def seen(directory: Path, began: int) -> dict[str, Any]:
    """All that is in it, and whose origin is written down. Times of just now are as good as any other."""
    found: dict[str, Any] = {}
    for path in (directory, *sorted(directory.iterdir())):
        a = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(a.st_mode) else b""
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        origin = attributes.pop("trusted.overlay.origin", b"")
        times = tuple(min(time, began) for time in (a.st_atime_ns, a.st_mtime_ns))
        found[path.name] = (a.st_mode, a.st_uid, a.st_gid, a.st_nlink, times, content, attributes, origin[:5])
    return found


def shown(answer: Any, began: int) -> Any:
    """Without inode numbers and ctime."""
    if answer.errno or len(answer.payload) != abi.ATTR_OUT.size:
        return answer.errno, answer.payload
    valid, nanoseconds, _, size, blocks, *rest = abi.ATTR_OUT.unpack(answer.payload)
    seconds, parts, others = rest[:3], rest[3:6], rest[6:]
    times = [(at, part) if at < began // 10**9 else None for at, part in zip(seconds, parts, strict=True)][:2]
    return valid, nanoseconds, size, blocks, times, others


@pytest.mark.parametrize("ids", MAPS)
@pytest.mark.parametrize("volatile", [False, True], ids=["safe", "volatile"])
@pytest.mark.parametrize("files", [{**PLAIN, **STRANGE}, SPECIAL], ids=["plain", "special"])
def test_answers_and_files_are_the_same(tmp_path: Path, files: Tree, volatile: bool, ids: str) -> None:
    began = (tmp_path.stat().st_mtime_ns // 10**9 - 5) * 10**9

    def outcome(at: Path) -> tuple[list[Any], list[Any], dict[str, Any], dict[str, Any]]:
        with serving(at, tree_of(files), MAPS[ids], volatile=volatile) as (served, made, directory):
            answers, again = [], []
            for name in tree_of(files):
                nodeid = served.device.look(os.fsencode(name), directory)
                answers.append((name, shown(ask(served, asked_of(name, made), nodeid), began)))
                answers.append((name, shown(ask(served, changing(Fattr.MODE, mode=0o640), nodeid), began)))
                again.append(served.device.look(os.fsencode(name), directory) == nodeid)
            assert litter(made.work) == []
            return answers, again, seen(made.upper / "d", began), seen(made.lower / "d", began)

    with in_plain_python():
        expected = outcome(tmp_path / "python")
    assert outcome(tmp_path / "native") == expected
    assert all(expected[1])


@contextmanager
def without_python(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing comes up there."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "not natively")

    with monkeypatch.context() as patched:
        patched.setattr(CopyUp, "up", refuse)
        yield


def eager(ask_once: Callable[[], Any]) -> Any:
    """Again while the machine's disk is too slow for it, as it may be now and then."""
    until = time.monotonic() + EXIT_LIMIT
    while (answer := ask_once()).errno == errno.EXDEV and time.monotonic() < until:
        time.sleep(0.01)
    return answer


@pytest.mark.parametrize("volatile", [False, True], ids=["safe", "volatile"])
def test_plain_files_come_up_natively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volatile: bool) -> None:
    with serving(tmp_path, tree_of(PLAIN), volatile=volatile) as (served, made, directory):
        with without_python(monkeypatch):
            for name in tree_of(PLAIN):
                if name.endswith("as somebody"):
                    continue
                nodeid = served.device.look(os.fsencode(name), directory)
                assert eager(partial(ask, served, asked_of(name, made), nodeid)).errno == 0, name
                assert (made.upper / "d" / name).exists()
        assert served.log == []


def test_others_are_left_to_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, tree_of(SPECIAL)) as (served, made, directory), without_python(monkeypatch):
        for name in tree_of(SPECIAL):
            nodeid = served.device.look(os.fsencode(name), directory)
            assert ask(served, asked_of(name, made), nodeid).errno == errno.EXDEV, name
        assert os.listdir(made.upper / "d") == ["first"]


@pytest.mark.parametrize("why", ["metacopy", "any_owner"])
def test_mounts_whose_copies_are_less_or_others_leave_all_to_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    options: dict[str, Any] = {why: True}
    with serving(tmp_path, {"file": b"content"}, **options) as (served, _, directory), without_python(monkeypatch):
        nodeid = served.device.look(b"file", directory)
        assert ask(served, OPERATIONS["mode"], nodeid).errno == errno.EXDEV


def test_a_directory_is_not_brought_up_natively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, {"below": {"file": b"content"}}) as (served, made, directory), without_python(monkeypatch):
        nodeid = served.device.look(b"file", served.device.look(b"below", directory))
        assert ask(served, OPERATIONS["mode"], nodeid).errno == errno.EXDEV
        assert not (made.upper / "d" / "below").exists()


def test_the_origin_is_what_python_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, {"file": b"content"}) as (served, made, directory):
        nodeid = served.device.look(b"file", directory)
        tree: Any = served.session.context.tree
        fd = os.open(made.lower / "d" / "file", os.O_PATH)
        expected = tree._lookup.origins.encode(0, fd)
        os.close(fd)
        with without_python(monkeypatch):
            assert eager(partial(ask, served, OPERATIONS["mode"], nodeid)).errno == 0
        assert os.getxattr(made.upper / "d" / "file", "trusted.overlay.origin") == expected
        del tree


def test_whoever_has_locks_is_told_before_there_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    with serving(tmp_path, {"file": b"content"}) as (served, made, directory):

        def on_copy(entry: Any, fd: int) -> None:
            told.append((entry.name, os.fstat(fd).st_nlink, os.pread(fd, 100, 0), os.listdir(made.upper / "d")))

        served.session.context.tree.on_copy(on_copy)
        nodeid = served.device.look(b"file", directory)
        with without_python(monkeypatch):
            assert eager(partial(ask, served, OPERATIONS["mode"], nodeid)).errno == 0
    assert told == [(b"file", 0, b"content", ["first"])]


def test_a_written_file_stays_open_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, {"written": b"content", "changed": b"content"}) as (served, _, directory):
        inodes = {}
        with without_python(monkeypatch):
            for name, operation in (("written", "append"), ("changed", "mode")):
                nodeid = served.device.look(os.fsencode(name), directory)
                assert eager(partial(ask, served, OPERATIONS[operation], nodeid)).errno == 0
                inodes[name] = served.session.context.inodes.get(nodeid)
        plain = served.session.context.tree.plain()
        assert plain is not None
        written, changed = (inodes[name].entry for name in ("written", "changed"))
        assert written.upper.data.writable and written.upper in plain.writers
        assert changed.upper.data is None and changed.upper not in plain.writers
        assert (written.lowers, changed.lowers) == ((), ())
        del inodes, written, changed, plain


def test_where_no_unnamed_files_can_be_made_python_makes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = WorkDirectory.open

    def without(*arguments: Any, **options: Any) -> WorkDirectory:
        made = opened(*arguments, **options)
        made.has_tmpfile = False
        return made

    monkeypatch.setattr(WorkDirectory, "open", without)
    with serving(tmp_path, {"file": b"content"}) as (served, _, directory), without_python(monkeypatch):
        nodeid = served.device.look(b"file", directory)
        assert ask(served, OPERATIONS["mode"], nodeid).errno == errno.EXDEV
