"""Changes that are served natively: the same answers, layers and known inodes as where Python serves them."""

import errno
import os
import stat
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import Layers, wait_until
from harness.bodies import reading, writing
from harness.device import ENTRY_NODEID, Answer, Served
from harness.overlaid import Overlay
from harness.twins import MAPS, following, in_plain_python
from overlay.mutate import Mutation
from shiftfs import tree
from shiftfs.inodes import InodeTable
from shiftfs.layer import Layer
from shiftfs.shift.idmap import IDENTITY, IdMap
from shiftfs.source import SourceTree
from shiftfs.wire import abi
from shiftfs.wire.abi import Fattr, Opcode

NOW: Final = Fattr.ATIME | Fattr.ATIME_NOW | Fattr.MTIME | Fattr.MTIME_NOW
TIMES: Final = Fattr.ATIME | Fattr.MTIME
TIMED: Final = (3, 4, 5)
"""Which fields of abi.ATTR are seconds; their nanoseconds come three later."""
SCRIPTS: list[Callable[["Caller"], None]] = []


def script(asks: Callable[["Caller"], None]) -> Callable[["Caller"], None]:
    """One that is played to both."""
    SCRIPTS.append(asks)
    return asks


def setattr_body(
    valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0,
    atime: int = 0, mtime: int = 0, atimensec: int = 0, mtimensec: int = 0,
) -> bytes:  # fmt: skip
    return abi.SETATTR_IN.pack(valid, 0, size, 0, atime, mtime, 0, atimensec, mtimensec, 0, mode, uid, gid)


class Caller:
    """Asks as a kernel does, and keeps the answers as they would be on any layers of the same content: inode numbers as
    they have appeared one by one, times of just now as such, and no ctime."""

    def __init__(self, served: Served, began: float) -> None:
        self._device = served.device
        self._began = began
        self._numbers: dict[int, int] = {}
        self.tells_numbers = True
        self.answers: list[Any] = []
        self.directory = self.look(b"d")
        self.look(b"first", self.directory)  # opens the directory

    def look(self, name: bytes, parent: int | None = None) -> int:
        return self._entry(self._device.ask(Opcode.LOOKUP, name + b"\0", parent or abi.ROOT_ID))

    def at(self, name: bytes) -> int:
        return self.look(name, self.directory)

    def set(self, nodeid: int, valid: int, **to: int) -> None:
        self._attributes(self._device.ask(Opcode.SETATTR, setattr_body(valid, **to), nodeid))

    def make(self, name: bytes, mode: int = 0o644, umask: int = 0, parent: int | None = None, **caller: int) -> int:
        body = abi.MKNOD_IN.pack(mode if stat.S_IFMT(mode) else stat.S_IFREG | mode, 0, umask) + name + b"\0"
        return self._entry(self._device.ask(Opcode.MKNOD, body, parent or self.directory, **caller))

    def make_directory(
        self, name: bytes, mode: int = 0o755, umask: int = 0, parent: int | None = None, **caller: int
    ) -> int:
        body = abi.MKDIR_IN.pack(mode, umask) + name + b"\0"
        return self._entry(self._device.ask(Opcode.MKDIR, body, parent or self.directory, **caller))

    def make_link(self, name: bytes, target: bytes, parent: int | None = None, **caller: int) -> int:
        body = name + b"\0" + target + b"\0"
        return self._entry(self._device.ask(Opcode.SYMLINK, body, parent or self.directory, **caller))

    def remove(self, name: bytes, parent: int | None = None) -> None:
        self._nothing(self._device.ask(Opcode.UNLINK, name + b"\0", parent or self.directory))

    def rename(self, name: bytes, new: bytes, to: int | None = None, flags: int | None = None) -> None:
        target, names = to or self.directory, name + b"\0" + new + b"\0"
        if flags is None:
            answer = self._device.ask(Opcode.RENAME, abi.RENAME_IN.pack(target) + names, self.directory)
        else:
            answer = self._device.ask(Opcode.RENAME2, abi.RENAME2_IN.pack(target, flags) + names, self.directory)
        self._nothing(answer)

    def get(self, nodeid: int) -> None:
        self._attributes(self._device.ask(Opcode.GETATTR, struct.pack("=IIQ", 0, 0, 0), nodeid))

    def forget(self, nodeid: int, count: int) -> None:
        self._device.send(Opcode.FORGET, struct.pack("=Q", count), nodeid)

    def forget_all(self, counts: dict[int, int]) -> None:
        items = b"".join(struct.pack("=QQ", nodeid, count) for nodeid, count in counts.items())
        self._device.send(Opcode.BATCH_FORGET, struct.pack("=II", len(counts), 0) + items, 0)

    def read(self, nodeid: int) -> None:
        answer = self._device.ask(Opcode.READ, reading(), nodeid)
        self.answers.append(answer.errno or answer.payload)

    def follow(self, nodeid: int) -> None:
        answer = self._device.ask(Opcode.READLINK, b"", nodeid)
        self.answers.append(answer.errno or answer.payload)

    def write(self, nodeid: int, data: bytes) -> None:
        answer = self._device.ask(Opcode.WRITE, writing(data), nodeid)
        self.answers.append(answer.errno or answer.payload)

    def _nothing(self, answer: Answer) -> None:
        assert answer.payload == b""
        self.answers.append(answer.errno)

    def _entry(self, answer: Answer) -> int:
        if answer.errno:
            self.answers.append(answer.errno)
            return 0
        fields = abi.ENTRY_OUT.unpack(answer.payload)
        self.answers.append((*fields[:6], *self._shown(fields[6:])))
        return int(ENTRY_NODEID.unpack_from(answer.payload)[0])

    def _attributes(self, answer: Answer) -> None:
        if answer.errno:
            self.answers.append(answer.errno)
            return
        fields = abi.ATTR_OUT.unpack(answer.payload)
        self.answers.append((*fields[:2], *self._shown(fields[2:])))

    def _shown(self, attr: tuple[int, ...]) -> tuple[int, ...]:
        shown = list(attr)
        shown[0] = self._numbers.setdefault(attr[0], len(self._numbers)) if self.tells_numbers else -1
        for at in TIMED:
            if at == TIMED[-1] or attr[at] >= self._began:
                shown[at] = shown[at + 3] = -1
        return tuple(shown)


@script
def modes(ask: Caller) -> None:
    for name in (
        b"own",
        b"low",
        b"both",
        b"many",
        b"link",
        b"fifo",
        b"null",
        b"stranger",
        b"sub",
        b"merged",
        b"lowsub",
    ):
        nodeid = ask.at(name)
        for mode in (0o640, 0o4755, 0o2711, 0o1777, stat.S_IFREG | 0o600):
            ask.set(nodeid, Fattr.MODE, mode=mode)
        ask.get(nodeid)
    ask.set(ask.directory, Fattr.MODE, mode=0o700)
    ask.set(abi.ROOT_ID, Fattr.MODE, mode=0o711)
    ask.set(1 << 40, Fattr.MODE, mode=0o711)


@script
def owners(ask: Caller) -> None:
    for name in (b"own", b"low", b"link", b"stranger", b"sub", b"merged"):
        nodeid = ask.at(name)
        ask.set(nodeid, Fattr.MODE, mode=0o6755)
        ask.set(nodeid, Fattr.UID, uid=100_005)
        ask.set(nodeid, Fattr.GID, gid=100_006)
        ask.set(nodeid, Fattr.UID | Fattr.GID | Fattr.MODE, uid=100_007, gid=100_008, mode=0o4711)
        ask.set(nodeid, Fattr.UID, uid=5)
        ask.set(nodeid, Fattr.GID, gid=0xFFFFFFFF)
        ask.set(nodeid, Fattr.UID | Fattr.KILL_SUIDGID, uid=100_009)
        for mode in (0o4755, 0o2755, 0o2644, 0o755):
            ask.set(nodeid, Fattr.MODE, mode=mode)
            ask.set(nodeid, Fattr.UID | Fattr.GID | Fattr.KILL_SUIDGID, uid=100_010, gid=100_011)
        ask.set(nodeid, Fattr.UID | Fattr.MODE | Fattr.KILL_SUIDGID, uid=100_012, mode=0o4711)
    for name in (b"low set-id", b"low set-id for nobody"):
        ask.set(ask.at(name), Fattr.GID | Fattr.KILL_SUIDGID, gid=100_011)


@script
def times(ask: Caller) -> None:
    for name in (b"own", b"low", b"link", b"stranger", b"sub", b"merged"):
        nodeid = ask.at(name)
        ask.set(nodeid, TIMES, atime=1, mtime=2, atimensec=3, mtimensec=999_999_999)
        ask.set(nodeid, TIMES, atime=-1, mtime=1 << 33)
        ask.set(nodeid, Fattr.MTIME, mtime=7)
        ask.set(nodeid, Fattr.ATIME | Fattr.FH, atime=9)
        ask.set(nodeid, TIMES, atimensec=1_000_000_000)
        ask.set(nodeid, Fattr.ATIME | Fattr.ATIME_NOW)
        ask.set(nodeid, NOW)


@script
def what_is_more_than_that(ask: Caller) -> None:
    nodeid = ask.at(b"own")
    ask.set(nodeid, Fattr.SIZE, size=3)
    ask.set(nodeid, Fattr.SIZE | Fattr.MODE, size=1, mode=0o600)
    ask.set(nodeid, 0)
    ask.set(nodeid, Fattr.CTIME)
    ask.set(nodeid, Fattr.KILL_SUIDGID)
    ask.set(nodeid, Fattr.MODE, mode=0o640)


@script
def what_has_been_used_otherwise(ask: Caller) -> None:
    """It has an entry by then, and may be open."""
    nodeid = ask.at(b"own")
    ask.get(nodeid)
    ask.set(nodeid, Fattr.SIZE, size=3)
    for mode in (0o640, 0o755):
        ask.set(nodeid, Fattr.MODE, mode=mode)
    ask.forget(nodeid, 1)
    ask.set(ask.at(b"own"), Fattr.MODE, mode=0o611)


@script
def new_files(ask: Caller) -> None:
    sub, merged = ask.at(b"sub"), ask.at(b"merged")
    for number, parent in enumerate((ask.directory, sub, merged, abi.ROOT_ID)):
        ask.look(b"opens it", parent)
        for mode, umask in ((0o666, 0o022), (0o4777, 0), (0o640, 0o777), (0o600, 0)):
            ask.get(ask.make(b"new %d %o" % (number, mode), mode, umask, parent))
        ask.make(b"of somebody", 0o644, parent=parent, uid=100_004)
        ask.make(b"of nobody", 0o644, parent=parent, uid=4)
    for name in (b"own", b"low", b"both", b"many", b"sub", b".wh.own", b"x" * 255, b"x" * 256, b"x" * 251, b"x" * 252):
        ask.make(name)
        ask.make(name)
    for umask in (0, 0o027):  # Python makes these, and knows which umask is in force
        ask.make(b"between %o" % umask, 0o666, 0o777)
        ask.make(b"fifo %o" % umask, stat.S_IFIFO | 0o666, umask)
    nodeid = ask.make(b"again")
    ask.set(nodeid, Fattr.MODE, mode=0o600)
    ask.set(nodeid, Fattr.SIZE, size=5)
    ask.at(b"again")
    ask.forget(nodeid, 2)
    ask.at(b"again")


@script
def new_directories(ask: Caller) -> None:
    for parent in (ask.directory, ask.at(b"sub"), ask.at(b"merged"), abi.ROOT_ID):
        ask.look(b"opens it", parent)
        for mode, umask in ((0o777, 0o022), (0o1777, 0), (0o6750, 0), (0o750, 0o777)):
            name = b"new %o" % mode
            made = ask.make_directory(name, mode, umask, parent)
            ask.get(made)
            ask.look(b"absent", made)
            ask.get(ask.make_directory(b"in it", parent=made))
            ask.make(b"file", parent=made)
            ask.look(name, parent)
            ask.forget(made, 2)
        ask.make_directory(b"of somebody", parent=parent, uid=100_004)
        ask.make_directory(b"of nobody", parent=parent, uid=4)
    long = [b"x" * size for size in (251, 252, 255, 256)]
    for name in (b"own", b"low", b"sub", b"merged", b"hidden", b".wh.own", *long):
        ask.make_directory(name)
        ask.make_directory(name)
    ask.make_directory(b"between", 0o777, 0o777)
    ask.make(b"after it", 0o666)


@script
def new_symlinks(ask: Caller) -> None:
    for parent in (ask.directory, ask.at(b"sub"), ask.at(b"merged"), abi.ROOT_ID):
        ask.look(b"opens it", parent)
        for target in (b"own", b"/somewhere/else", b"..", b"\xff\n", b"x" * 4095, b"x" * 4096):
            made = ask.make_link(b"to %d" % len(target), target, parent)
            if made:
                ask.get(made)
                ask.follow(made)
                ask.set(made, TIMES, atime=1, mtime=2)
        ask.make_link(b"of somebody", b"own", parent, uid=100_004)
        ask.make_link(b"of nobody", b"own", parent, uid=4)
    for name in (b"own", b"low", b"sub", b"merged", b"hidden", b".wh.own", b"x" * 255, b"x" * 256):
        ask.make_link(name, b"own")
        ask.make_link(name, b"own")


@script
def new_ones_where_something_was_removed(ask: Caller) -> None:
    for make in (ask.make, ask.make_directory, lambda name: ask.make_link(name, b"own")):
        for name in (b"low", b"both", b"own", b"many", b"hidden", b"hidden by name"):
            ask.at(name)
            ask.remove(name)
            make(name)
            ask.at(name)


@script
def new_files_where_the_group_is_inherited(ask: Caller) -> None:
    ask.set(ask.directory, Fattr.GID | Fattr.MODE, gid=100_009, mode=0o2777)
    ask.set(ask.directory, Fattr.GID | Fattr.MODE, gid=9, mode=0o2777)
    ask.make(b"new", 0o755)
    ask.make(b"of somebody", 0o755, uid=100_004)
    ask.make_directory(b"directory", 0o755)
    ask.make_directory(b"directory of somebody", 0o755, uid=100_004)
    ask.make_link(b"symlink", b"own", uid=100_004)


@script
def removals(ask: Caller) -> None:
    for name in (
        b"own",
        b"low",
        b"both",
        b"many",
        b"several",
        b"link",
        b"fifo",
        b"null",
        b"stranger",
        b"sub",
        b"absent",
    ):
        nodeid = ask.at(name)
        ask.remove(name)
        if nodeid:
            ask.get(nodeid)
            ask.set(nodeid, Fattr.MODE, mode=0o600)
        ask.at(name)
        ask.remove(name)
    nodeid = ask.at(b"other")
    ask.set(nodeid, Fattr.SIZE, size=3)
    ask.remove(b"other")
    ask.get(nodeid)
    ask.forget(nodeid, 1)
    ask.get(nodeid)
    merged = ask.at(b"merged")
    for name in (b"in upper", b"in lower0", b"in lower1"):
        ask.look(name, merged)
        ask.remove(name, merged)


@script
def removals_of_what_is_in_use(ask: Caller) -> None:
    """Opening is no request, so whatever is removed may be open: it is what it was until it is forgotten."""
    ask.tells_numbers = False  # the filesystem may use one again, or not
    for wrote in (False, True):
        for name in (b"own", b"other", b"low", b"both", b"many", b"stranger", b"link"):
            nodeid = ask.at(name) or ask.make(name)
            if wrote:
                ask.write(nodeid, b"written")
                ask.read(nodeid)
            ask.remove(name)
            ask.make(name)  # its name is another's now
            ask.read(nodeid)
            ask.follow(nodeid)
            ask.write(nodeid, b"more")
            ask.set(nodeid, Fattr.MODE, mode=0o600)
            ask.set(nodeid, Fattr.SIZE, size=3)
            ask.read(nodeid)
            ask.get(nodeid)
            ask.remove(name)
            ask.forget(nodeid, 1)
            ask.read(nodeid)


@script
def removals_of_what_is_new(ask: Caller) -> None:
    names = (b"1", b"2", b"3")
    made = [ask.make(name) for name in names]  # all at first: the filesystem may use the number of one again, or not
    for name, nodeid in zip(names, made, strict=True):
        ask.remove(name)
        ask.get(nodeid)
        ask.forget(nodeid, 1)


@script
def renames(ask: Caller) -> None:
    sub, merged = ask.at(b"sub"), ask.at(b"merged")
    for parent in (sub, merged):
        ask.look(b"opens it", parent)
    for name in (b"own", b"low", b"both", b"many", b"link", b"fifo", b"null", b"stranger", b"absent"):
        nodeid = ask.at(name)
        ask.rename(name, b"1")
        ask.rename(b"1", b"2", flags=0)
        ask.rename(b"2", b"3", sub)
        ask.look(b"3", sub)
        if nodeid:
            ask.get(nodeid)
            ask.set(nodeid, Fattr.MODE, mode=0o604)
        ask.at(name)
        ask.at(b"1")


@script
def renames_onto_others(ask: Caller) -> None:
    for flags in (None, 0, 1, 2, 4):
        ask.make(b"new")
        for name in (b"other", b"low", b"both", b"several", b"hidden", b"hidden by name", b"sub", b"new", b".wh.x"):
            replaced = ask.at(name)
            ask.rename(b"new", name, flags=flags)
            if replaced:
                ask.get(replaced)
            ask.at(name)
            ask.at(b"new")
            ask.make(b"new")
    ask.rename(b"own", b"own")


@script
def renames_of_what_has_been_used_otherwise(ask: Caller) -> None:
    """It has an entry by then."""
    nodeid, other = ask.at(b"own"), ask.at(b"other")
    ask.set(nodeid, Fattr.SIZE, size=3)
    ask.set(other, Fattr.SIZE, size=4)
    ask.rename(b"own", b"first again")
    ask.set(nodeid, Fattr.SIZE, size=2)
    ask.rename(b"first again", b"other")
    ask.get(nodeid)
    ask.get(other)
    ask.set(nodeid, Fattr.MODE, mode=0o600)
    ask.forget(other, 1)
    ask.remove(b"other")
    ask.at(b"other")
    ask.get(nodeid)


@script
def renames_onto_what_is_in_use(ask: Caller) -> None:
    ask.tells_numbers = False  # the filesystem may use one again, or not
    sub = ask.at(b"sub")
    ask.look(b"opens it", sub)
    for wrote in (False, True):
        for name, to in ((b"own", None), (b"stranger", None), (b"in sub", sub)):
            nodeid = ask.look(name, to or ask.directory) or ask.make(name, parent=to)
            new = ask.make(b"new")
            if wrote:
                ask.write(nodeid, b"old content")
                ask.write(new, b"new content")
            ask.rename(b"new", name, to)
            ask.look(name, to or ask.directory)
            for one in (nodeid, new):
                ask.read(one)
                ask.write(one, b"more")
                ask.get(one)
            ask.forget(nodeid, 1)
            ask.read(nodeid)
            ask.read(new)
            ask.forget(new, 2)
            ask.read(new)


@script
def forgetting(ask: Caller) -> None:
    """What was only looked up, was written to, has been removed, has several names; in part, in full, and too often."""
    ask.tells_numbers = False  # the filesystem may use one again, or not
    sub, empty = ask.at(b"sub"), ask.at(b"lowsub")
    ask.look(b"opens it", sub)
    for often in (1, 2):
        for counts in ((1, 1), (2, 1), (often, often), (3, 1)):
            names = (b"own", b"other", b"many", b"several", b"fifo", b"link")
            nodes = [ask.at(name) or ask.make(name) for name in names]
            below = ask.look(b"below", sub) or ask.make(b"below", parent=sub)
            ask.write(nodes[0], b"written")
            ask.write(below, b"written")
            ask.remove(b"other")
            for count in counts:
                ask.forget_all(dict.fromkeys([*nodes, below, 1 << 40], count))
            for nodeid in (*nodes, below):
                ask.get(nodeid)
            ask.forget_all(dict.fromkeys([*nodes, below], 10))
    below = ask.make(b"below", parent=sub)
    ask.write(below, b"written")
    ask.forget_all({sub: 1, empty: 1})  # the first is needed as long as what is in it is known
    ask.get(sub)
    ask.get(empty)
    ask.forget(below, 1)
    ask.get(sub)
    ask.forget(abi.ROOT_ID, 1)
    ask.get(abi.ROOT_ID)


def fill(at: Path) -> Layers:
    """Names in the upper, in the lower, and in both."""
    made = Layers(at, lowers=2)
    upper, lower = made.upper / "d", made.lowers[0] / "d"
    for directory in (upper, lower, made.lowers[1] / "d"):
        (directory / "merged").mkdir(parents=True)
        (directory / "both").write_text(directory.parts[-2])
        (directory / "merged" / f"in {directory.parts[-2]}").touch()
    for name in ("first", "own", "other", "stranger", "many"):
        (upper / name).write_bytes(b"content")
    (lower / "low").write_bytes(b"content")
    for name, mode in (("low set-id", 0o6755), ("low set-id for nobody", 0o2644)):
        (lower / name).write_bytes(b"content")
        (lower / name).chmod(mode)
    (lower / "hidden").write_bytes(b"content")
    (lower / "hidden by name").write_bytes(b"content")
    (upper / "sub").mkdir()
    (lower / "lowsub").mkdir()
    (upper / "link").symlink_to("anywhere")
    os.mkfifo(upper / "fifo")
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(upper / "hidden", stat.S_IFCHR, 0)
    (upper / ".wh.hidden by name").touch()
    os.link(upper / "many", upper / "several")
    os.chown(upper / "stranger", 70_000, 70_000)
    for layer in (made.upper, *made.lowers):
        for path in (layer, *layer.rglob("*")):
            os.utime(path, (0, 0), follow_symlinks=False)
    return made


def seen(path: Path) -> list[object]:
    """All that is in a layer."""
    found: list[object] = []
    for above, directories, names in os.walk(path):
        directories.sort()
        for name in sorted([*directories, *names]):
            one = Path(above, name)
            a = one.lstat()
            content = one.read_bytes() if stat.S_ISREG(a.st_mode) else b""
            found.append((str(one.relative_to(path)), a.st_mode, a.st_uid, a.st_gid, a.st_nlink, a.st_rdev, content))
    return found


def kept(served: Served) -> int:
    """How many files without a name are held open."""
    served.device.expect_nothing()
    return served.session.context.tree.descriptors()["unlinked"]


def known(served: Served) -> list[object]:
    """All inodes that the kernel is taken to know."""
    return [kept(served)] + [
        (one.nodeid, one.type, one.nlookup, one.unlinked, one.name, one.parent and one.parent.nodeid,
         {name: child.nodeid for name, child in (one.children or {}).items()})
        for one in served.session.context.inodes.all()
    ]  # fmt: skip


def play_on_overlay(at: Path, ids: IdMap, asks: Callable[[Caller], None]) -> tuple[object, ...]:
    made = fill(at)
    overlay = Overlay(made)
    began = time.time() - 1
    try:
        with following(overlay.tree, ids) as served:
            caller = Caller(served, began)
            asks(caller)
            table = known(served)
    finally:
        overlay.close()
    return caller.answers, table, seen(made.upper), [seen(path) for path in made.lowers]


def play_on_source(at: Path, ids: IdMap, asks: Callable[[Caller], None]) -> tuple[object, ...]:
    made = fill(at)
    began = time.time() - 1
    with following(SourceTree(Layer(os.fsencode(made.upper)), 64), ids) as served:
        caller = Caller(served, began)
        asks(caller)
        table = known(served)
    return caller.answers, table, seen(made.upper)


@pytest.mark.parametrize("asks", SCRIPTS, ids=lambda asks: asks.__name__)
@pytest.mark.parametrize("ids", MAPS)
@pytest.mark.parametrize("play", [play_on_overlay, play_on_source], ids=["overlay", "source"])
def test_answers_layers_and_inodes_are_the_same(
    tmp_path: Path, play: Callable[..., tuple[object, ...]], ids: str, asks: Callable[[Caller], None]
) -> None:
    for name in ("python", "native"):
        (tmp_path / name).mkdir()
    with in_plain_python():
        expected = play(tmp_path / "python", MAPS[ids], asks)
    found = play(tmp_path / "native", MAPS[ids], asks)
    for one, other in zip(found, expected, strict=True):
        assert one == other


def refusing(made: Served, monkeypatch: pytest.MonkeyPatch, *calls: str) -> None:
    """Whatever comes to the tree that way fails from now on. All handlers of names look them up."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "not natively")

    for name in calls:
        monkeypatch.setattr(type(made.session.context.tree), name, refuse)


@pytest.mark.parametrize("kind", ["source", "overlay"])
def test_the_plain_ones_are_served_natively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Else nothing would be compared above."""
    made = fill(tmp_path)
    overlay = Overlay(made)
    under: tree.Tree = overlay.tree if kind == "overlay" else SourceTree(Layer(os.fsencode(made.upper)), 64)
    try:
        with following(under, IDENTITY) as served:
            ask = Caller(served, 0)
            ask.set(ask.at(b"other"), Fattr.SIZE, size=3)  # has an entry from here on
            files = {name: ask.at(name) for name in (b"own", b"other", b"link")}
            sub, merged, many = (ask.at(name) for name in (b"sub", b"merged", b"many"))
            ask.look(b"opens it", sub)
            below = [(b"low", ask.directory), (b"in lower1", merged)] if kind == "overlay" else []
            for name, parent in below:
                ask.look(name, parent)
            ask.at(b"low set-id")
            ask.remove(b"low set-id")  # which makes the whiteout that the others are links of
            with monkeypatch.context() as patched:
                refusing(served, patched, "change", "mknod", "mkdir", "symlink", "lookup", "unlink")
                ask.answers.clear()
                for name, nodeid in files.items():
                    ask.set(nodeid, TIMES | Fattr.UID, atime=1, mtime=2, uid=7)
                    ask.set(nodeid, Fattr.UID | Fattr.GID | Fattr.KILL_SUIDGID, uid=7, gid=8)
                    if name != b"link":
                        ask.set(nodeid, Fattr.MODE, mode=0o600)
                    ask.rename(name, name + b" renamed")
                    ask.rename(name + b" renamed", b"moved", sub)
                    ask.remove(b"moved", sub)
                ask.make(b"new")
                ask.make(b"newer", uid=1000)
                ask.rename(b"newer", b"new")
                for nodeid in (ask.directory, sub, merged, ask.make_directory(b"new directory")):
                    ask.make_directory(b"newer directory", parent=nodeid, uid=1000)
                    ask.make_link(b"newer symlink", b"../anywhere", parent=nodeid, uid=1000)
                for nodeid in (sub, merged):
                    ask.set(nodeid, Fattr.MODE, mode=0o700)
                for name, parent in below:
                    ask.remove(name, parent)
                assert [one for one in ask.answers if isinstance(one, int) and one] == []
                ask.set(many, Fattr.MODE, mode=0o600)
                assert ask.answers[-1] == errno.EXDEV, "what has several names is left to Python"
            del under
    finally:
        overlay.close()


@pytest.mark.parametrize("kind", ["source", "overlay"])
def test_an_error_behind_a_removal_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """And nobody else's: the mount goes on, natively."""

    def fail(self: object, known: object, fd: int, is_last: bool) -> bool:
        os.close(fd)
        raise OSError(errno.EIO, "the layer has failed")

    made = fill(tmp_path)
    monkeypatch.setattr(SourceTree, "_has_gone", fail)
    monkeypatch.setattr(Mutation, "has_gone_natively", fail)
    overlay = Overlay(made)
    under: tree.Tree = overlay.tree if kind == "overlay" else SourceTree(Layer(os.fsencode(made.upper)), 64)
    try:
        with following(under, IDENTITY) as served:
            ask = Caller(served, 0)
            for name in (b"own", b"other", b"stranger"):
                ask.at(name)
            ask.answers.clear()
            ask.remove(b"own")
            ask.rename(b"stranger", b"other")
            assert ask.answers == [errno.EIO, errno.EIO]
            assert ask.at(b"other") and served.session.context.lane is not None
            del under
    finally:
        overlay.close()


def test_what_the_lane_does_not_know_after_all_is_adopted_by_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fill(tmp_path)
    under = SourceTree(Layer(os.fsencode(made.upper)), 64)
    of_no_device = under.plain()
    assert of_no_device is not None
    of_no_device.devices.clear()
    monkeypatch.setattr(SourceTree, "plain", lambda tree: of_no_device)
    with following(under, IDENTITY) as served:
        ask = Caller(served, 0)
        with monkeypatch.context() as patched:
            refusing(served, patched, "mknod", "mkdir", "symlink")
            new = [ask.make(b"new"), ask.make_directory(b"directory"), ask.make_link(b"symlink", b"new")]
        assert new == [ask.at(name) for name in (b"new", b"directory", b"symlink")]
        assert (made.upper / "d" / "new").exists()
        with monkeypatch.context() as patched:
            refusing(served, patched, "lookup")
            ask.make(b"newer")
            ask.make_directory(b"newer directory")
        assert ask.answers[-2:] == [errno.EXDEV, errno.EXDEV]
        del under


@pytest.mark.parametrize("which", ["python", "native"])
@pytest.mark.parametrize("is_gone", [False, True], ids=["still there", "gone again"])
def test_a_new_directory_that_is_lost_before_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, is_gone: bool
) -> None:
    """The caller gets the layer's error, or is told to look again; nobody else notices."""
    made = fill(tmp_path)

    def lose(self: InodeTable, key: object, entry: object) -> None:
        if is_gone:
            (made.upper / "d" / "new").rmdir()
        raise OSError(errno.ENOMEM, "lost")

    with by(which), following(SourceTree(Layer(os.fsencode(made.upper)), 64), IDENTITY) as served:
        ask = Caller(served, 0)
        with monkeypatch.context() as patched:
            patched.setattr(type(served.session.context.inodes), "add", lose)
            assert ask.make_directory(b"new") == 0
        assert ask.answers[-1] == (errno.ESTALE if is_gone and which == "native" else errno.ENOMEM)
        assert (ask.at(b"new") != 0) is not is_gone
        assert (served.session.context.lane is not None) is (which == "native")
        ask.make_directory(b"newer")
        assert ask.at(b"newer")


@contextmanager
def serving(at: Path, kind: str, unlinked: int = 1024) -> Iterator[tuple[Served, Layers]]:
    made = fill(at)
    overlay = Overlay(made, unlinked=unlinked)
    under: tree.Tree = overlay.tree
    if kind == "source":
        under = SourceTree(Layer(os.fsencode(made.upper)), 64, unlinked)
    try:
        with following(under, IDENTITY) as served:
            yield served, made
        del served, under
    finally:
        overlay.close()


@contextmanager
def by(which: str) -> Iterator[None]:
    if which == "native":
        yield
    else:
        with in_plain_python():
            yield


@pytest.mark.parametrize("which", ["python", "native"])
@pytest.mark.parametrize("kind", ["source", "overlay"])
def test_so_many_without_a_name_are_kept_and_no_more(tmp_path: Path, kind: str, which: str) -> None:
    with by(which), serving(tmp_path, kind, unlinked=2) as (served, made):
        ask = Caller(served, 0)
        nodes = {name: ask.at(name) for name in (b"own", b"other", b"stranger")}
        ask.make(b"new")
        ask.answers.clear()
        ask.remove(b"own")
        ask.rename(b"new", b"other")
        assert (ask.answers, kept(served)) == ([0, 0], 2)
        ask.make(b"newer")
        ask.answers.clear()
        ask.remove(b"stranger")
        ask.rename(b"newer", b"stranger")
        assert (ask.answers, kept(served)) == ([errno.ENFILE, errno.ENFILE], 2)
        assert (made.upper / "d/stranger").exists() and (made.upper / "d/newer").exists()
        ask.forget(nodes[b"other"], 1)
        assert kept(served) == 1
        ask.rename(b"newer", b"stranger")
        assert (ask.answers[2:], kept(served)) == ([0], 2)
        ask.forget_all(dict.fromkeys(nodes.values(), 1))
        assert kept(served) == 0


@pytest.mark.parametrize("kind", ["source", "overlay"])
def test_nothing_but_what_is_held_is_let_go_by_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with serving(tmp_path, kind) as (served, _):
        ask = Caller(served, 0)
        ask.write(ask.at(b"own"), b"has an entry")
        ask.write(ask.at(b"other"), b"has one, and no name")
        nodes = [ask.at(name) for name in (b"own", b"other", b"stranger", b"link")]
        ask.remove(b"other")
        ask.remove(b"link")
        counts = dict(zip(nodes, (2, 2, 1, 1), strict=True))
        with monkeypatch.context() as patched:
            patched.setattr(InodeTable, "forget", lambda table, nodeid, count: [])
            patched.setattr(InodeTable, "untell", lambda table, parent, name: None)
            ask.forget_all(counts)
            assert kept(served) == 0
        found = served.session.context.inodes
        assert [found.find(nodeid) for nodeid in nodes] == [None] * 4
        assert known_in(served, ask.directory) == {b"first"}
        assert served.session.context.tree.descriptors()["data"] == 0
        del found


def known_in(served: Served, nodeid: int) -> set[bytes]:
    """The names of a directory that the kernel is taken to know."""
    return set(served.session.context.inodes.get(nodeid).children or {})


@pytest.mark.parametrize("which", ["python", "native"])
@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("processors", [1, 2])
def test_what_takes_long_to_free_is_a_workers(
    tmp_path: Path, which: str, is_large: bool, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Natively, where there is a second processor, it is a thread's (closing.c)."""
    monkeypatch.setattr("shiftfs.lane.groups.processors", lambda: processors)
    with by(which), serving(tmp_path, "overlay") as (served, made):
        ask = Caller(served, 0)
        nodeid = ask.at(b"own")
        ask.remove(b"own")
        served.device.expect_nothing()
        (path,) = removed()
        with open(path, "wb") as file:  # it grows once it has no name
            file.write(bytes(5 << 20 if is_large else 1 << 20))
        calls: list[object] = []
        served.session.context.aside = calls.append
        ask.forget(nodeid, 1)
        assert kept(served) == 0
        assert len(calls) == int(is_large and not (which == "native" and processors == 2))
        calls.clear()
        wait_until(lambda: not removed(), "the file to be closed")
        assert not (made.upper / "d/own").exists()


def removed() -> set[str]:
    """What leads to the file that this process has open, and that has no name."""
    return {
        path for path in map(str, Path("/proc/self/fd").iterdir())
        if os.path.islink(path) and os.readlink(path).endswith("/own (deleted)")
    }  # fmt: skip


NAMES: Final = (b"own", b"other", b"low", b"a", b"b")
STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(["look", "make", "write", "read", "remove", "rename", "move", "forget", "mode"]),
        st.sampled_from(NAMES), st.sampled_from(NAMES),
    ),
    min_size=5, max_size=60,
)  # fmt: skip


class Kernel:
    """Keeps what it was told of, and asks of it though it may have no name any more."""

    def __init__(self, ask: Caller) -> None:
        ask.tells_numbers = False  # the filesystem may use one again, or not
        self._ask = ask
        self._counts: Counter[int] = Counter()
        self._last: dict[bytes, int] = {}
        self._sub = ask.at(b"sub")
        ask.look(b"opens it", self._sub)

    def do(self, what: str, name: bytes, other: bytes) -> None:
        ask, nodeid = self._ask, self._last.get(name, 0)
        if what in ("look", "make"):
            found = ask.at(name) if what == "look" else ask.make(name)
            if found:
                self._last[name] = found
                self._counts[found] += 1
        elif what == "remove":
            ask.remove(name)
        elif what in ("rename", "move"):
            ask.rename(name, other, self._sub if what == "move" else None)
        elif nodeid:
            self._do_with(what, name, nodeid)

    def _do_with(self, what: str, name: bytes, nodeid: int) -> None:
        ask = self._ask
        if what == "forget":
            ask.forget(nodeid, self._counts.pop(nodeid))
            self._last = {one: number for one, number in self._last.items() if number != nodeid}
        elif what == "write":
            ask.write(nodeid, name)
        elif what == "mode":
            ask.set(nodeid, Fattr.MODE, mode=0o600 | name[0] & 7)
        else:
            ask.read(nodeid)
            ask.get(nodeid)


@pytest.mark.parametrize("play", [play_on_overlay, play_on_source], ids=["overlay", "source"])
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_names_that_come_and_go_while_files_are_in_use(
    area: Path, play: Callable[..., tuple[object, ...]], steps: list[tuple[str, bytes, bytes]]
) -> None:
    def asks(ask: Caller) -> None:
        kernel = Kernel(ask)
        for step in steps:
            kernel.do(*step)

    with TemporaryDirectory(dir=area) as at:
        for name in ("python", "native"):
            Path(at, name).mkdir()
        with in_plain_python():
            expected = play(Path(at, "python"), IDENTITY, asks)
        assert play(Path(at, "native"), IDENTITY, asks) == expected


def test_what_has_come_in_its_place_stays_as_it_is(tmp_path: Path) -> None:
    made = fill(tmp_path)
    with following(SourceTree(Layer(os.fsencode(made.upper)), 64), IDENTITY) as served:
        nodeid = Caller(served, 0).at(b"own")
        path = made.upper / "d" / "own"
        path.rename(path.with_name("elsewhere"))
        path.touch(mode=0o640)
        unique = served.device.send(Opcode.SETATTR, setattr_body(Fattr.MODE, mode=0o600), nodeid)
        while served.device.receive_any().unique != unique:
            pass  # the news of it
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert stat.S_IMODE(path.with_name("elsewhere").stat().st_mode) == 0o600
