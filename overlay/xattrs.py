"""The overlay's own extended attributes: which they are, how they are read, hidden from users and escaped for them.

Owns the names. Never interprets a value beyond what a name says. Any thread.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from shiftfs.layer import magic_link
from shiftfs.sys.xattrs import names

if TYPE_CHECKING:
    from shiftfs.override import Override

TRUSTED: Final = b"trusted.overlay."
USER: Final = b"user.overlay."
_FUSE: Final = b"user.fuseoverlayfs."
_PREFIXES: Final = (TRUSTED, USER, _FUSE)
"""Where they are read, the first that has one counts."""
_ESCAPED: Final = b"overlay."

OPAQUE: Final = b"opaque"
REDIRECT: Final = b"redirect"
METACOPY: Final = b"metacopy"
ORIGIN: Final = b"origin"
OWN_ORIGIN: Final = b"shiftfs.origin"
NLINK: Final = b"nlink"
IMPURE: Final = b"impure"
WHITEOUT: Final = b"whiteout"
_READ: Final = frozenset({OPAQUE, REDIRECT, METACOPY, ORIGIN, OWN_ORIGIN, NLINK, IMPURE, WHITEOUT})
_HARMLESS: Final = frozenset({OPAQUE, WHITEOUT})

Private = dict[bytes, bytes]
"""The overlay's attributes of one inode, without prefix."""

_NONE: Final[Private] = {}
TOO_LONG: Final = frozenset({errno.ENOSPC, errno.E2BIG, errno.ERANGE})
"""What setxattr(2) says where the filesystem has no room for a value."""
_ABSENT: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT})


def private(directory: int, name: bytes, believed: bool) -> Private:
    """Those of a name beneath `directory`, never followed, or of `directory` itself for an empty one. Unless
    `believed`, those that any owner of a file can set only as far as they hide things: the others lead elsewhere."""
    listed = names(directory, name) if name else _names_of(directory)
    if b"overlay" not in listed:
        return _NONE
    path = _path(directory, name)
    found: Private = {}
    full = frozenset(listed.split(b"\0"))
    for prefix in reversed(_PREFIXES):  # the first that has one counts
        for suffix in _READ if believed or prefix == TRUSTED else _HARMLESS:
            if prefix + suffix in full:
                found[suffix] = os.getxattr(path, prefix + suffix, follow_symlinks=not name)
    return found


def _names_of(fd: int) -> bytes:
    try:
        return b"\0".join(os.fsencode(one) for one in os.listxattr(magic_link(fd)))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return b""


def _path(directory: int, name: bytes) -> bytes:
    return b"%s/%s" % (magic_link(directory), name) if name else magic_link(directory)


def put(fd: int, full: bytes, value: bytes) -> None:
    """Set an attribute of what `fd` (O_PATH too) is of."""
    _changing(fd, partial(os.setxattr, magic_link(fd), full, value))


def drop(fd: int, full: bytes) -> None:
    """Remove one that may not be there."""
    try:
        _changing(fd, partial(os.removexattr, magic_link(fd), full))
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def _changing(fd: int, change: Callable[[], None]) -> None:
    """Make a change that takes the right to write where it is about user.*: an owner without privileges gives it to
    himself meanwhile."""
    try:
        change()
    except PermissionError as error:
        mode = stat.S_IMODE(os.stat(magic_link(fd)).st_mode)
        if error.errno != errno.EACCES or mode & stat.S_IWUSR:
            raise
        os.chmod(magic_link(fd), mode | stat.S_IWUSR)
        try:
            change()
        finally:
            os.chmod(magic_link(fd), mode)


def is_private(full: bytes) -> bool:
    """Is an attribute of a layer the overlay's own?"""
    for prefix in _PREFIXES:
        if full.startswith(prefix):
            return prefix == _FUSE or not full.startswith(prefix + _ESCAPED)
    return False


def shown(full: bytes) -> bytes | None:
    """The name that users see of a layer's attribute; None for one that is hidden."""
    for prefix in (TRUSTED, USER):
        if full.startswith(prefix):
            return prefix + full[len(prefix) + len(_ESCAPED) :] if full.startswith(prefix + _ESCAPED) else None
    return None if full.startswith(_FUSE) else full


def listed(override: "Override | None", full: Iterable[bytes]) -> list[bytes]:
    """The names that users see of a layer's attributes. `override`: the layer's own way with them."""
    names = full if override is None else override.listed(full)
    return [name for one in names if (name := shown(one)) is not None]


def sought(override: "Override | None", full: bytes) -> bytes:
    """Where a user's attribute is looked for on a layer. ENODATA for one that cannot be there."""
    if full.startswith(_FUSE):
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    return stored(full) if override is None else override.found(stored(full))


def kept(override: "Override | None", full: bytes) -> bytes:
    """Where it is kept. EPERM and EOPNOTSUPP for one that has no place."""
    return stored(full) if override is None else override.stored(stored(full))


def stored(full: bytes) -> bytes:
    """The name under which a user's attribute is kept on a layer. EPERM for one that has no place there."""
    for prefix in (TRUSTED, USER):
        if full.startswith(prefix):
            return prefix + _ESCAPED + full[len(prefix) :]
    if full.startswith(_FUSE):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    return full
