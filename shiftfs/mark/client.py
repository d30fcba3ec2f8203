"""Mounts a mark in the user namespace of whoever runs this, as root there: the kernel's part is done here, and the
connection handed over to the mark's process, which serves it.

Owns nothing once that has said that it serves. Main thread.
"""

import array
import contextlib
import os
import socket
from typing import Final

from ..mount import MountError
from ..options import MountOptions
from ..sys import mounts
from ..sys.mountinfo import listed
from . import protocol
from .protocol import CONNECTION, HELLO, OK, SERVING, packed

_PATIENCE: Final = 30.0
"""Seconds for an answer."""
_KIND: Final = b"fuse."
_OURS: Final = ("source", "mountpoint", "foreground", "debug", "fake", "read_only", "atime", "diratime", "suid", "dev",
                "exec", "allow_other", "fsname", "subtype", "notes")  # fmt: skip
"""What of the options is for whoever mounts to say; all else, the mark has settled."""


def mark_at(source: bytes) -> str | None:
    """The device number of the mark that is mounted at a path, if one is. Touches no mount: they are root's."""
    path = os.path.realpath(source)
    at = [info for info in listed() if info.path == path]
    if not at or not at[-1].kind.startswith(_KIND) or not os.path.exists(protocol.path(at[-1].device)):
        return None
    return at[-1].device


def mount(options: MountOptions, device: str) -> None:
    """Mount the mark of this number. Raises MountError."""
    default = MountOptions(options.source, options.mountpoint)
    if options.mark:
        raise MountError(f"{os.fsdecode(options.source or b'')}: is a mark already; mark what it shows, or mount it")
    for name in MountOptions.__slots__:
        if name not in _OURS and getattr(options, name) != getattr(default, name):
            raise MountError(f"{name}: the mark has settled that; whoever marks a directory says how it is shown")
    shown = os.fsdecode(options.source or b"")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(protocol.path(device))
            asked = [protocol.READ_ONLY] * options.read_only + [protocol.NO_ATIME] * (not options.atime)
            granted = _ask(connection, packed(HELLO, protocol.VERSION, b",".join(asked)), OK, shown)
            _mount(options, connection, frozenset(granted[1].split(b",")), shown)
        except TimeoutError:
            raise MountError(f"{shown}: the process of this mark does not answer; nothing was mounted") from None
        except (ConnectionError, FileNotFoundError):
            raise MountError(f"{shown}: the process of this mark has ended; let root mark it anew") from None


def _ask(
    connection: socket.socket, packet: bytes, wanted: bytes, shown: str, rights: tuple[int, ...] = ()
) -> list[bytes]:
    """Say something and hear what is wanted. Raises MountError, OSError."""
    controls = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))] if rights else []
    connection.sendmsg([packet], controls)
    words, received = protocol.receive(connection)
    for fd in received:
        os.close(fd)
    if not words:
        raise ConnectionResetError
    if words[0] != wanted:
        reason = words[1].decode(errors="replace") if len(words) > 1 else "refused"
        raise MountError(f"{shown}: {reason}; nothing was mounted")
    return words


def _mount(options: MountOptions, connection: socket.socket, granted: frozenset[bytes], shown: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = mounts.NODEV | (0 if options.suid else mounts.NOSUID) | (0 if options.exec else mounts.NOEXEC)
        flags |= mounts.RDONLY if protocol.READ_ONLY in granted else 0
        data = b"fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other" % device
        source = options.fsname or os.path.abspath(options.source or b"")
        try:
            mounts.mount(source, options.mountpoint, b"fuse." + options.subtype, flags, data)
        except OSError as error:
            where, advice = os.fsdecode(options.mountpoint), "it takes a mount namespace of your own (unshare -m)"
            raise MountError(f"{where}: {error.strerror}; {advice}") from None
        try:
            _ask(connection, CONNECTION, SERVING, shown, (device,))
        except BaseException:
            with contextlib.suppress(OSError):
                mounts.unmount(options.mountpoint, mounts.MNT_DETACH)
            raise
    finally:
        os.close(device)
