"""Handlers of a mount that is read-only for everybody, whatever its flags are by now: what would change something is
refused, before anything of it is looked at. Loop thread."""

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from ..wire import requests
from ..wire.abi import Opcode
from ..wire.requests import Header
from . import control
from .context import Context, Result

Handler = Callable[[Context, Any, Any], Result]

_CHANGES: Final = (
    *(Opcode.SETATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR),
    *(Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE),
    *(Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2),
    *(Opcode.WRITE, Opcode.FALLOCATE, Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64),
)


def refusing_changes(handlers: Mapping[int, Handler]) -> dict[int, Handler]:
    """The same handlers, but those of changes."""
    refusing: dict[int, Handler] = dict.fromkeys(_CHANGES, _refuse)
    return {**handlers, **refusing, Opcode.OPEN: _open(handlers[Opcode.OPEN]), Opcode.IOCTL: _ioctl}


def _refuse(ctx: Context, header: Header, request: Any) -> NoReturn:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _open(handler: Handler) -> Handler:
    def served(ctx: Context, header: Header, request: requests.Open) -> Result:
        if request.flags & os.O_ACCMODE != os.O_RDONLY or request.flags & os.O_TRUNC:
            _refuse(ctx, header, request)
        return handler(ctx, header, request)

    return served


def _ioctl(ctx: Context, header: Header, request: requests.Ioctl) -> Result:
    if request.cmd in control.SETTERS:
        _refuse(ctx, header, request)
    return control.ioctl(ctx, header, request)
