"""Acting as the caller while something is created.

Owns the filesystem ids and the umask of the loop thread between `acting_as` and the end of the `with`. What is created
then is born with its owner, group and mode: there is no moment with the wrong ones. Loop thread only.
"""

import errno
import os
from types import TracebackType

from ..sys import privileges
from .idmap import UNMAPPED, IdMap

_REMEMBERED = 4096


class Credentials:
    """Who creates: the caller's ids, shown ones turned into real ones."""

    def __init__(self, uids: IdMap, gids: IdMap) -> None:
        self._uids = uids
        self._gids = gids
        self._own = (os.geteuid(), os.getegid())
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._taken: set[tuple[int, int]] = set()
        self._switched = False
        privileges.keep_capabilities_over_setfsuid()

    def acting_as(self, uid: int, gid: int, umask: int) -> "Credentials":
        """Create as the shown ids `uid` and `gid` in the `with` that follows.

        EOVERFLOW for an id without a mapping; EPERM where this process may not act as another.
        """
        wanted = (self._uids.real[uid], self._gids.real[gid])
        if UNMAPPED in wanted:
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
        umask &= 0o777  # as umask(2) does; before the ids, so that nothing fails while they are the caller's
        if umask != self._umask:
            os.umask(umask)
            self._umask = umask
        if wanted != self._own:
            self._switch(wanted)
        return self

    def _switch(self, wanted: tuple[int, int]) -> None:
        if wanted in self._taken:
            privileges.set_filesystem_ids_known_good(*wanted)
        elif privileges.set_filesystem_ids(*wanted):
            if len(self._taken) < _REMEMBERED:
                self._taken.add(wanted)
        else:
            privileges.set_filesystem_ids(*self._own)
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
