"""An OverlayTree over real directories, without a mount: what a session does with it, step by step.

Owns the tree and the entries that a kernel would know. Workers are played by the caller: what a copy-up yields is run
at once, or by the test itself.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.commands import run
from harness.layered import Layers, Tree, layered, litter, read_tree, write_tree
from overlay.entry import Entry
from overlay.stack import open_stack
from overlay.tree import OverlayTree
from shiftfs.descriptors import is_directory
from shiftfs.sys import files
from shiftfs.tree import Attributes, Gate, RealKey, Steps, Work

Fill = Callable[..., Layers]
"""Makes layers that hold these trees, the lowers from top to bottom, and `upper=`."""


def never() -> bool:
    """Nobody has stopped waiting."""
    return False


def finish(steps: Steps, first: Work | Gate | None = None) -> None:
    """Run all that the steps yield, until they end; `first` is what they have yielded already."""
    try:
        call = first if first is not None else next(steps)
        while True:
            assert not isinstance(call, Gate), "it waits for another, which would never come"
            try:
                result = call()
            except OSError as error:
                call = steps.throw(error)
            else:
                call = steps.send(result)
    except StopIteration:
        return


class Overlay:
    """A mount's tree. Paths are bytes, relative to the root, which is empty."""

    def __init__(
        self, layers: Layers, *, writable: bool = True, volatile: bool = False, index: bool = True,
        userxattr: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        self.said: list[str] = []
        stack = open_stack(
            [os.fsencode(path) for path in layers.lowers],
            os.fsencode(layers.upper) if writable else None,
            os.fsencode(layers.work) if writable else None,
            volatile=volatile,
            index=index,
            userxattr=userxattr,
            log=self.said.append,
        )
        self.work = stack.work
        self.tree = OverlayTree(stack, 64, **options)
        self.known: dict[RealKey, Entry] = {self.tree.root.key: self.tree.root}
        self.tree.knows(self.known.get)

    def close(self) -> None:
        """Let go of all descriptors, whoever still holds this."""
        tree = self.tree
        for held in tree._layers.held:
            vars(held).clear()
        for part in (tree._layers, tree._lookup, tree, self):
            vars(part).clear()

    # --- what there is ---

    def at(self, path: bytes) -> Entry:
        """The entry at a path, looked up name by name as the kernel does."""
        entry = self.tree.root
        for name in filter(None, path.split(b"/")):
            entry = self.child(entry, name)
        return entry

    def child(self, directory: Entry, name: bytes) -> Entry:
        key, _, place = self.tree.lookup(directory, name)
        entry = self.known.get(key)
        if entry is None:
            entry = self.known[key] = self.tree.entry(directory, name, key, place)
        else:
            self.tree.found_at(entry, directory, name, place)
        return entry

    def parent(self, path: bytes) -> tuple[Entry, bytes]:
        above, _, name = path.rpartition(b"/")
        return self.at(above), name

    def attributes(self, path: bytes) -> Attributes:
        """As the lookup has them and as they are asked for later, which is the same."""
        entry = self.at(path)
        asked = self.tree.attributes(entry)
        if path:
            assert entry.parent is not None
            assert self.tree.lookup(entry.parent, entry.name)[1] == asked
        return asked

    def number(self, path: bytes) -> int:
        """Its st_ino."""
        return self.tree.numbers(self.attributes(path))

    def names(self, path: bytes = b"") -> list[bytes]:
        return sorted(one.name for one in self.tree.listing(self.tree.held(self.at(path))))

    def exists(self, path: bytes) -> bool:
        try:
            self.at(path)
        except FileNotFoundError:
            return False
        return True

    def read(self, path: bytes) -> bytes:
        return os.pread(self.tree.data(self.at(path), False).fd, 1 << 20, 0)

    def contents(self, path: bytes = b"") -> dict[str, Any]:
        """All that shows beneath a directory, in the form of `harness.read_tree`."""
        return {os.fsdecode(name): self._shown(b"%s/%s" % (path, name)) for name in self.names(path)}

    def _shown(self, path: bytes) -> Any:
        entry = self.at(path)
        kind = stat.S_IFMT(self.tree.attributes(entry).mode)
        if kind == stat.S_IFLNK:
            return Path(os.fsdecode(self.tree.readlink(entry)))
        if kind == stat.S_IFDIR:
            return self.contents(path)
        return self.read(path) if kind == stat.S_IFREG else self.tree.attributes(entry).mode

    def forget(self, path: bytes) -> None:
        """As when the kernel drops an inode."""
        self.tree.release(self.known.pop(self.at(path).key))

    # --- what is changed, with what has to be up before ---

    def up(self, path: bytes, size: int | None = None, metadata_only: bool = False) -> Entry:
        entry = self.at(path)
        self.up_entry(entry, size, metadata_only)
        return entry

    def up_entry(
        self, entry: Entry, size: int | None = None, metadata_only: bool = False, stopped: Callable[[], bool] = never
    ) -> None:
        finish(self.tree.copy_up(entry, size, metadata_only, stopped))

    def write(self, path: bytes, data: bytes) -> None:
        held = self.tree.data(self.up(path), True)
        os.pwrite(held.fd, data, 0)

    def create(self, path: bytes, data: bytes = b"") -> Entry:
        above, name = self.parent(path)
        self.up_entry(above)
        made = self.tree.create(above, name, 0o644)
        os.pwrite(made.fd, data, 0)
        return self.child(above, name)

    def mkdir(self, path: bytes) -> Entry:
        above, name = self.parent(path)
        self.up_entry(above)
        self.tree.mkdir(above, name, 0o755)
        return self.child(above, name)

    def link(self, path: bytes, new: bytes) -> None:
        above, name = self.parent(new)
        entry = self.up(path, None, True)
        self.up_entry(above)
        self.tree.link(entry, above, name)

    def unlink(self, path: bytes) -> bool:
        """True if that was the inode's last name."""
        above, name = self.parent(path)
        entry = self.child(above, name)
        self.up_entry(above)
        self._count(entry)
        return self.tree.unlink(above, name, entry)

    def rmdir(self, path: bytes) -> None:
        above, name = self.parent(path)
        entry = self.child(above, name)
        self.up_entry(above)
        self.tree.rmdir(above, name, entry)

    def rename(self, path: bytes, new: bytes, flags: int = 0) -> bool:
        above, name = self.parent(path)
        to, new_name = self.parent(new)
        moved = self.child(above, name)
        try:
            replaced = self.child(to, new_name)
        except FileNotFoundError:
            replaced = None
        self.tree.may_rename(moved)
        for entry in (above, to, moved):
            self.up_entry(entry, None, not is_directory(entry.key))
        if replaced is not None and flags & files.RENAME_EXCHANGE:
            self.tree.may_rename(replaced)
            self.up_entry(replaced, None, True)
        elif replaced is not None:
            self._count(replaced)
        return self.tree.rename(above, name, to, new_name, flags, moved, replaced)

    def _count(self, entry: Entry) -> None:
        if self.tree.counts_names(entry):
            self.up_entry(entry, None, True)


@contextmanager
def overlaid(layers: Layers, **options: Any) -> Iterator[Overlay]:
    """The tree of a mount of `layers`, for as long as that lasts; options as for Overlay."""
    overlay = Overlay(layers, **options)
    try:
        yield overlay
    finally:
        overlay.close()


def by_kernel(layers: Layers, *options: str) -> dict[str, Any]:
    """What Linux's own overlayfs shows of the same layers, read-only, as `Overlay.contents` gives it."""
    with layered([layers.upper, *layers.lowers], None, None, *options, kind="kernel") as mount:
        return read_tree(mount.path)


def marked(
    name: str, value: bytes, tree: Tree | bytes | None = None, prefix: str = "trusted.overlay."
) -> Callable[[Path], None]:
    """For `harness.write_tree`: a directory with this mark; a file with it where `tree` is bytes."""

    def make(path: Path) -> None:
        if isinstance(tree, bytes):
            path.write_bytes(tree)
        else:
            path.mkdir(exist_ok=True)
            write_tree(path, tree or {})
        os.setxattr(path, prefix + name, value)

    return make


def is_whiteout(path: Path) -> bool:
    """Is it overlayfs's, a character device 0/0?"""
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def mark(path: Path, name: str) -> bytes | None:
    """What overlayfs has written on a layer's inode; None if nothing."""
    try:
        return os.getxattr(path, f"trusted.overlay.{name}", follow_symlinks=False)
    except OSError:
        return None


def nothing_in_work(layers: Layers) -> bool:
    """Is all that was made in the work directory gone from there?"""
    return litter(layers.work) == []


@contextmanager
def without_attributes(layers: Layers) -> Iterator[None]:
    """Let the upper and the work directory be on a ramfs, which takes no extended attributes."""
    there = layers.base / "there"
    there.mkdir()
    run(["mount", "-t", "ramfs", "none", there])
    try:
        layers.upper, layers.work = there / "upper", there / "work"
        layers.upper.mkdir()
        layers.work.mkdir()
        yield
    finally:
        run(["umount", there])
