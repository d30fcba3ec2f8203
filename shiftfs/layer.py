"""One real directory tree: every access is one name beneath a descriptor, never an absolute path.

Owns the root descriptor and knows how its filesystems tell inodes apart. Never keeps state of single files, and never
follows a symlink. The attribute calls share one buffer and belong to the loop thread; the rest any thread may call.
"""

import contextlib
import errno
import operator
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from . import native
from .sys import files, handles, mounts
from .tree import Attributes, Change, Descriptor, RealKey, Space

if TYPE_CHECKING:
    from .override import Override

_OVERLAYFS: Final = 0x794C7630
FUSE: Final = 0x65735546
_PSEUDO: Final = frozenset(
    {
        0x9FA0,  # procfs
        0x62656572,  # sysfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0x62656570,  # configfs
        0xF97CFF8C,  # selinuxfs
        0x6165676C,  # pstore
        0x42494E4D,  # binfmt_misc
        0x65735543,  # fusectl
        0xDE5E81E4,  # efivarfs
        0xCAFE4A11,  # bpf
        0x07655821,  # resctrl
    }
)
"""statfs(2) types of filesystems whose files have content and a size of 0."""

_REMOTE: Final = frozenset(
    {
        FUSE,
        0x6969,  # NFS
        0xFF534D42,  # CIFS
        0xFE534D42,  # SMB 2
        0x517B,  # SMB
        0x01021997,  # 9p
        0x00C36400,  # Ceph
        0x5346414F,  # AFS
        0x0BD00BD0,  # Lustre
        0x47504653,  # GPFS
        0x7461636F,  # OCFS2
        0x01161970,  # GFS2
    }
)
"""Filesystems that wait for another machine or process, for as long as it pleases."""

_PSEUDO_NAMES: Final = frozenset(
    b"proc sysfs cgroup cgroup2 debugfs tracefs securityfs configfs selinuxfs pstore binfmt_misc fusectl efivarfs bpf"
    b" resctrl".split()
)
"""The same filesystems, as /proc/self/mountinfo calls them."""

_OVERRIDDEN: Final = (4, 8)
"""S_IFDIR and S_IFREG, of keys: only these have an attribute that says whose they are."""

_FUSE_ATTR_ORDER = operator.itemgetter(7, 8, 9, 11, 17, 15, 12, 18, 16, 6, 3, 4, 5)
_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
Opening = Callable[[], int]
"""A call that opens something and returns the descriptor."""

_new = tuple.__new__
_FITS: Final = 1 << 63
"""Birth times, in nanoseconds, are of 64 bits in native code."""


def magic_link(fd: int) -> bytes:
    """The path that leads to the very inode of a descriptor, symlinks included (proc(5), /proc/PID/fd)."""
    return b"/proc/self/fd/%d" % fd


class Layer:
    """A directory and all beneath it. `path` is for messages only."""

    def __init__(
        self, path: bytes, opened: int | None = None, private: bool = False, noatime: bool = False
    ) -> None:  # fmt: skip
        """Open the directory; with the right to do so, as a private copy of its mounts, so that what is mounted in it
        later (our own mount among others) is never entered, and where nothing counts as an access if `noatime`. Or take
        over `opened`, a directory open for reading, which is in such a copy if `private`. Raises OSError."""
        self.path = os.path.abspath(path)
        self.private = private
        if opened is None:
            opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # no CAP_SYS_ADMIN, or before Linux 5.12: the plain directory serves
                copy = _open_copy(opened, noatime)
                os.close(opened)
                opened = copy
                self.private = True
        self.root = Descriptor(opened, os.close)
        self.override = _override(opened)
        """What says whose files are and of which kind, where they do not themselves."""
        self._statx = files.StatxBuffer()
        self._has_births: dict[int, bool] = {}
        self.pseudo: set[int] = set()
        """Devices whose files have content and a size of 0, and ask who reads them."""
        self.remote: set[int] = set()
        """Devices whose files may take any time to open, read or write."""
        self.device = self.look(opened, b"")[1].device
        self.opens_by_handle = self._try_handle()

    def _try_handle(self) -> bool:
        handle = handles.of(self.root.fd)
        if handle is None:
            return False
        try:
            os.close(handles.open_handle(self.root.fd, handle, os.O_PATH))
        except OSError:
            return False
        return True

    def look(self, directory: int, name: bytes) -> tuple[RealKey, Attributes]:
        """Key and attributes of a name, or of `directory` itself for an empty one: one statx."""
        seen = self._natively(directory, name)
        if seen is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return seen if seen is not False else self._seen(self._statx.at(directory, name), directory, name)

    def _natively(self, directory: int, name: bytes) -> "tuple[RealKey, Attributes] | Literal[False] | None":
        """None for no such name; False where that is not how it is done here."""
        if native.look is None or self.override is not None:
            return False
        return native.look(directory, name, self._has_births, Attributes)  # type: ignore[no-any-return]

    def find(self, directory: int, name: bytes) -> tuple[RealKey, Attributes] | None:
        """The same of a name; None where there is none."""
        seen = self._natively(directory, name)
        if seen is not False:
            return seen
        f = self._statx.found(directory, name)
        return None if f is None else self._seen(f, directory, name)

    def _seen(self, f: files.StatxFields, directory: int, name: bytes) -> tuple[RealKey, Attributes]:
        mode = f[6]
        device = f[21] << 20 | f[22]
        born = self._has_births.get(device)
        if born is None:
            born = self._learn(device, directory, name)
        # Bit 11 of the mask is STATX_BTIME.
        if not born:
            born_at = handles.number(directory, name)
        else:
            born_at = f[13] * 1_000_000_000 + f[14] if f[0] & 0x800 else self._unborn(f, mode, device)
            if not -_FITS <= born_at < _FITS:  # the filesystem has been tampered with
                born_at %= _FITS
        kind = mode >> 12
        if kind == 4:  # S_IFDIR
            kind |= f[23] << 4
        rdev = 0
        if f[19] or f[20]:
            rdev = f[20] & 0xFF | f[19] << 8 | (f[20] & ~0xFF) << 12
        attributes = _new(
            Attributes,
            (*_FUSE_ATTR_ORDER(f), rdev, f[1], 0, f[13], f[14], f[0] & 0x800 != 0, f[2], f[10], device),
        )
        if self.override is not None:
            attributes = self.override.applied(directory, name, attributes)
        return (device, f[7], born_at, kind), attributes

    def _unborn(self, f: files.StatxFields, mode: int, device: int) -> int:
        """In place of a birth time. sshfs and the like give a name's next inode the same number; symlinks, whose
        content the kernel keeps for good, are told apart by the time of their last change, for they never change."""
        is_symlink = mode >> 12 == 10  # S_IFLNK
        return f[17] * 1_000_000_000 + f[18] if is_symlink and device in self.remote else 0

    def _learn(self, device: int, directory: int, name: bytes) -> bool:
        """A device seen for the first time: do birth times tell its inodes apart? On overlayfs they change at copy-up,
        and handles do not, which cost one more call."""
        fd = os.open(name, _NOFOLLOW, dir_fd=directory) if name else directory
        try:
            kind = files.filesystem_type(fd)
        finally:
            if name:
                os.close(fd)
        if kind in _REMOTE:
            self.remote.add(device)
        if kind in _PSEUDO:
            self.pseudo.add(device)
        answer = self._has_births[device] = kind != _OVERLAYFS
        return answer

    def plain_devices(self) -> list[int]:
        """Those seen so far whose inodes are told apart by birth times, and whose files are what they seem."""
        return [one for one, has in self._has_births.items() if has and one not in self.remote | self.pseudo]

    def key_of(self, handle: bytes) -> RealKey | None:
        """The inode that a file handle leads to; None for one that is gone, or of another filesystem."""
        if not self.opens_by_handle:
            return None
        try:
            fd = handles.open_handle(self.root.fd, handle, os.O_PATH)
        except OSError:
            return None
        try:
            return self.look(fd, b"")[0]
        finally:
            os.close(fd)

    def tells_changes(self, device: int) -> bool:
        """Do watchers hear of all that changes on a device?"""
        return device not in self.remote and device not in self.pseudo

    def change(self, fd: int, wanted: Change) -> None:
        """Apply a setattr to the inode behind an O_PATH descriptor."""
        if self.override is not None and (wanted.uid, wanted.gid, wanted.mode) != (None, None, None):
            key, before = self.look(fd, b"")
            if key[3] & 0xF in _OVERRIDDEN:
                wanted = self.override.change(fd, before, wanted)
            else:  # there is no place for another owner
                wanted = wanted._replace(uid=None, gid=None)
        change(fd, wanted)

    def mode_of_new(self, mode: int) -> int:
        """The permissions to make a file with that is to show these."""
        return mode & 0o7777 if self.override is None else self.override.real_mode(mode)

    def make_node(self, directory: int, name: bytes, mode: int, rdev: int) -> None:
        """mknod(2), or what stands for it here until it is `born`."""
        if self.override is not None:
            mode, rdev = stat.S_IFREG | self.override.real_mode(mode), 0
        os.mknod(name, mode, rdev, dir_fd=directory)

    def born(self, directory: int, name: bytes, above: Callable[[], Attributes], mode: int, rdev: int = 0) -> None:
        """Something new is at a name (or is `directory` itself), made by whom Credentials act for, in a directory with
        the attributes `above`. Gone again if its owner cannot be written down."""
        if self.override is None:
            return
        try:
            self.override.born(directory, name, above(), mode, rdev)
        except OSError:
            if name:
                (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(name, dir_fd=directory)
            raise

    def open_path(self, directory: int, name: bytes) -> int:
        return os.open(name, _NOFOLLOW, dir_fd=directory)


def _override(root: int) -> "Override | None":
    try:
        names = os.listxattr(magic_link(root))
    except OSError:
        return None
    if not any(name.endswith("override_stat") for name in names):
        return None
    from .override import of  # few layers are of this kind

    return of(root)


def _open_copy(directory: int, noatime: bool) -> int:
    """The same directory in a private copy of its mounts, open to be read. Raises OSError."""
    clone = mounts.clone_tree(directory, noatime=noatime)
    try:
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=clone)
    finally:
        os.close(clone)


def is_pseudo(fd: int) -> bool:
    """Is this file on a filesystem that reports sizes of 0?"""
    return files.filesystem_type(fd) in _PSEUDO


def sizes_may_lie(fd: int) -> bool:
    """May there be files with content and a size of 0 on the filesystem of `fd`? FUSE may pass such ones on."""
    kind = files.filesystem_type(fd)
    return kind in _PSEUDO or kind == FUSE


def sizes_of_kind_may_lie(kind: bytes) -> bool:
    """The same of a filesystem by its name in /proc/self/mountinfo, as `fuse.sshfs`."""
    return kind in _PSEUDO_NAMES or kind.partition(b".")[0] in (b"fuse", b"fuseblk")


def reopen(fd: int, flags: int) -> int:
    """Open the inode behind an O_PATH descriptor for use."""
    return os.open(magic_link(fd), flags | os.O_CLOEXEC | os.O_NOCTTY)


def list_names(fd: int, noatime: int = os.O_NOATIME) -> list[tuple[bytes, int, int]]:
    """Name, inode number and DT_ type of all in the directory behind an O_PATH descriptor. `noatime`: O_NOATIME, or 0
    for the listing to count as an access. Any thread."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        opened = reopen(fd, flags | noatime)  # not ".", which only those find who may search the directory
    except PermissionError:  # O_NOATIME is for owners
        opened = reopen(fd, flags)
    try:
        return files.list_directory(opened)
    finally:
        os.close(opened)


def narrowed(number: int) -> int:
    """An inode number in 32 bits (`ino32_t`): the same where it has no more, else perhaps another's too."""
    return (number ^ number >> 32) & 0xFFFFFFFF or 0xFFFFFFFF


def of_unknown_kinds(names: list[tuple[bytes, int, int]]) -> list[tuple[bytes, int, int]]:
    """A listing in which what is a regular file on the layer may be meant to be anything (DT_UNKNOWN)."""
    return [(name, number, 0 if kind == 8 else kind) for name, number, kind in names]


def change(fd: int, wanted: Change) -> None:
    """Apply a setattr to the inode behind an O_PATH descriptor: owner first, as chown(2) clears set-id bits."""
    if wanted.uid is not None or wanted.gid is not None:
        keep = 0xFFFFFFFF
        files.change_owner(fd, keep if wanted.uid is None else wanted.uid, keep if wanted.gid is None else wanted.gid)
    if wanted.mode is not None:
        os.chmod(magic_link(fd), stat.S_IMODE(wanted.mode))
    if wanted.atime is not None or wanted.mtime is not None:
        omit = (0, files.UTIME_OMIT)
        files.set_times(magic_link(fd), wanted.atime or omit, wanted.mtime or omit)


def space(fd: int) -> Space:
    """statfs(2) of the filesystem that `fd` lies on."""
    s = os.fstatvfs(fd)
    return Space(s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax, s.f_frsize)
