"""What is compiled, of the files beside this one: shiftfs._native, which setup builds where there is a compiler.

Each is None where there is none, or SHIFTFS_PURE is in the environment: then its twin in plain Python serves, and does
the same. Owns nothing.
"""

import importlib
import os
from typing import Any

_compiled: Any = None
if "SHIFTFS_PURE" not in os.environ:
    try:
        _compiled = importlib.import_module("shiftfs._native")
    except ImportError:
        pass

Inode: Any = getattr(_compiled, "Inode", None)
"""Twin: store.Inode."""
Store: Any = getattr(_compiled, "Store", None)
"""Twin: store.Store."""
Lane: Any = getattr(_compiled, "Lane", None)
"""Twins: the handlers in ops (lane.py)."""
Reader: Any = getattr(_compiled, "Reader", None)
"""Twin: sys.fanotify.reader."""
Contents: Any = getattr(_compiled, "Contents", None)
"""What a lane needs to read and write files."""
Copies: Any = getattr(_compiled, "Copies", None)
"""What a lane needs to bring files up. Twin: overlay.copyup.CopyUp."""
Reads: Any = getattr(_compiled, "Reads", None)
"""Reads that wait for a disk, on threads of their own. Twin: the workers."""
FileLocks: Any = getattr(_compiled, "FileLocks", None)
"""Twin: locks.ranges.FileLocks."""
look: Any = getattr(_compiled, "look", None)
"""Twin: layer.Layer.find."""
list_directory: Any = getattr(_compiled, "list_directory", None)
"""Twin: sys.files.list_directory."""
list_attributes: Any = getattr(_compiled, "list_attributes", None)
"""Twin: sys.xattrs.names."""
encode_handle: Any = getattr(_compiled, "encode_handle", None)
"""Twin: sys.handles.of and others."""
closed_all: Any = getattr(_compiled, "closed_all", lambda: False)
"""Wait until what has been removed is closed; was there anything? Its twin closes at once."""
rows: Any = getattr(_compiled, "rows", None)
"""Twin: what ops.directories makes of a tree's listing."""
