"""Owners, modes and kinds of files that an extended attribute has, since nobody may give them to the files themselves.

Owns the attribute's names and form, and what else is kept beside it: an instance is one layer's way, which its root
directory's attribute says (container engines write that; so do we where `xattr_permissions` asks). The files are then
all ours on the layer; devices, fifos and sockets are empty regular files. Never decides who may change anything. Loop
thread, but for `asked`, which runs before the mount.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from .sys import privileges, xattrs
from .tree import Attributes, Change

_PRIVILEGED: Final = b"security.fuseoverlayfs.override_stat"
_CONTAINERS: Final = b"user.containers.override_stat"
_USER: Final = b"user.fuseoverlayfs.override_stat"
_NAMES: Final = (_PRIVILEGED, _CONTAINERS, _USER)
"""The first that a layer's root has counts, in the whole layer."""
_KEPT: Final = b"user.containers.override_"
"""With the containers' name: before a user's security.* attributes, and before those that begin so themselves."""
_KEPT_KINDS: Final = (b"security.", _KEPT)
_CAPABILITY: Final = b"security.capability"
_ACLS: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
_LONGEST: Final = 255

_FORM: Final = re.compile(
    rb"([0-9]{1,10}):([0-9]{1,10}):([0-7]{1,11})"
    rb"(?::(dir|file|symlink|pipe|socket|(block|char)-([0-9]{1,7})-([0-9]{1,7})))?\0?"
)
_KINDS: Final = {
    b"dir": stat.S_IFDIR,
    b"file": stat.S_IFREG,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
    b"block": stat.S_IFBLK,
    b"char": stat.S_IFCHR,
}
_WORDS: Final = {mode: word for word, mode in _KINDS.items()}
_NO_ID: Final = 0xFFFFFFFF
_ABSENT: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP})

_new = tuple.__new__


class Owned(NamedTuple):
    """What the attribute says. `rdev` as Attributes has it."""

    uid: int
    gid: int
    mode: int  # with its S_IFMT
    rdev: int


@lru_cache(maxsize=4096)
def parsed(value: bytes, real_mode: int) -> Owned:
    """What `UID:GID:MODE[:KIND]` says of an inode with this mode on the layer: without a kind, it is what it is. EINVAL
    for what cannot be: a directory that is none, and a whiteout, which a layer has as such."""
    found = _FORM.fullmatch(value)
    if found is None:
        raise _damaged()
    uid, gid, mode, word, device, major, minor = found.groups()
    kind = stat.S_IFMT(real_mode) if word is None else _KINDS[device or word]
    rdev = 0
    if device is not None:
        rdev = int(minor) & 0xFF | int(major) << 8 | (int(minor) & ~0xFF) << 12
    owner = int(uid), int(gid)
    if max(owner) >= _NO_ID or rdev > _NO_ID or stat.S_ISDIR(kind) != stat.S_ISDIR(real_mode):
        raise _damaged()
    if stat.S_ISCHR(kind) and not rdev:
        raise _damaged()
    return Owned(*owner, kind | stat.S_IMODE(int(mode, 8)), rdev)


def written(owned: Owned) -> bytes:
    """The value that says this."""
    word = _WORDS[stat.S_IFMT(owned.mode)]
    if word in (b"block", b"char"):
        word += b"-%d-%d" % (owned.rdev >> 8 & 0xFFF, owned.rdev & 0xFF | owned.rdev >> 12 & 0xFFF00)
    return b"%d:%d:0%o:%s" % (owned.uid, owned.gid, stat.S_IMODE(owned.mode), word)


class Override:
    """Of one layer."""

    def __init__(self, name: bytes, is_trusted: bool) -> None:
        """`is_trusted`: whoever could set the attribute may say what a file is."""
        self.name = name
        self._is_trusted = is_trusted
        self._keeps = name == _CONTAINERS
        self._own = os.geteuid()
        self._caller = (self._own, os.getegid(), 0)

    def trust(self) -> None:
        """Who mounts has said that owners live here."""
        self._is_trusted = True

    # --- what there is ---

    def applied(self, directory: int, name: bytes, attributes: Attributes) -> Attributes:
        """The attributes of a name, or of `directory` itself for an empty one, as they are meant. EINVAL where that
        cannot be told."""
        if attributes.mode >> 12 not in (4, 8):  # S_IFDIR, S_IFREG: others take no such attribute
            return attributes
        if not self._is_trusted and not xattrs.are_of(attributes.uid, self._own, attributes.mode):
            return attributes
        try:
            value = os.getxattr(_path(directory, name), self.name, follow_symlinks=not name)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            return attributes
        uid, gid, mode, rdev = parsed(value, attributes.mode)
        if rdev and not self._is_trusted:  # root of a container may be ours on the layer, and yet make no device
            return attributes
        return _new(Attributes, (*attributes[:9], mode, attributes[10], uid, gid, rdev, *attributes[14:]))

    # --- what is changed ---

    @staticmethod
    def real_mode(mode: int) -> int:
        """The permissions of a file of ours on the layer: we may do all, and nobody else may write."""
        return mode & 0o055 | 0o700

    def act_for(self, uid: int, gid: int, umask: int) -> None:
        """Whom what is `born` belongs to, until somebody else is named: real ids."""
        self._caller = uid, gid, umask

    def born(self, directory: int, name: bytes, above: Attributes, mode: int, rdev: int = 0) -> None:
        """Something new has been made at a name (or is `directory` itself), in a directory with the attributes `above`:
        write down whose it is, as open(2) and mkdir(2) have it."""
        uid, gid, umask = self._caller
        mode &= ~umask
        if above.mode & stat.S_ISGID:
            gid = above.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        self._write(directory, name, Owned(uid, gid, mode, rdev))

    def give(self, fd: int, attributes: Attributes) -> None:
        """Write down that the inode behind `fd` is owned, of the mode and of the kind that `attributes` say."""
        self._write(fd, b"", Owned(attributes.uid, attributes.gid, attributes.mode, attributes.rdev))

    def _write(self, directory: int, name: bytes, owned: Owned) -> None:
        os.setxattr(_path(directory, name), self.name, written(owned), follow_symlinks=not name)

    def change(self, fd: int, before: Attributes, wanted: Change) -> Change:
        """Write down a new owner or mode; what is left to be done to the inode itself. As chown(2), a new owner takes
        set-id bits and capabilities away."""
        if wanted.uid is None and wanted.gid is None and wanted.mode is None:
            return wanted
        mode = before.mode if wanted.mode is None else stat.S_IFMT(before.mode) | stat.S_IMODE(wanted.mode)
        if (wanted.uid is not None or wanted.gid is not None) and not stat.S_ISDIR(before.mode):
            self.content_changed(fd)
            if wanted.mode is None:
                mode &= ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
        uid = before.uid if wanted.uid in (None, _NO_ID) else wanted.uid
        gid = before.gid if wanted.gid in (None, _NO_ID) else wanted.gid
        assert uid is not None and gid is not None
        self._write(fd, b"", Owned(uid, gid, mode, before.rdev))
        return wanted._replace(uid=None, gid=None, mode=None)

    def content_changed(self, fd: int) -> None:
        """A capability goes when a file is written; of one that is kept beside, the layer knows nothing."""
        with contextlib.suppress(OSError):
            os.removexattr(_path(fd, b""), _KEPT + _CAPABILITY if self._keeps else _CAPABILITY)

    # --- the other attributes ---

    def stored(self, name: bytes) -> bytes:
        """Under which name a user's attribute is kept. EPERM for one that has no place; EOPNOTSUPP for ACLs, which
        would go by real owners."""
        if name in _ACLS:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if self._keeps:
            if not name.startswith(_KEPT_KINDS):
                return name
            if len(_KEPT + name) <= _LONGEST:
                return _KEPT + name
        elif name != self.name:
            return name
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def found(self, name: bytes) -> bytes:
        """The same, to look for it: ENODATA for one that cannot be there."""
        try:
            return self.stored(name)
        except PermissionError:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None

    def listed(self, names: Iterable[bytes]) -> list[bytes]:
        """A layer's attributes as users see them."""
        return [shown for name in names if (shown := self.shown(name)) is not None]

    def shown(self, name: bytes) -> bytes | None:
        """The name that users see of a layer's attribute; None for one that is hidden."""
        if name in _ACLS or name == self.name:
            return None
        if self._keeps:
            if name.startswith(_KEPT):
                kept = name[len(_KEPT) :]
                return kept if kept.startswith(_KEPT_KINDS) else None
            if name.startswith(b"security."):
                return None
        return name


def of(root: int) -> Override | None:
    """How the layer with this root directory has its owners; None for the files' own."""
    for name in _NAMES:
        if _value(root, name) is not None:
            # The host's root would make anybody's files set-id programs of his; elsewhere all is of one user's anyway.
            is_trusted = name == _PRIVILEGED or os.geteuid() != 0 or not privileges.in_initial_namespace()
            return Override(name, is_trusted)
    return None


def asked(which: Literal[1, 2], upper: int, lowers: Iterable[int]) -> Override:
    """How owners are to live in the upper, with the root directories of all layers: the upper's gets the attribute if
    it has none, as the topmost lower that has one. OSError where it cannot have any."""
    names = (_PRIVILEGED,) if which == 1 else (_CONTAINERS, _USER)
    for name in names:
        if _value(upper, name) is not None:
            return Override(name, True)
    values = (value for lower in lowers for name in names if (value := _value(lower, name)) is not None)
    os.setxattr(_path(upper, b""), names[0], next(values, b"0:0:0555:dir"))
    return Override(names[0], True)


def _value(fd: int, name: bytes) -> bytes | None:
    try:
        return os.getxattr(_path(fd, b""), name)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return None


def _path(directory: int, name: bytes) -> bytes:
    return b"/proc/self/fd/%d/%s" % (directory, name) if name else b"/proc/self/fd/%d" % directory


def _damaged() -> OSError:
    return OSError(errno.EINVAL, "damaged override")
