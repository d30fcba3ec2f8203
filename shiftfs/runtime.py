"""Where processes of one user meet: /run/shiftfs for root, $XDG_RUNTIME_DIR/shiftfs for others.

Makes directories there, and lets nobody else write in them. Any thread.
"""

import errno
import os
import stat
from typing import Final

ROOT: Final = "/run/shiftfs"
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def directory(name: str, *, is_public: bool = False) -> int:
    """A descriptor of a directory there, made if it has to be; others may search it if it `is_public`. Raises OSError.
    """
    above = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    if not above:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    ours = _made(os.open(above, _DIRECTORY), "shiftfs", 0o755 if os.geteuid() == 0 else 0o700)
    return _made(ours, name, 0o755 if is_public else 0o700)


def _made(above: int, name: str, mode: int) -> int:
    """A directory of ours, and none that others may write; `above` is closed."""
    try:
        try:
            os.mkdir(name, mode, dir_fd=above)
        except FileExistsError:
            pass
        found = os.open(name, _DIRECTORY, dir_fd=above)
        status = os.fstat(found)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            os.close(found)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        if stat.S_IMODE(status.st_mode) != mode:  # the umask's doing, or another version's
            os.chmod(name, mode, dir_fd=above)
    finally:
        os.close(above)
    return found
