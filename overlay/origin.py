"""Which lower inode a file was copied up from: written as overlayfs has it, and found again over a remount.

Owns the format of `overlay.origin`, of index names and of `overlay.nlink`. Keeps no descriptor. Loop thread.
"""

import os
import struct
from collections.abc import Sequence
from typing import Final

from cachetools import LRUCache

from shiftfs.layer import FUSE, Layer
from shiftfs.sys import files, handles, volumes
from shiftfs.tree import Attributes, Descriptor, RealKey

from . import xattrs
from .entry import Links
from .xattrs import Private

_MAGIC: Final = 0xFB
_VERSION: Final = 0
_FLAGS: Final = 0 if struct.pack("=H", 1) == b"\x01\x00" else 1
"""OVL_FH_FLAG_BIG_ENDIAN (kernel fs/overlayfs/overlayfs.h)."""
_HEAD: Final = struct.Struct("=BBBBB16s")
_HANDLE: Final = struct.Struct("=Ii")
_OWN: Final = struct.Struct("=QqQ")
"""File system id, birth time, inode number: for a process that may not open by handle."""
_REMEMBERED: Final = 65536


class Origins:
    """Origins of files in these lower layers."""

    def __init__(self, lowers: Sequence[Layer]) -> None:
        self._lowers = lowers
        self._uuids = [volumes.uuid(layer.root.fd) for layer in lowers]
        self._ids = [volumes.identity(layer.root.fd) for layer in lowers]
        # Handles of FUSE are node ids: after a remount another file has them.
        self._lasts = [files.filesystem_type(layer.root.fd) != FUSE for layer in lowers]
        self._known: LRUCache[bytes, RealKey] = LRUCache(_REMEMBERED)

    def encode(self, layer: int, fd: int) -> bytes | None:
        """`overlay.origin` for the inode behind `fd` of the lower with this index (struct ovl_fb); None where it has no
        handle that lasts."""
        handle = handles.identity(fd, b"") if self._lasts[layer] else None
        return self._framed(layer, handle) if handle is not None else None

    def uuids(self) -> tuple[bytes | None, ...]:
        """The filesystem's of each layer; None where more than a handle is written there, or none."""
        return tuple(
            (uuid or bytes(16)) if lasts and layer.opens_by_handle else None
            for layer, uuid, lasts in zip(self._lowers, self._uuids, self._lasts, strict=True)
        )

    def index_name(self, layer: int, directory: int, name: bytes) -> bytes | None:
        """The name under which the hard links of a lower file find its upper inode."""
        handle = handles.identity(directory, name) if self._lasts[layer] else None
        return self._framed(layer, handle).hex().encode() if handle is not None else None

    def _framed(self, layer: int, handle: bytes) -> bytes:
        _, kind = _HANDLE.unpack_from(handle)
        identity = handle[_HANDLE.size :]
        head = _HEAD.pack(
            _VERSION, _MAGIC, _HEAD.size + len(identity), _FLAGS, kind & 0xFF, self._uuids[layer] or bytes(16)
        )
        return head + identity

    def encode_own(self, layer: int, key: RealKey) -> bytes | None:
        """What to write besides, where handles cannot be opened: None where they can."""
        if self._lowers[layer].opens_by_handle and self._lasts[layer]:
            return None
        return _OWN.pack(self._ids[layer], key[2], key[1])

    def key(self, private: Private, kind: int) -> RealKey | None:
        """The key of the lower inode that an upper one with these attributes came from, if it is still there. `kind`:
        its S_IFMT type."""
        own = private.get(xattrs.OWN_ORIGIN)
        if own is not None:
            return self._key_of_own(own, kind)
        origin = private.get(xattrs.ORIGIN)
        if not origin:
            return None
        found = self._known.get(origin)
        if found is None:
            found = self._open(origin)
            if found is None:
                return None
            self._known[origin] = found
        return found if found[3] & 0xF == kind else None

    def _key_of_own(self, own: bytes, kind: int) -> RealKey | None:
        if len(own) != _OWN.size:
            return None
        volume, born, number = _OWN.unpack(own)
        for layer, identity in zip(self._lowers, self._ids, strict=True):
            if identity == volume:
                return layer.device, number, born, kind
        return None

    def link_count(self, private: Private) -> int | None:
        """st_nlink of the lower inode."""
        found = self._look(private.get(xattrs.ORIGIN, b""))
        return found[1].nlink if found else None

    def open(self, private: Private, key: RealKey) -> Descriptor | None:
        """An O_PATH descriptor of the lower inode of this key, that an upper one with these attributes came from; None
        where it cannot be found by its handle."""
        found = self._opened(private.get(xattrs.ORIGIN, b""))
        return found[0] if found is not None and found[1] == key else None

    def _open(self, origin: bytes) -> RealKey | None:
        found = self._opened(origin)
        return found[1] if found else None

    def _look(self, origin: bytes) -> tuple[RealKey, Attributes] | None:
        found = self._opened(origin)
        return found[1:] if found else None

    def _opened(self, origin: bytes) -> tuple[Descriptor, RealKey, Attributes] | None:
        if len(origin) <= _HEAD.size:
            return None
        version, magic, length, flags, kind, uuid = _HEAD.unpack_from(origin)
        if version != _VERSION or magic != _MAGIC or length != len(origin) or flags & ~2 != _FLAGS:
            return None
        handle = _HANDLE.pack(length - _HEAD.size, kind) + origin[_HEAD.size :]
        for layer, own in zip(self._lowers, self._uuids, strict=True):
            if own != uuid or not layer.opens_by_handle:
                continue
            try:
                fd = handles.open_handle(layer.root.fd, handle, os.O_PATH | os.O_NOFOLLOW)
            except OSError:
                continue
            found = Descriptor(fd, os.close)
            return found, *layer.look(fd, b"")
        return None


def links(private: Private, upper: int, lower: int) -> Links | None:
    """The link count that `overlay.nlink` says, given those of the upper and of the lower inode; None for none."""
    value = private.get(xattrs.NLINK, b"")
    try:
        offset = int(value[1:])
    except ValueError:
        return None
    if value[:1] == b"U":
        return Links(offset)
    return Links(lower + offset - upper) if value[:1] == b"L" else None


def relative_to_upper(count: int, upper: int) -> bytes:
    """`overlay.nlink` for a change that moves the upper inode's count as much as the mount's."""
    return b"U%+d" % (count - upper)


def relative_to_lower(count: int, lower: int) -> bytes:
    """`overlay.nlink` for a change that moves only the upper inode's count."""
    return b"L%+d" % (count - lower)
