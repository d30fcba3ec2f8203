"""Which handler serves which request: one table. Handlers live in the modules beside it, by family."""

from collections.abc import Callable
from typing import Any, Final

from ..wire.abi import Opcode
from . import attributes, control, copyup, directories, files, handles, locks, namespace, xattrs
from .context import Context, Result

Handler = Callable[[Context, Any, Any], Result]

HANDLERS: Final[dict[int, Handler]] = {
    Opcode.LOOKUP: namespace.lookup,
    Opcode.FORGET: namespace.forget,
    Opcode.BATCH_FORGET: namespace.batch_forget,
    Opcode.GETATTR: attributes.getattr,
    Opcode.STATX: attributes.statx,
    Opcode.SETATTR: attributes.setattr,
    Opcode.READLINK: namespace.readlink,
    Opcode.SYMLINK: namespace.symlink,
    Opcode.MKNOD: namespace.mknod,
    Opcode.MKDIR: namespace.mkdir,
    Opcode.UNLINK: namespace.unlink,
    Opcode.RMDIR: namespace.rmdir,
    Opcode.RENAME: namespace.rename,
    Opcode.RENAME2: namespace.rename,
    Opcode.LINK: namespace.link,
    Opcode.TMPFILE: handles.tmpfile,
    Opcode.OPEN: handles.open,
    Opcode.CREATE: handles.create,
    Opcode.RELEASE: handles.release,
    Opcode.FLUSH: handles.flush,
    Opcode.OPENDIR: handles.opendir,
    Opcode.RELEASEDIR: handles.releasedir,
    Opcode.POLL: handles.poll,
    Opcode.READ: files.read,
    Opcode.WRITE: files.write,
    Opcode.FSYNC: files.fsync,
    Opcode.FALLOCATE: files.fallocate,
    Opcode.LSEEK: files.lseek,
    Opcode.COPY_FILE_RANGE: files.copy_file_range,
    Opcode.COPY_FILE_RANGE_64: files.copy_file_range_64,
    Opcode.READDIR: directories.readdir,
    Opcode.READDIRPLUS: directories.readdirplus,
    Opcode.FSYNCDIR: directories.fsyncdir,
    Opcode.STATFS: attributes.statfs,
    Opcode.SYNCFS: attributes.syncfs,
    Opcode.SETXATTR: xattrs.setxattr,
    Opcode.GETXATTR: xattrs.getxattr,
    Opcode.LISTXATTR: xattrs.listxattr,
    Opcode.REMOVEXATTR: xattrs.removexattr,
    Opcode.GETLK: locks.getlk,
    Opcode.SETLK: locks.setlk,
    Opcode.SETLKW: locks.setlkw,
    Opcode.IOCTL: control.ioctl,
}
"""Requests not listed get ENOSYS: ACCESS (the kernel checks, by default_permissions), BMAP (no block device here)
and the mappings of virtiofs. INIT, INTERRUPT and DESTROY are the session's."""

LAYERED_HANDLERS: Final[dict[int, Handler]] = {
    opcode: copyup.first(copyup.NEEDS[opcode], handler) if opcode in copyup.NEEDS else handler
    for opcode, handler in HANDLERS.items()
}
"""The same for mounts with layers."""

_XATTRS: Final = frozenset({Opcode.SETXATTR, Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.REMOVEXATTR})


def without_xattrs(handlers: dict[int, Handler]) -> dict[int, Handler]:
    """The same, where nobody is to see or set extended attributes: the kernel asks once, and then says EOPNOTSUPP."""
    return {opcode: handler for opcode, handler in handlers.items() if opcode not in _XATTRS}
