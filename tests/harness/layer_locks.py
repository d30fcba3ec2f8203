"""Mounts that hold locks on their layers, of a layer by itself or as an overlay's lower, and what they hold.

Owns a mount from `shown` to the end of its `with`.
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from harness.layered import Layers
from harness.shifted import Mount, mounted
from shiftfs.asking import ask

SERVED = "locks=layers"
KINDS = ["source", "lower"]


def shown(layers: Layers, kind: str, *options: str, descriptors: int | None = None) -> AbstractContextManager[Mount]:
    """The lower directory of these, as one of KINDS."""
    if kind == "source":
        return mounted(layers.lower, None, *options, descriptors=descriptors)
    return layers.mount(*options, descriptors=descriptors)


def locks_of(path: Path) -> dict[str, Any]:
    """What `shiftfsctl locks` tells."""
    found: dict[str, Any] = json.loads(ask(str(path), "locks"))
    return found


def nothing_is_held(mount: Mount) -> bool:
    """And nobody waits."""
    found = locks_of(mount.path)
    return not found["locks"] and not found["waiting"]
