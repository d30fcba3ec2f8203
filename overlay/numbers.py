"""st_ino over layers: unique on the mount, and the same whenever the same layers are mounted.

Owns the order of devices. Loop thread; `of` any thread, for devices that are known.
"""

from collections.abc import Iterable
from typing import Final

_DEVICE_SHIFT: Final = 48
"""Inode numbers of the second and further devices are told apart by the bits from here on."""
_MASK: Final = 0xFFFFFFFFFFFFFFFF


class Numbers:
    """For layers on these devices, the first of which shows its numbers as they are."""

    def __init__(self, devices: Iterable[int]) -> None:
        self._index: dict[int, int] = {}
        for device in devices:
            self._index.setdefault(device, len(self._index))

    def of(self, device: int, number: int) -> int:
        """The st_ino of an inode."""
        index = self._index.setdefault(device, len(self._index))
        return (number + (index << _DEVICE_SHIFT)) & _MASK
