"""Copying what a file is besides its content: owner, extended attributes (ACLs and capabilities among them), mode,
times.

Owns the order of these, and which ids cannot be represented. Loop thread.
"""

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from shiftfs.layer import Layer, magic_link
from shiftfs.sys import files, privileges
from shiftfs.tree import Attributes

from . import xattrs

if TYPE_CHECKING:
    from shiftfs.override import Override

_CAPABILITY: Final = "security.capability"
_ACCESS_ACL: Final = b"system.posix_acl_access"
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_HEAD: Final = 4
_GROUP_OBJ: Final = 4
_ALL: Final = 0xFFFFFFFF
_IMMUTABLE: Final = 0x10
_APPEND_ONLY: Final = 0x20
"""STATX_ATTR_IMMUTABLE and STATX_ATTR_APPEND (statx(2))."""


class Ids:
    """Whom this process knows: in a user namespace, not everybody (user_namespaces(7))."""

    def __init__(self) -> None:
        self._own = (os.geteuid(), os.getegid())
        self._everybody = all(_ranges(kind) == [(0, 0, _ALL)] for kind in ("uid", "gid"))
        self._somebody = [first for first, _, _ in _ranges("uid")]
        self._unknown = tuple(_number(f"/proc/sys/kernel/overflow{kind}id") for kind in ("u", "g"))

    @property
    def nobody(self) -> tuple[int, int] | None:
        """The ids, of user and group, that may stand for somebody whom we do not know; None where we know all."""
        return None if self._everybody else (self._unknown[0], self._unknown[1])

    def check(self, fd: int, attributes: Attributes) -> None:
        """EOVERFLOW for an owner whom we only see as the overflow id: nobody could be made the copy's owner."""
        a = attributes
        if self._everybody or (a.uid != self._unknown[0] and a.gid != self._unknown[1]):
            return
        if not self._has_rights_over(fd, a):
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))

    def _has_rights_over(self, fd: int, a: Attributes) -> bool:
        """Are our capabilities good for the inode? Only if both of its ids have a mapping (kernel
        capable_wrt_inode_uidgid): so the overflow id and its namesake are told apart, by a right that the mode gives to
        nobody else. Where it gives all of them, there is no telling, and the answer is no."""
        wanted = ~a.mode & 7
        if not stat.S_ISDIR(a.mode) and not a.mode & 0o111:
            wanted &= ~os.X_OK  # which no capability gives
        others = [uid for uid in self._somebody if uid != a.uid]
        if not wanted or not others or stat.S_ISLNK(a.mode):
            return False
        try:
            return privileges.set_filesystem_ids(others[0], self._own[1]) and os.access(
                magic_link(fd), wanted, effective_ids=True
            )
        finally:
            privileges.set_filesystem_ids_known_good(*self._own)


def _ranges(kind: str) -> list[tuple[int, ...]]:
    """The map of our user namespace: first id inside, first outside, count."""
    with open(f"/proc/self/{kind}_map") as lines:
        return [tuple(map(int, line.split())) for line in lines]


def _number(path: str) -> int:
    with open(path) as text:
        return int(text.read())


def check_changeable(attributes: Attributes) -> None:
    """EPERM for what nobody may change on the layer either (chattr(1), +i and +a): a copy would not keep that."""
    if attributes.statx_attributes & (_IMMUTABLE | _APPEND_ONLY):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def copy(of: Layer, source: int, to: Layer, target: int, attributes: Attributes, any_owner: bool = False) -> None:
    """All of it: `attributes` are the source's. The owner first, since chown(2) clears set-id bits and capabilities;
    ACLs before the mode that they are part of; times last. `any_owner`: one whom we may not make it stays away."""
    if to.override is None:
        _give(target, attributes, any_owner)
    left = copy_xattrs(source, target, of.override, to.override)
    if not stat.S_ISLNK(attributes.mode):
        mode = stat.S_IMODE(attributes.mode)
        if _ACCESS_ACL in left:  # without it, what was the mask would be the group's
            mode = mode & ~0o070 | _group_of(left[_ACCESS_ACL]) << 3
        os.chmod(magic_link(target), to.mode_of_new(mode))
        if to.override is not None:
            to.override.give(target, attributes._replace(mode=stat.S_IFMT(attributes.mode) | mode))
    copy_times(target, attributes)


def _give(target: int, attributes: Attributes, any_owner: bool) -> None:
    try:
        files.change_owner(target, attributes.uid, attributes.gid)
    except OSError as error:
        if not any_owner or error.errno not in (errno.EPERM, errno.EINVAL):  # EINVAL: nobody in our user namespace
            raise


def copy_xattrs(
    source: int, target: int, of: "Override | None" = None, to: "Override | None" = None
) -> dict[bytes, bytes]:  # fmt: skip
    """Those of users. What the target has no place for stays behind, as with cp -a, and is returned. `of` and `to` are
    the layers' own ways with them."""
    given, taken = magic_link(source), magic_link(target)
    left: dict[bytes, bytes] = {}
    try:
        names = os.listxattr(given)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return left
    for text in names:
        name = os.fsencode(text)
        shown = name if of is None else of.shown(name)
        if shown is None or xattrs.is_private(name):
            continue
        try:
            value = os.getxattr(given, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            continue
        try:
            os.setxattr(taken, shown if to is None else to.stored(shown), value)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            left[shown] = value
    return left


def _group_of(acl: bytes) -> int:
    """What an access ACL (acl(5), struct posix_acl_xattr_header and its entries) gives to the owning group."""
    for tag, permissions, _ in _ACL_ENTRY.iter_unpack(acl[_ACL_HEAD:]):
        if tag == _GROUP_OBJ:
            return int(permissions) & 7
    return 0


def copy_times(target: int, attributes: Attributes) -> None:
    """Access and modification time, to the nanosecond."""
    a = attributes
    files.set_times(magic_link(target), (a.atime, a.atimensec), (a.mtime, a.mtimensec))


def capability(fd: int) -> bytes | None:
    """The file's capabilities as they are stored, if it has any."""
    try:
        return os.getxattr(fd, _CAPABILITY)
    except OSError:
        return None


def restore(fd: int, attributes: Attributes, capability: bytes | None) -> None:
    """Times, and what was `capability`, after the content has been written."""
    if capability is not None:
        os.setxattr(fd, _CAPABILITY, capability)
    copy_times(fd, attributes)
