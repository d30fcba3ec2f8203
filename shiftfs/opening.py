"""What a mount shows: the layers that it names, opened as a tree, and how much of it may be open at a time.

Owns no state but the process's limits. Main thread, before the mount.
"""

import contextlib
import fcntl
import os
import resource
from collections.abc import Callable, Sequence
from typing import Final

from .layer import Layer, sizes_may_lie, sizes_of_kind_may_lie
from .mount import MountError
from .options import MountOptions
from .source import SourceTree
from .sys import privileges
from .sys.mountinfo import listed
from .tree import Tree, View

_DESCRIPTORS: Final = 16384
_SPARE_DESCRIPTORS: Final = 256


def open_tree(
    options: MountOptions, bound: int, unlinked: int, log: Callable[[str], None]
) -> tuple[Tree, tuple[Layer, ...]]:
    """What is to be shown, and the real directories that it is made of."""
    if options.lowerdirs or options.source is None:
        return _open_overlay(options, bound, unlinked, log)
    try:
        layer = Layer(options.source, noatime=not options.atime)
    except OSError as error:
        raise MountError(f"source {os.fsdecode(options.source)}: {error.strerror}; nothing was mounted") from None
    tree = SourceTree(
        layer, bound, unlinked, noatime=not options.atime, nodiratime=not options.diratime,
        view=_view(options), narrow=options.ino32,
    )  # fmt: skip
    return tree, (layer,)


def _view(options: MountOptions) -> View:
    return View(link_counts=not options.static_nlink, acls=options.acl, xattrs=options.xattrs)


def _open_overlay(
    options: MountOptions, bound: int, unlinked: int, log: Callable[[str], None]
) -> tuple[Tree, tuple[Layer, ...]]:
    from overlay.stack import LayerError, open_stack  # a mount without layers need not wait for it
    from overlay.tree import OverlayTree

    try:
        stack = open_stack(
            options.lowerdirs, options.upperdir, options.workdir, volatile=options.volatile, log=log,
            userxattr=options.userxattr, index=options.index, xattr_permissions=options.xattr_permissions,
            noatime=not options.atime,
        )  # fmt: skip
    except LayerError as error:
        raise MountError(str(error)) from None
    tree = OverlayTree(
        stack, bound, unlinked, redirect_dir=options.redirect_dir, metacopy=options.metacopy,
        noatime=not options.atime, nodiratime=not options.diratime, ghost=options.ghost,
        view=_view(options), narrow=options.ino32,
        any_owner=options.uidmap.squash is not None or options.gidmap.squash is not None,
    )  # fmt: skip
    return tree, stack.layers


def raise_descriptor_limit(layers: int) -> tuple[int, int]:
    """Take all descriptors that we may have; how many of them, besides those of the lower layers, the tree may hold
    as long as it likes, and how many more for removed files in use. Open files may keep as many as the first
    (ops/handles.py)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _make_room(min(hard, 2 * _DESCRIPTORS))
    ours = hard - min(_SPARE_DESCRIPTORS, hard // 8) - layers
    bound = max(32, min(_DESCRIPTORS, ours // 5))
    return bound, max(32, ours - 2 * bound)


def _make_room(descriptors: int) -> None:
    """While there is but one thread: later the kernel waits for all processors each time that it doubles the table
    (fs/file.c, expand_fdtable), some 10 ms in which nothing is served."""
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, descriptors - 1))


def stay_within_quota() -> None:
    """Files belong to callers who have quotas; with CAP_SYS_RESOURCE our writes would pass them (quotactl(2))."""
    if privileges.effective_capabilities() >> privileges.CAP_SYS_RESOURCE & 1:
        privileges.drop_capability(privileges.CAP_SYS_RESOURCE)


def why_nothing_is_passed_through(
    options: MountOptions, tree: Tree, layers: Sequence[Layer], serves_open: bool
) -> str | None:
    """Why the kernel is not to read and write the files of the layers by itself; None if it is, as far as it can.
    Raises MountError where that is asked for all the same."""
    reason = _why_not(options, tree, layers, serves_open)
    if reason is not None and options.passthrough == "on":
        raise MountError(f"passthrough=on: {reason}; nothing was mounted")
    return reason


def _why_not(options: MountOptions, tree: Tree, layers: Sequence[Layer], serves_open: bool) -> str | None:
    if options.writeback:
        return "writeback"
    if options.passthrough == "off":
        return "passthrough=off"
    if options.mark:
        return "marks pass nothing through"
    if not privileges.effective_capabilities() >> privileges.CAP_SYS_ADMIN & 1:
        return "CAP_SYS_ADMIN is needed"
    if not privileges.in_initial_namespace():
        return "CAP_SYS_ADMIN is needed in the initial user namespace"
    if tree.override is not None:
        return "owners live in an attribute, which each write may have to change"
    if not layers[0].private:
        return "the mounts of the layer cannot be copied, so what is done through them is not told from others' work"
    return None if serves_open else "open=refuse, or what open=auto makes of it"


def check_at_rest(options: MountOptions, layers: Sequence[Layer]) -> None:
    """Raises MountError for layers that others change whatever whoever mounts says (writeback)."""
    if not options.writeback:
        return
    for layer in layers:
        if layer.remote:
            raise MountError(
                f"writeback: {os.fsdecode(layer.path)} is, or holds, what another machine or process has, which may"
                " change it; omit writeback; nothing was mounted"
            )
    if show_sizes_that_lie(layers):
        raise MountError(
            "writeback: a layer is, or holds, a filesystem whose files the kernel makes up (procfs, cgroupfs), which"
            " change by themselves; omit writeback; nothing was mounted"
        )


def show_sizes_that_lie(layers: Sequence[Layer]) -> bool:
    """Is there a filesystem in a layer whose files have content and a size of 0? They are read only if OPEN is
    served."""
    above = tuple(os.path.realpath(layer.path).rstrip(b"/") + b"/" for layer in layers)
    inside = any(sizes_of_kind_may_lie(info.kind) and info.path.startswith(above) for info in listed())
    return inside or any(sizes_may_lie(layer.root.fd) for layer in layers)


def lie_elsewhere(layers: Sequence[Layer]) -> bool:
    """Is a layer of another machine's? Who opens a file there is shown what others had closed by then, and who closes
    it has left it for them to see, or hears why not (nfs(5), close-to-open)."""
    return any(layer.remote for layer in layers)
