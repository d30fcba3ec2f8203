"""Whose an upper or a work directory is: one mount's at a time.

Owns the lock that a mount holds on both for as long as its process lives, and finds out who holds it otherwise. Never
waits for a mount that is there. Main thread, before the mount.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from shiftfs.sys import mountinfo
from shiftfs.sys.mountinfo import MountInfo
from shiftfs.tree import Descriptor

from .directory import Directory, LayerError

_PATIENCE: Final = 5.0
"""Seconds in which the process of a mount that is gone may end."""
_PAUSE: Final = 0.02


class _Holder(NamedTuple):
    process: int
    serves: bool
    """Does it read the requests of a FUSE mount, wherever that is?"""
    mountpoint: bytes | None


def claim(directory: Directory, held: Descriptor, log: Callable[[str], None]) -> None:
    """Lock it through `held`, until that is closed. Raises LayerError if a live mount has it."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(held.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                log(f"{directory.named}: cannot be locked ({error.strerror}); a second mount of it will not be noticed")
                return
        holder = _holder(directory)
        is_mounted = holder is not None and holder.mountpoint is not None
        if is_mounted or time.monotonic() > end:
            raise LayerError(f"{directory.named}: {_used_by(holder)}; unmount that, or give another directory")
        time.sleep(_PAUSE)


def _used_by(holder: _Holder | None) -> str:
    if holder is None:
        return "in use by a process that cannot be seen from here"
    if holder.mountpoint is None:
        where = ", whose mount lives on in another mount namespace" if holder.serves else ""
        return f"in use by process {holder.process}{where}"
    return f"in use by the mount at {os.fsdecode(holder.mountpoint)} (process {holder.process})"


def _holder(directory: Directory) -> _Holder | None:
    """Who has the lock (proc_locks(5)), and what it has mounted."""
    major, minor = (int(part) for part in directory.filesystem.split(":"))
    wanted = b"%02x:%02x:%d" % (major, minor, directory.identity[1])
    with open("/proc/locks", "rb") as lines:
        for line in lines:
            words = line.split()
            # Behind `->` stand those that wait.
            if words[1] == b"FLOCK" and words[5] == wanted and int(words[4]) > 0:
                process = int(words[4])
                with contextlib.suppress(OSError):
                    return _Holder(process, bool(_fuse_devices(process)), _mountpoint_of(process))
                return _Holder(process, False, None)
    return None


def _mountpoint_of(process: int) -> bytes | None:
    """Where the FUSE mount is that a process serves, in its mount namespace. Raises OSError if we may not know."""
    mounts = [info for info in mountinfo.listed(str(process)) if info.kind.partition(b".")[0] == b"fuse"]
    devices = _fuse_devices(process)
    with open(f"/proc/{process}/cmdline", "rb") as words:
        given = words.read().split(b"\0")
    if devices:
        mounts = [info for info in mounts if info.device in devices]
    else:  # before Linux 6.18
        mounts = [info for info in mounts if _may_be_named(info.path, given)]
    return mounts[-1].path if mounts else None


def _fuse_devices(process: int) -> list[str]:
    """The filesystems whose requests a process reads, as mountinfo numbers them."""
    devices = []
    for number in os.listdir(f"/proc/{process}/fdinfo"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{process}/fdinfo/{number}", "rb") as lines:
            for line in lines:
                if line.startswith(b"fuse_connection:"):
                    connection = int(line.split()[1])
                    devices.append(f"{connection >> 20}:{connection & 0xFFFFF}")
    return devices


def _may_be_named(path: bytes, words: Iterable[bytes]) -> bool:
    """Could one of a command line's words lead to that path, from wherever it was given?"""
    names = (os.path.normpath(word).lstrip(b"./") for word in words if word)
    return any(name and path.endswith(b"/" + name) for name in names)


def refuse_kernels(directories: Sequence[Directory], mounts: Iterable[MountInfo]) -> None:
    """The kernel's overlayfs does not heed our lock, nor we its. Raises LayerError for what it has mounted."""
    ours = {one.identity: one for one in directories}
    for info in mounts:
        for path in _written_by(info):
            try:
                found = os.stat(path)
            except OSError:
                continue
            one = ours.get((found.st_dev, found.st_ino))
            if one is not None:
                where = os.fsdecode(info.path)
                raise LayerError(
                    f"{one.named}: in use by the kernel's overlay mounted at {where}; unmount that, or give another"
                    " directory"
                )


def _written_by(info: MountInfo) -> list[bytes]:
    """Upper and work directory of an overlayfs, with the backslashes that mount(2) was given and without, as either
    may be meant. A relative path began where its mount(8) ran, which nobody knows."""
    if info.kind != b"overlay":
        return []
    given = (option.partition(b"=") for option in info.options.split(b","))
    paths = [mountinfo.unescape(value) for name, _, value in given if name in (b"upperdir", b"workdir")]
    plain = [re.sub(rb"\\(.)", rb"\1", path) for path in paths]
    return [path for path in dict.fromkeys(paths + plain) if path.startswith(b"/")]
