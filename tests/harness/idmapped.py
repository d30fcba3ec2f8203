"""Mounts of a directory whose owners the kernel shifts once more: idmapped mounts (mount_setattr(2)).

Owns such a mount from its making to its end. The libraries of the machine may be too old to know the call.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.commands import open_directory
from harness.mounts import newest_mount, unmount
from harness.namespaces import user_namespace
from shiftfs.sys import mounts

_MOUNT_SETATTR = 442
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR_IDMAP = 0x00100000

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def idmapped(directory: Path, first: int, shown: int = 0, count: int = 65536) -> Iterator[Path]:
    """A mount of `directory` on which what belongs to `shown` and the ids after it belongs to `first` and those after
    that."""
    path = open_directory("idmapped-")
    with user_namespace((shown, first, count)) as namespace:
        clone = mounts.clone_at(os.fsencode(directory))
        try:
            _map(clone, namespace.path)
            mounts.attach(clone, os.fsencode(path), beneath=False)
        finally:
            os.close(clone)
    try:
        yield path
    finally:
        unmount(newest_mount(path))
        path.rmdir()


def _map(clone: int, namespace: Path) -> None:
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, fd)
        if _libc.syscall(_MOUNT_SETATTR, clone, b"", _AT_EMPTY_PATH, attributes, len(attributes)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)
