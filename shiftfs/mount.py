"""Mounting and unmounting, as root, through fusermount3, or as root of a user namespace: libfuse does all three.

Owns the translation of options into libfuse's words, and of its refusals into one line. Never serves a request. Main
thread.
"""

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from .options import MountOptions
from .sys import libfuse, mounts

_UNMOUNT_SECONDS = 20


class MountError(Exception):
    """Why nothing was mounted: one line that says what, why and what to do."""


class MountInfo(NamedTuple):
    """One line of /proc/self/mountinfo (proc(5)). Whoever mounts chooses the kind's bytes, behind `fuse.`."""

    id: int
    device: str
    path: bytes
    kind: bytes
    source: bytes


def check(options: MountOptions) -> None:
    """Refuse what can be seen to fail. Raises MountError."""
    for path, what in ((options.source, "source"), (options.mountpoint, "mountpoint")):
        shown = os.fsdecode(path)
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise MountError(f"{what} {shown}: {error.strerror}; give an existing directory") from None
        if not stat.S_ISDIR(mode):
            raise MountError(f"{what} {shown}: not a directory; give an existing directory")
    if not os.access(options.source, os.R_OK | os.X_OK):
        shown = os.fsdecode(options.source)
        raise MountError(f"source {shown}: Permission denied; give a directory that you may read and enter")
    if not os.path.exists("/dev/fuse"):
        raise MountError("/dev/fuse: does not exist; run `modprobe fuse` as root, or give the container the device")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError("/dev/fuse: no permission to open it; let root make its mode 0666 (chmod 0666 /dev/fuse)")


def check_outside(source: int, options: MountOptions) -> None:
    """Refuse a mountpoint below the source, which is open as the descriptor `source`, where no private copy of its
    mounts could be made: the mount would be part of what it shows, and its process wait for itself. Over the source
    itself it hides nothing from that descriptor. Raises MountError."""
    top = os.fstat(source)
    path = os.path.realpath(options.mountpoint)
    if os.path.samestat(os.stat(path), top):
        return
    while path.strip(b"/"):
        path = os.path.dirname(path)
        if os.path.samestat(os.stat(path), top):
            shown, inside = os.fsdecode(options.source), os.fsdecode(options.mountpoint)
            raise MountError(
                f"mountpoint {inside}: lies inside the source {shown}, and would be part of what it shows, since only"
                f" root can copy mounts (from Linux 5.12); mount over {shown} itself, or outside of it"
            )


def mount(options: MountOptions) -> int:
    """Mount, and return the /dev/fuse descriptor. Raises MountError."""
    said = os.memfd_create("stderr")
    saved = os.dup(2)
    os.dup2(said, 2)
    try:
        fd = libfuse.mount(options.mountpoint, list(_words(options)))
    except libfuse.LibraryMissing as error:
        advice = "install it (Debian: apt install libfuse3-3 fuse3)"
        raise MountError(f"libfuse 3 cannot be loaded ({error}); {advice}") from None
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        text = os.pread(said, 4096, 0).decode(errors="replace")
        os.close(said)
    if fd is None:
        raise MountError(_refusal(os.fsdecode(options.mountpoint), text))
    return fd


def _words(options: MountOptions) -> Iterator[bytes]:
    yield b"default_permissions"
    if options.allow_other or (options.allow_root and os.geteuid() != 0):
        yield b"allow_other"  # allow_root is allow_other, narrowed by the session; root's mount is root's anyway
    yield b"ro" if options.read_only else b"rw"
    yield b"suid" if options.suid else b"nosuid"
    yield b"dev" if options.dev else b"nodev"
    yield b"exec" if options.exec else b"noexec"
    if not options.atime:
        yield b"noatime"  # for show: whether a time moves is decided where the layer is read
    if options.sync:
        yield b"sync"
    if options.dirsync:
        yield b"dirsync"
    yield b"subtype=" + _escaped(options.subtype)
    yield b"fsname=" + _escaped(options.fsname or os.path.abspath(options.source))
    for option in options.kernel_options:
        yield _escaped(option)


def _escaped(value: bytes) -> bytes:
    """For libfuse's option parser, which splits at commas."""
    return value.replace(b"\\", b"\\\\").replace(b",", b"\\,")


def _refusal(mountpoint: str, said: str) -> str:
    """One line from what libfuse and fusermount3 said."""
    if "user_allow_other" in said:
        return "allow_other: needs root, or the line `user_allow_other` in /etc/fuse.conf; add that or leave it out"
    if "failed to exec fusermount3" in said:
        # Whatever the reason: execvp(3) says EACCES as well if some directory of the path is closed to us.
        return "fusermount3: not found, and only root mounts without it; install it (Debian: apt install fuse3)"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1].removeprefix("fuse: ").removeprefix("fusermount3: ") if lines else "libfuse gave no reason"
    if any(word in reason.lower() for word in ("permission", "permitted", "access")):
        return f"{mountpoint}: {reason}; a user may mount on a directory of their own, others need root"
    return f"{mountpoint}: {reason}; nothing was mounted"


def find(path: bytes) -> MountInfo | None:
    """The topmost mount on a path without symlinks (os.path.realpath, before mounting), without touching it."""
    found = [info for info in listed() if info.path == path]
    return found[-1] if found else None


def listed() -> list[MountInfo]:
    """All mounts that this process sees, in the order in which they were mounted."""
    infos = []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields, _, rest = line.partition(b" - ")
            words, kinds = fields.split(b" "), rest.split(b" ")
            path, kind, source = (_unescape(text) for text in (words[4], kinds[0], kinds[1]))
            infos.append(MountInfo(int(words[0]), words[2].decode(), path, kind, source))
    return infos


def _unescape(text: bytes) -> bytes:
    """Octal escapes of blanks, as mountinfo writes them."""
    head, *parts = text.split(b"\\")
    return head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in parts)


def show_inner_root(mounted: MountInfo, name: bytes) -> None:
    """Let the mount begin at `name`, a directory just below its root, as a bind mount of it would. Raises OSError if it
    stays as it is, MountError if it is gone.

    The kernel makes the root inode before INIT has been answered, and so caches no ACL for it (fs/fuse/inode.c,
    ACL_DONT_CACHE): whoever does not own the root would cost a GETXATTR with each path that begins there. An inode
    looked up later has its ACL cached. Needs CAP_SYS_ADMIN; on a worker, since the lookup comes to the loop.
    """
    clone = mounts.clone_at(os.path.join(mounted.path, name))
    try:
        try:
            mounts.attach(clone, mounted.path, beneath=True)
        except OSError:
            if find(mounted.path) != mounted:
                return  # unmounted meanwhile, and that is to stay so
            mounts.unmount(mounted.path, mounts.MNT_DETACH)
            _attach_again(clone, mounted.path)
        else:
            mounts.unmount(mounted.path, mounts.MNT_DETACH)
    finally:
        os.close(clone)


def _attach_again(clone: int, path: bytes) -> None:
    try:
        mounts.attach(clone, path, beneath=False)
    except OSError as error:
        # Held, since the connection ends with its last mount, and this is to be told before.
        os.dup(clone)
        raise MountError(f"{os.fsdecode(path)}: {error.strerror}; the mount had to be made anew, and was not") from None


def copies(mounted: MountInfo) -> list[MountInfo]:
    """All mounts of its filesystem that this process sees, the last made first: it may have been moved, or bound.

    Once the filesystem is gone, its device's number soon is another's.
    """
    wanted = (mounted.device, mounted.kind, mounted.source)
    return [info for info in reversed(listed()) if (info.device, info.kind, info.source) == wanted]


def unmount(mounted: MountInfo) -> None:
    """Detach this very mount, if it is still at its path. Another over it is left alone. Raises MountError."""
    if _id_at(mounted.path) != mounted.id:
        return
    try:
        detach(mounted.path)
    except (OSError, subprocess.SubprocessError) as error:
        shown = os.fsdecode(mounted.path)
        raise MountError(f"{shown}: the mount stays, served by nobody ({error}); run `umount -l {shown}`") from None


def detach(path: bytes) -> None:
    """Unmount what is at a path, at once. Raises OSError, or SubprocessError."""
    try:
        mounts.unmount(path, mounts.MNT_DETACH)
    except OSError as error:
        program = shutil.which("fusermount3")
        if error.errno != errno.EPERM or program is None:
            raise
        subprocess.run([program, "-u", "-z", "--", path], check=True, capture_output=True, timeout=_UNMOUNT_SECONDS)


def _id_at(path: bytes) -> int | None:
    """Which mount a path leads to. O_PATH asks nothing of its filesystem, which nobody may serve any more."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(b"mnt_id:"))
    finally:
        os.close(fd)
