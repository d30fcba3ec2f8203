"""Mounts a mark in the user namespace of whoever runs this, as root there: the kernel's part is done here, and the
connection handed over to the mark's process, which serves it.

Owns nothing once that has said that it serves. Main thread.
"""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ..mount import MountError
from ..options import MountOptions
from ..reflect import agent_child
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
    if not at or not at[-1].kind.startswith(_KIND) or not answers(at[-1].device):
        return None
    return at[-1].device


def answers(name: str) -> bool:
    """Is there a process behind a socket? One that was killed has left it, for the next of that number."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(protocol.path(name))
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.EACCES)
    return True


def has_mounted(options: MountOptions, is_initial: bool, say: Callable[[str], None]) -> bool:
    """If what is to be mounted is marked: mount it so. In a user namespace, whoever mounts something else is told so;
    in the initial one (`is_initial`), root mounts what he likes. Raises MountError."""
    if options.source is None or options.lowerdirs:
        return False
    device = mark_at(options.source)
    note = say if options.debug else _say_nothing
    if device is not None and (options.mark or not is_initial):
        if not options.fake:
            mount(options, device, note)
        return True
    if is_initial or options.mark:
        return False  # as root, or refused where it is looked at who may mark
    why = f"{os.fsdecode(options.source)}: is not marked"
    try:
        if not options.fake and answers(protocol.PERMANENT):
            mount(options, protocol.PERMANENT, note)
            return True
    except MountError as error:
        why = str(error).removesuffix("; nothing was mounted")
    say(f"{why}; it is mounted with your own rights alone")
    return False


def _say_nothing(text: str) -> None:
    """What only who debugs wants to know."""


def mount(options: MountOptions, device: str, note: Callable[[str], None] = _say_nothing) -> None:
    """Mount the mark of this number; for PERMANENT, what is marked at the source's path. Raises MountError."""
    source = options.source or b""
    shown = os.fsdecode(source)
    default = MountOptions(options.source, options.mountpoint)
    if options.mark:
        raise MountError(f"{shown}: is a mark already; mark what it shows, or mount it")
    for name in MountOptions._fields:
        if name not in _OURS and getattr(options, name) != getattr(default, name):
            raise MountError(f"{name}: the mark has settled that; whoever marks a directory says how it is shown")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(protocol.path(device))
            asked = [protocol.READ_ONLY] * options.read_only
            named = [os.path.abspath(source)] if device == protocol.PERMANENT else []
            words, _ = _ask(connection, packed(HELLO, protocol.VERSION, b",".join(asked), *named), OK, shown)
            sockets = _mount(options, options.fsname or os.path.abspath(source), connection, shown)
            _employ(options.mountpoint, sockets, protocol.READ_ONLY in words[1].split(b","), note)
        except TimeoutError:
            raise MountError(f"{shown}: the process of this mark does not answer; nothing was mounted") from None
        except (ConnectionError, FileNotFoundError):
            raise MountError(f"{shown}: the process of this mark has ended; let root mark it anew") from None


def _ask(
    connection: socket.socket, packet: bytes, wanted: bytes, shown: str, rights: Sequence[int] = ()
) -> tuple[list[bytes], list[int]]:
    """Say something and hear what is wanted, and the descriptors that come with it. Raises MountError, OSError."""
    protocol.send(connection, packet, rights)
    words, received = protocol.receive(connection)
    if not words:
        raise ConnectionResetError
    if words[0] != wanted:
        reason = words[1].decode(errors="replace") if len(words) > 1 else "refused"
        raise MountError(f"{shown}: {reason}; nothing was mounted")
    return words, received


def _mount(options: MountOptions, name: bytes, connection: socket.socket, shown: str) -> list[int]:
    """Returns what the mark's process gives for an agent: sockets, if it wants one."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = mounts.NODEV | (0 if options.suid else mounts.NOSUID) | (0 if options.exec else mounts.NOEXEC)
        data = b"fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other" % device
        try:
            mounts.mount(name, options.mountpoint, b"fuse." + options.subtype, flags, data)
        except OSError as error:
            where, advice = os.fsdecode(options.mountpoint), "it takes a mount namespace of your own (unshare -m)"
            raise MountError(f"{where}: {error.strerror}; {advice}") from None
        try:
            return _ask(connection, CONNECTION, SERVING, shown, [device])[1]
        except BaseException:
            with contextlib.suppress(OSError):
                mounts.unmount(options.mountpoint, mounts.MNT_DETACH)
            raise
    finally:
        os.close(device)


def _employ(mountpoint: bytes, sockets: list[int], read_only: bool, note: Callable[[str], None]) -> None:
    """Leave a process that raises, here, the events of what others change: nobody else can. Where the kernel does not
    let it know when the mount is gone, there is none, since what it holds would keep the mount."""
    try:
        if sockets:
            place = mounts.place_of(mountpoint)
            clone = mounts.clone_at(mountpoint)
            mounts.set_flags(clone, on=mounts.NODEV | mounts.NOSUID | mounts.NOEXEC, private=True)
            _leave_agent(mountpoint, sockets, clone, place)
            os.close(clone)
    except OSError as error:
        note(f"no events are raised here of what others change ({error.strerror}): changes are seen all the same")
    finally:
        for fd in sockets:
            os.close(fd)
    if read_only:  # the mark's process lets nobody change anything; this is for it to be seen
        with contextlib.suppress(OSError):
            fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mounts.set_flags(fd, on=mounts.RDONLY)
            os.close(fd)


def _leave_agent(mountpoint: bytes, sockets: list[int], clone: int, place: tuple[int, int]) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if os.fork():
        return
    try:
        os.setsid()
        leave = partial(mounts.leave_for_nothing, os.path.abspath(mountpoint))
        agent_child.run(sockets, mask, agent_child.Place(clone, leave, partial(mounts.is_mounted, *place)))
    finally:
        os._exit(1)
