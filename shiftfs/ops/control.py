"""The ioctls: flags and project of a file, and the private one through which shiftfsctl asks for reports.

Only ioctls known to be harmless are passed on; the kernel has checked the caller's right to set flags. Loop thread.
"""

import errno
import fcntl
import os
import stat
import struct
from typing import Final

from ..tree import Descriptor
from ..wire import replies, requests
from ..wire.requests import Header
from .context import Context, Payload

REPORT_SIZE: Final = 16000
"""Bytes of one answer; an ioctl's size has 14 bits."""
REPORT: Final = 3 << 30 | REPORT_SIZE << 16 | 0x53 << 8 | 0xF5
"""_IOWR('S', 0xf5, char[16000]) on the root directory. In: which report (REPORTS' index), offset in bytes; for `events`
the number of the last change that is known, and the time (seconds since the epoch) before which none is wanted: zeros
are all that are kept. Out: the report's total length, then its bytes from there on. Offset 0 makes the report anew."""
REPORT_IN: Final = struct.Struct("=IIQd")
REPORT_OUT: Final = struct.Struct("=I")
REPORTS: Final = ("status", "stats", "events", "locks")

_GETFLAGS: Final = 0x80086601
_SETFLAGS: Final = 0x40086602
_FSGETXATTR: Final = 0x801C581F
_FSSETXATTR: Final = 0x401C5820
_GETVERSION: Final = 0x80087601
_ANSWER_SIZE: Final = {_GETFLAGS: 4, _GETVERSION: 4, _FSGETXATTR: 28}
SETTERS: Final = frozenset({_SETFLAGS, _FSSETXATTR})
_REGULAR: Final = stat.S_IFREG >> 12
_OPENABLE: Final = frozenset({_REGULAR, stat.S_IFDIR >> 12})


def ioctl(ctx: Context, header: Header, request: requests.Ioctl) -> Payload:
    if request.cmd == REPORT and ctx.inodes.get(header.nodeid).entry is ctx.tree.root:
        return _report(ctx, header, request)
    inode = ctx.inodes.get(header.nodeid)
    answer_size = _ANSWER_SIZE.get(request.cmd)
    if inode.key[3] & 0xF not in _OPENABLE or (answer_size is None and request.cmd not in SETTERS):
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
    if request.cmd in SETTERS:
        ctx.refuse_unmapped_owner(ctx.tree.attributes(inode.entry))
    descriptor: Descriptor = ctx.tree.open_waiting(ctx.tree.path(inode.entry), os.O_RDONLY | os.O_NONBLOCK)
    # Room for what the kernel may write, whatever the filesystem's idea of the argument's size.
    argument = bytearray(request.data.ljust(64, b"\0"))
    result = fcntl.ioctl(descriptor.fd, request.cmd, argument)
    if request.cmd in SETTERS and inode.key[3] == _REGULAR:
        # Immutable or append-only now, perhaps: whoever writes from here on has to open the file anew, and is refused.
        ctx.tree.keep_data(inode.entry, descriptor)
    return replies.ioctl(result, bytes(argument[:answer_size]) if answer_size is not None else b"")


def _report(ctx: Context, header: Header, request: requests.Ioctl) -> Payload:
    """For root as the mount sees it, and for whoever mounted."""
    if ctx.caller(header)[0] not in (0, ctx.owner):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    if len(request.data) != REPORT_SIZE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    which, offset, *wanted = REPORT_IN.unpack_from(request.data)
    if which >= len(REPORTS):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    name = REPORTS[which]
    made = ctx.reports.get(name)
    if offset == 0 or made is None or made[0] != wanted:
        made = ctx.reports[name] = (wanted, ctx.report(name, *wanted))
    report = made[1]
    part = report[offset : offset + REPORT_SIZE - REPORT_OUT.size]
    return replies.ioctl(0, REPORT_OUT.pack(len(report)) + part)
