"""st_ino over layers: unique on the mount, and the same whenever the same layers are mounted.

Owns the order of devices. Loop thread; `of` any thread, for devices that are known.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Final

from shiftfs.layer import narrowed

_DEVICE_SHIFT: Final = 48
"""Inode numbers of the second and further devices are told apart by the bits from here on."""
_HASHED: Final = 1 << 63


class Numbers:
    """For layers on these devices, the first of which shows its numbers as they are, if they are below 2**48."""

    def __init__(self, devices: Iterable[int], narrow: bool = False) -> None:
        """`narrow`: in 32 bits, where two inodes may have one number."""
        self.of: Callable[[int, int], int] = self._in_32 if narrow else self._in_64
        """The st_ino of an inode, by its device and number there."""
        self.tells_all = not narrow
        """Are numbers below 2**48 shown with all their bits?"""
        self._index: dict[int, int] = {}
        for device in devices:
            self._index.setdefault(device, len(self._index))

    def _in_32(self, device: int, number: int) -> int:
        return narrowed(self._in_64(device, number))

    def _in_64(self, device: int, number: int) -> int:
        index = self._index.setdefault(device, len(self._index))
        if number >> _DEVICE_SHIFT:  # a layer that is itself one of several devices: no bits are left
            from hashlib import blake2b  # with all of OpenSSL

            digest = blake2b(struct.pack("=QQ", index, number), digest_size=8).digest()
            return int.from_bytes(digest, "little") | _HASHED
        return number + (index << _DEVICE_SHIFT)
