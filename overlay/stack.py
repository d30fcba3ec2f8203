"""The layers of one mount, from the options that name them.

Owns the order in which directories are opened, checked, claimed and made ready; never what is in them. Main thread,
before the mount.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

from shiftfs.layer import Layer
from shiftfs.sys import beneath, files, mountinfo, mounts
from shiftfs.tree import Descriptor

from .directory import Directory, LayerError, refuse_overlaps
from .inuse import claim, refuse_kernels
from .workdir import WorkDirectory

__all__ = ["LayerError", "Stack", "open_stack"]

_MOST_LOWERS: Final = 500

_READ: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Stack(NamedTuple):
    """The upper first, if there is `work`, then the lowers from top to bottom."""

    layers: tuple[Layer, ...]
    work: WorkDirectory | None


def open_stack(
    lowers: Sequence[bytes], upper: bytes | None, work: bytes | None, *, volatile: bool, log: Callable[[str], None],
    userxattr: bool = False, index: bool = True, xattr_permissions: Literal[0, 1, 2] = 0, noatime: bool = False,
) -> Stack:  # fmt: skip
    """Open all directories, and make the work directory ready. `log` is told what was done or cannot be;
    `xattr_permissions`: owners and modes are to live in an attribute in the upper (override.asked); `noatime`: as for
    Layer; for the rest see WorkDirectory.open. Raises LayerError."""
    if not 0 < len(lowers) <= _MOST_LOWERS:
        raise LayerError(f"lowerdir: names {len(lowers)} directories; give from 1 to {_MOST_LOWERS}")
    if (upper is None) != (work is None):
        raise LayerError("upperdir and workdir: one is missing; give both, or neither for a read-only mount")
    table = mountinfo.listed()
    by_id = {info.id: info for info in table}
    below = [Directory("lowerdir", path, by_id) for path in lowers]
    if upper is None or work is None:
        refuse_overlaps(below)
        lower = tuple(_lower(one, noatime) for one in below)
        _believe(lower if xattr_permissions else ())
        return Stack(lower, None)
    written = Directory("upperdir", upper, by_id), Directory("workdir", work, by_id)
    refuse_overlaps([*below, *written])
    _check_pair(*written)
    refuse_kernels(written, table)
    upper_held, work_held, private = _through_one_mount(*written, noatime)
    top = Layer(written[0].real, os.dup(upper_held.fd), private)
    for one, held in zip(written, (top.root, work_held), strict=True):
        claim(one, held, log)
    ready = WorkDirectory.open(
        work_held, written[1].named, log=log, volatile=volatile, userxattr=userxattr, index=index
    )
    lower = tuple(_lower(one, noatime) for one in below)
    if xattr_permissions:
        _write_owners_down(xattr_permissions, written[0], top, lower)
    return Stack((top, *lower), ready)


def _write_owners_down(which: Literal[1, 2], named: Directory, upper: Layer, lowers: Sequence[Layer]) -> None:
    from shiftfs.override import asked  # few mounts want it

    try:
        upper.override = asked(which, upper.root.fd, [one.root.fd for one in lowers])
    except OSError as error:
        advice = "which takes root of the host" if which == 1 else "which takes a filesystem with user.* attributes"
        raise LayerError(
            f"{named.named}: its owners cannot live in extended attributes ({error.strerror}), {advice}; give it one,"
            " or omit xattr_permissions"
        ) from None
    _believe(lowers)


def _believe(layers: Sequence[Layer]) -> None:
    """Who mounts has said that owners live in attributes."""
    for one in layers:
        if one.override is not None:
            one.override.trust()


def _lower(directory: Directory, noatime: bool) -> Layer:
    """With all that is mounted in it now, as far as mounts may be copied."""
    with contextlib.suppress(OSError):
        clone = Descriptor(mounts.clone_tree(directory.held.fd, noatime=noatime), os.close)
        return Layer(directory.real, os.open(b".", _READ, dir_fd=clone.fd), True)
    return Layer(directory.real, os.dup(directory.held.fd))


def _check_pair(upper: Directory, work: Directory) -> None:
    """What is made in the work directory is renamed into the upper, which no two mounts or subvolumes allow."""
    if upper.mount != work.mount or upper.identity[0] != work.identity[0]:
        raise LayerError(
            f"{work.named}: lies on another filesystem or mount than {upper.named}; give a directory beside that"
        )
    for one in (upper, work):
        one.check_writable()


def _through_one_mount(upper: Directory, work: Directory, noatime: bool) -> tuple[Descriptor, Descriptor, bool]:
    """Both anew through one private copy of their mount, without what is mounted there; else as they are, and False."""
    with contextlib.suppress(OSError, ValueError):
        above = os.path.commonpath([upper.real, work.real])
        parent = Descriptor(os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), os.close)
        if files.StatxBuffer().at(parent.fd, b"")[23] == upper.mount:
            clone = Descriptor(mounts.clone_tree(parent.fd, recursive=False, noatime=noatime), os.close)
            pair = tuple(_again(clone, os.path.relpath(one.real, above)) for one in (upper, work))
            if all(_is_same(held, one) for held, one in zip(pair, (upper, work), strict=True)):
                return pair[0], pair[1], True
    return upper.held, work.held, False


def _again(clone: Descriptor, path: bytes) -> Descriptor:
    return Descriptor(beneath.open_beneath(clone.fd, path, _READ, same_mount=True), os.close)


def _is_same(held: Descriptor, directory: Directory) -> bool:
    found = os.fstat(held.fd)
    return (found.st_dev, found.st_ino) == directory.identity
