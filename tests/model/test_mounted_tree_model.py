"""A mounted tree against a plain directory: the same operations on both have the same results, errnos, attributes,
contents and listings."""

import errno
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from harness import mounted, open_directory
from harness.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2, utimensat

pytestmark = pytest.mark.root

FIRST_REAL_ID = 100000
MAP = tuple(f"{kind}mapping={FIRST_REAL_ID}:0:65536" for kind in ("uid", "gid"))
# Devices are honoured as on the plain directory: opening the whiteout that a rename leaves is ENXIO then, not EACCES.
KINDS: dict[str, tuple[str, ...]] = {
    "unshifted": ("allow_dev", "timeout=3600"),
    "shifted": ("allow_dev", *MAP),
    "shifted, OPEN served": ("allow_dev", "open=serve", *MAP),
}
USER = 1000
RECENT = 1_600_000_000  # seconds; the times that the rules set lie before, all that the clock sets behind

# user::rwx user:1000:rw- group::r-x mask::rwx other::---, as linux/posix_acl_xattr.h has it
ACL = bytes.fromhex(
    "02000000 01000700ffffffff 02000600e8030000 04000500ffffffff 10000700ffffffff 20000000ffffffff"
)
XATTRS = st.sampled_from(["user.x", "user.y", "trusted.x", "system.posix_acl_access", "system.posix_acl_default"])
XATTR_VALUES = {"nothing": b"", "a word": b"word", "300 bytes": b"x" * 300, "an ACL": ACL}
VALUES = st.sampled_from(list(XATTR_VALUES))
XATTR_FLAGS = st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])

# So few that they meet: most paths exist at some time, as files and as directories.
NAMES = st.sampled_from("abcd")
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
# Else most operations would find nothing. A number is a path that exists, counted in the sorted tree; a number with a
# name is that name in a directory that exists.
NUMBERS = st.integers(0, 1000)
THERE = st.one_of(NUMBERS, NUMBERS, NUMBERS, PATHS)
NEW = st.one_of(st.tuples(NUMBERS, NAMES), st.tuples(NUMBERS, NAMES), PATHS)
MAYBE = st.one_of(NUMBERS, NEW)
Where = str | int | tuple[int, str]
CALLERS = st.sampled_from([0, 0, USER])
MODES = st.sampled_from([0o777, 0o755, 0o644, 0o600, 0o000, 0o4755, 0o2755, 0o2775, 0o2644, 0o1777, 0o6777])
UMASKS = st.sampled_from([0o000, 0o022, 0o077])
IDS = st.sampled_from([-1, 0, USER, 65533])
SIZES = st.sampled_from([0, 1, 100, 4096, 70_000])
# By name, so that a failing run can be read.
CONTENTS = {"nothing": b"", "a byte": b"a", "a page": bytes(range(256)) * 16, "pages": b"z" * 140_000}
DATA = st.sampled_from(list(CONTENTS))
TIMES = st.tuples(st.integers(-1_000_000_000, RECENT - 1), st.sampled_from([0, 1, 999_999_999]))
SLOTS = st.integers(0, 2)
OPENING = st.sampled_from(
    [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC, os.O_RDONLY | os.O_DIRECTORY]
)
CREATING = st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_EXCL])
RENAMING = st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT])

_numbers = itertools.count()


@contextmanager
def as_caller(uid: int, umask: int = 0) -> Iterator[None]:
    """Do something in this process as another user, with no capabilities unless it is root."""
    before = os.umask(umask)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.umask(before)


def attributes(found: os.stat_result) -> tuple[object, ...]:
    """What has to be the same on both sides: all but numbers, and times that the clock has set."""
    times = found.st_mtime_ns if found.st_mtime < RECENT else "recent"
    size = None if stat.S_ISDIR(found.st_mode) else found.st_size
    return stat.filemode(found.st_mode), found.st_nlink, size, found.st_uid, found.st_gid, found.st_rdev, times


def described(path: Path) -> tuple[object, ...]:
    """Everything about one file, as root sees it."""
    found = path.lstat()
    content: object = None
    if stat.S_ISREG(found.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return (*attributes(found), content, {name: os.getxattr(path, name, follow_symlinks=False) for name in names})


class Pair(RuleBasedStateMachine):
    """`roots` are the directory on the mount and the plain one; `opened` are descriptors of the same file on both."""

    def __init__(self, mount: Path, plain: Path) -> None:
        super().__init__()
        name = f"run{next(_numbers)}"
        self.roots = (mount / name, plain / name)
        self.there: list[str] = []
        self.directories = ["."]
        self.opened: dict[int, list[int]] = {}
        for root in self.roots:
            root.mkdir()
            root.chmod(0o777)

    @initialize()
    def something_to_begin_with(self) -> None:
        for root in self.roots:
            (root / "a/b").mkdir(parents=True)
            (root / "a/c").write_bytes(b"content")
            (root / "b").write_bytes(b"more")
            (root / "a").chmod(0o777)
            (root / "a/c").chmod(0o666)
            os.chown(root / "a/b", USER, USER)
            os.chown(root / "b", USER, USER)
        self.opened[0] = [os.open(root / "a/c", os.O_RDWR) for root in self.roots]

    def at(self, side: int, where: Where) -> Path:
        if isinstance(where, tuple):
            where = f"{self.directories[where[0] % len(self.directories)]}/{where[1]}"
        elif isinstance(where, int):
            where = self.there[where % len(self.there)] if self.there else "nothing"
        return self.roots[side] / where

    def both(self, call: Callable[[int], Any], uid: int = 0, umask: int = 0) -> list[Any]:
        """Call for either side. Both return, and what they return, or both raise the same errno: then nothing."""
        results: list[Any] = []
        errors = []
        for side in (0, 1):
            try:
                with as_caller(uid, umask):
                    results.append(call(side))
                errors.append("done")
            except OSError as error:
                errors.append(errno.errorcode[error.errno or 0])
        assert errors[0] == errors[1], f"on the mount: {errors[0]}, on the plain directory: {errors[1]}"
        return results

    def same(self, call: Callable[[int], Any], uid: int = 0, umask: int = 0) -> None:
        """The same, of which the results are equal as well."""
        results = self.both(call, uid, umask)
        assert not results or results[0] == results[1]

    @rule(path=MAYBE, slot=SLOTS, flags=OPENING, creating=CREATING, mode=MODES, umask=UMASKS, uid=CALLERS)
    def open(self, path: Where, slot: int, flags: int, creating: int, mode: int, umask: int, uid: int) -> None:
        flags |= creating | os.O_NONBLOCK
        opened = self.both(lambda side: os.open(self.at(side, path), flags, mode), uid, umask)
        if opened:
            self.close(slot)
            self.opened[slot] = opened

    @rule(slot=SLOTS)
    def close(self, slot: int) -> None:
        for fd in self.opened.pop(slot, []):
            os.close(fd)

    def on_open(self, slot: int, call: Callable[[int], Any]) -> None:
        """Call on a descriptor, whichever is open if that slot is empty."""
        if self.opened:
            opened = self.opened.get(slot) or next(iter(self.opened.values()))
            self.same(lambda side: call(opened[side]))

    @rule(slot=SLOTS, offset=SIZES, data=DATA)
    def write(self, slot: int, offset: int, data: str) -> None:
        self.on_open(slot, lambda fd: os.pwrite(fd, CONTENTS[data], offset))

    @rule(slot=SLOTS, offset=SIZES, size=SIZES)
    def read(self, slot: int, offset: int, size: int) -> None:
        self.on_open(slot, lambda fd: os.pread(fd, size, offset))

    @rule(slot=SLOTS, size=SIZES)
    def truncate_open(self, slot: int, size: int) -> None:
        self.on_open(slot, lambda fd: os.ftruncate(fd, size))

    @rule(slot=SLOTS, mode=MODES)
    def chmod_open(self, slot: int, mode: int) -> None:
        self.on_open(slot, lambda fd: os.fchmod(fd, mode))

    @rule(slot=SLOTS)
    def list_open(self, slot: int) -> None:
        self.on_open(slot, lambda fd: sorted(os.listdir(fd)))

    @rule(path=THERE, data=DATA, uid=CALLERS)
    def append(self, path: Where, data: str, uid: int) -> None:
        def call(side: int) -> int:
            fd = os.open(self.at(side, path), os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            try:
                return os.write(fd, CONTENTS[data])
            finally:
                os.close(fd)

        self.same(call, uid)

    @rule(path=THERE, size=SIZES, uid=CALLERS)
    def truncate(self, path: Where, size: int, uid: int) -> None:
        self.same(lambda side: os.truncate(self.at(side, path), size), uid)

    @rule(path=NEW, mode=MODES, umask=UMASKS, uid=CALLERS)
    def mkdir(self, path: Where, mode: int, umask: int, uid: int) -> None:
        self.same(lambda side: os.mkdir(self.at(side, path), mode), uid, umask)

    @rule(path=NEW, mode=MODES, umask=UMASKS, uid=CALLERS)
    def mkfifo(self, path: Where, mode: int, umask: int, uid: int) -> None:
        self.same(lambda side: os.mkfifo(self.at(side, path), mode), uid, umask)

    @rule(path=NEW, content=PATHS, uid=CALLERS)
    def symlink(self, path: Where, content: str, uid: int) -> None:
        self.same(lambda side: os.symlink(content, self.at(side, path)), uid)

    @rule(old=THERE, new=NEW, uid=CALLERS)
    def link(self, old: Where, new: Where, uid: int) -> None:
        self.same(lambda side: os.link(self.at(side, old), self.at(side, new), follow_symlinks=False), uid)

    @rule(path=THERE, uid=CALLERS)
    def unlink(self, path: Where, uid: int) -> None:
        self.same(lambda side: os.unlink(self.at(side, path)), uid)

    @rule(path=THERE, uid=CALLERS)
    def rmdir(self, path: Where, uid: int) -> None:
        self.same(lambda side: os.rmdir(self.at(side, path)), uid)

    @rule(old=THERE, new=MAYBE, flags=RENAMING, uid=CALLERS)
    def rename(self, old: Where, new: Where, flags: int, uid: int) -> None:
        self.same(lambda side: renameat2(self.at(side, old), self.at(side, new), flags), uid)

    @rule(path=THERE, mode=MODES, uid=CALLERS)
    def chmod(self, path: Where, mode: int, uid: int) -> None:
        self.same(lambda side: os.chmod(self.at(side, path), mode), uid)

    @rule(path=THERE, owner=IDS, group=IDS, uid=CALLERS)
    def chown(self, path: Where, owner: int, group: int, uid: int) -> None:
        if owner == group == -1:
            uid = 0  # docs/conformance.md: the kernel does not refuse it to others as it does on a plain directory
        self.same(lambda side: os.lchown(self.at(side, path), owner, group), uid)

    @rule(path=THERE, atime=TIMES, mtime=TIMES, follow=st.booleans(), uid=CALLERS)
    def utime(self, path: Where, atime: tuple[int, int], mtime: tuple[int, int], follow: bool, uid: int) -> None:
        def call(side: int) -> tuple[int, int]:
            target = self.at(side, path)
            utimensat(target, atime, mtime, follow)
            found = os.stat(target, follow_symlinks=follow)
            return found.st_atime_ns, found.st_mtime_ns

        self.same(call, uid)

    @rule(path=THERE, name=XATTRS, value=VALUES, flags=XATTR_FLAGS, follow=st.booleans(), uid=CALLERS)
    def setxattr(self, path: Where, name: str, value: str, flags: int, follow: bool, uid: int) -> None:
        def call(side: int) -> None:
            os.setxattr(self.at(side, path), name, XATTR_VALUES[value], flags, follow_symlinks=follow)

        self.same(call, uid)

    @rule(path=THERE, name=XATTRS, uid=CALLERS)
    def removexattr(self, path: Where, name: str, uid: int) -> None:
        self.same(lambda side: os.removexattr(self.at(side, path), name, follow_symlinks=False), uid)

    @rule(path=THERE, uid=CALLERS)
    def list_names(self, path: Where, uid: int) -> None:
        def call(side: int) -> list[tuple[str, bool, bool]]:
            with os.scandir(self.at(side, path)) as entries:
                return sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries)

        self.same(call, uid)

    @rule(path=THERE, uid=CALLERS)
    def stat_path(self, path: Where, uid: int) -> None:
        self.same(lambda side: attributes(os.stat(self.at(side, path))), uid)

    @rule(path=THERE, mode=st.sampled_from([os.R_OK, os.W_OK, os.X_OK]), uid=CALLERS)
    def access(self, path: Where, mode: int, uid: int) -> None:
        self.same(lambda side: os.access(self.at(side, path), mode, effective_ids=True), uid)

    @invariant()
    def hold_the_same(self) -> None:
        mount, plain = (self._tree(root) for root in self.roots)
        self.there = sorted(plain[0])
        self.directories = [".", *(name for name in self.there if str(plain[0][name][0]).startswith("d"))]
        assert mount == plain
        for slot in self.opened:
            self.on_open(slot, lambda fd: attributes(os.fstat(fd)))

    def _tree(self, root: Path) -> tuple[dict[str, tuple[object, ...]], set[frozenset[str]]]:
        """Each path's description, and which paths are one inode."""
        found = {str(path.relative_to(root)): path for path in sorted(root.rglob("*"))}
        inodes: dict[int, set[str]] = {}
        for name, path in found.items():
            inodes.setdefault(path.lstat().st_ino, set()).add(name)
        return {name: described(path) for name, path in found.items()}, {frozenset(names) for names in inodes.values()}

    def teardown(self) -> None:
        for slot in list(self.opened):
            self.close(slot)
        for root in self.roots:
            shutil.rmtree(root)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mounted_tree_is_like_a_plain_directory(kind: str) -> None:
    source, plain = open_directory("source-"), open_directory("plain-")
    if kind != "unshifted":
        os.chown(source, FIRST_REAL_ID, FIRST_REAL_ID)
    try:
        with mounted(source, None, *KINDS[kind]) as mount:
            factory = cast(type[Pair], partial(Pair, mount.path, plain))  # all it does is call it
            run_state_machine_as_test(factory, settings=SETTINGS)
    finally:
        shutil.rmtree(source)
        shutil.rmtree(plain)


SETTINGS = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    # Shrinking takes minutes here, and a failure names the first operation after which the two are not alike.
    phases=(Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
