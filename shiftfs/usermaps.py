"""The maps of a user namespace or of a user's sub-ids, read from where the system keeps them.

Owns which files those are, and why they cannot be had. Never reads anything beneath a source tree; the texts
themselves are shift.idmap's. Main thread, before the mount.
"""

import os
import pwd

from .shift.idmap import IDENTITY, IdMap, MapError, from_proc_map, from_subid

Maps = tuple[IdMap, IdMap]  # of uids, of gids


def resolve(option: str, value: str) -> Maps:
    """Return the maps that `userns=VALUE` or `subid=VALUE` names. Raises MapError, whose text is one line."""
    try:
        return {"userns": of_namespace, "subid": of_user}[option](value)
    except OSError as error:
        raise MapError(f"cannot read {error.filename or 'its maps'}: {error.strerror}") from None


def of_namespace(process_or_path: str) -> Maps:
    """Return the maps of a user namespace, named by a process in it or by its file (/proc/PID/ns/user, or
    that file bound elsewhere). Raises MapError, OSError."""
    process = process_or_path
    if not (process.isascii() and process.isdigit()):
        process = _process_in(process_or_path)
    if _is_our_own(process):
        # The files of our own namespace give the ids of its parent (user_namespaces(7)), which mean nothing
        # on a mount that is made here: here, its ids are as they are.
        return IDENTITY, IDENTITY
    return from_proc_map(_lines(f"/proc/{process}/uid_map")), from_proc_map(
        _lines(f"/proc/{process}/gid_map")
    )


def _process_in(path: str) -> str:
    """Only a process's directory tells the maps of a namespace, so find one that is in it."""
    wanted = os.stat(path)
    for name in os.listdir("/proc"):
        try:
            found = os.stat(f"/proc/{name}/ns/user") if name.isdigit() else None
        except OSError:
            continue  # ended meanwhile, or not ours to look at
        if found and os.path.samestat(found, wanted):
            return name
    raise MapError(
        "no process that we may look at is in such a user namespace; give a PID or /proc/PID/ns/user"
    )


def _is_our_own(process: str) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{process}/ns/user"), os.stat("/proc/self/ns/user"))
    except OSError:
        return False  # another user's process: its maps may still be read


def of_user(user: str) -> Maps:
    """Return the maps that /etc/subuid and /etc/subgid give to a user, named or by number. Raises MapError,
    OSError."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isascii() and user.isdigit() else pwd.getpwnam(user)
    except (KeyError, OverflowError, ValueError):
        raise MapError("there is no such user; see getent passwd") from None
    name, uid = entry.pw_name, entry.pw_uid
    uids = _from_subid("/etc/subuid", name, uid, uid)
    return uids, _from_subid("/etc/subgid", name, uid, entry.pw_gid)


def _from_subid(path: str, name: str, uid: int, own_id: int) -> IdMap:
    try:
        return from_subid(_lines(path), name, uid, own_id)
    except MapError as error:
        raise MapError(f"{path}: {error}") from None


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.readlines()
