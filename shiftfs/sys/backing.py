"""Files that a FUSE connection passes reads, writes and mappings on to (Linux 6.9, fs/fuse/backing.c).

Owns nothing: an id is the connection's until it is closed, or that is gone. It takes CAP_SYS_ADMIN in the initial user
namespace.
"""

import fcntl
import struct
from typing import Final

_OPEN: Final = 0x4010E501  # FUSE_DEV_IOC_BACKING_OPEN
_CLOSE: Final = 0x4004E502  # FUSE_DEV_IOC_BACKING_CLOSE
_MAP: Final = struct.Struct("=iIQ")  # struct fuse_backing_map: descriptor, flags, padding
_ID: Final = struct.Struct("=I")


def open_backing(connection: int, fd: int) -> int:
    """An id for the file behind a descriptor; O_PATH will do from Linux 6.12 (EBADF before).

    The kernel opens that file anew for each open that is answered with the id, with the flags of whoever opens and
    without asking for his rights, and does with it what he does with the rights of the calling thread as they are now.
    Raises OSError: ELOOP for what is stacked too deep.
    """
    return int(fcntl.ioctl(connection, _OPEN, bytearray(_MAP.pack(fd, 0, 0)), True))


def close_backing(connection: int, number: int) -> None:
    """Nobody can be answered with the id from now on; those who were go on."""
    fcntl.ioctl(connection, _CLOSE, bytearray(_ID.pack(number)), True)
