"""The names that `-o` knows: what each is for, and what values it takes.

Owns tables and the reading of single values; never knows of two that go together or exclude each other, and raises
nothing but ValueError and MapError. Main thread, before the mount.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .shift.idmap import UNMAPPED, parse_triples

TOKEN: Final = re.compile(r'\\[,:"\\]|.', re.DOTALL)
"""A character, or an escape of one that separates, quotes or escapes."""

FLAGS: Final[Mapping[str, Mapping[str, bool]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "allow_other": {"allow_other": True, "allow_root": False},
    "allow_root": {"allow_other": False, "allow_root": True},
    "default_permissions": {},
    "suid": {"suid": True},
    "nosuid": {"suid": False},
    # mount(8) gives `dev` to whatever it runs, so it tells nothing of what the user wants; allow_dev does.
    "dev": {},
    "nodev": {"nodev": True},
    "allow_dev": {"allow_dev": True},
    "exec": {"exec": True},
    "noexec": {"exec": False},
    "atime": {"atime": True},
    "noatime": {"atime": False},
    # How often a time is updated is for the layer's own mount to decide, since the inode is the layer's.
    "relatime": {"atime": True},
    "strictatime": {"atime": True},
    "norelatime": {},
    "nostrictatime": {},
    "diratime": {"diratime": True},
    "nodiratime": {"diratime": False},
    "sync": {"sync": True},
    "async": {"sync": False},
    "dirsync": {"dirsync": True},
    "debug": {"debug": True},
    "volatile": {"volatile": True},
    "userxattr": {"userxattr": True},
    "mark": {"mark": True},
    "allow_exposed": {"allow_exposed": True},
    "squash_to_root": {"squash_to_root": True},
    "static_nlink": {"static_nlink": True},
    "noacl": {"acl": False},
    "ino32_t": {"ino32": True},
    "writeback": {"writeback": True},
    # As fuse-overlayfs has it.
    "writeback=1": {"writeback": True},
    "writeback=0": {"writeback": False},
}

# Said to mount(8), the boot, or whoever reads /etc/fstab (mount(8), fstab(5), systemd.mount(5)). Where one
# implies something for us (`user` means noexec, nosuid and nodev), mount(8) has added that.
FOR_MOUNT: Final = frozenset(
    {
        "defaults",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "comment",
        "uhelper",
        "silent",
        "loud",
    }
)

IGNORED: Final[Mapping[str, str]] = {
    "threaded": "one loop serves all requests",
    "fsync": "fsync always reaches the layer",
    "sync": "fsync always reaches the layer; `sync` without a value is the mount flag",
    "fast_ino": "inode numbers cost nothing extra",
    "fast_ino_check": "inode numbers cost nothing extra",
    "plugins": "there are no plugins",
    "splice_write": "requests are read and answered without splice",
    "splice_read": "requests are read and answered without splice",
    "splice_move": "requests are read and answered without splice",
    "kernel_cache": "what the kernel may cache follows from timeout= and open=",
    "private": "the mount propagates as its parent does",
    "lazytime": "times are kept by the layer",
    "nolazytime": "times are kept by the layer",
    "xino": "inode numbers are always unique over the layers",
}

# Ignoring one of these would show other names, owners or contents than were asked for.
UNSUPPORTED: Final = frozenset({"nfs_export"})

# What says how layers are stacked; without any it says nothing.
FOR_LAYERS: Final = (
    "upperdir", "workdir", "redirect_dir", "metacopy", "index", "volatile", "userxattr", "xino", "ghost",
    "xattr_permissions",
)  # fmt: skip

FOR_MARKS: Final = ("mark_users", "allow_exposed")

MOST_LOWERS: Final = 500
KERNEL: Final = ("context", "fscontext", "defcontext", "rootcontext")
MAPS: Final = ("uidmapping", "gidmapping", "userns", "subid")


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", value, re.ASCII) or float(value) > 1e9:
        raise ValueError
    return float(value)


def _write_size(value: str) -> int:
    # It bounds answers too, in pages: with less, the kernel has no room for the reports of shiftfsctl.
    if not re.fullmatch("[0-9]{1,7}", value, re.ASCII) or not (value == "0" or 1 << 17 <= int(value) <= 1 << 20):
        raise ValueError
    return int(value)


def _one_of(*words: str) -> Callable[[str], str]:
    def convert(value: str) -> str:
        if value not in words:
            raise ValueError
        return value

    return convert


def _name(value: str) -> bytes:
    if not value:
        raise ValueError
    return os.fsencode(value)


def plain(text: str) -> str:
    """What escapes stand for."""
    return "".join(token[-1] for token in TOKEN.findall(text))


def _directories(value: str) -> tuple[bytes, ...]:
    r"""Colons separate, `\:` is one, `\\` a backslash: the one value that comes with its escapes."""
    paths: list[list[str]] = [[]]
    for token in TOKEN.findall(value):
        if token == ":":
            paths.append([])
        else:
            paths[-1].append(token[-1])
    return tuple(_name("".join(path)) for path in paths)


def _users(value: str) -> tuple[str, ...]:
    names = tuple(value.split(":"))
    if not all(names):
        raise ValueError
    return names


def _switch(value: str) -> bool:
    if value not in ("on", "off"):
        raise ValueError
    return value == "on"


def _id(value: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", value, re.ASCII) or int(value) >= UNMAPPED:
        raise ValueError
    return int(value)


def _digit(most: int) -> Callable[[str], int]:
    def convert(value: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", value, re.ASCII) or int(value) > most:
            raise ValueError
        return int(value)

    return convert


def _context(value: str) -> bytes:
    if '"' in value:  # could not be quoted for the kernel
        raise ValueError
    return _name(value)


class _Valued(NamedTuple):
    """`convert` raises ValueError for what is not allowed; `allowed` says what is."""

    convert: Callable[[str], Any]
    allowed: str


_TRIPLES = _Valued(parse_triples, "triples REAL:SHOWN:COUNT joined by colons")
VALUED: Final[Mapping[str, _Valued]] = {
    "uidmapping": _TRIPLES,
    "gidmapping": _TRIPLES,
    "userns": _Valued(_name, "the PID of a process in the user namespace, or the path of its file"),
    "subid": _Valued(_name, "a user that has ranges in /etc/subuid and /etc/subgid"),
    "timeout": _Valued(_seconds, "seconds from 0 to 1000000000, such as 1 or 0.5"),
    "watch": _Valued(_one_of("auto", "fanotify", "inotify", "off"), "auto, fanotify, inotify or off"),
    "max_write": _Valued(_write_size, "bytes from 131072 to 1048576, or 0 for the default"),
    "open": _Valued(_one_of("auto", "refuse", "serve"), "auto, refuse or serve"),
    "fsname": _Valued(_name, "a name to be shown as the source"),
    "subtype": _Valued(_name, "a name to be shown as the type"),
    "lowerdir": _Valued(
        _directories, r"directories from top to bottom joined by colons, none of them empty; \: is a colon"
    ),
    "upperdir": _Valued(_name, "the directory that takes all changes"),
    "workdir": _Valued(_name, "a directory beside upperdir, for this mount alone"),
    "redirect_dir": _Valued(_one_of("auto", "on", "off", "follow", "nofollow"), "auto, on, off, follow or nofollow"),
    "metacopy": _Valued(_switch, "on or off"),
    "index": _Valued(_switch, "on or off"),
    "locks": _Valued(_one_of("mount", "layers"), "mount or layers"),
    "passthrough": _Valued(_one_of("auto", "on", "off"), "auto, on or off"),
    "mark_users": _Valued(_users, "names or numbers of users, joined by colons"),
    "squash_to_uid": _Valued(_id, "an id from 0 to 4294967294"),
    "squash_to_gid": _Valued(_id, "an id from 0 to 4294967294"),
    "noxattrs": _Valued(_digit(1), "0 or 1"),
    "xattr_permissions": _Valued(_digit(2), "0, 1 or 2"),
    "ghost": _Valued(_one_of("keep", "drop"), "keep or drop"),
    **{name: _Valued(_context, "a security context without double quotes") for name in KERNEL},
}

KNOWN: Final = sorted({*FLAGS, *VALUED, *IGNORED, *UNSUPPORTED, *FOR_MOUNT})

