"""Overlays against a plain directory: the same operations on shiftfs's, the kernel's, and a directory that began with
what both show have the same results, errnos, attributes, contents and listings, over remounts too.

Either overlay goes on with the upper directory that the other has written, and a remount may lay a new upper directory
over it. What only an overlay promises is held on shiftfs's: one st_dev, an st_ino that stays, d_ino equal to it, and
lower layers that nobody touches.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from model.operations import (
    CALLERS,
    IDS,
    MAYBE,
    MODES,
    NEW,
    NUMBERS,
    SLOTS,
    THERE,
    TIMES,
    VALUES,
    XATTR_FLAGS,
    XATTRS,
    Operations,
    Where,
    as_caller,
)
from model.overlay_layers import LAYERS, Layer, build, copy_attributes, translate

from harness import layered, open_directory
from harness.calls import RENAME_EXCHANGE, RENAME_WHITEOUT, all_dirents, drop_dentries, opened, refuses, renameat2
from harness.layered import Kind

pytestmark = pytest.mark.root

OURS, KERNELS, PLAIN = 0, 1, 2
SIDES = ("shiftfs", "the kernel's overlay", "the plain directory")

# Where overlays, the kernel's as well, are not like a plain directory, and what is done about it here.
DIFFERENCES = {
    "a directory's st_nlink": "1 where it is merged, so that nobody counts its subdirectories by it: not compared",
    "what is open and has no name any more": "the kernel shows links: not compared with it",
    "a removed directory's times": "change when whiteouts are cleared out of it: not compared",
    "a fifo's times": "change when something is written through it, in the kernel's not: not compared",
    "renaming with RENAME_WHITEOUT, making a device 0/0": "refused, whiteouts being the overlay's own: tested apart",
    "the root's st_ino": "the kernel shows the upper directory's: compared while that stays the same",
    "whiteouts in a directory that merges with none": "the kernel lists them: none are made",
    "renaming a merged directory over one that is not empty": "changes mtime in the kernel: set back",
    "removing an ACL that is not there": "the kernel says so of lower files alone: not done",
    "hard links in a directory that becomes a lower layer": "their index stays behind: it becomes one without any",
}


KINDS = ("rename", "rename", "rename", "exchange", "link", "append", "mkdir", "symlink", "remove", "remove content")
CHANGES = st.lists(st.tuples(st.sampled_from(KINDS), NUMBERS, MAYBE), min_size=1, max_size=12)


class Stack(NamedTuple):
    """The directories of one overlay, `lowers` from top to bottom."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path


class Overlays(Operations):
    sides = SIDES

    def __init__(self, kinds: tuple[Kind, Kind], dialects: bool) -> None:
        """With `dialects` ours has layers as the kernel does not know them, so either keeps its own."""
        super().__init__()
        self._kinds, self._dialects = kinds, dialects
        self._base = open_directory("overlays-")
        self._mounts = ExitStack()
        self._made = 0
        self._alike = False
        # By the plain directory's st_ino, which is a file's identity: what either overlay calls the same file.
        self._numbers: dict[int, tuple[int, int]] = {}
        self._held: list[int] = []
        self._untouched: dict[Path, object] = {}

    @initialize(layers=LAYERS)
    def lay(self, layers: list[Layer]) -> None:
        plain, hidden = self._directory(), self._directory()
        lowers = tuple(self._directory() for _ in layers)
        build(layers, list(lowers), plain, hidden)
        ours = tuple(self._directory() for _ in layers) if self._dialects else lowers
        if self._dialects:
            for lower, copy in zip(lowers, ours, strict=True):
                translate(lower, copy)
        self._untouched = {lower: _everything(lower) for lower in (*lowers, *ours)}
        self._linked = self._has_links(plain)
        self._plain = plain
        self._stacks = [self._stack(ours), self._stack(lowers)]
        self._mount()

    @precondition(lambda self: self._alike and self._since_mount > 25)
    @rule(how=st.sampled_from(["same", "exchange", "lay over"]))
    def remount(self, how: str) -> None:
        """Mount anew: the same layers; each the other's; or each a new upper directory over what it had."""
        self._unmount()
        if how == "exchange" and not self._dialects:
            self._stacks.reverse()
            # All is on one device, and the kernel as well shows the numbers of origins.
            self._numbers = {number: (theirs, ours) for number, (ours, theirs) in self._numbers.items()}
            del self._numbers[self._plain.lstat().st_ino]
        elif how == "lay over" and not self._linked:
            self._stacks = [self._stack((upper, *lowers)) for lowers, upper, _ in self._stacks]
            self._linked = self._has_links(self._plain)
            self._numbers = {}
        self._mount()

    @rule()
    def forget(self) -> None:
        drop_dentries()

    @rule(slot=SLOTS, path=THERE, mode=MODES, uid=CALLERS)
    def open_unnamed(self, slot: int, path: Where, mode: int, uid: int) -> None:
        made = self.each(lambda side: os.open(self.at(side, path), os.O_TMPFILE | os.O_RDWR, mode), uid)
        if made:
            self.close(slot)
            self.opened[slot] = made

    @rule(slot=SLOTS, path=NEW)
    def link_open(self, slot: int, path: Where) -> None:
        """A name for what is open: an unnamed file, or one that has names, or has none any more."""
        if fds := self.opened.get(slot):
            # An absolute path never asks for the directory, but with one os.link follows.
            self.same(lambda side: os.link(f"/proc/self/fd/{fds[side]}", self.at(side, path), src_dir_fd=fds[side]))

    def renamed(self, side: int, old: Where, new: Where, flags: int) -> None:
        before = self.at(side, old).parent.stat()
        try:
            super().renamed(side, old, new, flags)
        except OSError as error:
            if side != PLAIN and self._kinds[side] == "kernel" and error.errno == errno.ENOTEMPTY:
                with as_caller(0):
                    os.utime(self.at(side, old).parent, ns=(before.st_atime_ns, before.st_mtime_ns))
            raise

    @rule(changes=CHANGES)
    def change(self, changes: list[tuple[str, int, Where]]) -> None:
        """Several changes of names in a row, without a look between them at what there is."""
        for kind, old, new in changes:
            if kind == "rename":
                self.rename(old, new, 0, 0)
            elif kind == "exchange":
                self.rename(old, new, RENAME_EXCHANGE, 0)
            elif kind == "link":
                self.link(old, new, 0)
            elif kind == "append":
                self.append(old, "a byte", 0)
            elif kind == "mkdir":
                self.mkdir(new, 0o755, 0, 0)
            elif kind == "symlink":
                self.symlink(new, "a", 0)
            elif kind == "remove":
                self.same(partial(self._remove, old))
            else:
                self.same(partial(self._remove_content, old))

    @rule(changes=CHANGES)
    def change_more(self, changes: list[tuple[str, int, Where]]) -> None:
        """The same: rules come up equally often, and this is where overlays are hard."""
        self.change(changes)

    def _remove(self, where: Where, side: int) -> None:
        path = self.at(side, where)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()

    def _remove_content(self, where: Where, side: int) -> None:
        for path in sorted(self.at(side, where).iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    @rule(path=THERE, name=XATTRS, value=VALUES, flags=XATTR_FLAGS, follow=st.booleans(), uid=CALLERS)
    def setxattr(self, path: Where, name: str, value: str, flags: int, follow: bool, uid: int) -> None:
        if value != "nothing" or not self._lacks_acl(path, name):
            super().setxattr(path, name, value, flags, follow, uid)

    @rule(path=THERE, name=XATTRS, uid=CALLERS)
    def removexattr(self, path: Where, name: str, uid: int) -> None:
        if not self._lacks_acl(path, name):
            super().removexattr(path, name, uid)

    def _lacks_acl(self, path: Where, name: str) -> bool:
        at = self.at(PLAIN, path)
        return name.startswith("system.") and at.exists() and name not in os.listxattr(at)

    @rule(mode=MODES, owner=IDS, mtime=TIMES)
    def change_root(self, mode: int, owner: int, mtime: tuple[int, int]) -> None:
        def call(side: int) -> None:
            os.chown(self.roots[side], owner, owner)
            os.chmod(self.roots[side], mode | 0o555)
            os.utime(self.roots[side], ns=(0, mtime[0] * 10**9 + mtime[1]))

        self.same(call)

    @rule(path=THERE, name=NEW)
    def refuse_whiteouts(self, path: Where, name: Where) -> None:
        def call(side: int) -> None:
            old, new = self.at(side, path), self.at(side, name)
            if os.path.lexists(old) and new.parent.is_dir() and not os.path.lexists(new):
                refuses(errno.EPERM, os.mknod, new, stat.S_IFCHR, os.makedev(0, 0))
                if old not in new.parents:
                    refuses(errno.EINVAL, renameat2, old, new, RENAME_WHITEOUT)

        for side in (OURS, KERNELS):
            call(side)

    def each(self, call: Callable[[int], Any], uid: int = 0, umask: int = 0) -> list[Any]:
        self._alike = False
        return super().each(call, uid, umask)

    def attributes(self, found: os.stat_result) -> tuple[object, ...]:
        mode, links, *rest, times = super().attributes(found)
        if stat.S_ISFIFO(found.st_mode):
            times = None
        return mode, None if stat.S_ISDIR(found.st_mode) else links, *rest, times

    def compare_open(self, slot: int) -> None:
        ours, _, plain = (os.fstat(fd) for fd in self.opened[slot])
        if plain.st_nlink:
            super().compare_open(slot)
        elif self._kinds[OURS] != "kernel":
            assert ours.st_nlink == 0
            assert stat.S_ISDIR(plain.st_mode) or self.attributes(ours) == self.attributes(plain)

    @invariant()
    def hold_the_same(self) -> None:
        super().hold_the_same()
        for side in (OURS, KERNELS):
            assert self.described(self.roots[side]) == self.described(self._plain), f"the root of {SIDES[side]}"
        self._hold_listings()
        assert {path.lstat().st_dev for path in (self.roots[OURS], *self.roots[OURS].rglob("*"))} == {self._device}
        self._hold_numbers()
        self._since_mount += 1
        self._alike = True

    def _hold_listings(self) -> None:
        """Listings name the numbers and types that the files have."""
        for directory in self.directories:
            path = self.roots[OURS] / directory
            with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
                listed = {os.fsdecode(entry.name): (entry.number, entry.kind) for entry in all_dirents(fd)}
            found = {name: (path / name).lstat() for name in listed.keys() - {".."}}
            expected = {name: (each.st_ino, stat.S_IFMT(each.st_mode) >> 12) for name, each in found.items()}
            assert {name: listed[name] for name in expected} == expected, directory

    def _hold_numbers(self) -> None:
        """Each file has the number that it had, and no two have the same."""
        paths = [[root, *(root / name for name in self.there)] for root in self.roots]
        found = [tuple(path.lstat().st_ino for path in same) for same in zip(*paths, strict=True)]
        found += [tuple(os.fstat(fd).st_ino for fd in fds) for fds in self.opened.values()]
        now: dict[int, tuple[int, int]] = {}
        for name, (ours, theirs, number) in zip([".", *self.there, *self.opened], found, strict=True):
            before = now.get(number) or self._numbers.get(number)
            assert before in (None, (ours, theirs)), f"st_ino of {name} on both was {before}, is {(ours, theirs)}"
            now[number] = (ours, theirs)
        for side in (OURS, KERNELS):
            assert len({numbers[side] for numbers in now.values()}) == len(now), f"one st_ino twice: {SIDES[side]}"
        self._numbers = now
        self._hold()

    def _hold(self) -> None:
        """Lest the plain directory's numbers, which files are known by, are given to new files."""
        held = [os.open(path, os.O_PATH | os.O_NOFOLLOW) for path in self._plain.rglob("*")]
        self._let_go()
        self._held = held

    def _let_go(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def teardown(self) -> None:
        try:
            if self._alike:
                self.remount("exchange")
                self.hold_the_same()
        finally:
            self._let_go()
            self._unmount()
            now = {lower: _everything(lower) for lower in self._untouched}
            shutil.rmtree(self._base)
        assert now == self._untouched, "a lower layer was written to"

    def _mount(self) -> None:
        mounts = [
            self._mounts.enter_context(layered(stack.lowers, stack.upper, stack.work, kind=kind))
            for stack, kind in zip(self._stacks, self._kinds, strict=True)
        ]
        self.roots = (*(mount.path for mount in mounts), self._plain)
        self._device = self.roots[OURS].lstat().st_dev
        self._since_mount = 0

    def _unmount(self) -> None:
        super().teardown()
        self._mounts.close()

    def _stack(self, lowers: tuple[Path, ...]) -> Stack:
        upper, work = self._directory(), self._directory()
        copy_attributes(self._plain, upper)  # what the root has is the upper directory's
        return Stack(lowers, upper, work)

    def _directory(self) -> Path:
        self._made += 1
        path = self._base / str(self._made)
        path.mkdir()
        path.chmod(0o755)
        return path

    def _has_links(self, directory: Path) -> bool:
        return any(path.lstat().st_nlink > 1 for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())


def _everything(lower: Path) -> dict[Path, tuple[int, ...]]:
    """Whatever a write would change, of all files in a directory."""
    found = {path: path.lstat() for path in (lower, *lower.rglob("*"))}
    return {path: (each.st_ino, each.st_nlink, each.st_mtime_ns, each.st_ctime_ns) for path, each in found.items()}


@pytest.mark.parametrize("dialects", [False, True], ids=["layers that both read", "layers in all dialects"])
def test_an_overlay_is_like_the_kernels_and_like_a_plain_directory(dialects: bool) -> None:
    factory = cast(type[Overlays], partial(Overlays, ("shiftfs", "kernel"), dialects))  # all it does is call it
    run_state_machine_as_test(factory, settings=settings(SETTINGS, max_examples=3 if dialects else 6))


SETTINGS = settings(
    stateful_step_count=200,
    deadline=None,
    derandomize=True,
    database=None,
    # Shrinking takes minutes here, and a failure names the first operation after which the three are not alike.
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
