"""A tree in memory: implements shiftfs.tree.Tree, for tests of what lies above it.

Owns nodes, which are its entries as well. Contents of regular files are memfds, since handlers read and write by
descriptor. Never looks at rights. `released` lists what was let go, `failing` makes a method raise.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from shiftfs.sys import files
from shiftfs.tree import (
    Attributes,
    Change,
    Contributor,
    Descriptor,
    Listed,
    LockFile,
    RealKey,
    Shown,
    Space,
    Steps,
    View,
    Work,
)  # fmt: skip

DEVICE = 77


class Node:
    """One inode."""

    def __init__(self, number: int, mode: int) -> None:
        self.content = Descriptor(_content(mode), os.close, writable=True)
        # Of what is opened, as of a real file.
        self.number = os.fstat(self.content.fd).st_ino if stat.S_ISREG(mode) else number
        self.mode = mode
        self.uid = self.gid = 0
        self.rdev = 0
        self.nlink = 1
        self.times = [(1, 2), (3, 4)]
        self.children: dict[bytes, Node] = {}
        self.parent: Node | None = None
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}

    @property
    def key(self) -> RealKey:
        return (DEVICE, self.number, 0, self.mode >> 12)


def _content(mode: int) -> int:
    return os.memfd_create("content") if stat.S_ISREG(mode) else os.open("/dev", os.O_PATH | os.O_CLOEXEC)


class MemoryTree:
    """Nodes by name."""

    view = View()
    override = None

    def __init__(self) -> None:
        self._made: list[Node] = []
        self.root: Any = self._new(stat.S_IFDIR | 0o755)
        self.root.nlink = 2
        self.released: list[Node] = []
        self.failing: dict[str, Exception] = {}

    def _new(self, mode: int) -> Node:
        self._made.append(Node(2 + len(self._made), mode))
        return self._made[-1]

    def close(self) -> None:
        """Let go of all descriptors; errors to be raised refer to frames, and these to descriptors."""
        self.failing.clear()
        for node in self._made:
            del node.content

    def add(self, directory: Node, name: bytes, mode: int, content: bytes = b"") -> Node:
        """For tests to build with; also what creation comes to."""
        if name in directory.children:
            raise FileExistsError(errno.EEXIST, "exists")
        node = directory.children[name] = self._new(mode)
        node.parent = directory
        if content:
            os.write(node.content.fd, content)
        return node

    def _called(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]

    def _child(self, directory: Node, name: bytes) -> Node:
        if len(name) > 255:
            raise OSError(errno.ENAMETOOLONG, "too long")
        if not stat.S_ISDIR(directory.mode):
            raise NotADirectoryError(errno.ENOTDIR, "no directory")
        try:
            return directory.children[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "absent") from None

    def root_attributes(self) -> tuple[RealKey, Attributes]:
        return self.root.key, self.attributes(self.root)

    layered = False
    volatile = False

    def knows(self, entry_of: Callable[[RealKey], Any | None]) -> None:
        pass

    def plain(self) -> None:
        """All is special here."""

    def note_directory(self, entry: Any) -> None:
        pass

    def plain_parts(self, held: Any) -> None:
        """Its listings are made in Python."""

    def lookup(self, directory: Node, name: bytes) -> tuple[RealKey, Attributes, None]:
        self._called("lookup")
        node = self._child(directory, name)
        return node.key, self.attributes(node), None

    def entry(self, directory: Node, name: bytes, key: RealKey, place: None) -> Node:
        return directory.children[name]

    def found_at(self, entry: Node, directory: Node, name: bytes, place: None) -> None:
        pass

    def is_up(self, entry: Node, metadata_only: bool = False, name_only: bool = False) -> bool:
        return True

    def copy_up(
        self, entry: Node, size: int | None, metadata_only: bool, stopped: Callable[[], bool], name_only: bool = False
    ) -> Steps:
        yield from ()

    def unfinished(self) -> list[Steps]:
        return []

    def counts_names(self, entry: Node) -> bool:
        return False

    def may_remove(self, entry: Node) -> None:
        pass

    def may_rename(self, entry: Node) -> None:
        pass

    def progress(self) -> list[dict[str, object]]:
        return []

    def release(self, entry: Node) -> None:
        self.released.append(entry)

    def attributes(self, entry: Node) -> Attributes:
        self._called("attributes")
        size = os.fstat(entry.content.fd).st_size if stat.S_ISREG(entry.mode) else len(entry.target)
        (atime, atimensec), (mtime, mtimensec) = entry.times
        return Attributes(
            entry.number, size, 0, atime, mtime, 0, atimensec, mtimensec, 0, entry.mode, entry.nlink, entry.uid,
            entry.gid, entry.rdev, 4096, 0, 0, 0, False, 0, 0, DEVICE,
        )  # fmt: skip

    def numbers(self, attributes: Attributes) -> int:
        return attributes.ino

    def held(self, entry: Node) -> Node:
        return entry

    def listing(self, held: Node) -> list[Listed]:
        self._called("listing")
        return [Listed(name, node.number, node.mode >> 12) for name, node in held.children.items()]

    def parent_number(self, entry: Node) -> int:
        return (entry.parent or entry).number

    def readlink(self, entry: Node) -> bytes:
        self._called("readlink")
        if not stat.S_ISLNK(entry.mode):
            raise OSError(errno.EINVAL, "no symlink")
        return entry.target

    def path(self, entry: Node) -> Descriptor:
        self._called("path")
        return entry.content

    def content(self, entry: Node) -> Descriptor:
        return self.path(entry)

    def stays(self, entry: Node) -> bool:
        return True

    def may_change_unheard(self, entry: Node) -> bool:
        return False

    def may_block(self, entry: Node) -> bool:
        return False

    def is_made_up(self, entry: Node) -> bool:
        return False

    def data(self, entry: Node, writable: bool) -> Descriptor:
        self._called("data")
        return entry.content

    def open_waiting(self, held: Descriptor, flags: int) -> Descriptor:
        self._called("open_waiting")
        fd = os.open(f"/proc/self/fd/{held.fd}", flags | os.O_CLOEXEC)
        return Descriptor(fd, os.close, flags & os.O_ACCMODE != os.O_RDONLY)

    def open_anew(self, entry: Any) -> None:
        pass

    def lists_anew(self, entry: Any) -> bool:
        return False

    def listing_changed(self, entry: Any) -> bool:
        return False

    def keep_data(self, entry: Node, data: Descriptor) -> None:
        pass

    def mknod(self, directory: Node, name: bytes, mode: int, rdev: int) -> None:
        self.add(directory, name, mode).rdev = rdev

    def mkdir(self, directory: Node, name: bytes, mode: int) -> None:
        self.add(directory, name, stat.S_IFDIR | mode).nlink = 2

    def symlink(self, directory: Node, name: bytes, target: bytes) -> None:
        self.add(directory, name, stat.S_IFLNK | 0o777).target = target

    def link(self, entry: Node, directory: Node, name: bytes) -> None:
        if name in directory.children:
            raise FileExistsError(errno.EEXIST, "exists")
        directory.children[name] = entry
        entry.nlink += 1

    def create(self, directory: Node, name: bytes, mode: int) -> Descriptor:
        return self.add(directory, name, stat.S_IFREG | mode & 0o7777).content

    def tmpfile(self, directory: Node, mode: int) -> tuple[RealKey, Attributes, Node]:
        node = self._new(stat.S_IFREG | mode & 0o7777)
        node.nlink = 0
        return node.key, self.attributes(node), node

    def unlink(self, directory: Node, name: bytes, known: Node | None) -> bool:
        node = self._child(directory, name)
        del directory.children[name]
        node.nlink -= 1
        return node.nlink == 0

    def rmdir(self, directory: Node, name: bytes, known: Node | None) -> None:
        if self._child(directory, name).children:
            raise OSError(errno.ENOTEMPTY, "not empty")
        del directory.children[name]

    def rename(
        self, directory: Node, name: bytes, to: Node, new_name: bytes, flags: int, moved: Node | None,
        replaced: Node | None,
    ) -> bool:  # fmt: skip
        node, there = self._child(directory, name), to.children.get(new_name)
        if flags & files.RENAME_NOREPLACE and there is not None:
            raise FileExistsError(errno.EEXIST, "exists")
        del directory.children[name]
        to.children[new_name] = node
        if there is not None:
            there.nlink -= 1
        return there is not None and there.nlink == 0

    def change(self, entry: Node, change: Change) -> None:
        self._called("change")
        if change.mode is not None:
            entry.mode = stat.S_IFMT(entry.mode) | stat.S_IMODE(change.mode)
        entry.uid = entry.uid if change.uid is None else change.uid
        entry.gid = entry.gid if change.gid is None else change.gid
        entry.times = [new or old for new, old in zip((change.atime, change.mtime), entry.times, strict=True)]

    def getxattr(self, entry: Node, name: bytes) -> bytes:
        try:
            return entry.xattrs[name]
        except KeyError:
            raise OSError(errno.ENODATA, "no such attribute") from None

    def listxattr(self, entry: Node) -> list[bytes]:
        return list(entry.xattrs)

    def setxattr(self, entry: Node, name: bytes, value: bytes, flags: int) -> None:
        entry.xattrs[name] = value

    def removexattr(self, entry: Node, name: bytes) -> None:
        self.getxattr(entry, name)
        del entry.xattrs[name]

    def space(self, entry: Node) -> Space:
        return Space(1, 2, 3, 4, 5, 4096, 255, 4096)

    def sync(self) -> None:
        self._called("sync")

    def contributors(self, entry: Node) -> tuple[Contributor, ...]:
        return (Contributor(0, entry.key, lambda: (entry.content.fd, b"")),)

    def tells_changes(self, contributor: Contributor) -> bool:
        return False

    def keys_of(self, handle: bytes) -> list[RealKey]:
        return []

    def path_of(self, entry: Node) -> bytes:
        return b"/"

    def lock_files(self, entry: Node) -> list[LockFile]:
        return []

    def on_copy(self, call: Callable[[Node, int], None]) -> None:
        pass

    def found_by(self, entry: Node, handle: bytes) -> bool:
        return False

    def note_handle(self, entry: Node, handle: bytes) -> None:
        pass

    def came_from(self, directory: Node, place: None) -> RealKey:
        return directory.key

    def hidden(self, directory: Node, layer: int, name: bytes) -> Shown:
        return Shown.TOP

    def covered(self, directory: Node, layer: int, name: bytes) -> int:
        return 0

    def concerns(self, name: bytes) -> bytes | None:
        return name

    def refresh_root(self) -> None:
        pass

    def tidy(self, now: float) -> bool:
        return False

    def chores(self) -> list[Work]:
        return []

    def descriptors(self) -> dict[str, int]:
        return {"bound": 1000}

    def describe(self) -> list[dict[str, object]]:
        return []

    def is_pseudo(self, fd: int) -> bool:
        return False
