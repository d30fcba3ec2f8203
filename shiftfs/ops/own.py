"""Which changes are our own, where the layers' watcher does not say whose they are (inotify).

Owns what requests have changed of late: inodes, and names that have gone. Loop thread.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from cachetools import TTLCache

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
_REMOVALS: Final = (Opcode.UNLINK, Opcode.RMDIR)
_RENAMES: Final = (Opcode.RENAME, Opcode.RENAME2)


class OwnChanges:
    """Of one mount, for a few seconds."""

    def __init__(self) -> None:
        self._of: TTLCache[tuple[int, bytes], None] = TTLCache(_MOST, _SECONDS, time.monotonic)

    def changed(self, nodeid: int) -> bool:
        """Have we changed the inode's content or attributes? Others may have, too."""
        return (nodeid, b"") in self._of

    def removed(self, parent: int, name: bytes) -> bool:
        """Have we removed the name, or given it another?"""
        return (parent, name) in self._of

    def noting(self, handlers: Mapping[int, Handler]) -> dict[int, Handler]:
        """The same handlers, those of changes noted before they run."""
        noting = dict(handlers)
        for opcode in _CONTENT:
            noting[opcode] = self._before(handlers[opcode], lambda header, request: (header.nodeid, b""))
        for opcode in _COPIES:
            noting[opcode] = self._before(handlers[opcode], lambda header, request: (request.nodeid_out, b""))
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
