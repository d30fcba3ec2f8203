"""Requests as the kernel sends them: bodies packed by hand, and one call for each opcode.

Shares nothing with the program's decoders but the numbers of the opcodes, so that one mistake cannot hide in both.
"""

import errno
import os
import stat
import struct

from shiftfs.wire.abi import Opcode

LOCKS = (Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW)
"""Served with `locks=layers` alone."""

ROOT, FILE, DIRECTORY, LINK, ABSENT = 1, 2, 3, 4, 999_999
"""Nodeids: the root's, those of what CALLS is made for, in the order in which they are looked up, and nobody's."""
OFFER = 131072  # bytes of readahead


def pack(fields: str, *values: int) -> bytes:
    return struct.pack("@" + fields, *values)


def reading(offset: int = 0, size: int = 4096) -> bytes:
    return pack("QqIIQII", 0, offset, size, 0, 0, 0, 0)


def writing(data: bytes, flags: int = os.O_WRONLY) -> bytes:
    return pack("QqIIQII", 0, 0, len(data), 0, 0, flags, 0) + data


def setting(valid: int, *, size: int = 0, mode: int = 0, uid: int = 0, gid: int = 0) -> bytes:
    return pack("IIQQQqqqIIIIIIII", valid, 0, 0, size, 0, 1, 2, 0, 3, 4, 0, mode, 0, uid, gid, 0)


COPYING = pack("QqQQqQQ", 0, 0, 2, 0, 100, 4, 0)
GETFLAGS = pack("QIIQII", 0, 0, 0x80086601, 0, 0, 8)


def init(major: int, minor: int, flags: int, size: int = 64) -> bytes:
    """The body of INIT; `size` bytes, as kernels before 7.36 send 16."""
    low, high = flags & 0xFFFFFFFF, flags >> 32
    return pack("IIIII", major, minor, OFFER, low, high).ljust(64, b"\0")[:size]


CALLS: dict[Opcode, tuple[int, bytes, int]] = {
    Opcode.LOOKUP: (ROOT, b"file\0", 0),
    Opcode.FORGET: (FILE, pack("Q", 1), 0),
    Opcode.BATCH_FORGET: (0, pack("IIQQQQ", 2, 0, FILE, 1, ABSENT, 1), 0),
    Opcode.GETATTR: (FILE, pack("IIQ", 0, 0, 0), 0),
    Opcode.STATX: (FILE, pack("IIQII", 0, 0, 0, 0, 0xFFF), 0),
    Opcode.SETATTR: (FILE, setting(1 << 3, size=2), 0),
    Opcode.READLINK: (LINK, b"", 0),
    Opcode.SYMLINK: (ROOT, b"new\0target\0", 0),
    Opcode.MKNOD: (ROOT, pack("IIII", stat.S_IFIFO | 0o644, 0, 0o22, 0) + b"new\0", 0),
    Opcode.MKDIR: (ROOT, pack("II", 0o755, 0o22) + b"new\0", 0),
    Opcode.UNLINK: (ROOT, b"file\0", 0),
    Opcode.RMDIR: (ROOT, b"directory\0", 0),
    Opcode.RENAME: (ROOT, pack("Q", DIRECTORY) + b"file\0new\0", 0),
    Opcode.RENAME2: (ROOT, pack("QII", ROOT, 1, 0) + b"file\0link\0", errno.EEXIST),
    Opcode.LINK: (ROOT, pack("Q", FILE) + b"new\0", 0),
    Opcode.TMPFILE: (ROOT, pack("IIII", os.O_RDWR, 0o600, 0o22, 0) + b"/\0", 0),
    Opcode.OPEN: (FILE, pack("II", os.O_RDWR, 0), 0),
    Opcode.CREATE: (ROOT, pack("IIII", os.O_RDWR, stat.S_IFREG | 0o600, 0o22, 0) + b"new\0", 0),
    Opcode.RELEASE: (FILE, pack("QIIQ", 1, 0, 0, 0), 0),
    Opcode.FLUSH: (FILE, pack("QIIQ", 1, 0, 0, 0), 0),
    Opcode.OPENDIR: (ROOT, pack("II", 0, 0), 0),
    Opcode.RELEASEDIR: (ROOT, pack("QIIQ", 0, 0, 0, 0), 0),
    Opcode.POLL: (FILE, pack("QQII", 1, 7, 0, 5), 0),
    Opcode.READ: (FILE, reading(), 0),
    Opcode.WRITE: (FILE, writing(b"new"), 0),
    Opcode.FSYNC: (FILE, pack("QII", 0, 0, 0), 0),
    Opcode.FALLOCATE: (FILE, pack("QQQII", 0, 0, 100, 0, 0), 0),
    Opcode.LSEEK: (FILE, pack("QQII", 0, 0, os.SEEK_HOLE, 0), 0),
    Opcode.COPY_FILE_RANGE: (FILE, COPYING, 0),
    Opcode.COPY_FILE_RANGE_64: (FILE, COPYING, 0),
    Opcode.READDIR: (ROOT, reading(), 0),
    Opcode.READDIRPLUS: (ROOT, reading(), 0),
    Opcode.FSYNCDIR: (ROOT, pack("QII", 0, 0, 0), 0),
    Opcode.STATFS: (ROOT, b"", 0),
    Opcode.SYNCFS: (ROOT, pack("Q", 0), 0),
    Opcode.SETXATTR: (FILE, pack("II", 3, 0) + b"user.a\0new", 0),
    Opcode.GETXATTR: (FILE, pack("II", 64, 0) + b"user.old\0", 0),
    Opcode.LISTXATTR: (FILE, pack("II", 0, 0), 0),
    Opcode.REMOVEXATTR: (FILE, b"user.a\0", errno.ENODATA),
    **{lock: (FILE, pack("QQQQIIII", 1, 2, 0, 9, 0, 3, 0, 0), errno.ENOSYS) for lock in LOCKS},
    Opcode.IOCTL: (LINK, GETFLAGS, errno.ENOTTY),
}  # fmt: skip
"""For each opcode: whose nodeid, the body, the errno."""
