"""Mounting and unmounting, as root, through fusermount3, or as root of a user namespace: libfuse does all three.

Owns the translation of options into libfuse's words, and of its refusals into one line. Never serves a request. Main
thread.
"""

import errno
import os
import stat
from collections.abc import Iterator

from .options import MountOptions
from .sys import files, libfuse, mounts, privileges
from .sys.mountinfo import MountInfo, listed

_UNMOUNT_SECONDS = 20


class MountError(Exception):
    """Why nothing was mounted: one line that says what, why and what to do."""


def check(options: MountOptions) -> None:
    """Refuse what can be seen to fail. Raises MountError."""
    for path, what in _directories(options):
        shown = os.fsdecode(path)
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise MountError(f"{what} {shown}: {error.strerror}; give an existing directory") from None
        if not stat.S_ISDIR(mode):
            raise MountError(f"{what} {shown}: not a directory; give an existing directory")
        if what != "mountpoint" and not os.access(path, os.R_OK | os.X_OK):
            raise MountError(f"{what} {shown}: Permission denied; give a directory that you may read and enter")
    if not os.path.exists("/dev/fuse"):
        raise MountError("/dev/fuse: does not exist; run `modprobe fuse` as root, or give the container the device")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError("/dev/fuse: no permission to open it; let root make its mode 0666 (chmod 0666 /dev/fuse)")
    if options.workdir is not None and _lies_below(options.mountpoint, os.stat(options.workdir)):
        shown = os.fsdecode(options.mountpoint)
        raise MountError(f"mountpoint {shown}: lies inside the workdir, which is emptied; mount outside of it")


def _directories(options: MountOptions) -> Iterator[tuple[bytes, str]]:
    """All that must be there, and which option gave it."""
    yield from ((path, "lowerdir") for path in options.lowerdirs)
    if not options.lowerdirs and options.source is not None:
        yield options.source, "source"
    if options.upperdir is not None and options.workdir is not None:
        yield from ((options.upperdir, "upperdir"), (options.workdir, "workdir"))
    yield options.mountpoint, "mountpoint"


def check_outside(layer: int, shown: bytes, options: MountOptions) -> None:
    """Refuse a mountpoint below a layer, which is open as the descriptor `layer`, where no private copy of its
    mounts could be made: the mount would be part of what it shows, and its process wait for itself. Over the layer
    itself it hides nothing from that descriptor. Raises MountError."""
    if _lies_below(options.mountpoint, os.fstat(layer)):
        inside, path = os.fsdecode(options.mountpoint), os.fsdecode(shown)
        what = "layer" if options.lowerdirs else "source"
        raise MountError(
            f"mountpoint {inside}: lies inside the {what} {path}, and would be part of what it shows, since only"
            f" root can copy mounts (from Linux 5.12); mount over {path} itself, or outside of it"
        )


def _lies_below(mountpoint: bytes, top: os.stat_result) -> bool:
    path = os.path.realpath(mountpoint)
    if os.path.samestat(os.stat(path), top):
        return False
    while path.strip(b"/"):
        path = os.path.dirname(path)
        if os.path.samestat(os.stat(path), top):
            return True
    return False


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
    # For everybody, and so for the agent too, where the mount alone cannot be made read-only.
    yield b"ro" if options.read_only and not mounts.may_mount() else b"rw"
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
    yield b"fsname=" + _escaped(shown_source(options))
    # In a user namespace SELinux refuses a context for FUSE (selinux_set_mnt_opts), which engines give all the same.
    if options.kernel_options and privileges.in_initial_namespace():
        for option in options.kernel_options:
            yield _escaped(option)


def shown_source(options: MountOptions) -> bytes:
    """What /proc/mounts shows as the source."""
    if options.fsname is not None:
        return options.fsname
    if options.source is None:
        return b"shiftfs"
    return options.source if options.lowerdirs else os.path.abspath(options.source)


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


def finish(mounted: MountInfo, inner_root: bytes, read_only: bool) -> None:
    """Make of the new mount what is to be seen, as far as possible: show_inner_root, and a read-only mount of a
    filesystem that is not. Raises as that does; the session lets nobody change what is read-only."""
    try:
        show_inner_root(mounted, inner_root, read_only)
    except OSError:
        if read_only:
            _make_read_only(mounted)
        raise


def _make_read_only(mounted: MountInfo) -> None:
    fd = os.open(mounted.path, os.O_PATH | os.O_CLOEXEC)
    try:
        if _mount_id(fd) == mounted.id:
            mounts.set_flags(fd, on=mounts.RDONLY)
    finally:
        os.close(fd)


def show_inner_root(mounted: MountInfo, name: bytes, read_only: bool = False) -> None:
    """Let the mount begin at `name`, a directory just below its root, as a bind mount of it would. Raises OSError if it
    stays as it is, MountError if it is gone.

    The kernel makes the root inode before INIT has been answered, and so caches no ACL for it (fs/fuse/inode.c,
    ACL_DONT_CACHE): whoever does not own the root would cost a GETXATTR with each path that begins there. An inode
    looked up later has its ACL cached. Needs CAP_SYS_ADMIN; on a worker, since the lookup comes to the loop.
    """
    clone = mounts.clone_at(os.path.join(mounted.path, name))
    try:
        if read_only:
            mounts.set_flags(clone, on=mounts.RDONLY)
        try:
            mounts.attach(clone, mounted.path, beneath=True)
        except OSError:
            found = find(mounted.path)
            if found is None or (found.id, found.device) != (mounted.id, mounted.device):
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


def clone_for_agent(mounted: MountInfo) -> int:
    """A descriptor of a mount of the same that nobody sees, and that can be written to: its first directory is that of
    the mount. Raises OSError. On a worker, since the path may lead through other filesystems."""
    clone = mounts.clone_at(mounted.path)
    try:
        if files.device(clone) != mounted.device:
            raise OSError(errno.ESTALE, "something else is mounted there", mounted.path)
        # Whatever a layer may turn into, nothing is to come of opening it but what the mount does.
        mounts.set_flags(clone, on=mounts.NODEV | mounts.NOSUID | mounts.NOEXEC, off=mounts.RDONLY, private=True)
    except BaseException:
        os.close(clone)
        raise
    return clone


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
    except OSError as error:
        shown = os.fsdecode(mounted.path)
        raise MountError(f"{shown}: the mount stays, served by nobody ({error}); run `umount -l {shown}`") from None


def detach(path: bytes) -> None:
    """Unmount what is at a path, at once. Raises OSError."""
    try:
        mounts.unmount(path, mounts.MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EPERM or not _detach_as_user(path):
            raise


def _detach_as_user(path: bytes) -> bool:
    """By fusermount3, if there is one. Raises OSError."""
    import shutil  # half a dozen modules beneath these two are for nothing else here
    import subprocess

    program = shutil.which("fusermount3")
    if program is None:
        return False
    command: list[str | bytes] = [program, "-u", "-z", "--", path]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_UNMOUNT_SECONDS)
    except subprocess.SubprocessError as error:
        raise OSError(errno.EBUSY, str(error)) from None
    return True


def _id_at(path: bytes) -> int | None:
    """Which mount a path leads to. O_PATH asks nothing of its filesystem, which nobody may serve any more."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _mount_id(fd)
    finally:
        os.close(fd)


def lasting_number(mounted: MountInfo) -> int:
    """The number of this very mount that no other will have; 0 if there is none (before Linux 6.8), or something else
    is at its path. Asks nothing of its filesystem."""
    try:
        fd = os.open(mounted.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return mounts.lasting_number(fd) if _mount_id(fd) == mounted.id else 0
    except OSError:
        return 0
    finally:
        os.close(fd)


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(b"mnt_id:"))


def write_out(path: bytes, device: str) -> None:
    """Have the kernel send what it has collected for the mount at a path, if it is the one of that device. On a worker,
    while the mount is served."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd).st_dev
        if f"{os.major(found)}:{os.minor(found)}" == device:
            files.syncfs(fd)
    finally:
        os.close(fd)
