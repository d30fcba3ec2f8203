"""rename(2) over layers: what moves takes its lower parts with it by a redirect, and leaves a whiteout.

One renameat2 in the upper makes the change; what has to be true before it does no harm without it. Loop thread.
"""

import errno
import os
from typing import Final

from shiftfs.descriptors import is_directory, seen_at
from shiftfs.sys import files, privileges

from . import whiteout, xattrs
from .entry import Entry, Real
from .layers import Layers
from .lookup import Lookup
from .mutate import Mutation
from .workdir import WorkDirectory

_NOT_SUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})


def keeps_redirects(redirect_dir: str, metacopy: bool, work: WorkDirectory) -> bool:
    """May directories with lower parts be renamed?

    With `auto` not in a user namespace where we write user.*, unless `metacopy` needs redirects anyway. Neither
    fuse-overlayfs nor the kernel's own overlay there follows them, and both are put to work on the storage of
    containers: what has been renamed would have lost its content for them.
    """
    if redirect_dir != "auto":
        return redirect_dir == "on"
    return metacopy or work.prefix != xattrs.USER or privileges.in_initial_namespace()


class Renaming:
    """Of one mount. `redirects`: directories with lower parts may be renamed."""

    def __init__(
        self, layers: Layers, lookup: Lookup, work: WorkDirectory, mutation: Mutation, redirects: bool
    ) -> None:  # fmt: skip
        self._layers = layers
        self._lookup = lookup
        self._work = work
        self._mutation = mutation
        self._redirects = redirects and bool(work.prefix)

    def check(self, entry: Entry) -> None:
        """EXDEV for a directory that cannot take its lower parts along: mv(1) then copies it."""
        if is_directory(entry.key) and entry.lowers and not self._redirects:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def rename(
        self, directory: Entry, name: bytes, to: Entry, new_name: bytes, flags: int, moved: Entry,
        replaced: Entry | None,
    ) -> bool:  # fmt: skip
        """renameat2(2) of what is up, between directories that are. True if the inode replaced has lost its last
        name."""
        self.check(moved)
        above, target = directory.upper, to.upper
        assert above is not None and target is not None and moved.upper is not None
        exchange = bool(flags & files.RENAME_EXCHANGE)
        covered = self._lookup.covered(directory, name)
        self._prepare(moved, directory, name, to, new_name)
        if exchange:
            if replaced is None:  # it has gone behind the mount just now
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            self.check(replaced)
            self._prepare(replaced, to, new_name, directory, name)
        elif replaced is not None:
            self._mutation.prepare_removal(replaced, to, new_name)
        losing = replaced.upper if replaced is not None and not exchange else None
        with target.held.removing(losing, target, new_name):
            if exchange:
                files.rename(above.fd, name, target.fd, new_name, files.RENAME_EXCHANGE)
            else:
                self._move(above, name, target, new_name, moved, replaced, covered)
        self.settle(moved, to, new_name)
        if exchange and replaced is not None:
            self.settle(replaced, directory, name)
            return False
        return self._replaced(replaced)

    def _prepare(self, moved: Entry, directory: Entry, name: bytes, to: Entry, new_name: bytes) -> None:
        """What has to be written down with the inode before it has its new name."""
        upper, above = moved.upper, directory.upper
        assert upper is not None and above is not None
        if not is_directory(moved.key):
            if moved.links is not None and self._layers.find(above, name) is None:
                self._mutation.prepare_removal(moved, directory, name)  # a name that only the lower has, so far
            if moved.lowers:  # its content is found by its old path
                self._redirect(moved, upper, absolute=True)
            self._mutation.note_origin_in(moved, to)
            return
        if moved.lowers:
            self._redirect(moved, upper, absolute=directory is not to)
            moved.redirected = True
            self._mutation.note_origin_in(moved, to)
        elif self._lookup.covered(to, new_name):
            self._mutation.make_opaque(upper.fd)

    def _redirect(self, moved: Entry, upper: Real, absolute: bool) -> None:
        redirect = whiteout.redirect_of(self._layers.private(upper))
        if redirect is not None and (not redirect[0] or not absolute):
            return  # an absolute one stays true wherever it goes, a relative one in its directory
        value = self._lookup.lower_path(moved) if absolute else moved.name
        try:
            xattrs.put(upper.fd, self._work.prefix + xattrs.REDIRECT, value)
        except OSError as error:
            if error.errno not in xattrs.TOO_LONG:
                raise
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV)) from None  # mv(1) copies then

    def _move(
        self, above: Real, name: bytes, target: Real, new_name: bytes, moved: Entry, replaced: Entry | None,
        covered: bool,
    ) -> None:  # fmt: skip
        by_name = self._work.whiteouts == "name"
        if is_directory(moved.key):
            if self._mutation.whiteout_at(target, new_name):
                # A directory does not go over a file; its old name gets the whiteout.
                self._mutation.mark(above)
                files.rename(above.fd, name, target.fd, new_name, files.RENAME_EXCHANGE)
                if not covered:
                    os.unlink(name, dir_fd=above.fd)
                return
            if replaced is not None and replaced.upper is not None:
                self._mutation.clear(target, new_name, replaced)
        if covered and by_name:
            self._mutation.hide(above, name)  # hides nothing as long as there is something of the very name
        if covered and not by_name:
            self._leave_whiteout(above, name, target, new_name)
        else:
            files.rename(above.fd, name, target.fd, new_name, 0)
        self._mutation.unhide(target, new_name)

    def _leave_whiteout(self, above: Real, name: bytes, target: Real, new_name: bytes) -> None:
        if self._work.whiteouts == "device":
            try:
                files.rename(above.fd, name, target.fd, new_name, files.RENAME_WHITEOUT)
                return
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
        # In two steps, where the filesystem cannot do it in one: for a moment the lower's shows at the old name.
        files.rename(above.fd, name, target.fd, new_name, 0)
        self._mutation.whiteout_over(above, name)

    def settle(self, entry: Entry, to: Entry, new_name: bytes) -> None:
        """It has its new name."""
        upper = entry.upper
        assert upper is not None
        if upper.parent is not self._layers.index:
            seen_at(upper, to.upper, new_name)
        upper.held.unpin(upper)
        seen_at(entry, to, new_name)

    def _replaced(self, replaced: Entry | None) -> bool:
        if replaced is None:
            return False
        if is_directory(replaced.key):
            replaced.removed = True
            return True
        return self._mutation.has_gone(replaced)
