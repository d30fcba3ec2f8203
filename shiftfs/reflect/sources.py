"""The ways to hear of changes of real inodes: fanotify groups for whole filesystems or for single inodes, and inotify.

A source owns its descriptor, and knows the tokens that it gave. Which way is for whom is not decided here. Loop thread.
"""

import os
import select
from collections.abc import Container
from typing import Final, Protocol

from ..sys import fanotify, handles, inotify
from .happening import Happening, Token, What

_READ: Final = 4096
"""Bytes, as of fanotify."""
_CONTENT: Final = fanotify.MODIFY | fanotify.ATTRIB | fanotify.CLOSE_WRITE
_WRITTEN: Final = fanotify.MODIFY | fanotify.CLOSE_WRITE
_NAMES: Final = fanotify.CREATE | fanotify.DELETE | fanotify.RENAME | fanotify.ONDIR
_WHAT: Final = {
    fanotify.CREATE: What.CREATED,
    fanotify.DELETE: What.DELETED,
    fanotify.RENAME: What.MOVED,
    fanotify.MODIFY: What.MODIFIED,
    fanotify.ATTRIB: What.ATTRIBUTES,
    fanotify.CLOSE_WRITE: What.CLOSED,
    fanotify.Q_OVERFLOW: What.OVERFLOW,
}
"""inotify has the same numbers, but for renames."""
_MOVES: Final = inotify.MOVED_FROM | inotify.MOVED_TO
_MOVE_WAIT: Final = 1
"""Milliseconds in which the second half of a rename follows the first, unless there is none."""


class _Meanings(dict[int, What]):
    """Masks as What; there are not many."""

    def __missing__(self, mask: int) -> What:
        what = What(0)
        for bit, meaning in _WHAT.items():
            if mask & bit:
                what |= meaning
        self[mask] = what
        return what


_meaning: Final = _Meanings()


class Source(Protocol):
    """`known` are the tokens given and not removed. All but `remove` raise OSError."""

    fd: int
    known: set[Token]
    removes_by_way: bool
    """Does `remove` need a way to the inode?"""

    @property
    def reader(self) -> fanotify.Reader | None:
        """What the lane may read from as well, if it leaves out what concerns nobody."""

    def prepare(self, device: int, fd: int, name: bytes) -> None:
        """Before the first inode of a device, with that inode. It fails where this way is none for the device."""

    def add(self, device: int, fd: int, name: bytes, is_directory: bool) -> Token: ...

    def remove(self, token: Token, fd: int, name: bytes) -> bool: ...

    def identify(self, device: int, fd: int, name: bytes) -> Token | None: ...

    def disregard(self, fd: int) -> bool:
        """False if it can tell of changes through all mounts alike only, and yet leaves out those of this process."""

    def read(self, own: Container[int]) -> list[Happening]: ...

    def close(self) -> None: ...


class Fanotify:
    """One group. Marks of filesystems and of inodes are in two, so that they need not agree about ids."""

    def __init__(self, whole: bool, inodes: object = None) -> None:
        """`inodes`: the table of all that are known, where one mount alone listens."""
        self.known: set[Token] = set()
        self._whole = whole
        self.removes_by_way = not whole
        self._fsids: dict[int, bytes] = {}
        try:
            self.fd = fanotify.new(unlimited=True)
        except PermissionError:
            self.fd = fanotify.new(unlimited=False)
        self.reader = fanotify.reader(self.fd, self.known, whole, inodes)

    def prepare(self, device: int, fd: int, name: bytes) -> None:
        opened = _open(fd, name)
        try:
            fsid = fanotify.filesystem(opened)
            if self._whole:
                fanotify.mark(self.fd, fanotify.ADD | fanotify.FILESYSTEM, _CONTENT | _NAMES, opened)
                self.reader.numbers(fanotify.token(fsid, opened, b""), os.fstat(opened).st_ino)
            else:
                fanotify.mark(self.fd, fanotify.ADD, _CONTENT, opened)
        finally:
            os.close(opened)
        self._fsids[device] = fsid

    def add(self, device: int, fd: int, name: bytes, is_directory: bool) -> Token:
        fsid = self._fsids[device]
        if self._whole:
            token = fanotify.token(fsid, fd, name)
        else:
            opened = _open(fd, name)  # the mark and the handle are to be of one inode, whatever becomes of the name
            try:
                fanotify.mark(self.fd, fanotify.ADD, _mask(is_directory), opened)
                token = fanotify.token(fsid, opened, b"")
            finally:
                os.close(opened)
        self.known.add(token)
        return token

    def identify(self, device: int, fd: int, name: bytes) -> Token | None:
        return fanotify.token(self._fsids[device], fd, name)

    def disregard(self, fd: int) -> bool:
        """What comes through a mount is what the mark of the mount does not ignore: whoever works in the layer comes
        through another. Linux 6.0."""
        fanotify.mark(self.fd, fanotify.ADD | fanotify.MOUNT | fanotify.IGNORE_SURV, _WRITTEN, fd)
        return True

    def remove(self, token: Token, fd: int, name: bytes) -> bool:
        assert isinstance(token, bytes)
        self.known.discard(token)
        if self._whole:
            return True
        if fd < 0:
            return False
        handle = fanotify.handle(token)
        try:
            if handles.identity(fd, name) == handle:
                opened = _open(fd, name)
            else:  # it is elsewhere
                opened = _open_handle(fd, handle)
        except OSError:
            return False
        try:
            if handles.identity(opened, b"") != handle:
                return False
            # All bits, whatever it was marked for: a mark of none is removed.
            fanotify.mark(self.fd, fanotify.REMOVE, _mask(os.path.isdir(opened)), opened)
            return True
        except OSError:
            return False
        finally:
            os.close(opened)

    def read(self, own: Container[int]) -> list[Happening]:
        data = self.reader.read()
        ondir = fanotify.ONDIR
        return [
            Happening(_meaning[mask & ~ondir], mask & ondir != 0, directory, name, to, to_name, target)
            for mask, directory, name, to, to_name, target in fanotify.events(
                data, os.getpid(), own, self.known, self._whole
            )
        ]

    def close(self) -> None:
        os.close(self.fd)


class Inotify:
    """One instance. It does not tell who changes what."""

    reader = None
    removes_by_way = False

    def __init__(self) -> None:
        self.known: set[Token] = set()
        self._held: list[inotify.Event] = []
        """The first half of a rename whose second is still to be read."""
        self.fd = inotify.new()

    def prepare(self, device: int, fd: int, name: bytes) -> None:
        pass

    def add(self, device: int, fd: int, name: bytes, is_directory: bool) -> Token:
        names = inotify.CREATE | inotify.DELETE | _MOVES if is_directory else 0
        wd = inotify.add(self.fd, fd, name, _CONTENT | names)
        self.known.add(wd)
        return wd

    def identify(self, device: int, fd: int, name: bytes) -> Token | None:
        return None

    def disregard(self, fd: int) -> bool:
        return True  # none of it is left out, whoever does it: see ops.own

    def remove(self, token: Token, fd: int, name: bytes) -> bool:
        assert isinstance(token, int)
        self.known.discard(token)
        try:
            inotify.remove(self.fd, token)
        except OSError:  # its inode is gone, and the watch with it
            pass
        return True

    def read(self, own: Container[int]) -> list[Happening]:
        events = self._held + self._read()
        self._held = []
        while events and events[-1][1] & inotify.MOVED_FROM and self._has_more():
            # The two halves of a rename come one after the other, but need not come in one read.
            if len(events) > 1:
                self._held = [events.pop()]
                break
            events += self._read()
        found: list[Happening] = []
        moved: dict[int, int] = {}
        for wd, mask, cookie, name in events:
            if mask & inotify.Q_OVERFLOW:
                found.append(Happening(What.OVERFLOW, False, None, b""))
            elif wd not in self.known:
                pass
            elif mask & inotify.IGNORED:
                self.known.discard(wd)
            elif mask & inotify.MOVED_FROM:
                moved[cookie] = len(found)
                found.append(Happening(What.MOVED, mask & inotify.ISDIR != 0, wd, name))
            elif mask & inotify.MOVED_TO:
                if cookie in moved:
                    first = moved.pop(cookie)
                    found[first] = found[first]._replace(to=wd, to_name=name)
                else:
                    found.append(Happening(What.MOVED, mask & inotify.ISDIR != 0, None, b"", wd, name))
            else:
                what = _meaning[mask & ~inotify.ISDIR]
                if what:
                    found.append(Happening(what, mask & inotify.ISDIR != 0, wd, name))
        return found

    def close(self) -> None:
        os.close(self.fd)

    def _read(self) -> list[inotify.Event]:
        try:
            return inotify.events(os.read(self.fd, _READ))
        except BlockingIOError:
            return []

    def _has_more(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(_MOVE_WAIT))


def _mask(is_directory: bool) -> int:
    return _CONTENT | (_NAMES | fanotify.ON_CHILD if is_directory else 0)


def _open(fd: int, name: bytes) -> int:
    """The inode itself; whoever has the descriptor has that inode, and no other."""
    if not name:
        return os.dup(fd)
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)


def _open_handle(fd: int, handle: bytes) -> int:
    # open_by_handle_at(2) takes no O_PATH descriptor.
    mount = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        return handles.open_handle(mount, handle, os.O_PATH)
    finally:
        os.close(mount)
