"""INIT: what the kernel offers, what is taken, and why.

Owns the decision on every capability flag: each is in one of the nine tables below, with its reason. Never
sends, and never changes its mind: INIT comes once. Runs on the loop's thread, before anything else.
"""

from typing import NamedTuple

from shiftfs.wire import abi, replies, requests
from shiftfs.wire.abi import InitFlag

Offer = requests.Init

TAKEN: dict[InitFlag, str] = {
    InitFlag.ASYNC_READ: "several reads of one file at a time; workers answer them in any order",
    InitFlag.BIG_WRITES: "writes of more than a page",
    InitFlag.DONT_MASK: "the umask comes along, so that a default ACL can override it, as it must",
    InitFlag.HAS_IOCTL_DIR: "FS_IOC_GETFLAGS and the like on directories",
    InitFlag.AUTO_INVAL_DATA: "changed size or mtime drops cached pages: layers change behind the mount",
    InitFlag.DO_READDIRPLUS: "a listing brings the attributes, which saves one LOOKUP per entry",
    InitFlag.READDIRPLUS_AUTO: "and does so only for those who look at them",
    InitFlag.ASYNC_DIO: "several requests of one direct read or write at a time",
    InitFlag.PARALLEL_DIROPS: "lookups and listings of one directory do not wait for each other",
    InitFlag.HANDLE_KILLPRIV_V2: "set-id bits fall where we are told, without a GETXATTR per write",
    InitFlag.ABORT_ERROR: "an aborted connection is told apart (ECONNABORTED) from an unmounted one (ENODEV)",
    InitFlag.MAX_PAGES: "requests of more than 32 pages",
    InitFlag.CACHE_SYMLINKS: "a target never changes during its inode's life",
    InitFlag.SETXATTR_EXT: "SETXATTR says when an ACL clears the set-gid bit",
    InitFlag.INIT_EXT: "flags beyond the 32nd",
    InitFlag.HAS_EXPIRE_ONLY: "informational: a name can be expired without detaching mounts below it",
}

# Informational as well: kept if OPEN is to be refused, so that the result says whether it may be.
TAKEN_TO_REFUSE_OPEN: dict[InitFlag, str] = {
    InitFlag.NO_OPEN_SUPPORT: "ENOSYS to OPEN and CREATE: files are opened and closed without a request",
    InitFlag.NO_OPENDIR_SUPPORT: "ENOSYS to OPENDIR: likewise for directories, with their listings cached",
}

# Where OPEN is refused, O_TRUNC would be lost; without the flag a SETATTR comes.
TAKEN_TO_SERVE_OPEN: dict[InitFlag, str] = {
    InitFlag.ATOMIC_O_TRUNC: "OPEN says that nothing of the content will be needed: nothing of it is copied up",
}

# Else locks stay with the kernel, and work without OPEN.
TAKEN_TO_SERVE_LOCKS: dict[InitFlag, str] = {
    InitFlag.POSIX_LOCKS: "ranges are locked on the real files",
    InitFlag.FLOCK_LOCKS: "so is what flock(2) locks; the unlock comes in RELEASE, which needs OPEN to be served",
}

# Else the kernel goes by modes alone.
TAKEN_TO_SHOW_ACLS: dict[InitFlag, str] = {InitFlag.POSIX_ACL: "the kernel enforces the ACLs that we show"}

# With it only requests that create something come with uid and gid, so it is not for mounts that some may not use.
TAKEN_TO_BE_IDMAPPED: dict[InitFlag, str] = {
    InitFlag.ALLOW_IDMAP: "a mount of the filesystem may shift its owners again (mount_setattr(2))",
}

# Files of the layers are then read, written and mapped by the kernel, unless an open is answered otherwise.
TAKEN_TO_PASS_THROUGH: dict[InitFlag, str] = {
    InitFlag.PASSTHROUGH: "reads, writes and mappings go to the layer's file without a request",
}

# Sizes and times of files are then the kernel's own, whatever happens in the layers.
TAKEN_TO_WRITE_BACK: dict[InitFlag, str] = {
    InitFlag.WRITEBACK_CACHE: "writes are collected, and come when the kernel likes, or a file is closed or synced",
}

LEFT: dict[InitFlag, str] = {
    InitFlag.FILE_OPS: "never implemented by the kernel",
    InitFlag.EXPORT_SUPPORT: "would send lookups of '.' and '..' by nodeids that were forgotten",
    InitFlag.SPLICE_WRITE: "replies are written, not spliced",
    InitFlag.SPLICE_MOVE: "as SPLICE_WRITE",
    InitFlag.SPLICE_READ: "requests are read into one buffer, not spliced",
    InitFlag.HANDLE_KILLPRIV: "clears set-id bits whoever writes; version 2 does what the VFS does",
    InitFlag.EXPLICIT_INVAL_DATA: "the opposite of AUTO_INVAL_DATA",
    InitFlag.MAP_ALIGNMENT: "DAX of virtiofs only",
    InitFlag.SUBMOUNTS: "a mount is one filesystem with one st_dev",
    InitFlag.INIT_RESERVED: "reserved",
    InitFlag.SECURITY_CTX: "labels belong to the layer; creation there sets its own",
    InitFlag.HAS_INODE_DAX: "DAX of virtiofs only",
    InitFlag.CREATE_SUPP_GROUP: "creation acts with the caller's own uid and gid; set-gid is the layer's",
    InitFlag.DIRECT_IO_ALLOW_MMAP: "files served direct have no stable size to map",
    InitFlag.NO_EXPORT_SUPPORT: "file handles of cached inodes do no harm, and fanotify uses them",
    InitFlag.HAS_RESEND: "answered requests are not journaled, so a repeated one could be done twice",
    InitFlag.OVER_IO_URING: "requests come through the descriptor",
    InitFlag.REQUEST_TIMEOUT: "a slow layer must not abort the mount",
}

WANTED = InitFlag(sum(TAKEN))
WANTED_TO_REFUSE_OPEN = InitFlag(sum(TAKEN_TO_REFUSE_OPEN))
WANTED_TO_SERVE_OPEN = InitFlag(sum(TAKEN_TO_SERVE_OPEN))
WANTED_TO_BE_IDMAPPED = InitFlag(sum(TAKEN_TO_BE_IDMAPPED))
WANTED_TO_SERVE_LOCKS = InitFlag(sum(TAKEN_TO_SERVE_LOCKS))
WANTED_TO_SHOW_ACLS = InitFlag(sum(TAKEN_TO_SHOW_ACLS))
WANTED_TO_PASS_THROUGH = InitFlag(sum(TAKEN_TO_PASS_THROUGH))
WANTED_TO_WRITE_BACK = InitFlag(sum(TAKEN_TO_WRITE_BACK))

# Without it the kernel collects writes to files that have set-id bits, too, and clears none (fuse_cache_write_iter).
# It came with Linux 5.11; and before 5.8 close(2) said nothing of what could not be written, where FLUSH is refused.
NEEDED_TO_WRITE_BACK = InitFlag.HANDLE_KILLPRIV_V2

# Files on what is itself stacked are not passed through, and one more filesystem may be stacked on the mount; with 2 it
# would be the other way round (include/linux/fs.h, FILESYSTEM_MAX_STACK_DEPTH).
STACK_DEPTH = 1

PAGES_WITHOUT_MAX_PAGES = 32  # FUSE_DEFAULT_MAX_PAGES_PER_REQ
MOST_PAGES = 0xFFFF  # the field has 16 bits; the kernel has its own limit (256, fs.fuse.max_pages_limit)

# The kernel's default of 12 is soon used up by readahead and direct I/O on several files, for which a pool of
# workers waits. It reports congestion at three quarters of the limit, as by default.
MAX_BACKGROUND = 64
CONGESTION_THRESHOLD = 48


class Negotiated(NamedTuple):
    minor: int
    max_readahead: int  # bytes
    flags: InitFlag
    max_write: int  # bytes
    max_pages: int
    time_gran: int  # nanoseconds
    max_background: int
    congestion_threshold: int
    max_stack_depth: int  # 0: nothing is passed through

    @property
    def buffer_size(self) -> int:
        """Bytes that a read of the device must have room for, or it fails with EINVAL (fuse_dev_do_read)."""
        return max(abi.MIN_READ_BUFFER, abi.HEADER.size + abi.WRITE_IN.size + self.max_write)


def negotiate(
    offer: Offer, *, max_write: int, refuse_open: bool, serve_locks: bool = False, shows_acls: bool = True,
    allow_idmap: bool = False, pass_through: bool = False, write_back: bool = False, page_size: int = 4096,
) -> Negotiated:  # fmt: skip
    """What to take of an offer; max_write is a wish, in bytes. Raises ProtocolError for too old a kernel.

    A later major version is not negotiated: the caller answers `encode_version_only` and awaits another INIT.
    """
    if (offer.major, offer.minor) < (abi.MAJOR, abi.OLDEST_MINOR):
        raise requests.ProtocolError(
            f"the kernel speaks FUSE {offer.major}.{offer.minor}; "
            f"{abi.MAJOR}.{abi.OLDEST_MINOR} (Linux 5.4) or later is needed",
            errno=abi.EPROTO,
        )
    wanted = WANTED | (WANTED_TO_REFUSE_OPEN if refuse_open else WANTED_TO_SERVE_OPEN)
    if serve_locks:
        wanted |= WANTED_TO_SERVE_LOCKS
    if shows_acls:
        wanted |= WANTED_TO_SHOW_ACLS
    if allow_idmap:
        wanted |= WANTED_TO_BE_IDMAPPED
    if pass_through:
        wanted |= WANTED_TO_PASS_THROUGH
    if write_back and NEEDED_TO_WRITE_BACK in InitFlag(offer.flags):
        wanted |= WANTED_TO_WRITE_BACK
    flags = InitFlag(offer.flags) & wanted
    most_pages = MOST_PAGES if InitFlag.MAX_PAGES in flags else PAGES_WITHOUT_MAX_PAGES
    pages = min(max(-(-max_write // page_size), 1), most_pages)
    return Negotiated(
        minor=min(offer.minor, abi.MINOR),
        max_readahead=offer.max_readahead,
        flags=flags,
        max_write=min(max(max_write, page_size), pages * page_size),
        max_pages=pages,
        time_gran=1,
        max_background=MAX_BACKGROUND,
        congestion_threshold=CONGESTION_THRESHOLD,
        max_stack_depth=STACK_DEPTH if InitFlag.PASSTHROUGH in flags else 0,
    )


def encode(unique: int, negotiated: Negotiated) -> bytes:
    """The complete reply to INIT."""
    return replies.reply(unique, replies.init(abi.MAJOR, **negotiated._asdict()))


def encode_version_only(unique: int) -> bytes:
    """The complete reply to an INIT of a later major version: only what we speak."""
    return replies.reply(unique, replies.init(abi.MAJOR, abi.MINOR))
