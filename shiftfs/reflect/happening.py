"""What watchers tell. Values only."""

import enum
from typing import NamedTuple

Token = bytes | int
"""Names one watched real inode; nobody else needs to know how."""


class What(enum.IntFlag):
    """What has happened. The kernel merges, so that it may be several; their order is not known then."""

    CREATED = 1
    DELETED = 2
    MOVED = 4
    MODIFIED = 8
    ATTRIBUTES = 16
    CLOSED = 32
    """By one who could write."""
    OVERFLOW = 64
    """Some has not been told. Alone."""


class Happening(NamedTuple):
    what: What
    is_directory: bool
    directory: Token | None
    """None where that side is not watched."""
    name: bytes
    """Empty for what is watched itself. Beneath a directory that is not watched it is told, too, unless MOVED: then
    `target` is watched and has been changed by this name."""
    to: Token | None = None
    """MOVED: the new place."""
    to_name: bytes = b""
    target: Token | None = None
    """The inode itself, where the watcher tells. It need not be watched."""
