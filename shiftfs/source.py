"""A tree over one layer, as it is: shifting without layering.

Owns nothing but the layer and its descriptors; holds no cache of names or attributes. Loop thread, but for what
tree.Tree says of workers.
"""

import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from . import layer as real
from .descriptors import Descriptors, Entry, path_of, seen_at
from .layer import Layer
from .sys import files
from .tree import (
    WHOLE,
    Attributes,
    Change,
    Contributor,
    Descriptor,
    Listed,
    LockFile,
    Names,
    Plain,
    RealKey,
    Shown,
    Space,
    Steps,
    View,
    Work,
)  # fmt: skip

_FOREIGN_SHIFT: Final = 48
"""Inode numbers of a filesystem mounted inside the source are told apart by the bits from here on."""


class SourceTree:
    """One directory and all that is mounted in it at mount time."""

    def __init__(
        self, layer: Layer, bound: int, unlinked: int = 1024, noatime: bool = True, nodiratime: bool = True,
        view: View = WHOLE, narrow: bool = False,
    ) -> None:  # fmt: skip
        """`bound`: how many descriptors may be held at once; `unlinked`: how many more of removed files in use.
        `noatime`: what is read here is not an access on the layer; `nodiratime`: nor is what is listed. `narrow`: inode
        numbers have 32 bits."""
        self._layer = layer
        self.view = view
        self.override = layer.override
        self._keeps_numbers = not narrow
        self._noatime = os.O_NOATIME if nodiratime else 0
        self._held = Descriptors(layer, bound, unlinked, noatime)
        self._devices: dict[int, int] = {layer.device: 0}
        self.root = self._held.root

    def root_attributes(self) -> tuple[RealKey, Attributes]:
        return self._layer.look(self._layer.root.fd, b"")

    def knows(self, entry_of: Callable[[RealKey], Any | None]) -> None:
        pass  # an inode is what it is, known or not

    def lookup(self, directory: Entry, name: bytes) -> tuple[RealKey, Attributes, None]:
        held = directory.path
        key, attributes = self._layer.look((held or self._held.path(directory)).fd, name)
        return key, attributes, None

    def entry(self, directory: Entry, name: bytes, key: RealKey, place: None = None) -> Entry:
        return Entry(directory, name, key)

    def found_at(self, entry: Entry, directory: Entry, name: bytes, place: None = None) -> None:
        seen_at(entry, directory, name)
        if entry.path is not None:
            self._held.unpin(entry)

    def plain(self) -> Plain | None:
        if self.view != WHOLE or self.override is not None or not self._keeps_numbers:
            return None
        devices = [(one, 0) for one in self._layer.plain_devices() if one == self._layer.device]
        held = self._held
        names = Names(self.found_at, self._has_gone, None, held.pinned, held.most_pinned)
        return Plain(
            devices, 0, 0, None, None, names, held.writers, held.opened, held.path_opened, held.noatime,
            self._noatime, False, None,
        )  # fmt: skip

    def note_directory(self, entry: Entry) -> None:
        """It is known by its key alone."""

    def release(self, entry: Entry) -> None:
        self._held.release(entry)

    def attributes(self, entry: Entry) -> Attributes:
        return self._held.attributes(entry)

    def numbers(self, attributes: Attributes) -> int:
        if attributes.device == self._layer.device and self._keeps_numbers:
            return attributes.ino
        return self._number(attributes.device, attributes.ino)

    def _number(self, device: int, number: int) -> int:
        index = self._devices.setdefault(device, len(self._devices))
        wide = (number + (index << _FOREIGN_SHIFT)) & 0xFFFFFFFFFFFFFFFF
        return wide if self._keeps_numbers else real.narrowed(wide)

    def held(self, entry: Entry) -> tuple[Descriptor, int]:
        return self._held.path(entry), entry.key[0]

    def listing(self, directory: tuple[Descriptor, int]) -> list[Listed]:
        held, device = directory
        names = real.list_names(held.fd, self._noatime)
        if self.override is not None:
            names = real.of_unknown_kinds(names)
        if device == self._layer.device and self._keeps_numbers:
            return [Listed(*row) for row in names]
        return [Listed(name, self._number(device, number), kind) for name, number, kind in names]

    def plain_parts(self, held: tuple[Descriptor, int]) -> tuple[list[tuple[int, int, int]], bool, int] | None:
        path, device = held
        if self.override is not None or device != self._layer.device or not self._keeps_numbers:
            return None
        return [(path.fd, 0, 2)], False, self._noatime

    def parent_number(self, entry: Entry) -> int:
        parent = entry.parent or entry
        return self._number(parent.key[0], parent.key[1])

    def readlink(self, entry: Entry) -> bytes:
        return os.readlink(b"", dir_fd=self._held.path(entry).fd)

    def path(self, entry: Entry) -> Descriptor:
        return self._held.path(entry)

    def content(self, entry: Entry) -> Descriptor:
        return self._held.path(entry)

    layered = False
    volatile = False

    def is_up(self, entry: Entry, metadata_only: bool = False, name_only: bool = False) -> bool:
        return True

    def copy_up(
        self, entry: Entry, size: int | None, metadata_only: bool, stopped: Callable[[], bool], name_only: bool = False
    ) -> Steps:
        yield from ()

    def unfinished(self) -> list[Steps]:
        return []

    def counts_names(self, entry: Entry) -> bool:
        return False

    def may_remove(self, entry: Entry) -> None:
        pass

    def may_rename(self, entry: Entry) -> None:
        pass

    def progress(self) -> list[dict[str, object]]:
        return []

    def path_of(self, entry: Entry) -> bytes:
        return path_of(entry)

    def lock_files(self, entry: Entry) -> list[LockFile]:
        return [LockFile(entry.key, self._held.path(entry), "source")]

    def on_copy(self, call: Callable[[Any, int], None]) -> None:
        pass  # nothing is copied

    def stays(self, entry: Entry) -> bool:
        return self._layer.private

    def may_change_unheard(self, entry: Entry) -> bool:
        return False

    def may_block(self, entry: Entry) -> bool:
        return entry.key[0] in self._layer.remote

    def is_made_up(self, entry: Entry) -> bool:
        return entry.key[0] in self._layer.pseudo

    def data(self, entry: Entry, writable: bool) -> Descriptor:
        return self._held.data(entry, writable)

    def open_waiting(self, held: Descriptor, flags: int) -> Descriptor:
        return Descriptor(real.reopen(held.fd, flags), os.close, flags & os.O_ACCMODE != os.O_RDONLY)

    def open_anew(self, entry: Entry) -> None:
        if entry.key[0] in self._layer.remote and entry.data is not None and not entry.data.writable:
            self._held.drop_data(entry)

    def keep_data(self, entry: Entry, data: Descriptor) -> None:
        self._held.keep_data(entry, data)

    def mknod(self, directory: Entry, name: bytes, mode: int, rdev: int) -> None:
        at = self._held.path(directory).fd
        self._layer.make_node(at, name, mode, rdev)
        self._layer.born(at, name, lambda: self.attributes(directory), mode, rdev)

    def mkdir(self, directory: Entry, name: bytes, mode: int) -> None:
        at = self._held.path(directory).fd
        os.mkdir(name, self._layer.mode_of_new(mode), dir_fd=at)
        self._layer.born(at, name, lambda: self.attributes(directory), stat.S_IFDIR | mode)

    def symlink(self, directory: Entry, name: bytes, target: bytes) -> None:
        os.symlink(target, name, dir_fd=self._held.path(directory).fd)

    def link(self, entry: Entry, directory: Entry, name: bytes) -> None:
        source = real.magic_link(self._held.path(entry).fd)
        os.link(source, name, dst_dir_fd=self._held.path(directory).fd, follow_symlinks=True)

    def create(self, directory: Entry, name: bytes, mode: int) -> Descriptor:
        wanted = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        at = self._held.path(directory).fd
        made = Descriptor(os.open(name, wanted, self._layer.mode_of_new(mode), dir_fd=at), os.close, writable=True)
        self._layer.born(at, name, lambda: self.attributes(directory), stat.S_IFREG | stat.S_IMODE(mode))
        return made

    def tmpfile(self, directory: Entry, mode: int) -> tuple[RealKey, Attributes, Entry]:
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        at = self._held.path(directory).fd
        opened = Descriptor(os.open(b".", flags, self._layer.mode_of_new(mode), dir_fd=at), os.close)
        self._layer.born(opened.fd, b"", lambda: self.attributes(directory), stat.S_IFREG | stat.S_IMODE(mode))
        path = Descriptor(real.reopen(opened.fd, os.O_PATH), os.close)
        key, attributes = self._layer.look(path.fd, b"")
        entry = Entry(directory, b"", key)
        self._held.adopt_unnamed(entry, path)
        return key, attributes, entry

    def unlink(self, directory: Entry, name: bytes, known: Entry | None) -> bool:
        with self._held.removing(known, directory, name):
            os.unlink(name, dir_fd=self._held.path(directory).fd)
        return self._held.has_gone(known)

    def rmdir(self, directory: Entry, name: bytes, known: Entry | None) -> None:
        with self._held.removing(known, directory, name):
            os.rmdir(name, dir_fd=self._held.path(directory).fd)

    def rename(
        self, directory: Entry, name: bytes, to: Entry, new_name: bytes, flags: int, moved: Entry | None,
        replaced: Entry | None,
    ) -> bool:  # fmt: skip
        exchange = flags & files.RENAME_EXCHANGE
        with self._held.removing(None if exchange else replaced, to, new_name):
            files.rename(self._held.path(directory).fd, name, self._held.path(to).fd, new_name, flags)
        if moved is not None:
            self.found_at(moved, to, new_name)
        if exchange and replaced is not None:
            self.found_at(replaced, directory, name)
        return not exchange and self._held.has_gone(replaced)

    def _has_gone(self, known: Entry, fd: int, is_last: bool) -> bool:
        self._held.pin_opened(known, fd, is_last)
        return is_last or self._held.has_gone(known)

    def change(self, entry: Entry, change: Change) -> None:
        self._layer.change(self._held.path(entry).fd, change)

    def getxattr(self, entry: Entry, name: bytes) -> bytes:
        if self.override is not None:
            name = self.override.found(name)
        return os.getxattr(real.magic_link(self._held.path(entry).fd), name)

    def listxattr(self, entry: Entry) -> list[bytes]:
        names = [os.fsencode(name) for name in os.listxattr(real.magic_link(self._held.path(entry).fd))]
        return names if self.override is None else self.override.listed(names)

    def setxattr(self, entry: Entry, name: bytes, value: bytes, flags: int) -> None:
        if self.override is not None:
            name = self.override.stored(name)
        os.setxattr(real.magic_link(self._held.path(entry).fd), name, value, flags)

    def removexattr(self, entry: Entry, name: bytes) -> None:
        if self.override is not None:
            name = self.override.found(name)
        os.removexattr(real.magic_link(self._held.path(entry).fd), name)

    def space(self, entry: Entry) -> Space:
        return real.space(self._held.path(entry).fd)

    def sync(self) -> None:
        files.syncfs(self._layer.root.fd)

    def contributors(self, entry: Entry) -> tuple[Contributor, ...]:
        return (Contributor(0, entry.key, partial(self._place, entry)),)

    def _place(self, entry: Entry) -> tuple[int, bytes]:
        if entry.parent is None:
            return self._held.path(entry).fd, b""
        return self._held.path(entry.parent).fd, entry.name

    def tells_changes(self, contributor: Contributor) -> bool:
        return self._layer.tells_changes(contributor.device)

    def keys_of(self, handle: bytes) -> list[RealKey]:
        key = self._layer.key_of(handle)
        return [key] if key is not None else []

    def found_by(self, entry: Entry, handle: bytes) -> bool:
        return self._held.found_by(entry, handle)

    def note_handle(self, entry: Entry, handle: bytes) -> None:
        self._held.note_handle(entry, handle)

    def came_from(self, directory: Entry, place: None) -> RealKey:
        return directory.key

    def hidden(self, directory: Entry, layer: int, name: bytes) -> Shown:
        return Shown.TOP

    def covered(self, directory: Entry, layer: int, name: bytes) -> int:
        return 0

    def concerns(self, name: bytes) -> bytes | None:
        return name

    def refresh_root(self) -> None:
        pass

    def lists_anew(self, entry: Entry) -> bool:
        return entry.key[0] in self._layer.pseudo or entry.key[0] in self._layer.remote

    def listing_changed(self, entry: Entry) -> bool:
        return False

    def tidy(self, now: float) -> bool:
        return self._held.tidy(now)

    def chores(self) -> list[Work]:
        return []

    def descriptors(self) -> dict[str, int]:
        return self._held.count()

    def describe(self) -> list[dict[str, object]]:
        return [
            {
                "path": os.fsdecode(self._layer.path),
                "role": "source",
                "private": self._layer.private,
                "handles": self._layer.opens_by_handle,
            }
        ]

    def is_pseudo(self, fd: int) -> bool:
        return real.is_pseudo(fd)
