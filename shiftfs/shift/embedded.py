"""Ids inside the values of xattrs: POSIX ACLs and the root id of file capabilities.

Owns both formats (linux/posix_acl_xattr.h, linux/capability.h). Never reads or writes an xattr, and lets no
value gain power by crossing: what cannot be translated is hidden, put in nobody's power, or refused. Plain
functions, called on the loop thread.
"""

import errno
import os
import struct
from typing import Final

from .idmap import UNMAPPED, IdMap

ACL_NOBODY: Final = 0xFFFFFFFE
"""Shown for a named user or group without a mapping. The kernel refuses a whole ACL that holds -1
(posix_acl_from_xattr), which would make the file inaccessible; this id it takes, and nobody bears it."""

_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_ACL_VERSION = 2
_ACL_USER, _ACL_GROUP = 0x02, 0x08  # the only tags whose id means something
_ACL_TAGS = frozenset((0x01, _ACL_USER, 0x04, _ACL_GROUP, 0x10, 0x20))

_CAP_REVISION_MASK = 0xFF000000
_CAP_EFFECTIVE = 0x00000001
_CAP_REVISION_2, _CAP_REVISION_3 = 0x02000000, 0x03000000
_CAP_MAGIC = struct.Struct("<I")
_CAP_ROOT = struct.Struct("<I")
_CAP_BODY: Final = slice(4, 20)  # permitted and inheritable, low words then high ones
_CAP_SIZES = {0x01000000: 12, _CAP_REVISION_2: 20, _CAP_REVISION_3: 24}

_Entry = tuple[int, int, int]  # as _ACL_ENTRY


def acl_to_shown(value: bytes, uids: IdMap, gids: IdMap) -> bytes:
    """Translate an ACL read from the layer. A malformed one stays: the kernel refuses it, too."""
    entries = _acl_entries(value)
    if entries is None:
        return value
    return _acl([_acl_entry_to_shown(entry, uids, gids) for entry in entries])


def acl_to_real(value: bytes, uids: IdMap, gids: IdMap) -> bytes:
    """Translate an ACL to be stored on the layer.

    Raises OSError: EINVAL for a malformed one; EOVERFLOW for an id without a mapping, and for ACL_NOBODY,
    since whose right that was cannot be told any more.
    """
    entries = _acl_entries(value)
    if entries is None:
        raise _error(errno.EINVAL)
    return _acl([_acl_entry_to_real(entry, uids, gids) for entry in entries])


def _acl_entries(value: bytes) -> list[_Entry] | None:
    """Take an ACL apart; None where posix_acl_from_xattr (fs/posix_acl.c) would refuse its form."""
    if len(value) < _ACL_HEADER.size or (len(value) - _ACL_HEADER.size) % _ACL_ENTRY.size:
        return None
    if _ACL_HEADER.unpack_from(value)[0] != _ACL_VERSION:
        return None
    entries = list(_ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]))
    return entries if all(tag in _ACL_TAGS for tag, _, _ in entries) else None


def _acl(entries: list[_Entry]) -> bytes:
    return _ACL_HEADER.pack(_ACL_VERSION) + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries)


def _acl_entry_to_shown(entry: _Entry, uids: IdMap, gids: IdMap) -> _Entry:
    tag, permissions, number = entry
    if tag not in (_ACL_USER, _ACL_GROUP):
        return entry
    ids = uids if tag == _ACL_USER else gids
    shown = ids.named[number]
    if shown != UNMAPPED:
        return tag, permissions, shown
    # A map that reaches up to ACL_NOBODY makes it somebody, who must not inherit the rights of a stranger.
    is_nobody = ids.real[ACL_NOBODY] == UNMAPPED
    return tag, permissions if is_nobody else 0, ACL_NOBODY


def _acl_entry_to_real(entry: _Entry, uids: IdMap, gids: IdMap) -> _Entry:
    tag, permissions, number = entry
    if tag not in (_ACL_USER, _ACL_GROUP):
        return entry
    real = (uids if tag == _ACL_USER else gids).real[number]
    if real == UNMAPPED or number == ACL_NOBODY:
        raise _error(errno.EOVERFLOW)
    return tag, permissions, real


def capability_to_shown(value: bytes, uids: IdMap) -> bytes | None:
    """Translate a `security.capability` read from the layer; None means that there is none to be shown
    (ENODATA).

    One without a root id belongs to the layer's id 0. The kernel takes what we show as it stands, and version
    2 as the initial namespace's (get_vfs_caps_from_disk in security/commoncap.c), so version 2 is shown only
    for shown id 0. What the kernel would not understand is hidden.
    """
    if len(value) < _CAP_MAGIC.size:
        return None
    magic = _CAP_MAGIC.unpack_from(value)[0]
    revision = magic & _CAP_REVISION_MASK
    if _CAP_SIZES.get(revision) != len(value):
        return None
    root = uids.named[_CAP_ROOT.unpack_from(value, 20)[0] if revision == _CAP_REVISION_3 else 0]
    if root == UNMAPPED:
        return None
    body = value[_CAP_BODY].ljust(16, b"\0")  # version 1 has no high words
    return _capability(magic, body, root or None)


def capability_to_real(value: bytes, uids: IdMap) -> bytes:
    """Translate a `security.capability` to be stored on the layer.

    Version 2 is for shown id 0. It stays version 2 only where ids are as they are; under a map it becomes
    version 3 with the real id, as on the kernel's idmapped mounts (cap_convert_nscap in
    security/commoncap.c). Raises OSError: EINVAL for a malformed one (version 1 as well, which the kernel
    also only reads), EOVERFLOW for a root id without a mapping.
    """
    magic = _CAP_MAGIC.unpack_from(value)[0] if len(value) >= _CAP_MAGIC.size else 0
    revision = magic & ~_CAP_EFFECTIVE
    if revision not in (_CAP_REVISION_2, _CAP_REVISION_3) or len(value) != _CAP_SIZES[revision]:
        raise _error(errno.EINVAL)
    if revision == _CAP_REVISION_2 and uids.keeps_ids:
        return value
    root = uids.real[_CAP_ROOT.unpack_from(value, 20)[0] if revision == _CAP_REVISION_3 else 0]
    if root == UNMAPPED:
        raise _error(errno.EOVERFLOW)
    return _capability(magic, value[_CAP_BODY], root)


def capability_to_inside(value: bytes, uids: IdMap, inside: IdMap) -> bytes | None:
    """As capability_to_shown, for a mount that belongs to a user namespace whose map is `inside`: there the kernel
    takes version 2 for its own root's. Without a root id it is the layer's id 0's, who is shown as that root or not at
    all; with one, of the namespace whose root that is."""
    revision = _CAP_MAGIC.unpack_from(value)[0] & _CAP_REVISION_MASK if len(value) >= _CAP_MAGIC.size else 0
    return capability_to_shown(value, inside if revision == _CAP_REVISION_3 else uids)


def capability_from_inside(value: bytes, inside: IdMap) -> bytes:
    """As capability_to_real, for such a mount: it is stored for the namespace's root, so that it is nothing to the
    host. EPERM where that is the host's root."""
    if inside.real[0] in (0, UNMAPPED):
        raise _error(errno.EPERM)
    stored = capability_to_real(value, inside)
    if len(stored) != _CAP_SIZES[_CAP_REVISION_3] or _CAP_ROOT.unpack_from(stored, 20)[0] == 0:
        raise _error(errno.EPERM)
    return stored


def _capability(magic: int, body: bytes, root: int | None) -> bytes:
    """Version 3 with a root id, version 2 without one."""
    effective = magic & _CAP_EFFECTIVE
    if root is None:
        return _CAP_MAGIC.pack(_CAP_REVISION_2 | effective) + body
    return _CAP_MAGIC.pack(_CAP_REVISION_3 | effective) + body + _CAP_ROOT.pack(root)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
