"""libfuse 3, used for mounting alone (root, fusermount3 and user namespaces alike). It is loaded by its names; where it
has another, mfusepy searches for it.

Never runs libfuse's session loop: the descriptor is duplicated and the session thrown away. Main thread only.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Final

_NAMES: Final = ("libfuse3.so.4", "libfuse3.so.3")
_CHOOSING: Final = ("FUSE_LIBRARY_PATH", "FUSE_LIBRARY_NAME")
"""What mfusepy is told by which library to take."""


class _Args(ctypes.Structure):
    """struct fuse_args (fuse_opt.h)."""

    _fields_ = (
        ("argc", ctypes.c_int),
        ("argv", ctypes.POINTER(ctypes.c_char_p)),
        ("allocated", ctypes.c_int),
    )


class LibraryMissing(Exception):
    """libfuse 3 is not installed."""


def _load() -> ctypes.CDLL:
    if not any(name in os.environ for name in _CHOOSING):
        for name in _NAMES:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
    return _search()


def _search() -> ctypes.CDLL:
    """As mfusepy does, by the tools of the linker and the compiler: that, and its own tables, are a third of a start.
    """
    # Without the name it prefers libfuse 2 where that is installed.
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    try:
        import mfusepy
    except (OSError, AttributeError, ImportError) as error:
        raise LibraryMissing(str(error)) from None
    library: ctypes.CDLL = mfusepy._libfuse
    if not hasattr(library, "fuse_session_mount"):
        raise LibraryMissing("the library found is libfuse 2")
    return library


def mount(mountpoint: bytes, options: Sequence[bytes]) -> int | None:
    """Mount at `mountpoint` and return the /dev/fuse descriptor; None if libfuse refused.

    What libfuse and fusermount3 have to say about a refusal goes to descriptor 2.
    """
    library = _load()
    words = [b"shiftfs", b"-o", b",".join(options)]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    args = _Args(len(words), argv, 0)
    # Room for struct fuse_lowlevel_ops of any version; we pass no operation, since libfuse serves no request.
    no_operations = ctypes.create_string_buffer(1024)
    new = library.fuse_session_new
    new.restype = ctypes.c_void_p
    new.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    session = new(ctypes.addressof(args), ctypes.addressof(no_operations), 8, None)
    if not session:
        return None
    for call in (library.fuse_session_mount, library.fuse_session_fd, library.fuse_session_destroy):
        call.argtypes = [ctypes.c_void_p]
    library.fuse_session_mount.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    try:
        if library.fuse_session_mount(session, mountpoint) != 0:
            return None
        return os.dup(library.fuse_session_fd(session))
    finally:
        library.fuse_session_destroy(session)
