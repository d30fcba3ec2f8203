"""Numbers and layouts of the FUSE kernel ABI, version 7.31 to 7.45 (include/uapi/linux/fuse.h).

Owns opcodes, flags and precompiled structs. Never reads, writes, allocates per request or decides anything.
Any thread.

Layouts are native byte order with explicit padding ("="): the protocol pads every struct to 64 bits itself,
so they are the same on every architecture. Offsets, sizes and times that reach a system call are signed
("q"): the kernel's own types are (loff_t, time64_t), times before 1970 come out right, and a senseless value
is an EINVAL of the system call instead of an OverflowError of Python.

Enums are what is looked up by number: opcodes, notices and what INIT offers. Other flags are plain numbers: an enum
takes a start ten times as long, and `&` with a member of an IntFlag builds an object, about half a microsecond.
"""

from enum import IntEnum, IntFlag
from struct import Struct

MAJOR = 7
MINOR = 45
OLDEST_MINOR = 31

ROOT_ID = 1

# wire imports no errno module; these are the values of all architectures but alpha, mips, parisc and sparc,
# where the last two differ.
EINVAL = 22
ENOSYS = 38
EPROTO = 71

MIN_READ_BUFFER = 8192  # FUSE_MIN_READ_BUFFER: the device refuses smaller reads

# fuse_in_header.unique: set on a request that is sent again after a RESEND notice.
UNIQUE_RESEND = 1 << 63

# fuse_in_header.uid and gid where the kernel has no id to tell; also how an id without a mapping is shown.
INVALID_ID = 0xFFFFFFFF


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class InitFlag(IntFlag):
    """Capabilities in INIT; bits from 32 on travel in flags2."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    INIT_RESERVED = 1 << 31
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


class Fattr:
    """Setattr.valid: which fields are to be set, and how."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


class FOpen:
    """Flags in the reply to OPEN, OPENDIR and CREATE."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


class OpenInFlag:
    """Open.open_flags and Create.open_flags."""

    KILL_SUIDGID = 1 << 0


class GetattrFlag:
    FH = 1 << 0


class ReadFlag:
    LOCKOWNER = 1 << 1


class WriteFlag:
    CACHE = 1 << 0
    LOCKOWNER = 1 << 1
    KILL_SUIDGID = 1 << 2


class ReleaseFlag:
    FLUSH = 1 << 0
    FLOCK_UNLOCK = 1 << 1


class FsyncFlag:
    FDATASYNC = 1 << 0


class LkFlag:
    FLOCK = 1 << 0


class SetxattrFlag:
    """Setxattr.setxattr_flags; the XATTR_CREATE and XATTR_REPLACE of the caller are in Setxattr.flags."""

    ACL_KILL_SGID = 1 << 0


class IoctlFlag:
    COMPAT = 1 << 0
    UNRESTRICTED = 1 << 1
    RETRY = 1 << 2
    BITS32 = 1 << 3
    DIR = 1 << 4
    COMPAT_X32 = 1 << 5


class PollFlag:
    SCHEDULE_NOTIFY = 1 << 0


class AttrFlag:
    """Attr.flags."""

    SUBMOUNT = 1 << 0
    DAX = 1 << 1


class NoticeCode(IntEnum):
    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


class InvalEntryFlag:
    EXPIRE_ONLY = 1 << 0


# What every message begins with.
HEADER = Struct("=IIQQIIIH2x")  # length opcode unique nodeid uid gid pid, extensions in units of 8 bytes
OUT_HEADER = Struct("=IiQ")  # length, 0 or -errno (a notice: its code), unique

# Requests: what follows the header, up to the names and data.
FORGET_IN = Struct("=Q")
BATCH_FORGET_IN = Struct("=I4x")
FORGET_ONE = Struct("=QQ")
GETATTR_IN = Struct("=I4xQ")
SETATTR_IN = Struct("=I4xQqQqqqIIII4xII4x")
MKNOD_IN = Struct("=III4x")
MKDIR_IN = Struct("=II")
RENAME_IN = Struct("=Q")
RENAME2_IN = Struct("=QI4x")
LINK_IN = Struct("=Q")
OPEN_IN = Struct("=II")
CREATE_IN = Struct("=IIII")
READ_IN = Struct("=QqIIQI4x")
WRITE_IN = Struct("=QqIIQI4x")
RELEASE_IN = Struct("=QIIQ")
FLUSH_IN = Struct("=Q8xQ")
FSYNC_IN = Struct("=QI4x")
SETXATTR_IN = Struct("=III4x")
SETXATTR_IN_COMPAT = Struct("=II")  # without FUSE_SETXATTR_EXT
GETXATTR_IN = Struct("=I4x")
INIT_IN = Struct("=IIIII44x")
INIT_IN_COMPAT = Struct("=IIII")  # before 7.36
LK_IN = Struct("=QQqqIII4x")
ACCESS_IN = Struct("=I4x")
INTERRUPT_IN = Struct("=Q")
BMAP_IN = Struct("=QI4x")
IOCTL_IN = Struct("=QIIQII")
POLL_IN = Struct("=QQII")
FALLOCATE_IN = Struct("=QqqI4x")
LSEEK_IN = Struct("=QqI4x")
COPY_FILE_RANGE_IN = Struct("=QqQQqQQ")
SYNCFS_IN = Struct("=8x")
STATX_IN = Struct("=I4xQII")
NOTIFY_RETRIEVE_IN = Struct("=8xqI4x16x")

# Replies.
ATTR = Struct("=QQQqqqIIIIIIIIII")
ENTRY_OUT = Struct("=QQQQII" + ATTR.format[1:])
ATTR_OUT = Struct("=QI4x" + ATTR.format[1:])
OPEN_OUT = Struct("=QIi")
WRITE_OUT = Struct("=I4x")
STATFS_OUT = Struct("=QQQQQIII28x")
GETXATTR_OUT = Struct("=I4x")
LK_OUT = Struct("=qqII")
IOCTL_OUT = Struct("=i12x")
POLL_OUT = Struct("=I4x")
LSEEK_OUT = Struct("=q")
COPY_FILE_RANGE_OUT = Struct("=Q")
STATX_OUT = Struct("=QII16x" + "IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x")
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")
DIRENT = Struct("=QQII")

# Notices.
NOTIFY_POLL_WAKEUP_OUT = Struct("=Q")
NOTIFY_INVAL_INODE_OUT = Struct("=Qqq")
NOTIFY_INVAL_ENTRY_OUT = Struct("=QII")
NOTIFY_DELETE_OUT = Struct("=QQI4x")
