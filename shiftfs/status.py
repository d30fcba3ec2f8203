"""What a running mount says of itself, for shiftfsctl and SIGUSR1. Reads the others' state, owns none. Loop thread."""

import json
import os
from typing import Any

from . import __version__
from .loop import Loop
from .options import MountOptions
from .session import Session
from .shift.idmap import IdMap
from .tree import Tree
from .wire.abi import InitFlag


def report(
    name: str, options: MountOptions, mountpoint: bytes, session: Session, tree: Tree, loop: Loop
) -> bytes:  # fmt: skip
    """`status` or `stats` as JSON. `mountpoint`: without symlinks, as mounted."""
    made = _status(options, mountpoint, session, tree, loop) if name == "status" else _stats(session, tree, loop)
    return json.dumps(made, indent=1).encode()


def _status(
    options: MountOptions, mountpoint: bytes, session: Session, tree: Tree, loop: Loop
) -> dict[str, Any]:  # fmt: skip
    agreed = session.negotiated
    return {
        "version": __version__,
        "pid": os.getpid(),
        "source": _source(options, tree),
        "mountpoint": os.fsdecode(mountpoint),
        "options": {
            "read_only": options.read_only,
            "allow_other": options.allow_other,
            "allow_root": options.allow_root,
            "suid": options.suid,
            "dev": options.dev,
            "exec": options.exec,
            "atime": options.atime,
            "diratime": options.diratime,
            "sync": options.sync,
            "dirsync": options.dirsync,
            "timeout": options.timeout,
            "open": "serve" if session.context.serves_open else "refuse",
            "fsname": os.fsdecode(options.fsname or b"") or _source(options, tree) or "shiftfs",
            "subtype": os.fsdecode(options.subtype),
            **(_layering(options) if options.lowerdirs else {}),
        },
        "uidmapping": _map(options.uidmap),
        "gidmapping": _map(options.gidmap),
        "protocol": {
            "minor": agreed.minor if agreed else None,
            "flags": [flag.name for flag in InitFlag if agreed and flag in agreed.flags],
            "max_write": agreed.max_write if agreed else None,
            "max_pages": agreed.max_pages if agreed else None,
            "max_readahead": agreed.max_readahead if agreed else None,
        },
        "layers": tree.describe(),
        "copies": tree.progress(),
        **_sizes(session, tree, loop),
    }


def _source(options: MountOptions, tree: Tree) -> object:
    """The directory that is shown; with layers, what stands in its place on the command line."""
    if not options.lowerdirs:
        return tree.describe()[0]["path"]
    return None if options.source is None else os.fsdecode(options.source)


def _layering(options: MountOptions) -> dict[str, object]:
    return {
        "redirect_dir": options.redirect_dir,
        "metacopy": options.metacopy,
        "index": options.index,
        "volatile": options.volatile,
        "userxattr": options.userxattr,
    }


def _stats(session: Session, tree: Tree, loop: Loop) -> dict[str, Any]:
    return {"pid": os.getpid(), "requests": session.counters.report(), **_sizes(session, tree, loop)}


def _sizes(session: Session, tree: Tree, loop: Loop) -> dict[str, Any]:
    return {
        "inodes": len(session.context.inodes),
        "listings": len(session.context.listings),
        "handles": len(session.context.handles),
        "waiting": session.waiting,
        "workers": loop.workers,
        "descriptors": {**tree.descriptors(), "open": len(os.listdir("/proc/self/fd"))},
        "memory_kib": _resident_kib(),
    }


def _map(idmap: IdMap) -> str:
    if idmap.is_identity:
        return "identity"
    return ":".join(f"{r.real}:{r.shown}:{r.count}" for r in idmap.ranges)


def _resident_kib() -> int:
    """VmRSS of proc(5)."""
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0
