"""The extended attribute in which a file's owner, mode and kind may live: its three names, written and read."""

import os
import stat
from pathlib import Path

CONTAINERS = "user.containers.override_stat"
USER = "user.fuseoverlayfs.override_stat"
PRIVILEGED = "security.fuseoverlayfs.override_stat"
NAMES = [PRIVILEGED, CONTAINERS, USER]

Status = tuple[int, int, str]


def shown(path: Path) -> Status:
    """Owner, group, kind and mode as `ls -l` has it."""
    status = path.lstat()
    return status.st_uid, status.st_gid, stat.filemode(status.st_mode)


def say(path: Path, value: str, name: str = CONTAINERS) -> Path:
    """Write it; the path."""
    os.setxattr(path, name, value.encode())
    return path


def said(path: Path, name: str = CONTAINERS) -> str:
    """What it says."""
    return os.getxattr(path, name).decode()
