"""Merged listings: the names of several directories, less what is hidden.

Owns nothing. A directory that has gone from one layer takes no part; that never fails the union. On a worker where the
directory is large.
"""

import errno
import os
from typing import Final, NamedTuple

from shiftfs import layer
from shiftfs.sys import files
from shiftfs.tree import Descriptor

from . import whiteout, xattrs
from .entry import Entry, Real
from .layers import LOST

_DIRECTORY: Final = 4
_CHARACTER_DEVICE: Final = 2
_REGULAR: Final = 8
_UNKNOWN: Final = 0

UNKNOWN_NUMBER: Final = 0
NUMBERS_OF_ALL: Final = 2
NUMBERS_OF_FILES: Final = 1
NUMBERS_OF_NONE: Final = 0


class Part(NamedTuple):
    """One layer's directory. `device`: of its inodes; `is_marked`: it may have whiteouts by attribute;
    `tells_numbers`: 0 if its inode numbers are not those of the mount, 1 if those of directories are not, 2 if all
    are; `tells_kinds`: what is a regular file is one on the mount, too."""

    held: Descriptor
    device: int
    is_marked: bool
    tells_numbers: int
    tells_kinds: bool = True


class Name(NamedTuple):
    """A name of the merged directory; a `number` of 0 has to be looked up."""

    name: bytes
    device: int
    number: int
    kind: int


def parts(entry: Entry, drops: bool) -> tuple[Part, ...]:
    """The directories that make up one of the mount, as far as they are still there. `drops`: those of the upper may
    not show. ESTALE where all have gone."""
    found: list[Part] = []
    lost: OSError | None = None
    for one in entry.reals:
        try:
            path = one.held.path(one)
        except OSError as error:
            if error.errno not in LOST:
                raise
            lost = lost or error
        else:
            found.append(Part(path, one.key[0], one.is_marked, _tells_numbers(entry, one, drops), one.held.tells_kinds))
    if lost is not None and not found:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return tuple(found)


def _tells_numbers(entry: Entry, one: Real, drops: bool) -> int:
    if one is entry.upper:
        if one.is_impure:
            return NUMBERS_OF_NONE
        if entry.lowers or drops:
            return NUMBERS_OF_FILES
    return NUMBERS_OF_FILES if entry.has_other_numbers else NUMBERS_OF_ALL


def merged(parts: tuple[Part, ...], noatime: int) -> list[Name]:
    """All names, top layer first. ENOENT where all directories have gone."""
    listed: list[Name] = []
    seen: set[bytes] = set()
    lost = 0
    for depth, part in enumerate(parts):
        try:
            rows = layer.list_names(part.held.fd, noatime)
        except OSError as error:
            lost += 1
            if error.errno not in LOST or lost == len(parts):
                raise
            continue
        last = depth == len(parts) - 1
        hidden: list[bytes] = []
        for name, number, kind in rows:
            if name.startswith(whiteout.PREFIX):
                hidden.append(name[len(whiteout.PREFIX) :])
                continue
            if name in seen:
                continue
            if not last:
                seen.add(name)
            if _may_be_whiteout(part, kind) and _is_whiteout(part, name):
                continue
            told = part.tells_numbers == NUMBERS_OF_ALL or (
                part.tells_numbers == NUMBERS_OF_FILES and kind not in (_DIRECTORY, _UNKNOWN)
            )
            shown = kind if kind != _REGULAR or part.tells_kinds else _UNKNOWN
            listed.append(Name(name, part.device, number if told else UNKNOWN_NUMBER, shown))
        seen.update(hidden)
    return listed


def _may_be_whiteout(part: Part, kind: int) -> bool:
    return kind in (_CHARACTER_DEVICE, _UNKNOWN) or (part.is_marked and kind == _REGULAR)


def _is_whiteout(part: Part, name: bytes) -> bool:
    try:
        found = os.stat(name, dir_fd=part.held.fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    kind = found.st_mode >> 12
    if kind == _CHARACTER_DEVICE:
        return found.st_rdev == 0
    by_xattr = part.is_marked and kind == _REGULAR and found.st_size == 0
    return by_xattr and xattrs.WHITEOUT in xattrs.private(part.held.fd, name, False)


def hidden_names(fd: int) -> list[bytes]:
    """What is in a directory of the upper that shows as empty: whiteouts."""
    opened = layer.reopen(fd, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return [name for name, _, _ in files.list_directory(opened)]
    finally:
        os.close(opened)
