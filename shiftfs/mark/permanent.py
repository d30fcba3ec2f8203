"""Marks that last: an attribute of a directory, `security.shiftfs` (docs/on-disk.md), which only root can set.

Owns its format, where it counts, and the list of where it was set. An attribute counts for nothing on a filesystem that
somebody else than root may be behind. Any thread.
"""

import contextlib
import errno
import os
import stat
from typing import Final, NamedTuple

from ..layer import FUSE, magic_link
from ..sys import beneath, files
from . import exposure

NAME: Final = b"security.shiftfs"
LIST: Final = "/var/lib/shiftfs/marks"
"""Where marks were set: for people to look at, never to go by."""
_VERSION: Final = "1"
_READ_ONLY: Final = "ro"
_EXPOSED: Final = "exposed"
_LOCKS_STAY: Final = "locks=mount"
_USERS: Final = "users="
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class NoMark(Exception):
    """Why a directory is none that may be mounted so: one line."""


class Mark(NamedTuple):
    """`users`: by uid, those who may mount it; everybody for None. `exposed`: though others can come to it.
    `locks_stay`: on each mount of it."""

    users: frozenset[int] | None = None
    read_only: bool = False
    exposed: bool = False
    locks_stay: bool = False

    def encode(self) -> bytes:
        words = [_VERSION]
        if self.read_only:
            words.append(_READ_ONLY)
        if self.exposed:
            words.append(_EXPOSED)
        if self.locks_stay:
            words.append(_LOCKS_STAY)
        if self.users is not None:
            words.append(_USERS + ":".join(map(str, sorted(self.users))))
        return " ".join(words).encode()


def decode(value: bytes) -> Mark:
    """Raises NoMark for what this version does not understand: it may say more than is known here."""
    version, *words = value.decode(errors="replace").split(" ")
    if version != _VERSION:
        raise NoMark("is marked by another version of shiftfs; mark it anew")
    users: frozenset[int] | None = None
    for word in words:
        if word.startswith(_USERS):
            numbers = word.removeprefix(_USERS).split(":")
            if not all(number.isascii() and number.isdigit() for number in numbers):
                raise NoMark("is marked for users that are none; mark it anew")
            users = frozenset(map(int, numbers))
        elif word not in (_READ_ONLY, _EXPOSED, _LOCKS_STAY):
            raise NoMark("is marked by another version of shiftfs; mark it anew")
    return Mark(users, _READ_ONLY in words, _EXPOSED in words, _LOCKS_STAY in words)


def find(path: bytes) -> tuple[int, Mark]:
    """A descriptor (O_PATH) of a marked directory, by its absolute path, without following a symlink. Raises NoMark,
    OSError."""
    if not path.startswith(b"/"):
        raise NoMark("is no absolute path; give one")
    root = os.open("/", _DIRECTORY)
    try:
        fd = beneath.open_beneath(root, path.strip(b"/") or b".", _DIRECTORY | os.O_NOFOLLOW)
    finally:
        os.close(root)
    try:
        return fd, _mark_of(fd, path)
    except BaseException:
        os.close(fd)
        raise


def _mark_of(fd: int, path: bytes) -> Mark:
    _refuse_strangers(fd)
    try:
        mark = decode(os.getxattr(magic_link(fd), NAME))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            raise NoMark("is not marked; let root run `shiftfsctl mark` on it") from None
        raise
    if not (mark.exposed or mark.read_only) and exposure.hiding_place(path) is None:
        raise NoMark("is marked, and others than root can come to it by its path: set-id files there would be root's")
    return mark


def _refuse_strangers(fd: int) -> None:
    """Filesystems that somebody else may have made what they are: FUSE, and what was mounted for a user."""
    if files.filesystem_type(fd) == FUSE or os.fstatvfs(fd).f_flag & (os.ST_NOSUID | os.ST_NODEV):
        raise NoMark("is on a filesystem that others may be behind (FUSE, or mounted nosuid or nodev); marks count"
                     " for nothing there")  # fmt: skip


def put(path: str, mark: Mark) -> None:
    """Mark a directory. Raises NoMark, OSError."""
    fd = os.open(path, _DIRECTORY)
    try:
        _refuse_strangers(fd)
        os.setxattr(magic_link(fd), NAME, mark.encode())
        _mark_of(fd, os.fsencode(os.path.realpath(path)))
    except NoMark:
        with contextlib.suppress(OSError):
            os.removexattr(magic_link(fd), NAME)
        raise
    finally:
        os.close(fd)
    _write({*listed(), os.path.realpath(path)})


def remove(path: str) -> None:
    """Raises OSError; ENODATA where there is none."""
    real = os.path.realpath(path)
    _write({one for one in listed() if one != real})
    os.removexattr(path, NAME)


def listed() -> list[str]:
    """Where marks were set, as far as that was noted."""
    try:
        with open(LIST, encoding="utf-8", errors="surrogateescape") as lines:
            return [line for line in lines.read().split("\0") if line]
    except FileNotFoundError:
        return []


def _write(paths: set[str]) -> None:
    """All or nothing."""
    os.makedirs(os.path.dirname(LIST), mode=0o755, exist_ok=True)
    temporary = f"{LIST}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("".join(f"{path}\0" for path in sorted(paths)))
        os.fchmod(file.fileno(), stat.S_IRUSR | stat.S_IWUSR)
    os.replace(temporary, LIST)
