"""Listing extended attributes by one name beneath a directory, and who can have set them. listxattrat(2),
listxattr(2), xattr(7). Any thread."""

import errno
import os
import threading
from ctypes import addressof, create_string_buffer, get_errno, string_at
from typing import Final

from .. import native
from . import libc

_LISTXATTRAT: Final = 465
_SYMLINK_NOFOLLOW: Final = 0x100
_SIZE: Final = 65536  # XATTR_LIST_MAX
_room = threading.local()
_missing: list[bool] = []  # before Linux 6.13


def are_of(uid: int, own: int, mode: int) -> bool:
    """Can nobody but root and `own` have set the user.* attributes of an inode that is `uid`'s? Whoever may write to it
    could, but on directories with the sticky bit."""
    is_shared = mode & 0o022 and not (mode >> 12 == 4 and mode & 0o1000)
    return uid in (0, own) and not is_shared


def names(directory: int, name: bytes) -> bytes:
    """All names, each ended by a NUL, of what has that name; never followed. Empty where there can be none."""
    if native.list_attributes is not None and not _missing:
        listed_names: bytes | None = native.list_attributes(directory, name)
        if listed_names is not None:
            return listed_names
        _missing.append(True)
    if not _missing:
        try:
            buffer, address = _room.buffer
        except AttributeError:
            buffer = create_string_buffer(_SIZE)
            _room.buffer = buffer, address = buffer, addressof(buffer)
        size = _list(_LISTXATTRAT, directory, name, _SYMLINK_NOFOLLOW, address, _SIZE)
        if size == 0:
            return b""
        if size > 0:
            return string_at(address, size)
        number = get_errno()
        if number == errno.EOPNOTSUPP:
            return b""
        if number != errno.ENOSYS:
            # Not by a name: the exception would refer to this frame, and this frame to the exception, and to all above.
            raise libc.failure(name)
        _missing.append(True)
    try:
        listed = os.listxattr(b"/proc/self/fd/%d/%s" % (directory, name), follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return b""
        raise
    return b"".join(os.fsencode(one) + b"\0" for one in listed)


_list = libc.typed_syscall([libc.INT, libc.PATH, libc.UINT, libc.POINTER, libc.SIZE])
