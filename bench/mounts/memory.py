"""What the processes of a mount keep for each inode that the kernel knows."""

import os

from ..jobs import Job, Mounted, Scale, Work
from ..mounting import footprint, settle
from .lookup import TREE


def _per_inode(mounted: Mounted, tree: list[str], scale: Scale) -> Work:
    """Resident bytes that a walk adds, by the inodes that it makes known. What a first quarter adds is not counted:
    with it comes what is needed but once."""
    paths = [f"{mounted.at}/{name}" for name in tree]
    first = len(paths) // 4
    for path in paths[:first]:
        os.lstat(path)
    settle(mounted.daemons)

    def run() -> float:
        before = footprint(mounted.daemons).memory_kib
        for path in paths[first:]:
            os.lstat(path)
        added = footprint(mounted.daemons).memory_kib - before
        directories = len(set(map(os.path.dirname, paths[first:])))
        return added * 1024 / (len(paths) - first + directories)

    return Work(run, len(paths) - first)


def jobs(scale: Scale) -> tuple[Job, ...]:
    # On a mount of its own: what was once used by what is forgotten is not given back.
    return (Job("bytes per known inode", TREE, _per_inode, unit="bytes", fresh=True),)
