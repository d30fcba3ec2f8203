"""Copy-up: bringing an inode into the upper layer, whole or not at all.

Made in the work directory, where nobody looks, then published by one rename or link; parents first. Owns the copies
under way. Loop thread, but for contents (content.py).
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from shiftfs.descriptors import is_directory, path_of
from shiftfs.layer import Layer, magic_link
from shiftfs.sys import files
from shiftfs.tree import Attributes, Descriptor, Gate, PlainCopies, Steps

from . import metadata, natively, origin, xattrs
from .content import Copy
from .entry import Entry, Links, Real
from .layers import Layers
from .lookup import Lookup
from .workdir import WorkDirectory, remove

_REGULAR: Final = 8
_SYMLINK: Final = 10
_SMALL: Final = 128 * 1024
"""Bytes up to which content is copied on the loop where nothing has to reach the disk."""
_LONG: Final = 8 * 1024 * 1024
"""Bytes from which on a rename or a link does not wait for content."""
_SLOW: Final = 1.0


class CopyUp:
    """Of one mount. `metacopy`: metadata may come up without the content. `any_owner`: whoever owns a copy, it shows as
    the same."""

    def __init__(
        self, layers: Layers, lookup: Lookup, work: WorkDirectory, metacopy: bool, any_owner: bool = False
    ) -> None:  # fmt: skip
        self._layers = layers
        self._lookup = lookup
        self._work = work
        self._metacopy = metacopy and bool(work.prefix)
        self._any_owner = any_owner
        self._upper = layers.layers[0]
        self._ids = metadata.Ids()
        self._copies: dict[Copy, Entry] = {}
        self._unfinished: list[Entry] = []
        self.on_copy: Callable[[Entry, int], None] = lambda entry, made: None
        """Called with a file that has no name yet."""

    def is_up(self, entry: Entry, metadata_only: bool, name_only: bool = False) -> bool:
        """Can the inode be changed in the upper?"""
        if entry.upper is None:
            return False
        if name_only or is_directory(entry.key):
            return True
        return entry.gate is None and (metadata_only or not entry.lowers)

    def up(
        self, entry: Entry, size: int | None, metadata_only: bool, stopped: Callable[[], bool], name_only: bool = False
    ) -> Steps:
        """As tree.Tree.copy_up."""
        while not self.is_up(entry, metadata_only, name_only):
            if entry.gate is not None:
                yield entry.gate
                continue
            if not entry.removed:
                self._parents(entry)
            if is_directory(entry.key):
                self._directory(entry)
            elif entry.key[3] == _REGULAR and not self._is_made_special(entry.lowers):
                yield from self._regular(entry, size, metadata_only, stopped, name_only)
            else:
                self._special(entry)

    def plain(self) -> PlainCopies | None:
        """As tree.Plain.copies."""
        if self._metacopy or self._any_owner:
            return None
        told = natively.told(self._let_go)
        return natively.of(self._work, self._lookup, self._ids, lambda entry, made: self.on_copy(entry, made), told)

    def unfinished(self) -> list[Steps]:
        """As tree.Tree.unfinished: the content of files whose names were waited for."""
        entries, self._unfinished = self._unfinished, []
        return [self.up(entry, None, False, lambda entry=entry: entry.removed) for entry in entries]  # type: ignore[misc]

    def progress(self) -> list[dict[str, object]]:
        """As tree.Tree.progress."""
        now = time.monotonic()
        return [
            {
                "name": os.fsdecode(path_of(entry)),
                "bytes": copy.done,
                "of": copy.size,
                "seconds": round(now - copy.began, 1),
            }
            for copy, entry in self._copies.items()
            if now - copy.began > _SLOW
        ]

    def _parents(self, entry: Entry) -> None:
        missing = []
        above = entry.parent
        while above is not None and above.upper is None:
            missing.append(above)
            above = above.parent
        for directory in reversed(missing):
            self._directory(directory)

    # --- what is made in the work directory ---

    def _directory(self, entry: Entry) -> None:
        if entry.removed:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        lower = entry.lowers[0]
        attributes = self._changeable(lower)
        with self._temporary(lambda name, work: os.mkdir(name, 0o700, dir_fd=work)) as (name, made):
            self._copy_metadata(lower, made.fd, attributes)
            self._note_origin(entry, lower, made.fd)
            self._publish(entry, made, partial(self._move, name))
        self._lookup.identities.add(entry)

    def _special(self, entry: Entry) -> None:
        """A symlink, fifo, socket or device."""
        lower = entry.lowers[0]
        attributes = self._changeable(lower)
        with self._temporary(partial(_make_special, self._upper, lower, attributes)) as (name, made):
            self._copy_metadata(lower, made.fd, attributes)
            self._note_origin(entry, lower, made.fd, attributes.nlink)
            self._publish(entry, made, partial(self._move, name), attributes.nlink)
        self._let_go(entry)

    def _regular(
        self, entry: Entry, size: int | None, metadata_only: bool, stopped: Callable[[], bool], name_only: bool
    ) -> Steps:  # fmt: skip
        entry.gate = gate = Gate()
        try:
            if entry.upper is None:
                yield from self._file(entry, size, metadata_only and self._metacopy, stopped, name_only)
            else:
                yield from self._content_of(entry, entry.upper, size, stopped)
        finally:
            entry.gate = None
            gate.open()

    def _file(
        self, entry: Entry, size: int | None, without_content: bool, stopped: Callable[[], bool], name_only: bool
    ) -> Steps:  # fmt: skip
        lower = entry.lowers[0]
        attributes = self._changeable(lower)
        is_awaited = name_only and not without_content
        with self._unnamed() as (name, made):
            wanted = attributes.size if size is None else min(size, attributes.size)
            if is_awaited and wanted > _LONG and self._work.prefix:
                # The kernel holds a directory, and all who want new names in it, until this is done.
                source = entry.lowers[-1].held.path(entry.lowers[-1])
                if (yield partial(Copy(wanted, stopped).clone, source, made.fd)):
                    wanted = 0
                else:
                    without_content = True
            without_content = without_content and wanted > 0 and self._notes_content(entry, made.fd)
            if without_content:
                os.ftruncate(made.fd, attributes.size)
            elif wanted:
                yield from self._copied(entry, made, wanted, stopped)
            self._copy_metadata(lower, made.fd, attributes)
            self._note_origin(entry, lower, made.fd, attributes.nlink)
            publish = partial(self._link, made) if name is None else partial(self._move, name)
            self.on_copy(entry, made.fd)
            self._publish(entry, made, publish, attributes.nlink)
            if without_content and is_awaited:
                self._unfinished.append(entry)
            if not without_content:
                self._let_go(entry)
                if size is None and wanted and entry.upper is not None:
                    entry.upper.held.keep_data(entry.upper, made)

    def _content_of(self, entry: Entry, upper: Real, size: int | None, stopped: Callable[[], bool]) -> Steps:
        """Content for metadata that is up: until the mark goes, a reader takes the lower's."""
        before = self._layers.attributes(upper)
        wanted = before.size if size is None else min(size, before.size)
        made = upper.held.open(upper.held.path(upper), os.O_RDWR | os.O_NONBLOCK)
        capability = metadata.capability(made.fd)  # writing takes it away
        try:
            if wanted:
                yield from self._copied(entry, made, wanted, stopped)
            os.ftruncate(made.fd, before.size if size is None else size)
        except BaseException:
            os.ftruncate(made.fd, 0)
            os.ftruncate(made.fd, before.size)
            metadata.restore(made.fd, before, capability)
            raise
        metadata.restore(made.fd, before, capability)
        xattrs.drop(made.fd, self._work.prefix + xattrs.METACOPY)
        xattrs.drop(made.fd, self._work.prefix + xattrs.REDIRECT)  # which nobody looks for without the mark
        self._let_go(entry)
        upper.held.keep_data(upper, made)

    def _copied(self, entry: Entry, made: Descriptor, size: int, stopped: Callable[[], bool]) -> Steps:
        content = entry.lowers[-1]
        source = content.held.path(content)
        copy = Copy(size, stopped)
        if self._work.volatile and size <= _SMALL and not self._layers.layers[content.layer].remote:
            copy.run(source, made.fd, sync=False)
            return
        self._copies[copy] = entry
        try:
            yield partial(copy.run, source, made.fd, not self._work.volatile)
        finally:
            del self._copies[copy]

    def _is_made_special(self, lowers: tuple[Real, ...]) -> bool:
        """Does a regular file of a lower layer stand for a device, fifo or socket that the upper can have as such?"""
        if self._upper.override is not None or not lowers or self._layers.layers[lowers[0].layer].override is None:
            return False
        return not stat.S_ISREG(self._layers.attributes(lowers[0]).mode)

    def _copy_metadata(self, lower: Real, made: int, attributes: Attributes) -> None:
        of = self._layers.layers[lower.layer]
        metadata.copy(of, lower.fd, self._upper, made, attributes, self._any_owner)

    def _changeable(self, lower: Real) -> Attributes:
        attributes = self._layers.attributes(lower)
        metadata.check_changeable(attributes)
        if not self._any_owner and self._layers.layers[lower.layer].override is None:
            self._ids.check(lower.fd, attributes)
        return attributes

    @contextlib.contextmanager
    def _temporary(self, make: Callable[[bytes, int], None]) -> Iterator[tuple[bytes, Descriptor]]:
        """Something of a name of its own in the work directory; gone afterwards, unless it has been moved away."""
        work = self._work.work.fd
        name = self._work.temporary()
        make(name, work)
        try:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            yield name, Descriptor(os.open(name, flags, dir_fd=work), os.close)
        finally:
            remove(work, name)

    @contextlib.contextmanager
    def _unnamed(self) -> Iterator[tuple[bytes | None, Descriptor]]:
        """A regular file, without a name where the filesystem has such."""
        work = self._work.work.fd
        if self._work.has_tmpfile:
            fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=work)
            yield None, Descriptor(fd, os.close, writable=True)
            return
        name = self._work.temporary()
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            yield name, Descriptor(os.open(name, flags, 0o600, dir_fd=work), os.close, writable=True)
        finally:
            remove(work, name)

    # --- what is written down with it ---

    def _note_origin(self, entry: Entry, lower: Real, made: int, names: int = 1) -> None:
        """For the number and the index after a remount. Where the inode takes no such attributes (user.* on symlinks
        and devices) it is remembered as long as the mount lasts."""
        if names > 1 and self._layers.index is None:
            return  # its other names stay what they are, and theirs is the number
        if not self._work.prefix:
            self._remember_origin(entry, made)
            return
        layer = lower.layer - 1
        value = self._lookup.origins.encode(layer, lower.fd) or b""
        own = self._lookup.origins.encode_own(layer, entry.key)
        try:
            xattrs.put(made, self._work.prefix + xattrs.ORIGIN, value)
            if own is not None:
                xattrs.put(made, self._work.prefix + xattrs.OWN_ORIGIN, own)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP) or entry.key[3] == _REGULAR:
                raise
            self._remember_origin(entry, made)

    def _remember_origin(self, entry: Entry, made: int) -> None:
        self._lookup.came_from[self._layers.layers[0].look(made, b"")[0]] = entry.key

    def _notes_content(self, entry: Entry, made: int) -> bool:
        """Mark it as metadata alone, with the path that the lower layers know for the content, whatever the file will
        be called. False where that is too long to be written down."""
        try:
            xattrs.put(made, self._work.prefix + xattrs.REDIRECT, self._lookup.lower_path(entry))
        except OSError as error:
            if error.errno not in xattrs.TOO_LONG:
                raise
            return False
        xattrs.put(made, self._work.prefix + xattrs.METACOPY, b"")
        return True

    def note_impure(self, directory: Entry) -> None:
        """The directory has things that came from elsewhere: listings have to look for their numbers."""
        upper = directory.upper
        if upper is not None and not upper.is_impure:
            if self._work.prefix:
                xattrs.put(upper.fd, self._work.prefix + xattrs.IMPURE, b"y")
            upper.is_impure = True

    # --- and how it appears ---

    def _publish(self, entry: Entry, made: Descriptor, publish: Callable[[int, bytes], None], names: int = 1) -> None:
        layer = self._layers.layers[0]
        key = layer.look(made.fd, b"")[0]
        parent = entry.parent
        if entry.removed or parent is None or parent.upper is None:
            real = Real(0, self._layers.held[0], None, b"", key)
            path = Descriptor(os.open(magic_link(made.fd), os.O_PATH | os.O_CLOEXEC), os.close)
            real.held.adopt_unnamed(real, path)
            entry.upper = real
            return
        above = parent.upper
        before = self._layers.attributes(above)
        self.note_impure(parent)
        if names > 1 and self._layers.index is not None:
            entry.upper = self._publish_in_index(entry, made, publish, key, names)
        else:
            _once(publish, above.fd, entry.name)
            entry.upper = above.child(entry.name, key)
        metadata.copy_times(above.fd, before)

    def _publish_in_index(
        self, entry: Entry, made: Descriptor, publish: Callable[[int, bytes], None], key: tuple[int, int, int, int],
        names: int,
    ) -> Real:  # fmt: skip
        """One of several names of a lower inode: the others will find the upper one by the index."""
        index, lower = self._layers.index, entry.lowers[0]
        assert index is not None and lower.parent is not None
        name = self._lookup.origins.index_name(lower.layer - 1, lower.parent.fd, lower.name)
        if name is None:
            parent = entry.parent
            assert parent is not None and parent.upper is not None
            _once(publish, parent.upper.fd, entry.name)
            return parent.upper.child(entry.name, key)
        xattrs.put(made.fd, self._work.prefix + xattrs.NLINK, origin.relative_to_lower(names, names))
        _once(publish, index.fd, name)
        real = index.child(name, key)
        entry.upper = real
        entry.links = Links(names - 1)
        assert entry.parent is not None
        self.link_up(entry, entry.parent, entry.name)
        return real

    def link_up(self, entry: Entry, directory: Entry, name: bytes) -> None:
        """A further name of a lower inode leads to the upper one from now on; the mount's count stays."""
        upper, above = entry.upper, directory.upper
        assert upper is not None and above is not None and entry.links is not None
        count = self._layers.attributes(upper).nlink
        names = count + entry.links.offset
        mark = self._work.prefix + xattrs.NLINK
        lower = self._lookup.origins.link_count(self._layers.private(upper)) or names
        xattrs.put(upper.fd, mark, origin.relative_to_lower(names, lower))
        before = self._layers.attributes(above)
        os.link(magic_link(upper.fd), name, dst_dir_fd=above.fd, follow_symlinks=True)
        xattrs.put(upper.fd, mark, origin.relative_to_upper(names, count + 1))
        entry.links = Links(names - count - 1)
        metadata.copy_times(above.fd, before)

    def _link(self, made: Descriptor, directory: int, name: bytes) -> None:
        os.link(magic_link(made.fd), name, dst_dir_fd=directory, follow_symlinks=True)

    def _move(self, temporary: bytes, directory: int, name: bytes) -> None:
        files.rename(self._work.work.fd, temporary, directory, name, files.RENAME_NOREPLACE)

    def _let_go(self, entry: Entry) -> None:
        """The lower inode has no part in the entry any more."""
        for lower in entry.lowers:
            lower.held.release(lower)
        entry.lowers = ()


def _make_special(upper: Layer, lower: Real, attributes: Attributes, name: bytes, work: int) -> None:
    if lower.key[3] == _SYMLINK:
        os.symlink(os.readlink(b"", dir_fd=lower.fd), name, dir_fd=work)
    else:
        upper.make_node(work, name, stat.S_IFMT(attributes.mode) | 0o600, attributes.rdev)


def _once(publish: Callable[[int, bytes], None], directory: int, name: bytes) -> None:
    """ESTALE where the upper has been changed behind the mount: the kernel then looks anew."""
    try:
        publish(directory, name)
    except FileExistsError:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
