"""What a process is called. prctl(2)."""

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
