"""Random operations done alike on several directories, of which the last is a plain one that says what is right: the
same operations have the same results, errnos, attributes, contents and listings on all.

Owns the descriptors it opens. Which directories there are, and what they begin with, a subclass says.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from harness.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2, utimensat

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
THERE = st.one_of(*[NUMBERS] * 7, PATHS)
NEW = st.one_of(st.tuples(NUMBERS, NAMES), st.tuples(NUMBERS, NAMES), PATHS)
MAYBE = st.one_of(NUMBERS, NEW)
Where = str | int | tuple[int, str]
CALLERS = st.sampled_from([0, 0, 0, USER])
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
RENAMING = st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])


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


class Operations(RuleBasedStateMachine):
    """`sides` name the directories `roots`; `opened` are descriptors of the same file on each side."""

    sides: tuple[str, ...]
    roots: tuple[Path, ...]

    def __init__(self) -> None:
        super().__init__()
        self.there: list[str] = []
        self.directories = ["."]
        self.opened: dict[int, list[int]] = {}

    def at(self, side: int, where: Where) -> Path:
        if isinstance(where, tuple):
            where = f"{self.directories[where[0] % len(self.directories)]}/{where[1]}"
        elif isinstance(where, int):
            where = self.there[where % len(self.there)] if self.there else "nothing"
        return self.roots[side] / where

    def each(self, call: Callable[[int], Any], uid: int = 0, umask: int = 0) -> list[Any]:
        """Call for each side. All return, and what they return, or all raise the same errno: then nothing."""
        results: list[Any] = []
        errors = []
        for side in range(len(self.roots)):
            try:
                with as_caller(uid, umask):
                    results.append(call(side))
                errors.append("done")
            except OSError as error:
                errors.append(errno.errorcode[error.errno or 0])
        assert len(set(errors)) == 1, ", ".join(map(": ".join, zip(self.sides, errors, strict=True)))
        return results

    def same(self, call: Callable[[int], Any], uid: int = 0, umask: int = 0) -> None:
        """The same, of which the results are equal as well."""
        results = self.each(call, uid, umask)
        for side, result in zip(self.sides, results, strict=False):
            assert result == results[-1], f"{side} has {result!r:.500}, {self.sides[-1]} {results[-1]!r:.500}"

    @rule(path=MAYBE, slot=SLOTS, flags=OPENING, creating=CREATING, mode=MODES, umask=UMASKS, uid=CALLERS)
    def open(self, path: Where, slot: int, flags: int, creating: int, mode: int, umask: int, uid: int) -> None:
        flags |= creating | os.O_NONBLOCK
        opened = self.each(lambda side: os.open(self.at(side, path), flags, mode), uid, umask)
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
        def call(fd: int) -> int:
            # Set while it was open they fall at root's writes too, where those are passed on (docs/semantics.md).
            mode = os.fstat(fd).st_mode
            if mode & (stat.S_ISUID | stat.S_ISGID) and stat.S_ISREG(mode):
                os.fchmod(fd, stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))
            return os.pwrite(fd, CONTENTS[data], offset)

        self.on_open(slot, call)

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
        self.same(lambda side: self.renamed(side, old, new, flags), uid)

    def renamed(self, side: int, old: Where, new: Where, flags: int) -> None:
        renameat2(self.at(side, old), self.at(side, new), flags)

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
        self.same(lambda side: self.attributes(os.stat(self.at(side, path))), uid)

    @rule(path=THERE, mode=st.sampled_from([os.R_OK, os.W_OK, os.X_OK]), uid=CALLERS)
    def access(self, path: Where, mode: int, uid: int) -> None:
        self.same(lambda side: os.access(self.at(side, path), mode, effective_ids=True), uid)

    def attributes(self, found: os.stat_result) -> tuple[object, ...]:
        """What has to be the same on all sides: all but numbers, and times that the clock has set."""
        times = found.st_mtime_ns if found.st_mtime < RECENT else "recent"
        size = None if stat.S_ISDIR(found.st_mode) else found.st_size
        return stat.filemode(found.st_mode), found.st_nlink, size, found.st_uid, found.st_gid, found.st_rdev, times

    def described(self, path: Path) -> tuple[object, ...]:
        """Everything about one file, as root sees it."""
        found = path.lstat()
        content: object = None
        if stat.S_ISREG(found.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(found.st_mode):
            content = os.readlink(path)
        names = sorted(os.listxattr(path, follow_symlinks=False))
        xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        return (*self.attributes(found), content, xattrs)

    @invariant()
    def hold_the_same(self) -> None:
        trees = [self.tree(root) for root in self.roots]
        expected, same_inodes = trees[-1]
        self.there = sorted(expected)
        self.directories = [".", *(name for name in self.there if str(expected[name][0]).startswith("d"))]
        for side, (found, inodes) in zip(self.sides, trees, strict=True):
            apart = {name: (found.get(name), expected.get(name)) for name in found.keys() | expected.keys()}
            apart = {name: both for name, both in apart.items() if both[0] != both[1]}
            assert not apart, f"{side} differs from {self.sides[-1]}: {str(apart)[:2000]}"
            assert inodes == same_inodes, f"{side} differs from {self.sides[-1]} in what is one inode"
        for slot in self.opened:
            self.compare_open(slot)

    def compare_open(self, slot: int) -> None:
        self.on_open(slot, lambda fd: self.attributes(os.fstat(fd)))

    def tree(self, root: Path) -> tuple[dict[str, tuple[object, ...]], set[frozenset[str]]]:
        """Each path's description, and which paths are one inode."""
        found = {str(path.relative_to(root)): path for path in sorted(root.rglob("*"))}
        inodes: dict[int, set[str]] = {}
        for name, path in found.items():
            inodes.setdefault(path.lstat().st_ino, set()).add(name)
        return {name: self.described(path) for name, path in found.items()}, set(map(frozenset, inodes.values()))

    def teardown(self) -> None:
        for slot in list(self.opened):
            self.close(slot)
