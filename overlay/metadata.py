"""Copying what a file is besides its content: owner, extended attributes (ACLs and capabilities among them), mode,
times.

Owns the order of these, and which ids cannot be represented. Loop thread.
"""

import errno
import os
import stat
from typing import Final

from shiftfs.layer import magic_link, reopen
from shiftfs.sys import files
from shiftfs.tree import Attributes

from . import xattrs

_IMMUTABLE: Final = 0x10
_APPEND_ONLY: Final = 0x20
"""STATX_ATTR_IMMUTABLE and STATX_ATTR_APPEND (statx(2))."""


class Ids:
    """Whom this process knows: in a user namespace, not everybody (user_namespaces(7))."""

    def __init__(self) -> None:
        self._everybody = all(_knows_all(f"/proc/self/{kind}_map") for kind in ("uid", "gid"))
        self._unknown = tuple(_number(f"/proc/sys/kernel/overflow{kind}id") for kind in ("u", "g"))

    def check(self, fd: int, attributes: Attributes) -> None:
        """EOVERFLOW for an owner whom we only see as the overflow id: nobody could be made the copy's owner."""
        if self._everybody or not (attributes.uid == self._unknown[0] or attributes.gid == self._unknown[1]):
            return
        if not _has_rights_over(fd):
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))


def _knows_all(path: str) -> bool:
    with open(path) as lines:
        return [line.split() for line in lines] == [["0", "0", "4294967295"]]


def _number(path: str) -> int:
    with open(path) as text:
        return int(text.read())


def _has_rights_over(fd: int) -> bool:
    """Does the kernel take our capabilities as good for the inode? Only if both of its ids have a mapping
    (kernel capable_wrt_inode_uidgid), which is how the overflow id and its namesake are told apart."""
    if not stat.S_ISREG(os.fstat(fd).st_mode) and not stat.S_ISDIR(os.fstat(fd).st_mode):
        return False
    if not os.access(magic_link(fd), os.R_OK | os.W_OK):
        return False
    try:
        os.close(reopen(fd, os.O_RDONLY | os.O_NOATIME))
    except OSError:
        return False
    return True


def check_changeable(attributes: Attributes) -> None:
    """EPERM for what nobody may change on the layer either (chattr(1), +i and +a): a copy would not keep that."""
    if attributes.statx_attributes & (_IMMUTABLE | _APPEND_ONLY):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def copy(source: int, target: int, attributes: Attributes) -> None:
    """All of it: `attributes` are the source's. The owner first, since chown(2) clears set-id bits and capabilities;
    ACLs before the mode that they are part of; times last."""
    files.change_owner(target, attributes.uid, attributes.gid)
    copy_xattrs(source, target)
    if not stat.S_ISLNK(attributes.mode):
        os.chmod(magic_link(target), stat.S_IMODE(attributes.mode))
    copy_times(target, attributes)


def copy_xattrs(source: int, target: int) -> None:
    """Those of users. What the target's filesystem has no place for stays behind, as with cp -a."""
    given, taken = magic_link(source), magic_link(target)
    try:
        names = os.listxattr(given)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return
    for text in names:
        name = os.fsencode(text)
        if xattrs.is_private(name):
            continue
        try:
            os.setxattr(taken, name, os.getxattr(given, name))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise


def copy_times(target: int, attributes: Attributes) -> None:
    """Access and modification time, to the nanosecond."""
    a = attributes
    files.set_times(magic_link(target), (a.atime, a.atimensec), (a.mtime, a.mtimensec))
