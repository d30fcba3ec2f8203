"""The work directory: what is made there before it appears in the upper, and the index of hard links.

Owns W/work and W/index: makes them, empties the former of what an earlier mount has left, heeds and leaves marks, and
finds out what the filesystem of upper and work can do. Never touches what W holds besides, and never follows a symlink
in it. `open` on the main thread before the mount; names are the loop thread's.
"""

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, Literal

from shiftfs.layer import magic_link
from shiftfs.sys import beneath, files
from shiftfs.tree import Descriptor

from .directory import LayerError

Whiteouts = Literal["device", "xattr", "name"]
Log = Callable[[str], None]

_TRUSTED: Final = b"trusted.overlay."
_USER: Final = b"user.overlay."
_PROBE: Final = b"#probe"
WHITEOUT: Final = b"#whiteout"
"""A device in W/work that those of the upper are links of, as the kernel has it (fs/overlayfs/dir.c, ovl_whiteout): to
make one takes ten times as long."""
_ACLS: Final = (b"system.posix_acl_default", b"system.posix_acl_access")


class WorkDirectory:
    """One mount's, as the kernel's overlayfs lays it out (docs/on-disk.md)."""

    __slots__ = ("_held", "_serial", "has_tmpfile", "index", "prefix", "volatile", "whiteouts", "work")

    def __init__(
        self, held: Descriptor, work: Descriptor, index: Descriptor | None, prefix: bytes, whiteouts: Whiteouts,
        has_tmpfile: bool, volatile: bool,
    ) -> None:  # fmt: skip
        self._held = held  # the lock on it ends with its descriptor
        self.work = work
        """W/work, open to be read."""
        self.index = index
        """W/index, likewise; None where there is none."""
        self.prefix = prefix
        """How names of our xattrs begin on the upper; empty where it takes none."""
        self.whiteouts = whiteouts
        """What a whiteout is on the upper."""
        self.has_tmpfile = has_tmpfile
        """Can an unnamed file be made in `work`, and linked out of it?"""
        self.volatile = volatile
        """Nothing is synced."""
        self._serial = itertools.count()

    @classmethod
    def open(
        cls, held: Descriptor, named: str, *, log: Log, volatile: bool = False, userxattr: bool = False,
        index: bool = True,
    ) -> "WorkDirectory":  # fmt: skip
        """Make W, which is `held` and locked, ready for a mount. `named` is W in messages; `userxattr`: do not even
        try trusted.*; without `index` hard links part when they are copied up. Raises LayerError."""
        try:
            work = _own(held, b"work", named)
            _refuse_marks(work, named)
            if removed := _clear(work.fd):
                log(f"{named}: removed {removed} leftovers of an earlier mount")
            prefix = _prefix(work, (_USER,) if userxattr else (_TRUSTED, _USER))
            if not prefix:
                log(
                    f"{named}: its filesystem takes no extended attributes of ours: opaque directories are marked by"
                    " names, directories of lower layers cannot be renamed, hard links of lower layers part"
                )
            made = cls(
                held, work, _own(held, b"index", named) if index and prefix else None, prefix,
                "device" if _takes_devices(work) else "xattr" if prefix else "name", _has_tmpfile(work), volatile,
            )  # fmt: skip
            if volatile:
                _mark_volatile(work)
        except OSError as error:
            what = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else "work"
            raise LayerError(
                f"{named}: {what} in it cannot be made ready ({error.strerror}); remove it by hand, or give another"
                " directory"
            ) from None
        return made

    def temporary(self) -> bytes:
        """A name that is not used yet in `work`."""
        return b"#%x" % next(self._serial)

    def make_whiteout(self, name: bytes) -> None:
        """A device of that name in `work`."""
        with contextlib.suppress(OSError):  # there is none yet, or it has as many links as there may be
            os.link(WHITEOUT, name, src_dir_fd=self.work.fd, dst_dir_fd=self.work.fd, follow_symlinks=False)
            return
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=self.work.fd)
        with contextlib.suppress(OSError):
            os.unlink(WHITEOUT, dir_fd=self.work.fd)
        with contextlib.suppress(OSError):
            os.link(name, WHITEOUT, src_dir_fd=self.work.fd, dst_dir_fd=self.work.fd, follow_symlinks=False)


def _own(held: Descriptor, name: bytes, named: str) -> Descriptor:
    """W/`name`, which is a directory of ours, or is made. Ours alone, whatever W passes on to it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=held.fd)
    try:
        opened = _unlocked(held.fd, name)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            raise
        shown = os.fsdecode(name)
        raise LayerError(
            f"{named}: {shown} in it is no directory on its filesystem, so it is none of ours; move {shown} away, or"
            " give another directory"
        ) from None
    for acl in _ACLS:
        with contextlib.suppress(OSError):
            os.removexattr(opened.fd, acl)
    os.chmod(opened.fd, 0o700)
    return opened


def _unlocked(directory: int, name: bytes) -> Descriptor:
    """A directory of ours open to be read, with the right to empty it: the kernel makes W/work with mode 0."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW
    path = Descriptor(beneath.open_beneath(directory, name, os.O_PATH | flags, same_mount=True), os.close)
    if os.fstat(path.fd).st_mode & 0o700 != 0o700:
        os.chmod(magic_link(path.fd), 0o700)
    return Descriptor(os.open(magic_link(path.fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), os.close)


# --- marks ---


def _refuse_marks(work: Descriptor, named: str) -> None:
    """W/work/incompat/FEATURE: an earlier mount has left what only who knows FEATURE may go on with."""
    try:
        incompat = _unlocked(work.fd, b"incompat")
    except (FileNotFoundError, NotADirectoryError):
        return  # a file of that name is a leftover like others
    for name, _, _ in files.list_directory(incompat.fd):
        shown = os.fsdecode(name)
        if name == b"volatile":
            raise LayerError(
                f"{named}: was used by a volatile mount, so a crash may have damaged the upper directory; if it has"
                " not, delete work/incompat/volatile in it by hand, else start with a new upper directory"
            )
        raise LayerError(
            f"{named}: bears the mark work/incompat/{shown} of a feature that is not known here; mount it with what"
            " has made the mark, or give another directory"
        )


def _mark_volatile(work: Descriptor) -> None:
    os.mkdir(b"incompat", 0o700, dir_fd=work.fd)
    incompat = _unlocked(work.fd, b"incompat")
    os.mkdir(b"volatile", 0o700, dir_fd=incompat.fd)
    volatile = _unlocked(incompat.fd, b"volatile")
    os.close(os.open(b"dirty", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=volatile.fd))


# --- leftovers ---


def remove(work: int, name: bytes) -> None:
    """Remove a name of W/work that may be gone, with what is in it. What cannot be removed is left to the next mount:
    whatever it was for has been done, or has failed with an error of its own. Any thread."""
    serial = itertools.count()
    left = [name]
    while left:
        with contextlib.suppress(OSError):
            left += _remove(work, left.pop(), serial)


def _clear(work: int) -> int:
    """Remove all that is in W/work; how much it was that had no business there."""
    removed = 0
    serial = itertools.count()
    while names := files.list_directory(work):
        for name, _, _ in names:
            _remove(work, name, serial)
            removed += name != WHITEOUT
    return removed


def _remove(work: int, name: bytes, serial: Iterator[int]) -> list[bytes]:
    """Remove one name of W/work. Directories in it first come up to W/work under the names returned, and have their
    turn there: so no depth takes more than a few descriptors, and being killed at any moment leaves no less than can be
    gone on with."""
    if _unlink(work, name):
        return []
    brought_up = []
    inner = _unlocked(work, name)
    for child, _, _ in files.list_directory(inner.fd):
        if not _unlink(inner.fd, child):
            _unlocked(inner.fd, child)  # `..` in it is about to change
            brought_up.append(_bring_up(inner.fd, child, work, serial))
    os.rmdir(name, dir_fd=work)
    return brought_up


def _bring_up(inner: int, child: bytes, work: int, serial: Iterator[int]) -> bytes:
    while True:
        name = b"#cleared%x" % next(serial)
        try:
            os.rename(child, name, src_dir_fd=inner, dst_dir_fd=work)
            return name
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # there is such a name
                raise


def _unlink(directory: int, name: bytes) -> bool:
    """Remove a name unless it is a directory's."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    except FileNotFoundError:
        pass
    return True


# --- what the filesystem can do ---


def _prefix(work: Descriptor, prefixes: tuple[bytes, ...]) -> bytes:
    os.mkdir(_PROBE, 0o700, dir_fd=work.fd)
    try:
        probe = _unlocked(work.fd, _PROBE)
        for prefix in prefixes:
            with contextlib.suppress(OSError):
                os.setxattr(probe.fd, prefix + b"opaque", b"y")
                if os.getxattr(probe.fd, prefix + b"opaque") == b"y":
                    return prefix
        return b""
    finally:
        os.rmdir(_PROBE, dir_fd=work.fd)


def _takes_devices(work: Descriptor) -> bool:
    try:
        os.mknod(_PROBE, stat.S_IFCHR, 0, dir_fd=work.fd)
    except OSError:
        return False
    try:
        found = os.stat(_PROBE, dir_fd=work.fd, follow_symlinks=False)
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
    finally:
        os.unlink(_PROBE, dir_fd=work.fd)


def _has_tmpfile(work: Descriptor) -> bool:
    try:
        made = Descriptor(os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=work.fd), os.close)
        os.link(magic_link(made.fd), _PROBE, dst_dir_fd=work.fd, follow_symlinks=True)
    except OSError:
        return False
    os.unlink(_PROBE, dir_fd=work.fd)
    return True
