"""What each request says: one tuple with names per opcode, fields in the kernel's order and under its names.

Owns values only; requests.py fills them from bytes. Never checks, never changes. Any thread. Names are bytes
without their terminating NUL. Offsets and sizes are bytes, times seconds and nanoseconds.
"""

from ..record import Record


class Lookup(Record):
    name: bytes


class Forget(Record):
    nlookup: int


class BatchForget(Record):
    items: tuple[tuple[int, int], ...]  # (nodeid, nlookup)


class Getattr(Record):
    flags: int
    fh: int


class Setattr(Record):
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


class Readlink(Record):
    pass


class Symlink(Record):
    name: bytes
    target: bytes


class Mknod(Record):
    mode: int
    rdev: int  # as os.mknod takes it
    umask: int
    name: bytes


class Mkdir(Record):
    mode: int
    umask: int
    name: bytes


class Unlink(Record):
    name: bytes


class Rmdir(Record):
    name: bytes


class Rename(Record):
    """RENAME (flags are 0) and RENAME2."""

    newdir: int
    flags: int
    oldname: bytes
    newname: bytes


class Link(Record):
    oldnodeid: int
    name: bytes


class Open(Record):
    """OPEN and OPENDIR."""

    flags: int
    open_flags: int


class Read(Record):
    """READ, READDIR and READDIRPLUS; of the latter two, offset is the cookie of the entry before."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int


class Write(Record):
    """data is a view into the receive buffer, good until that is read into again: who waits copies it."""

    fh: int
    offset: int
    write_flags: int
    lock_owner: int
    flags: int
    data: memoryview


class Statfs(Record):
    pass


class Release(Record):
    """RELEASE and RELEASEDIR."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class Fsync(Record):
    """FSYNC and FSYNCDIR."""

    fh: int
    fsync_flags: int


class Setxattr(Record):
    flags: int
    setxattr_flags: int  # 0 from the short form
    name: bytes
    value: bytes


class Getxattr(Record):
    size: int
    name: bytes


class Listxattr(Record):
    size: int


class Removexattr(Record):
    name: bytes


class Flush(Record):
    fh: int
    lock_owner: int


class Init(Record):
    major: int
    minor: int
    max_readahead: int
    flags: int  # all 64 bits


class Lk(Record):
    """GETLK, SETLK and SETLKW."""

    fh: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    lk_flags: int


class Access(Record):
    mask: int


class Create(Record):
    """CREATE and TMPFILE; of the latter, name is empty."""

    flags: int
    mode: int
    umask: int
    open_flags: int
    name: bytes


class Interrupt(Record):
    unique: int  # of the request that is to be interrupted


class Bmap(Record):
    block: int
    blocksize: int


class Destroy(Record):
    pass


class Ioctl(Record):
    fh: int
    flags: int
    cmd: int
    arg: int
    in_size: int
    out_size: int
    data: bytes


class Poll(Record):
    fh: int
    kh: int
    flags: int
    events: int


class Fallocate(Record):
    fh: int
    offset: int
    length: int
    mode: int


class Lseek(Record):
    fh: int
    offset: int
    whence: int


class CopyFileRange(Record):
    """COPY_FILE_RANGE and COPY_FILE_RANGE_64."""

    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    length: int
    flags: int


class Syncfs(Record):
    pass


class Statx(Record):
    flags: int
    fh: int
    sx_flags: int
    sx_mask: int


class NotifyReply(Record):
    offset: int
    size: int
    data: bytes


Request = (
    Lookup | Forget | BatchForget | Getattr | Setattr | Readlink | Symlink | Mknod | Mkdir | Unlink
    | Rmdir | Rename | Link | Open | Read | Write | Statfs | Release | Fsync | Setxattr | Getxattr
    | Listxattr | Removexattr | Flush | Init | Lk | Access | Create | Interrupt | Bmap | Destroy | Ioctl
    | Poll | Fallocate | Lseek | CopyFileRange | Syncfs | Statx | NotifyReply
)
