"""What hides names of the layers below: whiteouts and opaque directories, in both dialects.

Owns how they are recognised, and which names are the overlay's own. Never removes anything. Any thread.
"""

import errno
import os
import stat
from typing import Final

from shiftfs.sys.beneath import is_beneath
from shiftfs.tree import Attributes

from . import xattrs
from .xattrs import Private

PREFIX: Final = b".wh."
OPAQUE_NAME: Final = b".wh..wh..opq"
_CHARACTER_DEVICE: Final = stat.S_IFCHR >> 12
_YES: Final = b"y"
MARKED: Final = b"x"
"""overlay.opaque of a directory that has whiteouts by attribute in it."""


def is_device(attributes: Attributes) -> bool:
    """Is it overlayfs's whiteout, a character device 0/0?"""
    return attributes.mode >> 12 == _CHARACTER_DEVICE and attributes.rdev == 0


def may_be_by_xattr(attributes: Attributes) -> bool:
    """Could it be a whiteout by attribute? Only empty regular files are."""
    return attributes.size == 0 and attributes.mode >> 12 == stat.S_IFREG >> 12


def check_name(name: bytes) -> None:
    """Refuse names that stand for whiteouts: nobody can look them up, nor make them (EINVAL)."""
    if name.startswith(PREFIX):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def is_opaque(directory: int, name: bytes, private: Private) -> bool:
    """Does the directory `name` beneath `directory` hide what the layers below have of it?"""
    return private.get(xattrs.OPAQUE) == _YES or is_beneath(directory, name + b"/" + OPAQUE_NAME)


def redirect_of(private: Private) -> list[bytes] | None:
    """Where the layers below have the directory or file: the components of an absolute path, with an empty one before
    them, or one name beside it. EINVAL for what leads nowhere in a layer."""
    value = private.get(xattrs.REDIRECT)
    if value is None:
        return None
    path = value.split(b"/")
    if value.startswith(b"/"):
        components = [part for part in path[1:] if part]
        if not components or any(part in (b".", b"..") or len(part) > 255 for part in components) or b"\0" in value:
            raise _invalid()
        return [b"", *components]
    if len(path) != 1 or value in (b"", b".", b"..") or len(value) > 255 or b"\0" in value:
        raise _invalid()
    return path


def _invalid() -> OSError:
    return OSError(errno.EINVAL, "damaged redirect")
