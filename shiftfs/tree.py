"""What a tree is to the rest: its values, and the protocol that a source tree and an overlay both implement.

A tree knows real ids and real inodes only; it has never heard of nodeids, of shown ids or of the wire. Declarations
alone; all methods run on the loop thread unless they say otherwise.
"""

import enum
from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple, Protocol

RealKey = tuple[int, int, int, int]
"""What makes a real inode itself: device, inode number, birth time in nanoseconds (0 where the filesystem has none),
and its S_IFMT type, for directories with the mount's id above it: a directory bound in two places is two directories.

A plain tuple, since one is made for each lookup. The birth time tells a reused inode number from the old inode.
"""


class Attributes(NamedTuple):
    """One inode's attributes with real ids; the first sixteen are in struct fuse_attr's order (times in seconds and
    nanoseconds, blocks of 512 bytes, rdev as the kernel's new_encode_dev has it)."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int
    btime: int
    btimensec: int
    has_btime: bool
    statx_attributes: int
    statx_attributes_mask: int
    device: int


class Change(NamedTuple):
    """What a setattr asks for, in real ids; None leaves a value as it is. Times are (seconds, nanoseconds), where
    the nanoseconds may be UTIME_NOW or UTIME_OMIT."""

    mode: int | None
    uid: int | None
    gid: int | None
    atime: tuple[int, int] | None
    mtime: tuple[int, int] | None


class Descriptor:
    """A file descriptor that closes when the last holder lets go of it.

    So a cache may drop one while a worker still reads through it, and no number is ever reused under anybody.
    """

    __slots__ = ("_close", "fd", "writable")

    def __init__(self, fd: int, close: Callable[[int], object], writable: bool = False) -> None:
        self.fd = fd
        self.writable = writable
        self._close = close

    def __del__(self) -> None:
        self._close(self.fd)


Work = Callable[[], Any]
"""A call for a worker."""


class Gate:
    """What holds requests up until one of them has done something for all. Loop thread."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def wait(self, resume: Callable[[], None]) -> None:
        """Call `resume` once the gate is open."""
        self._waiting.append(resume)

    def open(self) -> None:
        """Let all go on that wait; whoever comes later has nothing to wait for."""
        waiting, self._waiting = self._waiting, []
        for resume in waiting:
            resume()


Steps = Generator[Work | Gate, Any, None]
"""Something that takes long: it yields calls for a worker, whose results it is sent, and gates to wait at."""


class Space(NamedTuple):
    """statfs(2) of the tree, in struct fuse_kstatfs's order."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


class LockFile(NamedTuple):
    """A real file on which an inode's locks are held as well. `role` is its layer's: source, upper or lower. A lower
    may be other mounts' too, and none of them writes it."""

    key: RealKey
    path: Descriptor
    role: str


class Listed(NamedTuple):
    """One name of a directory: its st_ino on the mount (0 if it has to be looked up) and DT_ type (0 if unknown)."""

    name: bytes
    number: int
    kind: int


class Contributor(NamedTuple):
    """A real inode that an inode is made of. `place` says where it is to be watched: a directory's descriptor and a
    name beneath it, or its own descriptor and an empty name; valid until the tree's next call. ESTALE if it is not to
    be found any more."""

    layer: int
    key: RealKey
    place: Callable[[], tuple[int, bytes]]

    @property
    def device(self) -> int:
        """Of the filesystem that it lies on."""
        return self.key[0]


class Shown(enum.IntEnum):
    """What of a change in one layer is to be seen on the mount."""

    HIDDEN = 0
    MERGED = 1
    """A layer above has the inode; this one contributes what lies below it, or its content."""
    TOP = 2
    """What the layer has there is what shows."""


class View(NamedTuple):
    """What a mount of a tree leaves out, though the layers have it: link counts of directories (`static_nlink`), ACLs,
    all extended attributes."""

    link_counts: bool = True
    acls: bool = True
    xattrs: bool = True


WHOLE: Final = View()


class Owners(Protocol):
    """Owners and modes that are written down beside files, which have none of their own."""

    def act_for(self, uid: int, gid: int, umask: int) -> None:
        """What is created from now on belongs to these real ids."""

    def content_changed(self, fd: int) -> None:
        """Take a capability away that is written down, too: the inode behind `fd` has another content."""


class Names(NamedTuple):
    """What is to be told of changes of names of files with one name, of which one layer alone has anything, or of the
    names: the upper, as a rule.

    `has_moved`: it has been renamed, in that directory, to that name. `has_gone`: its name has been removed, which was
    the last if that is said. It takes over an O_PATH descriptor of the file, and says whether it has no name left, as
    Tree.unlink. Those that have none are in `pinned`, while the kernel knows them; there may be `most_pinned`.
    `whiteout`: a directory that stays open and a name in it, which is linked to in the place of the only name of one of
    a lower; and what is to be told of that then, and says the same. None where whiteouts are no devices."""

    has_moved: Callable[[Any, Any, bytes], None]
    has_gone: Callable[[Any, int, bool], bool]
    whiteout: tuple[int, bytes, Callable[[Any], bool]] | None
    pinned: set[Any]
    most_pinned: int


class PlainCopies(NamedTuple):
    """What brings up a small file of which nothing is special. It is made in `work`; `attribute` is what its origin is
    written to, by a file handle on one of the lower layers' filesystems: their `uuids`, from the first layer below the
    upper on, None where that is not enough. `nobody`: the ids, if any, that stand for others'; `syncs`: its content is
    on disk before it has a name. `on_copy` is told of it before that, and `came_up`, with its key, afterwards; that
    takes over its descriptor, open for writing, unless that is -1."""

    work: Descriptor
    attribute: bytes
    uuids: tuple[bytes | None, ...]
    nobody: tuple[int, int] | None
    syncs: bool
    on_copy: Callable[[Any, int], None]
    came_up: Callable[[Any, RealKey, int], None]


class Plain(NamedTuple):
    """What is to be known of a tree to find most of its names natively: how much is added to the inode numbers of some
    `devices`, which layers are lower ones, which upper inodes have come from others though nothing on them says so
    (`came_from`), and which real directories are parts of known ones (`made_of`; None where only whole ones are).
    `names`: what changes names, None where nothing does. `writers`: when each was written to last (time.monotonic()) of
    what is open for that; `keep` makes a descriptor, opened with `noatime` if that is allowed, a real inode's own,
    which may say that it is open for writing. `open` makes an O_PATH descriptor a real inode's own, and opens it
    where that is -1. `drops`: directories of the upper may not show. `copies`: how files come up, None where none does
    that way."""

    devices: list[tuple[int, int]]
    first_lower: int
    last_layer: int
    came_from: Any
    made_of: dict[RealKey, Any] | None
    names: Names | None
    writers: dict[Any, float]
    keep: Callable[[Any, int, bool], Descriptor]
    open: Callable[[Any, int], Descriptor]
    noatime: int
    noatime_of_directories: int
    drops: bool
    copies: PlainCopies | None


class Tree(Protocol):
    """A tree of files, behind entries that only the tree itself looks into.

    An entry stands for one inode while the kernel knows it. Each method raises OSError with the errno that the
    caller on the mount is to see; ESTALE where an entry's inode can no longer be found.
    """

    @property
    def root(self) -> Any:
        """The entry of the root directory."""

    @property
    def view(self) -> View:
        """What is to be left out on each mount of it."""

    @property
    def override(self) -> Owners | None:
        """Where changes go, if the files themselves are not to have owners and modes."""

    def root_attributes(self) -> tuple[RealKey, Attributes]:
        """Key and attributes of the root directory."""

    def lookup(self, directory: Any, name: bytes) -> tuple[RealKey, Attributes, Any]:
        """Key and attributes of one name, and where the tree has found it. ENOENT if there is none."""

    def entry(self, directory: Any, name: bytes, key: RealKey, place: Any) -> Any:
        """A new entry for an inode just found at `name`; `place` is what `lookup` gave."""

    def found_at(self, entry: Any, directory: Any, name: bytes, place: Any) -> None:
        """A known inode has been seen under this name (a hard link, a rename behind the mount)."""

    def knows(self, entry_of: Callable[[RealKey], Any | None]) -> None:
        """How the tree is to ask for the entry of an inode that the kernel knows."""

    def plain(self) -> Plain | None:
        """How a name that nothing is special about is looked up; None if all are special. An entry's parts say by
        themselves how an entry is made of one beneath them (`entry_of`)."""

    def note_directory(self, entry: Any) -> None:
        """A directory that nothing is special about has been found natively, and has an entry now."""

    def release(self, entry: Any) -> None:
        """The kernel has forgotten the inode: let go of its descriptors."""

    def attributes(self, entry: Any) -> Attributes: ...

    def numbers(self, attributes: Attributes) -> int:
        """The st_ino that the mount shows."""

    def held(self, entry: Any) -> Any:
        """What `listing` needs of a directory."""

    def listing(self, held: Any) -> list[Listed]:
        """All names of the directory that `held` was given for, but `.` and `..`. May run on a worker."""

    def plain_parts(self, held: Any) -> tuple[list[tuple[int, int, int]], bool, int] | None:
        """How to make the same listing natively (native.rows): the descriptors of the directories, top first, what is
        added to the numbers in each, and whether its listing tells those of all names (2), of files (1), or of none; if
        names may be hidden; and O_NOATIME or 0. None where that does not do. Any thread."""

    def parent_number(self, entry: Any) -> int:
        """The st_ino of a directory's parent; the root's own for the root."""

    def readlink(self, entry: Any) -> bytes: ...

    def path(self, entry: Any) -> Descriptor:
        """An O_PATH descriptor of the very inode."""

    def content(self, entry: Any) -> Descriptor:
        """An O_PATH descriptor of the inode that has a file's content."""

    @property
    def layered(self) -> bool:
        """May an inode have to be copied up before it can be changed?"""

    @property
    def volatile(self) -> bool:
        """Is nothing of this worth waiting for a disk?"""

    def is_up(self, entry: Any, metadata_only: bool = False, name_only: bool = False) -> bool:
        """Can the inode be changed where it is: all of it, its metadata alone, or no more than its names?"""

    def copy_up(
        self, entry: Any, size: int | None, metadata_only: bool, stopped: Callable[[], bool], name_only: bool = False
    ) -> Steps:
        """Bring an inode to where it can be changed: with `size` bytes of its content, all of it for None, or none of
        it if a change of `metadata_only` does with that. Quickly, if it is for `name_only`: content may then follow
        (`unfinished`). Ends early, with EINTR, once `stopped`."""

    def on_copy(self, call: Callable[[Any, int], None]) -> None:
        """Call this for each regular file that comes up, with its entry and a descriptor of the new one, before that
        has a name."""

    def unfinished(self) -> list[Steps]:
        """What is to be gone on with, though nobody waits for it; each is told once."""

    def counts_names(self, entry: Any) -> bool:
        """Must the inode be up before one of its names goes, for the others to know how many they are?"""

    def may_remove(self, entry: Any) -> None:
        """EPERM for what its layer lets nobody remove, before anything is done for it."""

    def may_rename(self, entry: Any) -> None:
        """EXDEV for what cannot be renamed, before anything is done for it."""

    def progress(self) -> list[dict[str, object]]:
        """The copies that have been under way for more than a second, for `status`."""

    def path_of(self, entry: Any) -> bytes:
        """The path on the mount by which an inode was last seen, for messages."""

    def lock_files(self, entry: Any) -> list[LockFile]:
        """The real files that have a file's locks: what it was copied up from first, if that can be found."""

    def stays(self, entry: Any) -> bool:
        """Does the file that has an inode's content stay the one that has it, whatever is done on the mount, and is it
        reached through a copy of its mount that nobody else uses?"""

    def may_change_unheard(self, entry: Any) -> bool:
        """May a directory come to be made of others, or lose some, without anything that is watched telling?"""

    def may_block(self, entry: Any) -> bool:
        """Does the file's content lie beyond a network or another process?"""

    def is_made_up(self, entry: Any) -> bool:
        """Is the content made when the file is opened, so that nothing is shared and nothing can be truncated?"""

    def data(self, entry: Any, writable: bool) -> Descriptor:
        """A descriptor for reading, or reading and writing, a regular file; shared by all who use the inode.

        BlockingIOError where a lease on the layer would have to be broken first, or where the file `may_block`: then
        `open_waiting` on a worker; and for writing where it is not up.
        """

    def open_waiting(self, held: Descriptor, flags: int) -> Descriptor:
        """Open again what `held` names, with open(2)'s flags. May block; any thread."""

    def open_anew(self, entry: Any) -> None:
        """Somebody opens the file. Where a file replaced beyond a network passes for the one before it, the data
        descriptor is not to be the one before either."""

    def keep_data(self, entry: Any, data: Descriptor) -> None:
        """What `open_waiting` opened is the inode's data descriptor from now on."""

    def mknod(self, directory: Any, name: bytes, mode: int, rdev: int) -> None: ...

    def mkdir(self, directory: Any, name: bytes, mode: int) -> None: ...

    def symlink(self, directory: Any, name: bytes, target: bytes) -> None: ...

    def link(self, entry: Any, directory: Any, name: bytes) -> None: ...

    def create(self, directory: Any, name: bytes, mode: int) -> Descriptor:
        """A new regular file, open for reading and writing. EEXIST if there is anything of that name."""

    def tmpfile(self, directory: Any, mode: int) -> tuple[RealKey, Attributes, Any]:
        """An unnamed regular file: its key, attributes and entry."""

    def unlink(self, directory: Any, name: bytes, known: Any | None) -> bool:
        """Remove a name; `known` is the entry of its inode where the kernel knows it. True if that was its last."""

    def rmdir(self, directory: Any, name: bytes, known: Any | None) -> None: ...

    def rename(
        self, directory: Any, name: bytes, to: Any, new_name: bytes, flags: int, moved: Any | None, replaced: Any | None
    ) -> bool:
        """renameat2(2); True if the inode replaced has lost its last name."""

    def change(self, entry: Any, change: Change) -> None: ...

    def getxattr(self, entry: Any, name: bytes) -> bytes: ...

    def listxattr(self, entry: Any) -> list[bytes]: ...

    def setxattr(self, entry: Any, name: bytes, value: bytes, flags: int) -> None: ...

    def removexattr(self, entry: Any, name: bytes) -> None: ...

    def space(self, entry: Any) -> Space: ...

    def sync(self) -> None:
        """syncfs(2) on every filesystem written to. On a worker."""

    def tidy(self, now: float) -> bool:
        """Close what has been idle; True if there is more to close later. `now` is time.monotonic()."""

    # What changes in the layers, behind the mount, have to do with the tree. These raise nothing unless they say so.

    def contributors(self, entry: Any) -> tuple[Contributor, ...]:
        """All real inodes that make up an inode, top first: those of a directory that are merged; of a file what it
        is, and what has its content if that is another."""

    def tells_changes(self, contributor: Contributor) -> bool:
        """Does its filesystem tell of all that changes in it? Those of other machines and processes do not, nor do
        those whose files are made up."""

    def keys_of(self, handle: bytes) -> list[RealKey]:
        """The real inodes that a file handle leads to, one in each layer that it may be of."""

    def found_by(self, entry: Any, handle: bytes) -> bool:
        """Where no known name leads to an inode any more: does this file handle? If so it does from now on."""

    def note_handle(self, entry: Any, handle: bytes) -> None:
        """A file handle of an inode that has left the name it was known by, for those who are at it still."""

    def came_from(self, directory: Any, place: Any) -> RealKey:
        """The real directory that has what `lookup` found in a directory."""

    def hidden(self, directory: Any, layer: int, name: bytes) -> Shown:
        """How much of what a layer has, or had, at a name of a directory shows; with an empty name, how much of its
        part of the directory itself does. Where that cannot be told, MERGED: look the name up."""

    def covered(self, directory: Any, layer: int, name: bytes) -> int:
        """The type (S_IFMT) of what the layers below would show at the name if this one had nothing there, no whiteout
        either; 0 for nothing."""

    def concerns(self, name: bytes) -> bytes | None:
        """The name of the mount that a layer's name in the same directory is about: as a rule that name itself, but
        names that are never shown may be about another; empty for the directory itself, None for nothing at all."""

    def refresh_root(self) -> None:
        """Look again for what the layers have written on their root directories. Any OSError."""

    def lists_anew(self, entry: Any) -> bool:
        """Must a directory be listed anew each time? The times of a pseudo-filesystem's directories, which FUSE
        filesystems may pass on, tell of no change."""

    def listing_changed(self, entry: Any) -> bool:
        """Has a directory changed since it was last listed, other than by its own times, which the kernel knows? Told
        once."""

    # And now and then:

    def chores(self) -> list[Work]:
        """What is left to be done by a worker, for which nobody waits; each is told once."""

    def descriptors(self) -> dict[str, int]:
        """How many descriptors are held for what, for `status`."""

    def describe(self) -> list[dict[str, object]]:
        """The layers, for `status`."""

    def is_pseudo(self, fd: int) -> bool:
        """Does the file lie on a filesystem whose sizes lie, as procfs and cgroupfs do?"""
