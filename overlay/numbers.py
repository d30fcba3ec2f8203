"""st_ino over layers: unique on the mount, and the same whenever the same layers are mounted.

Owns the order of devices. Loop thread; `of` any thread, for devices that are known.
"""

import struct
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

_DEVICE_SHIFT: Final = 48
"""Inode numbers of the second and further devices are told apart by the bits from here on."""
_HASHED: Final = 1 << 63


class Numbers:
    """For layers on these devices, the first of which shows its numbers as they are, if they are below 2**48."""

    def __init__(self, devices: Iterable[int]) -> None:
        self._index: dict[int, int] = {}
        for device in devices:
            self._index.setdefault(device, len(self._index))

    def of(self, device: int, number: int) -> int:
        """The st_ino of an inode."""
        index = self._index.setdefault(device, len(self._index))
        if number >> _DEVICE_SHIFT:  # a layer that is itself one of several devices: no bits are left
            digest = blake2b(struct.pack("=QQ", index, number), digest_size=8).digest()
            return int.from_bytes(digest, "little") | _HASHED
        return number + (index << _DEVICE_SHIFT)
