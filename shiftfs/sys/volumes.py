"""What a filesystem says of itself: its UUID and its id. ioctl_fs(2), statfs(2). Any thread."""

import fcntl
import os
from typing import Final

_GETFSUUID: Final = 0x80111500
"""FS_IOC_GETFSUUID, _IOR(0x15, 0, struct fsuuid2): a byte of length and sixteen of UUID (Linux 6.9)."""


def uuid(fd: int) -> bytes | None:
    """The UUID of the filesystem that an open file or directory is on; None where it does not say."""
    room = bytearray(32)
    try:
        fcntl.ioctl(fd, _GETFSUUID, room)
    except OSError:
        return None
    return bytes(room[1:17]) if room[0] == 16 else None


def identity(fd: int) -> int:
    """f_fsid of statfs(2): the same over remounts, for filesystems on a device."""
    return os.fstatvfs(fd).f_fsid
