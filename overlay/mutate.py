"""Names that come and go in the upper layer: creation, removal, links.

Every change that is seen is one system call: what takes more is made in the work directory first. Owns whiteouts that
are written. Whoever calls has seen to it that directories (and inodes, where they change) are up. Loop thread.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from shiftfs.descriptors import is_directory
from shiftfs.layer import magic_link
from shiftfs.sys import files
from shiftfs.tree import Work

from . import merge, metadata, origin, whiteout, xattrs
from .copyup import CopyUp
from .entry import Entry, Real
from .layers import Layers
from .lookup import Lookup
from .workdir import WorkDirectory, remove

T = TypeVar("T")
Make = Callable[[int, bytes], T]
"""Make something of a name in a directory."""

_LARGE: Final = 64 * 1024
"""Bytes of a directory, some thousand names, from which on it is left to a worker to be removed."""
_DEFAULT_ACL: Final = b"system.posix_acl_default"


class Mutation:
    """Of one mount."""

    def __init__(self, layers: Layers, lookup: Lookup, work: WorkDirectory, copies: CopyUp) -> None:
        self._layers = layers
        self._lookup = lookup
        self._work = work
        self._copies = copies
        self._layer = layers.layers[0]
        self._is_written_down = self._layer.override is not None
        self.chores: list[Work] = []
        """Removals that take long, for a worker."""

    # --- creation ---

    def create(self, directory: Entry, name: bytes, make: Make[T], mode: int = 0, rdev: int = 0) -> T:
        """Make something new that is no directory. EEXIST if there is anything of that name. `mode`, with its S_IFMT,
        and `rdev` are what it is to be, if that has to be written down."""
        upper = self._upper(directory)
        self._refuse_existing(directory, name)
        hides = self.whiteout_at(upper, name)
        if hides or self._is_written_down:
            with self._nursery(upper) as nursery:
                made = make(nursery, name)
                if mode:
                    self._layer.born(nursery, name, lambda: self._layers.attributes(upper), mode, rdev)
                files.rename(nursery, name, upper.fd, name, 0 if hides else files.RENAME_NOREPLACE)
        else:
            made = make(upper.fd, name)
        self.unhide(upper, name)
        return made

    def make_directory(self, directory: Entry, name: bytes, mode: int) -> None:
        """mkdir(2). Where it comes in place of a removed one, it is opaque: nothing of that shows through."""
        upper = self._upper(directory)
        self._refuse_existing(directory, name)
        hides = self.whiteout_at(upper, name)
        replaces = hides or self._layers.hides(upper, name)
        if not replaces and not self._is_written_down:
            os.mkdir(name, mode, dir_fd=upper.fd)
            return
        with self._nursery(upper) as nursery:
            os.mkdir(name, self._layer.mode_of_new(mode), dir_fd=nursery)
            self._layer.born(nursery, name, lambda: self._layers.attributes(upper), stat.S_IFDIR | mode)
            if replaces:
                fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=nursery)
                try:
                    self.make_opaque(fd)
                finally:
                    os.close(fd)
            flags = files.RENAME_EXCHANGE if hides else files.RENAME_NOREPLACE
            files.rename(nursery, name, upper.fd, name, flags)
        self.unhide(upper, name)

    def link(self, entry: Entry, directory: Entry, name: bytes) -> None:
        """A further name of an inode that is up."""
        upper, above = entry.upper, self._upper(directory)
        assert upper is not None
        self._refuse_existing(directory, name)
        self._keep_count(entry)
        source = magic_link(upper.fd)
        if self.whiteout_at(above, name):
            work, temporary = self._work.work.fd, self._work.temporary()
            os.link(source, temporary, dst_dir_fd=work, follow_symlinks=True)
            try:
                files.rename(work, temporary, above.fd, name, 0)
            finally:
                remove(work, temporary)
        else:
            os.link(source, name, dst_dir_fd=above.fd, follow_symlinks=True)
        self.unhide(above, name)
        self.note_origin_in(entry, directory)
        if entry.removed:
            entry.removed = False
            upper.parent, upper.name = above, name
            upper.held.unpin(upper)

    def make_opaque(self, fd: int) -> None:
        """Let the directory of the upper behind `fd` hide what the layers below have of it."""
        if self._work.prefix:
            xattrs.put(fd, self._work.prefix + xattrs.OPAQUE, b"y")
        else:
            flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(magic_link(fd) + b"/" + whiteout.OPAQUE_NAME, flags, 0o600))

    def note_origin_in(self, entry: Entry, directory: Entry) -> None:
        """What came from a lower layer has a name in this directory now."""
        if entry.upper is not None and entry.upper.key != entry.key:
            self._copies.note_impure(directory)

    @contextlib.contextmanager
    def _nursery(self, parent: Real) -> Iterator[int]:
        """A directory in the work directory in which what is made gets what it would get from `parent`: its group, and
        its default ACL."""
        work, name = self._work.work.fd, self._work.temporary()
        above = self._layers.attributes(parent)
        os.mkdir(name, 0o700, dir_fd=work)
        try:
            fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work)
            try:
                if above.mode & stat.S_ISGID and not self._is_written_down:
                    files.change_owner(fd, 0xFFFFFFFF, above.gid)
                    os.chmod(magic_link(fd), 0o700 | stat.S_ISGID)
                acl = _default_acl(parent.fd)
                if acl is not None:
                    os.setxattr(magic_link(fd), _DEFAULT_ACL, acl)
                yield fd
            finally:
                os.close(fd)
        finally:
            remove(work, name)

    # --- removal ---

    def unlink(self, directory: Entry, name: bytes, known: Entry | None) -> bool:
        """Remove a name of what is no directory. True if that was the inode's last."""
        upper = self._upper(directory)
        covered = self._lookup.covered(directory, name)
        seen = None if self.whiteout_at(upper, name) else self._layers.find(upper, name)
        if seen is None and not covered:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.prepare_removal(known, directory, name)
        own = known.upper if known is not None and (seen is not None or known.links is not None) else None
        with upper.held.removing(own, upper, name):
            if covered:
                self.whiteout_over(upper, name)
            else:
                os.unlink(name, dir_fd=upper.fd)
        if known is not None and known.upper is None and (known.parent, known.name) == (directory, name):
            known.parent = None  # it may have other names in the lower, none that we know
        return self.has_gone(known)

    def has_gone_natively(self, known: Entry, fd: int, is_last: bool) -> bool:
        """The name of a file that only the upper has, as nothing else had the name, has been removed. As
        shiftfs.tree.Names.has_gone."""
        assert known.upper is not None
        known.upper.held.pin_opened(known.upper, fd, is_last)
        if not is_last:
            return self.has_gone(known)
        known.removed = True
        return True

    def is_hidden_natively(self, known: Entry) -> bool:
        """There is a whiteout at the name, the only one, of a file that one lower alone has. As
        shiftfs.tree.Names.is_hidden."""
        known.parent = None
        known.removed = True
        return True

    def rmdir(self, directory: Entry, name: bytes, known: Entry) -> None:
        """Remove a directory that shows as empty."""
        upper = self._upper(directory)
        covered = self._lookup.covered(directory, name)
        own = known.upper
        with upper.held.removing(own, upper, name):
            if own is None:
                self.whiteout_over(upper, name)
            elif covered:
                self._replace_by_whiteout(upper, name)
            else:
                self._take_away(upper, name)
        known.removed = True

    def prepare_removal(self, known: Entry | None, directory: Entry, name: bytes) -> None:
        """See to it that an inode with an index loses one name of its count with the name that goes."""
        if known is None or known.links is None:
            return
        upper = self._upper(directory)
        if self._layers.find(upper, name) is None:
            self._copies.link_up(known, directory, name)
        self._keep_count(known)

    def has_gone(self, known: Entry | None) -> bool:
        """Has the inode, one of whose names has been removed, none left?"""
        if known is None:
            return False
        if known.upper is None:
            known.removed = known.removed or self._layers.attributes(known.lowers[0]).nlink == 1
            return known.removed
        if known.links is not None:
            count = self._layers.attributes(known.upper).nlink + known.links.offset
            if count > 0:
                known.upper.held.unpin_if_found_again(known.upper)
                return False
            self._drop_index(known)
        known.removed = known.upper.held.has_gone(known.upper)
        return known.removed

    def _drop_index(self, entry: Entry) -> None:
        index, upper = self._layers.index, entry.upper
        assert index is not None and upper is not None
        private = self._layers.private(upper)
        name = private.get(xattrs.ORIGIN, b"").hex().encode()
        upper.held.path(upper)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=index.fd)
        entry.links = None

    def sweep_index(self) -> None:
        """Before the mount: remove what has no name left, since the process was killed or the kernel had the layers."""
        index = self._layers.index
        if index is None:
            return
        for name in merge.hidden_names(index.fd):
            seen = self._layers.find(index, name)
            if seen is None or seen[1].nlink > 1:
                continue
            private = xattrs.private(index.fd, name, True)
            lower = self._lookup.origins.link_count(private)
            found = origin.links(private, 1, lower) if lower is not None else None
            if found is not None and 1 + found.offset <= 0:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=index.fd)

    def _keep_count(self, entry: Entry) -> None:
        """Write down the link count so that it moves with the upper inode's."""
        if entry.links is not None and entry.upper is not None:
            count = self._layers.attributes(entry.upper).nlink
            value = origin.relative_to_upper(count + entry.links.offset, count)
            xattrs.put(entry.upper.fd, self._work.prefix + xattrs.NLINK, value)

    # --- whiteouts ---

    def whiteout_at(self, upper: Real, name: bytes) -> bool:
        """Is there something in the upper under the very name that stands for nothing?"""
        seen = self._layers.find(upper, name)
        if seen is None:
            return False
        if whiteout.is_device(seen[1]):
            return True
        by_xattr = upper.is_marked and whiteout.may_be_by_xattr(seen[1])
        return by_xattr and xattrs.WHITEOUT in xattrs.private(upper.fd, name, False)

    def whiteout_over(self, upper: Real, name: bytes) -> None:
        """Put a whiteout at a name, in place of a file if there is one."""
        if self._work.whiteouts == "name":
            self.hide(upper, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=upper.fd)
            return
        with self._new_whiteout(upper) as temporary:
            files.rename(self._work.work.fd, temporary, upper.fd, name, 0)

    def _replace_by_whiteout(self, upper: Real, name: bytes) -> None:
        """Put a whiteout in place of a directory, and remove that at leisure."""
        if self._work.whiteouts == "name":
            self.hide(upper, name)
            self._take_away(upper, name)
            return
        with self._new_whiteout(upper) as temporary:
            files.rename(self._work.work.fd, temporary, upper.fd, name, files.RENAME_EXCHANGE)

    def _take_away(self, upper: Real, name: bytes) -> None:
        """Remove a directory with the whiteouts in it."""
        try:
            os.rmdir(name, dir_fd=upper.fd)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            temporary = self._work.temporary()
            files.rename(upper.fd, name, self._work.work.fd, temporary, files.RENAME_NOREPLACE)
            self._discard(temporary)

    def _discard(self, temporary: bytes) -> None:
        """Remove something of the work directory, at leisure if that takes long."""
        work = self._work.work
        try:
            large = os.stat(temporary, dir_fd=work.fd, follow_symlinks=False).st_size > _LARGE
        except OSError:
            large = False
        if large:
            self.chores.append(lambda: remove(work.fd, temporary))
        else:
            remove(work.fd, temporary)

    @contextlib.contextmanager
    def _new_whiteout(self, upper: Real) -> Iterator[bytes]:
        """One in the work directory; whatever has its name in the end is removed there."""
        work, name = self._work.work.fd, self._work.temporary()
        if self._work.whiteouts == "device":
            self._work.make_whiteout(name)
        else:
            self.mark(upper)
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600, dir_fd=work)
            try:
                xattrs.put(fd, self._work.prefix + xattrs.WHITEOUT, b"y")
            finally:
                os.close(fd)
        try:
            yield name
        finally:
            self._discard(name)

    def mark(self, upper: Real) -> None:
        """There is to be a whiteout in the directory: where that is an attribute, the directory has to say so."""
        if self._work.whiteouts == "xattr" and not upper.is_marked:
            xattrs.put(upper.fd, self._work.prefix + xattrs.OPAQUE, whiteout.MARKED)
            upper.is_marked = True

    def hide(self, upper: Real, name: bytes) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(whiteout.PREFIX + name, flags, 0o600, dir_fd=upper.fd))

    def unhide(self, upper: Real, name: bytes) -> None:
        """There is something of that name again, which hides what is below by itself."""
        if self._layers.hides(upper, name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(whiteout.PREFIX + name, dir_fd=upper.fd)

    # --- what others need ---

    def clear(self, upper: Real, name: bytes, known: Entry) -> None:
        """Make a directory of the upper that shows as empty be empty, by an opaque twin without the whiteouts."""
        own = known.upper
        assert own is not None
        if not merge.hidden_names(own.fd):
            return
        work, temporary = self._work.work.fd, self._work.temporary()
        attributes = self._layers.attributes(own)
        os.mkdir(temporary, 0o700, dir_fd=work)
        try:
            fd = os.open(temporary, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work)
            try:
                metadata.copy(self._layer, own.fd, self._layer, fd, attributes)
                if self._work.prefix:  # by a name it would not be empty
                    self.make_opaque(fd)
            finally:
                os.close(fd)
            files.rename(work, temporary, upper.fd, name, files.RENAME_EXCHANGE)
        finally:
            self._discard(temporary)

    def _upper(self, directory: Entry) -> Real:
        """The directory's upper. ENOENT for one that has been removed."""
        if directory.upper is None or directory.removed:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return directory.upper

    def check_free(self, directory: Entry, name: bytes, flags: int) -> None:
        """Before a rename: EEXIST if the name is to be free and is not, EINVAL for one that stands for a whiteout."""
        whiteout.check_name(name)
        if flags & files.RENAME_NOREPLACE or self._lookup.drops:
            found = self._lookup.find(directory, name)
            if found is None:
                self._lay_ghost(directory, name)
            elif flags & files.RENAME_NOREPLACE:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _refuse_existing(self, directory: Entry, name: bytes) -> None:
        whiteout.check_name(name)
        if self._lookup.find(directory, name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._lay_ghost(directory, name)

    def _lay_ghost(self, directory: Entry, name: bytes) -> None:
        """Something is to take a name at which nothing shows: what `ghost=drop` leaves out there goes for good."""
        upper = self._upper(directory)
        seen = self._layers.find(upper, name) if self._lookup.drops else None
        if seen is None or not is_directory(seen[0]):
            return
        if self._lookup.covered(directory, name):
            self._replace_by_whiteout(upper, name)
        else:
            self._take_away(upper, name)


def _default_acl(fd: int) -> bytes | None:
    """What a directory gives to all that is made in it; None, as a rule."""
    try:
        return os.getxattr(magic_link(fd), _DEFAULT_ACL)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None
