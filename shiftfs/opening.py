"""What a mount shows: the layers that it names, opened as a tree, and how much of it may be open at a time.

Owns no state but the process's limits. Main thread, before the mount.
"""

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
        layer = Layer(options.source)
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
    ours = hard - min(_SPARE_DESCRIPTORS, hard // 8) - layers
    bound = max(32, min(_DESCRIPTORS, ours // 5))
    return bound, max(32, ours - 2 * bound)


def stay_within_quota() -> None:
    """Files belong to callers who have quotas; with CAP_SYS_RESOURCE our writes would pass them (quotactl(2))."""
    if privileges.effective_capabilities() >> privileges.CAP_SYS_RESOURCE & 1:
        privileges.drop_capability(privileges.CAP_SYS_RESOURCE)


def show_sizes_that_lie(layers: Sequence[Layer]) -> bool:
    """Is there a filesystem in a layer whose files have content and a size of 0? They are read only if OPEN is
    served."""
    above = tuple(os.path.realpath(layer.path).rstrip(b"/") + b"/" for layer in layers)
    inside = any(sizes_of_kind_may_lie(info.kind) and info.path.startswith(above) for info in listed())
    return inside or any(sizes_may_lie(layer.root.fd) for layer in layers)
