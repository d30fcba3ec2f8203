"""Values -> replies to the kernel.

Owns the layouts of what is answered. Never writes a descriptor, never looks into a value. Any thread.

Two steps: an encoder gives a payload, `reply` puts the header before it. Encoders raise struct.error for a
number that does not fit its field: that is a bug of the caller, not of the kernel. Lifetimes are (seconds,
nanoseconds).
"""

from typing import NamedTuple

from shiftfs.wire import abi

HEADER_SIZE = abi.OUT_HEADER.size
EIO = 5


class Attr(NamedTuple):
    """struct fuse_attr. Times may be negative; rdev is the 32-bit form, the low half of a Linux st_rdev."""

    ino: int
    size: int
    blocks: int  # of 512 bytes
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class StatxFields(NamedTuple):
    """struct fuse_statx, without what is reserved."""

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: int
    atimensec: int
    btime: int
    btimensec: int
    ctime: int
    ctimensec: int
    mtime: int
    mtimensec: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int


def header(unique: int, length: int) -> bytes:
    """The header before a payload of length bytes, for writev."""
    return abi.OUT_HEADER.pack(HEADER_SIZE + length, 0, unique)


def reply(unique: int, payload: bytes = b"") -> bytes:
    return abi.OUT_HEADER.pack(HEADER_SIZE + len(payload), 0, unique) + payload


def error(unique: int, errno: int) -> bytes:
    """The kernel takes no reply with an error outside 1 to 511 (fuse_dev_do_write): the caller would hang.
    Some filesystems let internal ones out (NFS: 521, 524). Those become EIO."""
    return abi.OUT_HEADER.pack(HEADER_SIZE, -errno if 0 < errno < 512 else -EIO, unique)


def entry(
    nodeid: int,
    generation: int,
    entry_valid: tuple[int, int],
    attr_valid: tuple[int, int],
    attr: tuple[int, ...],
) -> bytes:
    """128 bytes. nodeid 0 says that there is no such name, for as long as entry_valid."""
    seconds, nanoseconds = entry_valid
    attr_seconds, attr_nanoseconds = attr_valid
    return abi.ENTRY_OUT.pack(nodeid, generation, seconds, attr_seconds, nanoseconds, attr_nanoseconds, *attr)


def attr(valid: tuple[int, int], attr: tuple[int, ...]) -> bytes:
    return abi.ATTR_OUT.pack(*valid, *attr)


def open(fh: int, flags: int, backing_id: int = 0) -> bytes:
    return abi.OPEN_OUT.pack(fh, flags, backing_id)


def create(entry_bytes: bytes, open_bytes: bytes) -> bytes:
    return entry_bytes + open_bytes


def write(size: int) -> bytes:
    return abi.WRITE_OUT.pack(size)


def statfs(
    blocks: int, bfree: int, bavail: int, files: int, ffree: int, bsize: int, namelen: int, frsize: int
) -> bytes:
    return abi.STATFS_OUT.pack(blocks, bfree, bavail, files, ffree, bsize, namelen, frsize)


def xattr_size(size: int) -> bytes:
    """The answer to GETXATTR or LISTXATTR of size 0."""
    return abi.GETXATTR_OUT.pack(size)


def lk(start: int, end: int, type: int, pid: int) -> bytes:
    return abi.LK_OUT.pack(start, end, type, pid)


def ioctl(result: int, data: bytes = b"") -> bytes:
    """result is what ioctl(2) returns; the iovecs of unrestricted ioctls are never asked for."""
    return abi.IOCTL_OUT.pack(result) + data


def poll(revents: int) -> bytes:
    return abi.POLL_OUT.pack(revents)


def lseek(offset: int) -> bytes:
    return abi.LSEEK_OUT.pack(offset)


def statx(valid: tuple[int, int], flags: int, fields: tuple[int, ...]) -> bytes:
    """fields as in StatxFields."""
    return abi.STATX_OUT.pack(*valid, flags, *fields)


def copy_file_range_64(copied: int) -> bytes:
    """COPY_FILE_RANGE, without the 64, is answered with `write`."""
    return abi.COPY_FILE_RANGE_OUT.pack(copied)


def init(
    major: int, minor: int, *, max_readahead: int = 0, flags: int = 0, max_background: int = 0,
    congestion_threshold: int = 0, max_write: int = 0, time_gran: int = 0, max_pages: int = 0,
    max_stack_depth: int = 0,
) -> bytes:  # fmt: skip
    """64 bytes, which every kernel since 7.23 takes; flags are all 64 bits."""
    low, high = flags & 0xFFFFFFFF, flags >> 32
    return abi.INIT_OUT.pack(
        major, minor, max_readahead, low, max_background, congestion_threshold, max_write, time_gran,
        max_pages, 0, high, max_stack_depth, 0,
    )  # fmt: skip
