"""Acting as the caller while something is created, or while a file is opened that looks at who opens it.

Owns the filesystem ids, the umask and the effective capabilities of the thread between `acting_as` or `powerless` and
the end of the `with`. What is created then is born with its owner, group and mode: there is no moment with the wrong
ones. Loop thread only, but for `powerless`.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import ClassVar

from ..sys import privileges
from .idmap import UNMAPPED, IdMap

_REMEMBERED = 4096
_NOBODY = 65534


class Credentials:
    """Who creates: the caller's ids, shown ones turned into real ones."""

    _umask: ClassVar[int] = -1
    """The process's: it is not one mount's alone."""

    def __init__(self, uids: IdMap, gids: IdMap, acts_for_itself: bool = False) -> None:
        """`acts_for_itself`: may who runs this process create, as the owner of what it stores, where the map has no
        shown id for it?"""
        self.acts_for_itself = acts_for_itself
        self._uids = uids
        self._gids = gids
        self._own = (os.geteuid(), os.getegid())
        Credentials._umask = os.umask(0o022)
        os.umask(Credentials._umask)
        self._taken: set[tuple[int, int]] = set()
        self._switched = False
        self.written_down: Callable[[int, int, int], None] | None = None
        """Where owners live in an attribute: who is told the real ids and the umask of whoever creates, in place of
        acting as them."""
        self.squashes = uids.squash is not None or gids.squash is not None
        """Is everything shown as one owner's, so that nothing depends on who is stored?"""
        privileges.keep_capabilities_over_setfsuid()

    def acting_as(self, uid: int, gid: int, umask: int) -> "Credentials":
        """Create as the shown ids `uid` and `gid` in the `with` that follows.

        EOVERFLOW for an id without a mapping; EPERM where this process may not act as another. Where owners are
        squashed what is created is our own then, and shows as everything else.
        """
        wanted = (self._uids.real[uid], self._gids.real[gid])
        if UNMAPPED in wanted:
            if not (self.squashes or self._is_itself(uid, gid, wanted)):
                raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
            wanted = self._own
        if self.written_down is not None:
            self.written_down(*wanted, umask & 0o777)
            umask, wanted = 0, self._own
        umask &= 0o777  # as umask(2) does; before the ids, so that nothing fails while they are the caller's
        if umask != Credentials._umask:
            os.umask(umask)
            Credentials._umask = umask
        if wanted != self._own:
            self._switch(wanted)
        return self

    def _is_itself(self, uid: int, gid: int, real: tuple[int, int]) -> bool:
        """Is the caller who runs this process, without an id of its own on the mount, though what it stores has one?"""
        return (
            self.acts_for_itself
            and (uid, gid) == self._own
            and all(number in (UNMAPPED, own) for number, own in zip(real, self._own, strict=True))
            and UNMAPPED not in (self._uids.shown[uid], self._gids.shown[gid])
        )

    @property
    def shifts(self) -> bool:
        """Is anybody's real id another than the one that is shown?"""
        return not (self._uids.is_identity and self._gids.is_identity)

    @contextlib.contextmanager
    def powerless(self, uid: int, gid: int) -> Iterator[None]:
        """Be the shown ids `uid` and `gid` in the `with` that follows, without any capability. Any thread.

        Where ids are shifted, an id that owns nothing: container root's real id would be the host's root. EACCES where
        this process may not act as another; on a shifted mount of such a process its own ids stay.
        """
        wanted = (_NOBODY, _NOBODY) if self.shifts else (self._uids.real[uid], self._gids.real[gid])
        effective = privileges.effective_capabilities()
        try:
            if wanted != self._own and not privileges.set_filesystem_ids(*wanted):
                privileges.set_filesystem_ids(*self._own)
                if not self.shifts:
                    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            if effective:
                privileges.set_effective_capabilities(0)
            yield
        finally:
            privileges.set_filesystem_ids_known_good(*self._own)
            if effective:
                privileges.set_effective_capabilities(effective)

    def _switch(self, wanted: tuple[int, int]) -> None:
        if wanted in self._taken:
            privileges.set_filesystem_ids_known_good(*wanted)
        elif privileges.set_filesystem_ids(*wanted):
            if len(self._taken) < _REMEMBERED:
                self._taken.add(wanted)
        else:
            privileges.set_filesystem_ids(*self._own)
            if self.squashes:
                return
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._switched = True

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._switched:
            privileges.set_filesystem_ids_known_good(*self._own)
            self._switched = False
