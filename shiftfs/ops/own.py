"""Which changes are our own, where the layers' watcher does not say whose they are (inotify).

Owns what requests have changed of late: inodes, and names that have gone. Loop thread.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from cachetools import TTLCache

from ..tree import RealKey
from ..wire.abi import Opcode
from ..wire.requests import Header
from .context import Context, Result

Handler = Callable[[Context, Any, Any], Result]

_SECONDS: Final = 3.0
"""A descriptor that was written through is closed a second after the last write, or two."""
_MOST: Final = 65536
_CONTENT: Final = (
    *(Opcode.SETATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.IOCTL, Opcode.OPEN),
    *(Opcode.WRITE, Opcode.FALLOCATE),
)
_COPIES: Final = (Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64)
_CLOSED: Final = Opcode.RELEASE
_REMOVALS: Final = (Opcode.UNLINK, Opcode.RMDIR)
_RENAMES: Final = (Opcode.RENAME, Opcode.RENAME2)


class OwnChanges:
    """Of one mount, for a few seconds."""

    def __init__(self) -> None:
        self._of: TTLCache[RealKey | tuple[int, bytes], None] = TTLCache(_MOST, _SECONDS, time.monotonic)

    def changed(self, key: RealKey) -> bool:
        """Have we changed the inode's content or attributes? Others may have, too. By its real key, since the kernel
        may have forgotten it meanwhile, and know it by another nodeid."""
        return key in self._of

    def removed(self, parent: int, name: bytes) -> bool:
        """Have we removed the name, or given it another?"""
        return (parent, name) in self._of

    def noting(self, handlers: Mapping[int, Handler]) -> dict[int, Handler]:
        """The same handlers, those of changes noted before they run."""
        noting = dict(handlers)
        for opcode in _CONTENT:
            noting[opcode] = self._content(handlers[opcode], lambda header, request: header.nodeid)
        for opcode in _COPIES:
            noting[opcode] = self._content(handlers[opcode], lambda header, request: request.nodeid_out)
        noting[_CLOSED] = self._content(handlers[_CLOSED], _written)
        for opcode in _REMOVALS:
            noting[opcode] = self._before(handlers[opcode], lambda header, request: (header.nodeid, request.name))
        for opcode in _RENAMES:
            noting[opcode] = self._before(handlers[opcode], lambda header, request: (header.nodeid, request.oldname))
        return noting

    def _before(self, handler: Handler, place: Callable[[Header, Any], tuple[int, bytes]]) -> Handler:
        def served(ctx: Context, header: Header, request: Any) -> Result:
            self._of[place(header, request)] = None
            return handler(ctx, header, request)

        return served

    def _content(self, handler: Handler, of: Callable[[Header, Any], int | None]) -> Handler:
        def served(ctx: Context, header: Header, request: Any) -> Result:
            nodeid = of(header, request)
            inode = ctx.inodes.find(nodeid) if nodeid is not None else None
            if inode is not None:
                self._of[inode.key] = None
            return handler(ctx, header, request)

        return served


def _written(header: Header, request: Any) -> int | None:
    """What was written past us has been closed just now."""
    return header.nodeid if request.flags & os.O_ACCMODE != os.O_RDONLY else None
