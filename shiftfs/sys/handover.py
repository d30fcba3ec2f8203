"""What is known for sure of a process at the other end of a socket, and of a FUSE connection that it hands over: by the
kernel's word alone. unix(7), pidfd_open(2), ioctl_ns(2), kernel fs/fuse/dev.c. Any thread.
"""

import fcntl
import os
import select
import socket
import struct
from typing import Final, NamedTuple

_SO_PEERPIDFD: Final = 77
_CREDENTIALS: Final = struct.Struct("=iII")
_DEVICE: Final = "/dev/fuse"
_CLONE: Final = 0x8004E500
"""FUSE_DEV_IOC_CLONE"""
_OWNER_UID: Final = 0xB704
"""NS_GET_OWNER_UID"""
_PARENT: Final = 0xB702
"""NS_GET_PARENT"""
_UID: Final = struct.Struct("=I")

Identity = tuple[int, int]
"""What tells namespaces apart."""


class Peer(NamedTuple):
    """Whoever has connected: ids as in our user namespace. `pidfd` stays the caller's to close."""

    pid: int
    uid: int
    gid: int
    pidfd: int

    def namespace(self, kind: str) -> int:
        """A descriptor of its `user` or `mnt` namespace. ESRCH if it has ended: its number may be another's then."""
        fd = os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        if self.has_ended():
            os.close(fd)
            raise ProcessLookupError(3, os.strerror(3))
        return fd

    def capabilities(self) -> int:
        """The effective ones, in its own user namespace, as a bit mask."""
        with open(f"/proc/{self.pid}/status", "rb") as lines:
            return next(int(line.split()[1], 16) for line in lines if line.startswith(b"CapEff:"))

    def has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))


def peer(connection: socket.socket) -> Peer:
    """Who connected. Raises OSError; ENOPROTOOPT before Linux 6.5."""
    pid, uid, gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    return Peer(pid, uid, gid, pidfd)


def namespace_owner(namespace: int) -> int:
    """Who made a user namespace, as in our own; the overflow id for one who has no number here."""
    owner: int = _UID.unpack(fcntl.ioctl(namespace, _OWNER_UID, bytes(_UID.size)))[0]
    return owner


def identity(namespace: int) -> Identity:
    """The descriptor is closed."""
    try:
        found = os.fstat(namespace)
        return found.st_dev, found.st_ino
    finally:
        os.close(namespace)


def outermost(namespace: int, ours: Identity) -> int:
    """The user namespace right beneath ours that a descriptor's is in, or is; ours for ours. Takes the descriptor over,
    and returns another."""
    while True:
        try:
            around: int = fcntl.ioctl(namespace, _PARENT)
        except PermissionError:
            return namespace
        if identity(os.dup(around)) == ours:
            os.close(around)
            return namespace
        os.close(namespace)
        namespace = around


def join_connection(fuse: int) -> int:
    """A descriptor of our own for the same connection: nobody else can change its flags. EINVAL and EPERM for what is
    none. Waits until a signal comes for one whose holder has asked for that (FUSE_DEV_IOC_SYNC_INIT)."""
    own = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(own, _CLONE, _UID.pack(fuse))
    except OSError:
        os.close(own)
        raise
    return own
