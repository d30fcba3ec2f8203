"""What a process is called, what ends it, and whose it is. prctl(2), proc_pid_status(5)."""

import contextlib
import ctypes
from typing import Final

from . import libc

_PR_SET_NAME: Final = 15

# With the very types that privileges gives it: libc's functions are there once.
_prctl = libc.function("prctl", [libc.INT, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong])


_PR_SET_PDEATHSIG: Final = 1


def set_parent_death_signal(number: int) -> None:
    """Get this signal when the thread that has forked us ends: that of a process of several may end long before it."""
    _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def set_name(name: bytes) -> None:
    """Name the calling thread, and those that it starts later, in ps(1) and /proc/PID/comm: up to 15 bytes."""
    text = ctypes.create_string_buffer(name)
    _prctl(_PR_SET_NAME, ctypes.addressof(text), 0, 0, 0)


def filesystem_ids(pid: int) -> tuple[int, int] | None:
    """The ids that a process or thread uses files with, as they are in our user namespace; None for one that is not
    seen from here, or has ended."""
    uid = gid = None
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"Uid:"):
                uid = int(line.split()[4])
            elif line.startswith(b"Gid:"):
                gid = int(line.split()[4])
                break
    return None if uid is None or gid is None else (uid, gid)
