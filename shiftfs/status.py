"""What a running mount says of itself, for shiftfsctl and SIGUSR1. Reads the others' state, owns none. Loop thread."""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import __version__
from .inodes import Inode
from .loop import Loop
from .options import MountOptions
from .reflect.journal import Journal
from .reflect.reflection import Reflection
from .session import Session
from .shift.idmap import IdMap
from .sys.locks import END, READ, WRITE
from .tree import Tree
from .wire.abi import InitFlag

_KINDS = {READ: "read", WRITE: "write"}


class Parts(NamedTuple):
    """What a mount is made of. `mountpoint`: without symlinks, as mounted."""

    options: MountOptions
    mountpoint: bytes
    session: Session
    tree: Tree
    loop: Loop
    faults: int
    """Errors that nobody expected, of no request."""
    journal: Journal
    reflection: Reflection | None
    derived: Sequence[Session] | None = None
    """Of the mounts that have been made of a mark; None for what is none."""
    not_passed: str | None = None
    """Why nothing is to be passed through, if so."""


def report(name: str, parts: Parts, after: int = 0, when: float = 0.0) -> bytes:
    """`status`, `stats`, `locks`, or `events` (after that number, not before that time) as JSON."""
    if name == "events":
        return json.dumps(parts.journal.report(after, when)).encode()
    made = {"status": _status, "stats": _stats, "locks": _locks}[name]
    return json.dumps(made(parts), indent=1).encode()


def _status(parts: Parts) -> dict[str, Any]:
    options, session, tree = parts.options, parts.session, parts.tree
    ways = parts.reflection.live.ways() if parts.reflection is not None else {}
    agreed = session.negotiated
    return {
        "version": __version__,
        "pid": os.getpid(),
        "source": _source(options, tree),
        "mountpoint": os.fsdecode(parts.mountpoint),
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
            "watch": options.watch,
            "locks": options.locks,
            "writeback": options.writeback,
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
        "layers": [{**layer, "watch": ways.get(index, "off")} for index, layer in enumerate(tree.describe())],
        "passthrough": _passthrough(parts),
        "writeback": _writeback(parts),
        "copies": tree.progress(),
        "mounts": len(parts.derived) if parts.derived is not None else None,
        "live": parts.reflection.describe() if parts.reflection is not None else None,
        **_sizes(parts),
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
        "ghost": options.ghost,
    }


def _stats(parts: Parts) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "requests": parts.session.counters.report(),
        "passthrough": _passthrough(parts),
        **_sizes(parts),
    }


def _passthrough(parts: Parts) -> dict[str, object]:
    """Is it on, why not; files that are open so, opens that were, files that the kernel did not take, and why."""
    backings = parts.session.context.backings
    if backings is None:
        return {"on": False, "why": parts.not_passed or "the kernel offers none (Linux 6.9)"}
    return {
        "on": True,
        "files": len(backings),
        "opened": backings.opened,
        "refused": backings.refused,
        "why": backings.refusal or None,
    }


def _writeback(parts: Parts) -> dict[str, object]:
    """Does the kernel collect writes, and why not?"""
    if parts.session.context.times is not None:
        return {"on": True, "why": None}
    if not parts.options.writeback:
        return {"on": False, "why": "it is off unless asked for"}
    return {"on": False, "why": "the kernel offers none that keeps set-id bits safe (Linux 5.11)"}


def _locks(parts: Parts) -> dict[str, Any]:
    """None of those that the kernel keeps (proc(5), /proc/locks)."""
    tables = [session.context.locks for session in (parts.session, *(parts.derived or ()))]
    served = [table for table in tables if table is not None]
    return {
        "served": bool(served),
        "waiting": sum(table.waiting for table in served),
        "locks": [
            {
                "path": os.fsdecode(parts.tree.path_of(inode.entry)),
                "number": _number(parts.tree, inode),
                "kind": "flock" if is_whole else "range",
                "type": _KINDS[held.kind],
                "start": held.start,
                "end": None if held.end == END else held.end,
                "pid": held.pid,
                "on": roles,
            }
            for table in served
            for inode, held, is_whole, roles in table
        ],
    }


def _number(tree: Tree, inode: Inode) -> int:
    """st_ino; 0 where the file cannot be found any more."""
    try:
        return tree.numbers(tree.attributes(inode.entry))
    except OSError:
        return 0


def _sizes(parts: Parts) -> dict[str, Any]:
    session, journal = parts.session, parts.journal
    return {
        "inodes": len(session.context.inodes),
        "listings": len(session.context.listings),
        "handles": len(session.context.handles),
        "waiting": session.waiting,
        "faults": parts.faults + sum(one.faults for one in (session, *(parts.derived or ()))),
        "workers": parts.loop.workers + parts.session.reads.threads,
        "descriptors": {**parts.tree.descriptors(), "open": len(os.listdir("/proc/self/fd"))},
        "memory_kib": _resident_kib(),
        "journal": {"total": journal.total, "dropped": journal.dropped},
    }


def _map(idmap: IdMap) -> str:
    if idmap.is_identity:
        return "identity"
    return str(idmap)


def _resident_kib() -> int:
    """VmRSS of proc(5)."""
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0
