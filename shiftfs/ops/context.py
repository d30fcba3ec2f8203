"""What the handlers of one mount share, and how an inode is shown: ids shifted, entry encoded.

Owns the inode table, the maps and the open handles of a mount. Does no system call itself. Loop thread only.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ..inodes import Inode, InodeTable
from ..locks.table import Locks
from ..shares import alone
from ..shift.credentials import Credentials
from ..shift.idmap import UNMAPPED, IdMap
from ..sys import process
from ..tree import Attributes, Gate, RealKey, Steps, Tree, Work
from ..wire import notices, replies
from ..wire.abi import INVALID_ID
from ..wire.requests import Header
from .collected import Collected
from .listings import Listings

if TYPE_CHECKING:
    from ..backing import Backings
    from .times import Times

Payload = bytes | bytearray | memoryview
Later = Generator[Work | Gate, Any, Payload]
"""A handler that has to wait: it yields calls for a worker, gets their results, and returns its payload."""
Result = Payload | Later | None
"""What a handler answers: a payload, a payload later, or nothing at all (FORGET)."""

FOREVER: Final = (1 << 31, 0)
"""Seconds and nanoseconds for which the kernel may trust what we will tell it of if it changes."""

_NOT_AT_ALL: Final = (0, 0)
_DIRECTORY: Final = 4
_TYPE: Final = 0o170000
_LISTED_NAMES: Final = 1_000_000
"""How many names the listings that are kept may have together."""

DONE: Final = b""

NOBODYS: Final = 0
"""The handle of the agent, who opens nothing (reflect.answers). Its RELEASE names no process."""


class Packing(Protocol):
    """What packs listings natively (shiftfs.lane.Lane)."""

    def pack(self, directory: Inode, rows: Sequence[Any], start: int, room: int) -> Payload: ...


class Live(Protocol):
    """What follows the changes made behind the mount (reflect.live)."""

    @property
    def viewed(self) -> dict[Any, Any]:
        """The names, if any, of which somebody is shown something else, or is to be told anew."""

    @property
    def readers(self) -> list[Any]:
        """What reads of changes (sys.fanotify.Reader), as far as that is not left to `shiftfs.reflect`."""

    def added(self, inode: Inode, attributes: Attributes) -> Attributes:
        """The kernel is told of an inode: watch it, where that takes a watch of its own. What it is from then on."""

    def watch(self, inode: Inode) -> bool:
        """The same. True if it may have changed before that."""

    def told(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """The kernel is told what a name in a watched directory leads to."""

    def seen_again(self, inode: Inode) -> None:
        """One with a watch has been looked up again; it may be made of other real inodes now."""

    def is_up_now(self, inode: Inode) -> None:
        """It has been copied up, with the directories above it: watch those in the upper layer too."""

    def catch_up(self, inode: Inode) -> Steps | None:
        """What has to be waited for until all that has been done to a file, and to names beside it, so far is known on
        the mount; None for nothing."""

    def is_told(self) -> bool:
        """Is all known on the mount that has been heard of?"""

    def closing(self, inode: Inode) -> Gate | None:
        """What whoever is to execute a file has to wait at first, if anything."""

    def forgotten(self, inode: Inode) -> None:
        """One with a watch is not known any more."""


class Inside(NamedTuple):
    """A user namespace's ids: shown there, real in ours."""

    uids: IdMap
    gids: IdMap


class Context:
    """The state of one mount."""

    def __init__(
        self,
        tree: Tree,
        uids: IdMap,
        gids: IdMap,
        timeout: float,
        *,
        serves_open: bool,
        serves_opendir: bool,
        scratch: memoryview,
        aside: Callable[[Work], None],
        notify: Callable[[bytes], None],
        tell: Callable[[list[bytes]], Gate],
        is_telling: Callable[[list[Inode]], bool],
        is_telling_anything: Callable[[], bool],
        detach: Callable[[], bytearray],
        recycle: Callable[[bytearray], None],
        watch: Callable[[int, Callable[[], None]], Callable[[], None]],
        report: Callable[[str, int, float], bytes],
    ) -> None:
        """`timeout`: how long, in seconds, the kernel may trust names and attributes of which nobody will tell us that
        they change. `scratch`: room for the largest answer, while a request is served. `aside` runs a call on a worker
        and forgets it; `notify` sends a notice, and `tell` several, with a gate that is opened when they have been
        written; `is_telling` whether some about these inodes have not been. `detach` takes the buffer of the present
        request until `recycle` gives it back; `watch` waits for a descriptor; `report` makes what shiftfsctl asks."""
        self.tree = tree
        self.inodes = InodeTable(tree.root_attributes()[0], tree.root)
        tree.knows(self._entry_of)
        self.uids = uids
        self.gids = gids
        self.shown = self._shown if tree.view.link_counts else self._shown_without_link_counts
        """The attributes as struct fuse_attr shows them."""
        self.shows_acls = tree.view.acls and tree.view.xattrs
        self._trust(timeout)
        self.live: Live | None = None
        self.lane: Packing | None = None
        self.locks: Locks | None = None
        """Where they go to the layers; else they stay with the kernel."""
        self.serves_open = serves_open
        self.serves_opendir = serves_opendir
        self.kernel_strips_set_gid = False  # until INIT tells
        self.credentials = Credentials(uids, gids, acts_for_itself=tree.layered)
        if tree.override is not None:
            self.credentials.written_down = tree.override.act_for
        self.requests_tell_ids = True
        """All of them; else only those that create something (FUSE_ALLOW_IDMAP)."""
        self.scratch = scratch
        self.listings = Listings(_LISTED_NAMES)
        self.handles: dict[int, Any] = {}
        self.slow_until: dict[int, float] = {}
        """Devices whose writes wait at the moment, and until when (time.monotonic()) that is taken for granted."""
        self.last_handle = NOBODYS
        self.at_work: Counter[Inode] = Counter()
        """Files whose content workers are changing."""
        self.backings: Backings | None = None
        """What opens are passed on to by the kernel, if anything is."""
        self.all_written: Callable[[int], None] = lambda nodeid: None
        """Waits until nothing is being written natively to an inode any more. On a worker."""
        self.collected = Collected()
        self.times: Times | None = None
        """Where the kernel collects writes (FUSE_WRITEBACK_CACHE): sizes and times of files are its own then."""
        self.written = self.inodes.written
        self.disregard: Callable[[int, int, int], bool] = lambda fd, mount, device: True
        """Nothing is to be heard of what is done through the mount of a descriptor, by its id and its device; False
        where that cannot be. Where nothing is heard at all, there is nothing to be done for it."""
        self.executed: Counter[Inode] = Counter()
        """Open files that are being executed."""
        self.kept: dict[Any, None] = {}
        """The open files that hold a descriptor of their inode's, the one that was opened first in front."""
        self.open_files = alone(max(tree.descriptors()["bound"] // 2, 8))
        """How many hold a descriptor at all: callers may open more files than we may have descriptors."""
        self.just_found: dict[tuple[Inode, bytes], Inode | None] = {}
        """What `known_at` has found for the present request, in which nothing has been done since (ops.copyup)."""
        self.reports: dict[str, tuple[object, bytes]] = {}
        self.owner = os.geteuid()
        self.also_up: Callable[[Inode], None] = lambda inode: None
        """What to call when an inode has been copied up, for other mounts of the tree."""
        self.inside: Inside | None = None
        """The user namespace that the mount belongs to, where that is another's: nobody there, its root included, has a
        right beyond it."""
        self.inner_root: bytes | None = None
        """A name below the root that leads to the root itself, while one is wanted (mount.show_inner_root)."""
        self.interrupted: set[int] = set()
        """Requests whose caller has got a signal; copies on a caller's behalf look for it."""
        self.when_interrupted: dict[int, Callable[[], None]] = {}
        """What to call then, for requests that wait for more than a worker."""
        self.let_go: set[int] = set()
        """Those whose caller has been killed, and whose calls have not ended yet."""
        self.aside = aside
        self.notify = notify
        self.tell = tell
        self.is_telling = is_telling
        self.is_telling_anything = is_telling_anything
        self.detach = detach
        self.recycle = recycle
        self.watch = watch
        self.report = report

    def _trust(self, timeout: float) -> None:
        """For how long the kernel may trust what nobody follows."""
        seconds = int(timeout)
        self.timeout = (seconds, int((timeout - seconds) * 1e9))
        self._absent = replies.entry(0, 0, self.timeout, (0, 0), (0,) * 16)
        self._absent_for_now = replies.entry(0, 0, FOREVER, (0, 0), (0,) * 16)

    def serve_locks(self, locks: Locks) -> None:
        """Locks go to the layers. Whoever gets one must see all that was done under the one before (`ops.locks`); where
        nobody tells us, the kernel trusts nothing."""
        self.locks = locks
        self._trust(0.0)

    def _shown(self, attributes: Attributes) -> tuple[int, ...]:
        """With the mount's st_ino, and shown ids."""
        a = attributes
        return (
            self.tree.numbers(a), a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10],
            self.uids.shown[a[11]], self.gids.shown[a[12]], a[13], a[14], 0,
        )  # fmt: skip

    def _shown_without_link_counts(self, attributes: Attributes) -> tuple[int, ...]:
        """The same, with one link for each directory."""
        fields = self._shown(attributes)
        return (*fields[:10], 1, *fields[11:]) if attributes.mode >> 12 == _DIRECTORY and fields[10] else fields

    def adopt(self, parent: Inode, name: bytes, key: RealKey, attributes: Attributes, place: Any) -> bytes:
        """The entry reply for an inode found at `name`: from here on the kernel holds one reference more."""
        inode = self.inodes.known(key)
        if inode is None:
            inode = self.inodes.add(key, self.tree.entry(parent.entry, name, key, place))
            if self.live is not None and (key[3] & 0xF == _DIRECTORY or attributes.nlink > 1):
                attributes = self.live.added(inode, attributes)
        else:
            self.tree.found_at(inode.entry, parent.entry, name, place)
            if key[3] & 0xF == _DIRECTORY:
                self.check_listing(inode)
            if self.live is not None:
                if inode.watch is not None:
                    self.live.seen_again(inode)
                elif attributes.nlink > 1:
                    attributes = self.live.added(inode, attributes)
        inode.nlookup += 1
        if self.inside is not None:
            self.note_owner(inode, attributes)
        live, watch = self.live, parent.watch
        if live is None or watch is None:
            return replies.entry(inode.nodeid, 0, self.timeout, self.timeout, self.shown(attributes))
        self.inodes.tell(parent, name, inode)
        live.told(parent, name, inode)
        is_told = watch.steady and not (key[3] & 0xF == _DIRECTORY and self.tree.may_change_unheard(inode.entry))
        names = FOREVER if is_told else self.timeout
        return replies.entry(inode.nodeid, 0, names, self.valid(inode), self.shown(attributes))

    def adopt_directory(self, parent: Inode, name: bytes, key: RealKey, above: Any) -> bytes | None:
        """The same for a directory that nothing is special about, in one that is followed, and not known so far: it has
        been found natively in `above`, a part of that. None if its attributes are still as they were found then, and
        are to be trusted for ever."""
        entry = above.entry_of(parent.entry, name, key)
        self.tree.note_directory(entry)
        inode = self.inodes.add(key, entry)
        live = self.live
        may_have_changed = live is None or live.watch(inode)
        self.inodes.tell(parent, name, inode)
        valid, reply = self.valid(inode), None
        if valid != FOREVER or may_have_changed:
            reply = replies.entry(inode.nodeid, 0, FOREVER, valid, self.shown(self.tree.attributes(entry)))
        inode.nlookup += 1
        return reply

    def check_listing(self, inode: Inode) -> None:
        """Where nobody tells us of changes: the kernel keeps a directory's listing as long as its times stay, and those
        of a merged one are its topmost part's."""
        if (inode.watch is None or not inode.watch.steady) and self.tree.listing_changed(inode.entry):
            self.notify(notices.inval_inode(inode.nodeid, 0, 0))

    def check_links(self, inode: Inode, attributes: Attributes) -> None:
        """A file that has got one more name may be changed by it where nobody is listening: it is watched itself."""
        if attributes.nlink > 1 and inode.watch is None and self.live is not None and not inode.is_directory:
            self.live.added(inode, attributes)

    def valid(self, inode: Inode) -> tuple[int, int]:
        """For how long the kernel may trust the attributes of an inode: for ever, if we hear of changes. Who writes
        through a mapping of the layer's own file, tells nobody."""
        if self.written and inode in self.written:
            return _NOT_AT_ALL
        watch = inode.watch
        if watch is None and inode.parent is not None:
            watch = inode.parent.watch
        return FOREVER if watch is not None and watch.steady else self.timeout

    def absent_in(self, parent: Inode) -> bytes:
        """The reply for a name that is not there."""
        return self._absent_for_now if parent.watch is not None and parent.watch.steady else self._absent

    def is_up_now(self, inode: Inode) -> None:
        """An inode has been copied up."""
        if self.live is not None:
            self.live.is_up_now(inode)
        self.also_up(inode)

    def made(
        self, parent: Inode, name: bytes, mode: int, number: int | None = None
    ) -> tuple[RealKey, Attributes, Any]:
        """What has just been made at `name`, of a type and perhaps with an inode number in its layer, to be adopted.

        ESTALE where something else is there by now, or nothing, by somebody behind the mount: the kernel would give the
        caller what he may have no right to, or where it is of another type, EIO, and never forget it (fs/fuse/dir.c,
        create_new_entry). So it looks anew.
        """
        try:
            key, attributes, place = self.tree.lookup(parent.entry, name)
        except FileNotFoundError:
            raise stale() from None
        if (attributes.mode ^ mode) & _TYPE or number not in (None, attributes.ino):
            raise stale()
        return key, attributes, place

    def known_at(self, parent: Inode, name: bytes) -> Inode | None:
        """The inode at a name, if there is one and the kernel knows it."""
        place = (parent, name)
        if place in self.just_found:
            return self.just_found[place]
        try:
            return self.inodes.known(self.tree.lookup(parent.entry, name)[0])
        except FileNotFoundError:
            return None

    def _entry_of(self, key: RealKey) -> Any | None:
        inode = self.inodes.known(key)
        return inode and inode.entry

    def caller(self, header: Header) -> tuple[int, int]:
        """The shown uid and gid of whoever asks, also where the request does not tell. Who is not known is nobody."""
        if header.uid != INVALID_ID or self.requests_tell_ids:
            return header.uid, header.gid
        return process.filesystem_ids(header.pid) or (INVALID_ID, INVALID_ID)

    def stopped(self, unique: int) -> Callable[[], bool]:
        """Does nobody wait any more for what is done on behalf of a request? Any thread may ask."""
        return lambda: unique in self.let_go

    @contextmanager
    def working_on(self, inode: Inode) -> Iterator[None]:
        """A worker changes its content meanwhile."""
        self.at_work[inode] += 1
        try:
            yield
        finally:
            self.at_work[inode] -= 1
            if not self.at_work[inode]:
                del self.at_work[inode]

    def to_change(self, nodeid: int) -> Inode:
        """The inode of a request that changes it. EROFS where that is the host's own state (cgroupfs, procfs) and the
        caller's ids are shifted: it would be changed with our rights, and nobody here is the host's root."""
        inode = self.inodes.get(nodeid)
        if self.credentials.shifts and self.tree.is_made_up(inode.entry):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return inode

    def ids_inside(self, attributes: Attributes) -> tuple[int, int]:
        """Owner and group as shown; UNMAPPED for whom there is no id in the mount's user namespace either."""
        uid, gid = self.uids.shown[attributes.uid], self.gids.shown[attributes.gid]
        if self.inside is not None:
            # The kernel lets its root give away what is nobody's there, if both ids are given (fs/attr.c, chown_ok).
            uid = UNMAPPED if self.inside.uids.real[uid] == UNMAPPED else uid
            gid = UNMAPPED if self.inside.gids.real[gid] == UNMAPPED else gid
        return uid, gid

    def note_owner(self, inode: Inode, attributes: Attributes) -> None:
        """Is it somebody's who is not inside?"""
        if UNMAPPED in self.ids_inside(attributes):
            self.inodes.outsiders.add(inode.nodeid)
        else:
            self.inodes.outsiders.discard(inode.nodeid)

    def refuse_unmapped_owner(self, attributes: Attributes) -> None:
        """Nobody may change the owner, mode or flags of what an unmapped id owns: EPERM."""
        if UNMAPPED in self.ids_inside(attributes):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def stale() -> OSError:
    """The error that makes the kernel look a path up anew (namei.c, LOOKUP_REVAL)."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def not_supported(number: int = errno.ENOSYS) -> OSError:
    """The error that makes the kernel do without an operation."""
    return OSError(number, os.strerror(number))


def without_set_ids(mode: int) -> int | None:
    """The mode after a write by somebody without CAP_FSETID (kernel setattr_should_drop_suidgid); None if the same."""
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        kept &= ~stat.S_ISGID
    return kept if kept != mode else None
