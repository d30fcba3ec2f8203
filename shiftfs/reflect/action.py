"""What is to be done on the mount for a change of a layer to be noticed there: values only.

An Action is one operation that the agent performs, with all that the session has to know to answer the requests that
come of it as if it were the change itself. Loop thread.
"""

import enum
import stat
from typing import Final

from ..inodes import Inode, Place
from ..tree import RealKey


class Verb(enum.IntEnum):
    """What the agent does (agent.py)."""

    MKNOD = 1
    MKDIR = 2
    SYMLINK = 3
    LINK = 4
    UNLINK = 5
    RMDIR = 6
    RENAME = 7
    EXCHANGE = 8
    MODIFIED = 9
    ATTRIBUTES = 10
    CLOSED = 11


class Subject:
    """What a name is to lead the agent to: `inode` where the kernel knows it, else what is at `place` by then, else
    something made up under `nodeid`. `links` more names are shown than there are."""

    __slots__ = ("_type", "inode", "links", "nodeid", "place")

    def __init__(self, nodeid: int, type: int, inode: Inode | None = None, place: Place | None = None) -> None:
        self.nodeid = nodeid
        self._type = type
        self.inode = inode
        self.place = place
        self.links = 0

    @property
    def type(self) -> int:
        """S_IFMT of a mode. Of an inode it is always its own: shown with another one, even once, the kernel would fail
        all that is asked of it from then on (EIO; fuse_stale_inode)."""
        return self._type if self.inode is None else self.inode.type


Shown = tuple[Inode, bytes]
View = dict[tuple[int, bytes], Subject | None]
"""Directory's nodeid and name -> what the agent finds there; None for nothing."""

FILE: Final = stat.S_IFREG
DIRECTORY: Final = stat.S_IFDIR


class Action:
    """One operation. `places` are the names that it is about, `paths` where the kernel finds them, `view` what the
    agent finds at some. `notices` go to the kernel before it, `raced` before it is done again because somebody was
    faster, `then` after it, and `fallback` where it cannot be done. It is done after all that was ordered before it for
    one of its `keys`.

    `asked` are the names that the agent has looked up for it. As long as those of `must_ask` are not among them the
    kernel takes what it was told before for them, which may be another inode.

    `served`: the operation itself has come to us and been answered.

    `deadline` (time.monotonic()) is until when it is tried again where a lease is in the way.

    `order` is its place among all; `is_early` if what comes before it for one of its keys has to be done again."""

    __slots__ = (
        *("verb", "places", "paths", "subject", "view", "keys"),
        *("notices", "raced", "fallback", "then", "attempts", "ready", "asked", "must_ask"),
        *("order", "is_early", "deadline", "served"),
    )

    def __init__(self, verb: Verb, places: tuple[Place, ...], subject: Subject | None = None) -> None:
        self.verb = verb
        self.places = places
        self.paths: list[bytes] = []
        self.subject = subject
        self.view: View = {}
        self.notices: list[bytes] = []
        self.fallback: list[bytes] = []
        self.then: list[bytes] = []
        self.raced: list[bytes] = []
        self.keys: set[RealKey] = {parent.key for parent, _ in places}
        self.asked: set[tuple[int, bytes]] = set()
        self.must_ask: set[tuple[int, bytes]] = set()
        self.attempts = 0
        self.ready = True
        self.order = 0
        self.is_early = False
        self.deadline = 0.0
        self.served = False
