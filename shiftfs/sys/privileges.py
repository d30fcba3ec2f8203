"""Per-thread ids, and the capabilities of the process. setfsuid(2), prctl(2), capset(2).

Owns nothing and decides nothing. Ids and capabilities belong to the calling thread; threads started later inherit
them, so what is to hold for all is done before the first worker starts.
"""

import ctypes
import struct
from typing import Final

from . import libc

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_LINUX_IMMUTABLE: Final = 9
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21
CAP_MKNOD: Final = 27
CAP_LEASE: Final = 28
CAP_SETFCAP: Final = 31
CAP_SYS_RESOURCE: Final = 24

_KEEP: Final = 0xFFFFFFFF  # setfsuid(-1) changes nothing and returns the present id (setfsuid(2))
_PR_SET_SECUREBITS = 28
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_SECUREBITS = 27
_NO_SETUID_FIXUP = 1 << 2
_VERSION_3 = 0x20080522

_setfsuid = libc.function("setfsuid", [libc.UINT])
_setfsgid = libc.function("setfsgid", [libc.UINT])
_prctl = libc.function("prctl", [libc.INT, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong])
_capget = libc.function("capget", [libc.PATH, libc.POINTER])
_capset = libc.function("capset", [libc.PATH, libc.PATH])


def set_filesystem_ids(uid: int, gid: int) -> bool:
    """Create files as these real ids from now on, on this thread; False if the kernel did not let us.

    setfsuid reports no error: it returns the id from before, so a second call tells what holds.
    """
    _setfsgid(gid)
    _setfsuid(uid)
    return _setfsuid(_KEEP) & _KEEP == uid and _setfsgid(_KEEP) & _KEEP == gid


def set_filesystem_ids_known_good(uid: int, gid: int) -> None:
    """The same for ids that `set_filesystem_ids` has already taken in this process, at half the calls."""
    _setfsgid(gid)
    _setfsuid(uid)


def keep_capabilities_over_setfsuid() -> bool:
    """Set SECBIT_NO_SETUID_FIXUP (capabilities(7)): acting as a caller then changes the owner of what is created and
    no right of ours. False without CAP_SETPCAP."""
    bits = _prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
    return bits >= 0 and _prctl(_PR_SET_SECUREBITS, bits | _NO_SETUID_FIXUP, 0, 0, 0) == 0


def in_initial_namespace() -> bool:
    """Are all ids ours (user_namespaces(7))?"""
    with open("/proc/self/uid_map") as lines:
        return [line.split() for line in lines] == [["0", "0", "4294967295"]]


def effective_capabilities() -> int:
    """The thread's effective set as a bit mask."""
    return _read_capabilities()[0]


def set_effective_capabilities(mask: int) -> None:
    """Make use of no other capabilities on this thread; those that it is permitted can be taken up again."""
    _, permitted, inheritable = _read_capabilities()
    _write_capabilities(mask, permitted, inheritable)


def keep_only(mask: int) -> None:
    """Have no other capabilities from now on, on this thread, and gain none by executing anything (prctl(2),
    PR_SET_NO_NEW_PRIVS)."""
    effective, permitted, _ = _read_capabilities()
    for number in range(64):
        if not mask >> number & 1:
            _prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # without CAP_SETPCAP, or such a capability: nothing to be done
    _write_capabilities(effective & mask, permitted & mask, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


class Without:
    """A context in which the thread makes no use of one capability. Its other sets, as they are when this is made, are
    to stay as they are."""

    def __init__(self, number: int) -> None:
        effective, permitted, inheritable = _read_capabilities()
        self._header = struct.pack("=Ii", _VERSION_3, 0)
        self._without = _capability_data(effective & ~(1 << number), permitted, inheritable)
        self._as_before = _capability_data(effective, permitted, inheritable)

    def __enter__(self) -> None:
        if _capset(self._header, self._without):
            raise libc.failure()

    def __exit__(self, *failure: object) -> None:
        if _capset(self._header, self._as_before):
            raise libc.failure()


def drop_capability(number: int) -> None:
    """Take one capability out of all sets of this thread."""
    effective, permitted, inheritable = _read_capabilities()
    keep = ~(1 << number)
    _write_capabilities(effective & keep, permitted & keep, inheritable & keep)


def _read_capabilities() -> tuple[int, int, int]:
    header = struct.pack("=Ii", _VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    if _capget(header, data):
        raise libc.failure()
    low_e, low_p, low_i, high_e, high_p, high_i = struct.unpack("=6I", data.raw)
    return low_e | high_e << 32, low_p | high_p << 32, low_i | high_i << 32


def _write_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    if _capset(struct.pack("=Ii", _VERSION_3, 0), _capability_data(effective, permitted, inheritable)):
        raise libc.failure()


def _capability_data(*sets: int) -> bytes:
    """Two of struct __user_cap_data_struct."""
    low = 0xFFFFFFFF
    return struct.pack("=6I", *(s & low for s in sets), *(s >> 32 for s in sets))
