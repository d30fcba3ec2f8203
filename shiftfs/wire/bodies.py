"""What each request says: one NamedTuple per opcode, fields in the kernel's order and under its names.

Owns values only; requests.py fills them from bytes. Never checks, never changes. Any thread. Names are bytes
without their terminating NUL. Offsets and sizes are bytes, times seconds and nanoseconds.
"""

from typing import NamedTuple


class Lookup(NamedTuple):
    name: bytes


class Forget(NamedTuple):
    nlookup: int


class BatchForget(NamedTuple):
    items: tuple[tuple[int, int], ...]  # (nodeid, nlookup)


class Getattr(NamedTuple):
    flags: int
    fh: int


class Setattr(NamedTuple):
    valid: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    uid: int
    gid: int


class Readlink(NamedTuple):
    pass


class Symlink(NamedTuple):
    name: bytes
    target: bytes


class Mknod(NamedTuple):
    mode: int
    rdev: int  # as os.mknod takes it
    umask: int
    name: bytes


class Mkdir(NamedTuple):
    mode: int
    umask: int
    name: bytes


class Unlink(NamedTuple):
    name: bytes


class Rmdir(NamedTuple):
    name: bytes


class Rename(NamedTuple):
    """RENAME (flags are 0) and RENAME2."""

    newdir: int
    flags: int
    oldname: bytes
    newname: bytes


class Link(NamedTuple):
    oldnodeid: int
    name: bytes


class Open(NamedTuple):
    """OPEN and OPENDIR."""

    flags: int
    open_flags: int


class Read(NamedTuple):
    """READ, READDIR and READDIRPLUS; of the latter two, offset is the cookie of the entry before."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int


class Write(NamedTuple):
    """data is a view into the receive buffer, good until that is read into again: who waits copies it."""

    fh: int
    offset: int
    write_flags: int
    lock_owner: int
    flags: int
    data: memoryview


class Statfs(NamedTuple):
    pass


class Release(NamedTuple):
    """RELEASE and RELEASEDIR."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class Fsync(NamedTuple):
    """FSYNC and FSYNCDIR."""

    fh: int
    fsync_flags: int


class Setxattr(NamedTuple):
    flags: int
    setxattr_flags: int  # 0 from the short form
    name: bytes
    value: bytes


class Getxattr(NamedTuple):
    size: int
    name: bytes


class Listxattr(NamedTuple):
    size: int


class Removexattr(NamedTuple):
    name: bytes


class Flush(NamedTuple):
    fh: int
    lock_owner: int


class Init(NamedTuple):
    major: int
    minor: int
    max_readahead: int
    flags: int  # all 64 bits


class Lk(NamedTuple):
    """GETLK, SETLK and SETLKW."""

    fh: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    lk_flags: int


class Access(NamedTuple):
    mask: int


class Create(NamedTuple):
    """CREATE and TMPFILE; of the latter, name is empty."""

    flags: int
    mode: int
    umask: int
    open_flags: int
    name: bytes


class Interrupt(NamedTuple):
    unique: int  # of the request that is to be interrupted


class Bmap(NamedTuple):
    block: int
    blocksize: int


class Destroy(NamedTuple):
    pass


class Ioctl(NamedTuple):
    fh: int
    flags: int
    cmd: int
    arg: int
    in_size: int
    out_size: int
    data: bytes


class Poll(NamedTuple):
    fh: int
    kh: int
    flags: int
    events: int


class Fallocate(NamedTuple):
    fh: int
    offset: int
    length: int
    mode: int


class Lseek(NamedTuple):
    fh: int
    offset: int
    whence: int


class CopyFileRange(NamedTuple):
    """COPY_FILE_RANGE and COPY_FILE_RANGE_64."""

    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    length: int
    flags: int


class Syncfs(NamedTuple):
    pass


class Statx(NamedTuple):
    flags: int
    fh: int
    sx_flags: int
    sx_mask: int


class NotifyReply(NamedTuple):
    offset: int
    size: int
    data: bytes


Request = (
    Lookup | Forget | BatchForget | Getattr | Setattr | Readlink | Symlink | Mknod | Mkdir | Unlink
    | Rmdir | Rename | Link | Open | Read | Write | Statfs | Release | Fsync | Setxattr | Getxattr
    | Listxattr | Removexattr | Flush | Init | Lk | Access | Create | Interrupt | Bmap | Destroy | Ioctl
    | Poll | Fallocate | Lseek | CopyFileRange | Syncfs | Statx | NotifyReply
)
