"""A tree over several layers: implements shiftfs.tree.Tree. Glue only; what it does is in the modules beside it.

Owns entries, and nothing else of its own. Loop thread, but for what tree.Tree says of workers.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from shiftfs import layer as real
from shiftfs.descriptors import is_directory, path_of
from shiftfs.layer import magic_link
from shiftfs.sys import files
from shiftfs.tree import (
    WHOLE,
    Attributes,
    Change,
    Descriptor,
    Listed,
    LockFile,
    Names,
    Plain,
    RealKey,
    Space,
    Steps,
    View,
    Work,
)

from . import merge, metadata, xattrs
from .copyup import CopyUp
from .entry import Entry, Found, Real
from .identity import note_number
from .layers import Layers
from .lookup import Lookup
from .merge import Part
from .mutate import Mutation
from .numbers import Numbers
from .renaming import Renaming, keeps_redirects
from .stack import Stack
from .visible import Visible
from .workdir import WHITEOUT

_new = tuple.__new__
_MOST_LINKS: Final = 0xFFFFFFFF


class _Writing:
    """What there is only with an upper."""

    def __init__(self, layers: Layers, lookup: Lookup, redirect_dir: str, metacopy: bool, any_owner: bool) -> None:
        assert layers.work is not None
        self.work = layers.work
        self.copies = CopyUp(layers, lookup, self.work, metacopy, any_owner)
        self.names = Mutation(layers, lookup, self.work, self.copies)
        self.renaming = Renaming(
            layers, lookup, self.work, self.names, keeps_redirects(redirect_dir, metacopy, self.work)
        )
        held = layers.held[0]
        hides = (self.work.work.fd, WHITEOUT, self.names.is_hidden_natively)
        self.of_the_upper = Names(
            self.renaming.settle, self.names.has_gone_natively, hides if self.work.whiteouts == "device" else None,
            held.pinned, held.most_pinned,
        )  # fmt: skip

    def describe(self) -> dict[str, object]:
        """What is written on the upper, for `status`."""
        work = self.work
        return {
            "xattrs": os.fsdecode(work.prefix) or "none",
            "whiteouts": work.whiteouts,
            "index": work.index is not None,
            "tmpfile": work.has_tmpfile,
        }


class OverlayTree:
    """The union of some layers, shown as one tree."""

    layered = True

    def __init__(
        self, stack: Stack, bound: int, unlinked: int = 1024, *, redirect_dir: str = "auto", metacopy: bool = False,
        noatime: bool = True, nodiratime: bool = True, ghost: str = "keep", view: View = WHOLE, narrow: bool = False,
        any_owner: bool = False,
    ) -> None:  # fmt: skip
        """`bound` and `unlinked` as for SourceTree. `redirect_dir`: on, off, follow or nofollow, as the kernel's; auto.
        `ghost`: keep or drop directories of the upper whose lower ones have disappeared. `narrow`: inode numbers have
        32 bits. `any_owner`: who owns what is copied up is not seen, so it may be we."""
        self.view = view
        self._layers = layers = Layers(stack, bound, unlinked, noatime)
        self._top = stack.layers[0]
        self.override = self._top.override if stack.work else None
        self._lookup = Lookup(layers, follows=redirect_dir != "nofollow", drops=ghost == "drop")
        self._identities = self._lookup.identities
        self._visible = visible = Visible(layers, self._lookup)
        self.contributors, self.hidden, self.covered = visible.contributors, visible.hidden, visible.covered
        self.concerns, self.refresh_root = visible.concerns, layers.refresh_roots
        self.tells_changes, self.keys_of, self.came_from = visible.tells_changes, visible.keys_of, visible.came_from
        self.lists_anew, self.listing_changed = visible.lists_anew, visible.listing_changed
        self._writing = _Writing(layers, self._lookup, redirect_dir, metacopy, any_owner) if stack.work else None
        self._noatime = os.O_NOATIME if nodiratime else 0
        self._numbers = Numbers((one.device for one in stack.layers), narrow)
        self.volatile = stack.work is not None and stack.work.volatile
        if self._writing is not None:
            self._writing.names.sweep_index()
        lowers = tuple(layers.roots[1:] if stack.work else layers.roots)
        self.root = Entry(None, b"", lowers[0].key)
        self.root.upper = layers.roots[0] if stack.work else None
        self.root.lowers = lowers

    # --- what there is ---

    def knows(self, entry_of: Callable[[RealKey], Entry | None]) -> None:
        self._lookup.known = self._identities.known = entry_of

    def root_attributes(self) -> tuple[RealKey, Attributes]:
        return self.root.key, self.attributes(self.root)

    def lookup(self, directory: Entry, name: bytes) -> tuple[RealKey, Attributes, Found]:
        found = self._lookup.find(directory, name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        key, attributes, upper, lowers, links, _ = found
        is_own = attributes.ino == key[1] and attributes.device == key[0]
        if not is_own or links is not None or attributes.mode >> 12 == 4 or lowers:
            offset = links.offset if links is not None else 0
            attributes = self._shown(key, attributes, upper, lowers, offset)
        return key, attributes, found

    def _shown(
        self, key: RealKey, a: Attributes, upper: Real | None, lowers: tuple[Real, ...], offset: int
    ) -> Attributes:
        """As the kernel's overlayfs has it: the origin's number; directories that are merged have one link; a file
        whose content is elsewhere has the blocks of that."""
        nlink, blocks = a.nlink + offset, a.blocks
        if not 0 <= nlink <= _MOST_LINKS:  # others have changed the layers (kernel ovl_get_nlink)
            nlink = a.nlink
        if is_directory(key):
            if (upper is not None) + len(lowers) > 1:
                nlink = 1
        elif lowers and (upper is not None or len(lowers) > 1):
            blocks = self._layers.attributes(lowers[-1]).blocks
        return _new(Attributes, (key[1], a[1], blocks, *a[3:10], nlink, *a[11:21], key[0]))

    def entry(self, directory: Entry, name: bytes, key: RealKey, place: Found) -> Entry:
        made = Entry(directory, name, key)
        made.upper, made.lowers, made.links = place.upper, place.lowers, place.links
        made.redirected = place.redirected
        if is_directory(key):
            self._identities.add(made)
            note_number(made, directory)
        return made

    def found_at(self, entry: Entry, directory: Entry, name: bytes, place: Found) -> None:
        self._identities.found_at(entry, directory, name, place)

    def found_by(self, entry: Entry, handle: bytes) -> bool:
        return any(one.held.found_by(one, handle) for one in entry.reals)

    def note_handle(self, entry: Entry, handle: bytes) -> None:
        pass  # written to, it would come up at the name that it has left, over what is there now

    def plain(self) -> Plain | None:
        layers = self._layers
        if self.view != WHOLE or any(one.override for one in layers.layers) or not self._numbers.tells_all:
            return None
        devices = {one.device for one in layers.layers if one.device in one.plain_devices()}
        addends = [(device, self._numbers.of(device, 0)) for device in devices]
        writing = self._writing
        names, copies = (writing.of_the_upper, writing.copies.plain()) if writing is not None else (None, None)
        held = layers.held[0]  # what is opened in any layer is bounded together
        return Plain(
            addends, layers.first_lower, len(layers.layers) - 1, self._lookup.came_from, self._identities.by_part,
            names, held.writers, held.opened, _opened, held.noatime,
            self._noatime, self._lookup.drops, copies,
        )  # fmt: skip

    def note_directory(self, entry: Entry) -> None:
        self._identities.add(entry)

    def release(self, entry: Entry) -> None:
        if is_directory(entry.key):
            self._identities.remove(entry)
        for one in entry.reals:
            one.held.release(one)

    def attributes(self, entry: Entry) -> Attributes:
        a = self._layers.attributes_of(entry.reals) if is_directory(entry.key) else self._layers.attributes(entry.top)
        if entry.removed:
            a = _new(Attributes, (*a[:10], 0, *a[11:]))
        elif entry.links is None and a.ino == entry.key[1] and a.device == entry.key[0] and not entry.lowers:
            return a
        offset = entry.links.offset if entry.links is not None and not entry.removed else 0
        shown = self._shown(entry.key, a, entry.upper, entry.lowers, offset)
        return _new(Attributes, (*shown[:10], 0, *shown[11:])) if entry.removed else shown

    def numbers(self, attributes: Attributes) -> int:
        return self._numbers.of(attributes.device, attributes.ino)

    def parent_number(self, entry: Entry) -> int:
        key = (entry.parent or entry).key
        return self._numbers.of(key[0], key[1])

    def held(self, entry: Entry) -> tuple[Part, ...]:
        self._visible.lists(entry)
        return merge.parts(entry, self._lookup.drops)

    def listing(self, held: tuple[Part, ...]) -> list[Listed]:
        number = self._numbers.of
        return [
            Listed(name, number(device, own) if own else 0, kind)
            for name, device, own, kind in merge.merged(held, self._noatime)
        ]

    def plain_parts(self, held: tuple[Part, ...]) -> tuple[list[tuple[int, int, int]], bool, int] | None:
        if not self._numbers.tells_all or any(part.is_marked or not part.tells_kinds for part in held):
            return None
        number = self._numbers.of
        return [(part.held.fd, number(part.device, 0), part.tells_numbers) for part in held], True, self._noatime

    def readlink(self, entry: Entry) -> bytes:
        return os.readlink(b"", dir_fd=entry.top.fd)

    def path(self, entry: Entry) -> Descriptor:
        top = entry.top
        return top.held.path(top)

    def content(self, entry: Entry) -> Descriptor:
        one = self._content(entry)
        return one.held.path(one)

    def _content(self, entry: Entry) -> Real:
        return entry.lowers[-1] if entry.lowers and not is_directory(entry.key) else entry.top

    def path_of(self, entry: Entry) -> bytes:
        return path_of(entry)

    def lock_files(self, entry: Entry) -> list[LockFile]:
        found = []
        if entry.lowers:
            lower = entry.lowers[0]
            found.append(LockFile(lower.key, lower.held.path(lower), "lower"))
        elif entry.upper is not None and entry.upper.key != entry.key:
            origin = self._lookup.origins.open(self._layers.private(entry.upper), entry.key) or self._covered(entry)
            if origin is not None:
                found.append(LockFile(entry.key, origin, "lower"))
        if entry.upper is not None:
            found.append(LockFile(entry.upper.key, entry.upper.held.path(entry.upper), "upper"))
        return found

    def _covered(self, entry: Entry) -> Descriptor | None:
        """What an inode has come up from, where handles do not lead to it: if it is still at its name."""
        for directory in entry.parent.lowers if entry.parent is not None else ():
            found = self._layers.find(directory, entry.name)
            if found is not None and found[0] == entry.key:
                return directory.held.path(directory.child(entry.name, entry.key))
        return None

    def on_copy(self, call: Callable[[Entry, int], None]) -> None:
        if self._writing is not None:
            self._writing.copies.on_copy = call

    def stays(self, entry: Entry) -> bool:
        is_private = self._layers.layers[self._content(entry).layer].private
        return is_private and (self._writing is None or self._writing.copies.is_up(entry, False))

    def may_change_unheard(self, entry: Entry) -> bool:
        return entry.redirected

    def may_block(self, entry: Entry) -> bool:
        one = self._content(entry)
        return one.key[0] in self._layers.layers[one.layer].remote

    def is_made_up(self, entry: Entry) -> bool:
        one = self._content(entry)
        return one.key[0] in self._layers.layers[one.layer].pseudo

    def data(self, entry: Entry, writable: bool) -> Descriptor:
        if writable and not self.is_up(entry):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        one = self._content(entry)
        return one.held.data(one, writable)

    def open_waiting(self, held: Descriptor, flags: int) -> Descriptor:
        return Descriptor(real.reopen(held.fd, flags), os.close, flags & os.O_ACCMODE != os.O_RDONLY)

    def open_anew(self, entry: Entry) -> None:
        one = self._content(entry)
        if self.may_block(entry) and one.data is not None and not one.data.writable:
            one.held.drop_data(one)

    def keep_data(self, entry: Entry, data: Descriptor) -> None:
        one = self._content(entry)
        if self._layers.layers[one.layer].look(data.fd, b"")[0] == one.key:  # else it was copied up meanwhile
            one.held.keep_data(one, data)

    def getxattr(self, entry: Entry, name: bytes) -> bytes:
        top = entry.top
        return os.getxattr(magic_link(top.fd), xattrs.sought(self._layers.layers[top.layer].override, name))

    def listxattr(self, entry: Entry) -> list[bytes]:
        top = entry.top
        names = [os.fsencode(name) for name in os.listxattr(magic_link(top.fd))]
        return xattrs.listed(self._layers.layers[top.layer].override, names)

    def space(self, entry: Entry) -> Space:
        return real.space(self._layers.roots[0].fd)

    def is_pseudo(self, fd: int) -> bool:
        return real.is_pseudo(fd)

    # --- what is changed ---

    @property
    def _up(self) -> _Writing:
        if self._writing is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self._writing

    def _is_written_through(self, entry: Entry) -> bool:
        """Is it a file that the kernel makes up (cgroupfs)? A copy would be of no use: changes go to the lower."""
        if entry.upper is not None or is_directory(entry.key) or self._writing is None:
            return False
        return self.is_made_up(entry)

    def is_up(self, entry: Entry, metadata_only: bool = False, name_only: bool = False) -> bool:
        if self._is_written_through(entry):
            return not name_only
        return self._up.copies.is_up(entry, metadata_only, name_only)

    def copy_up(
        self, entry: Entry, size: int | None, metadata_only: bool, stopped: Callable[[], bool], name_only: bool = False
    ) -> Steps:
        if name_only:
            self.may_rename(entry)
        return self._up.copies.up(entry, size, metadata_only, stopped, name_only)

    def unfinished(self) -> list[Steps]:
        return self._writing.copies.unfinished() if self._writing is not None else []

    def progress(self) -> list[dict[str, object]]:
        return self._writing.copies.progress() if self._writing is not None else []

    def counts_names(self, entry: Entry) -> bool:
        """A lower inode with several names has to come up into the index before it loses one of them."""
        if entry.upper is not None or is_directory(entry.key) or self._layers.index is None:
            return False
        return not entry.removed and self._layers.attributes(entry.lowers[0]).nlink > 1

    def may_remove(self, entry: Entry) -> None:
        if entry.upper is None:  # the upper's own filesystem refuses by itself
            metadata.check_changeable(self._layers.attributes(entry.lowers[0]))

    def may_rename(self, entry: Entry) -> None:
        if self._is_written_through(entry):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        self._up.renaming.check(entry)

    def mknod(self, directory: Entry, name: bytes, mode: int, rdev: int) -> None:
        if stat.S_ISCHR(mode) and rdev == 0:  # it would be a whiteout
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._up.names.create(
            directory, name, lambda at, called: self._top.make_node(at, called, mode, rdev), mode, rdev
        )  # fmt: skip

    def mkdir(self, directory: Entry, name: bytes, mode: int) -> None:
        self._up.names.make_directory(directory, name, mode)

    def symlink(self, directory: Entry, name: bytes, target: bytes) -> None:
        self._up.names.create(directory, name, lambda at, called: os.symlink(target, called, dir_fd=at))

    def create(self, directory: Entry, name: bytes, mode: int) -> Descriptor:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC

        def make(at: int, called: bytes) -> Descriptor:
            return Descriptor(os.open(called, flags, self._top.mode_of_new(mode), dir_fd=at), os.close, writable=True)

        return self._up.names.create(directory, name, make, stat.S_IFREG | stat.S_IMODE(mode))

    def tmpfile(self, directory: Entry, mode: int) -> tuple[RealKey, Attributes, Entry]:
        upper = directory.upper
        if self._writing is None or upper is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        opened = Descriptor(os.open(b".", flags, self._top.mode_of_new(mode), dir_fd=upper.fd), os.close)
        self._top.born(
            opened.fd, b"", lambda: self._layers.attributes(upper), stat.S_IFREG | stat.S_IMODE(mode)
        )  # fmt: skip
        path = Descriptor(real.reopen(opened.fd, os.O_PATH), os.close)
        key, attributes = self._layers.layers[0].look(path.fd, b"")
        entry = Entry(directory, b"", key)
        entry.upper = Real(0, upper.held, None, b"", key)
        entry.removed = True
        upper.held.adopt_unnamed(entry.upper, path)
        return key, attributes, entry

    def link(self, entry: Entry, directory: Entry, name: bytes) -> None:
        self._up.names.link(entry, directory, name)

    def unlink(self, directory: Entry, name: bytes, known: Entry | None) -> bool:
        return self._up.names.unlink(directory, name, known)

    def rmdir(self, directory: Entry, name: bytes, known: Entry | None) -> None:
        up = self._up
        removed = known or self._at(directory, name)
        self._refuse_full(removed)
        up.names.rmdir(directory, name, removed)

    def rename(
        self, directory: Entry, name: bytes, to: Entry, new_name: bytes, flags: int, moved: Entry | None,
        replaced: Entry | None,
    ) -> bool:  # fmt: skip
        up = self._up
        if flags & files.RENAME_WHITEOUT:  # as the kernel's overlayfs: it would not show
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        is_up = moved is not None and self.is_up(moved, name_only=True) and self.is_up(directory) and self.is_up(to)
        if moved is None or not is_up:  # it has changed behind the mount just now
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        up.names.check_free(to, new_name, flags)
        if replaced is not None and not flags & files.RENAME_EXCHANGE:
            self._check_replaceable(moved, replaced)
        return up.renaming.rename(directory, name, to, new_name, flags, moved, replaced)

    def _check_replaceable(self, moved: Entry, replaced: Entry) -> None:
        if is_directory(moved.key) != is_directory(replaced.key):
            number = errno.EISDIR if is_directory(replaced.key) else errno.ENOTDIR
            raise OSError(number, os.strerror(number))
        if is_directory(replaced.key):
            self._refuse_full(replaced)

    def _refuse_full(self, directory: Entry) -> None:
        names = merge.merged(self.held(directory), 0)
        if self._lookup.drops:
            names = [one for one in names if one.number or self._lookup.find(directory, one.name) is not None]
        if names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    def _at(self, directory: Entry, name: bytes) -> Entry:
        key, _, found = self.lookup(directory, name)
        return self.entry(directory, name, key, found)

    def change(self, entry: Entry, change: Change) -> None:
        one = self._upper(entry)
        self._layers.layers[one.layer].change(one.fd, change)

    def setxattr(self, entry: Entry, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(magic_link(self._upper(entry).fd), xattrs.kept(self.override, name), value, flags)

    def removexattr(self, entry: Entry, name: bytes) -> None:
        os.removexattr(magic_link(self._upper(entry).fd), xattrs.sought(self.override, name))

    def _upper(self, entry: Entry) -> Real:
        """What may be changed. Never a lower (EROFS), but for what is written through."""
        if self._is_written_through(entry):
            return entry.lowers[0]
        if entry.upper is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return entry.upper

    def sync(self) -> None:
        files.syncfs(self._layers.layers[0].root.fd)

    # --- what it says of itself ---

    def tidy(self, now: float) -> bool:
        return self._layers.held[0].tidy(now)

    def chores(self) -> list[Work]:
        if self._writing is None:
            return []
        names = self._writing.names
        found, names.chores = names.chores, []
        return found

    def descriptors(self) -> dict[str, int]:
        return self._layers.held[0].count()

    def describe(self) -> list[dict[str, object]]:
        first_lower = 1 if self._writing is not None else 0
        return [
            {
                "path": os.fsdecode(one.path),
                "role": "upper" if index < first_lower else "lower",
                "private": one.private,
                "handles": one.opens_by_handle,
                **(self._writing.describe() if index < first_lower and self._writing is not None else {}),
            }
            for index, one in enumerate(self._layers.layers)
        ]


def _opened(real: Real, fd: int) -> Descriptor:
    return real.held.path_opened(real, fd)
