"""Making one file of each kind, by the call that makes that kind."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path


def make_file(path: Path, mode: int = 0o644) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def make_tmpfile(path: Path, mode: int = 0o644) -> None:
    """An unnamed file that is given its name afterwards."""
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, mode)
    try:
        # Python follows the source only when given a directory's descriptor: else it calls link(2), which never does.
        # The path is absolute, so which descriptor does not matter.
        os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=fd)
    finally:
        os.close(fd)


MAKERS: dict[str, Callable[[Path], object]] = {
    "file": make_file,
    "directory": os.mkdir,
    "fifo": os.mkfifo,
    "socket": make_socket,
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o640),
    "symlink": lambda path: os.symlink("nowhere", path),
    "tmpfile": make_tmpfile,
}


def owner(path: Path) -> tuple[int, int]:
    """User and group of a file, a symlink not followed."""
    status = path.lstat()
    return status.st_uid, status.st_gid
