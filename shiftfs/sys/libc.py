"""The C library, and how its failures become OSError.

Owns the one handle on libc. Declares nothing itself: the modules beside it do. Any thread may call.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

INT = ctypes.c_int
UINT = ctypes.c_uint
LONG = ctypes.c_long
ULONG = ctypes.c_ulong
SIZE = ctypes.c_size_t
OFFSET = ctypes.c_int64
PATH = ctypes.c_char_p
POINTER = ctypes.c_void_p


def function(name: str, arguments: Sequence[Any], result: Any = ctypes.c_int) -> Callable[..., int]:
    """A function of libc with its argument types; the caller checks the result.

    It is looked up at its first call, so that a libc older than a function can still load its module.
    """
    try:
        found = getattr(_libc, name)
    except AttributeError:

        def missing(*_: object) -> int:
            raise OSError(38, os.strerror(38), name)

        return missing
    found.argtypes = list(arguments)
    found.restype = result
    return found  # type: ignore[no-any-return]


def brief(name: str, arguments: Sequence[Any]) -> Callable[..., int]:
    """A function of libc that never takes long: no other thread of ours runs in between, so that two calls follow each
    other at once."""
    found = getattr(ctypes.PyDLL(None, use_errno=True), name)
    found.argtypes = list(arguments)
    found.restype = ctypes.c_int
    return found  # type: ignore[no-any-return]


_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

syscall: Callable[..., int] = _syscall


def typed_syscall(arguments: Sequence[Any]) -> Callable[..., int]:
    """syscall(2) for calls with these arguments, after the number: converts them faster than `syscall` does."""
    found = ctypes.CDLL(None, use_errno=True).syscall  # a function of its own, with types of its own
    found.argtypes = [LONG, *arguments]
    found.restype = ctypes.c_long
    return found


def failure(what: object = None) -> OSError:
    """The OSError of the call that has just returned -1, on the thread that made it."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what) if what is not None else OSError(number, os.strerror(number))
