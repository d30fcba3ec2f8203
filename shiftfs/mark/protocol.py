"""What whoever mounts a mark and the mark's process say to each other: packets of a few words, bounded in length.

    client                                  mark's process
    HELLO version options [path]     ->
                                     <-     OK what the mount is to have      or NO reason
    CONNECTION + a /dev/fuse descriptor ->
                                     <-     SERVING + the agent's sockets     or NO reason

Sans I/O, but for the reading of one packet. Any thread.
"""

import array
import os
import socket
from collections.abc import Sequence
from typing import Final

from .. import runtime

VERSION: Final = b"1"
HELLO: Final = b"hello"
OK: Final = b"ok"
NO: Final = b"no"
CONNECTION: Final = b"connection"
SERVING: Final = b"serving"

READ_ONLY: Final = b"ro"
OPTIONS: Final = frozenset({READ_ONLY})
"""What a client may ask for, and a mark may insist on."""

LONGEST: Final = 4096
"""Bytes of a packet."""
_MOST_RIGHTS: Final = 8
AGENT_THREADS: Final = 2

DIRECTORY: Final = "marks"
PERMANENT: Final = "permanent"
"""In the place of a device: the socket of who serves the directories that are marked for good, which are asked for by
path."""


class Malformed(Exception):
    """A packet that is none of these."""


def path(device: str) -> str:
    """The socket of the mark whose filesystem has the number MAJOR:MINOR."""
    return f"{runtime.ROOT}/{DIRECTORY}/{device}"


def packed(*words: bytes) -> bytes:
    return b"\0".join(words)


def send(connection: socket.socket, packet: bytes, rights: Sequence[int] = ()) -> None:
    """Raises OSError."""
    controls = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))] if rights else []
    connection.sendmsg([packet], controls, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[list[bytes], list[int]]:
    """The words of one packet, and the descriptors that came with it, which are the caller's; no words at the end.
    Raises Malformed, and closes what came; BlockingIOError where there is none now. Closing what others have sent waits
    for as long as they like (a file's FLUSH, a socket's SO_LINGER)."""
    room = socket.CMSG_SPACE(_MOST_RIGHTS * array.array("i").itemsize)
    text, controls, flags, _ = connection.recvmsg(LONGEST, room, socket.MSG_CMSG_CLOEXEC)
    rights = array.array("i")
    for level, kind, data in controls:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            rights.frombytes(data[: len(data) - len(data) % rights.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in rights:
            os.close(fd)
        raise Malformed("a packet that is too long")
    return (text.split(b"\0") if text else []), list(rights)
