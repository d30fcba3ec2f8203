"""What harness.changes are natively, as inotify has it: what mounts are held to. Owns nothing between calls."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from harness.calls import opened
from harness.changes import CHANGES, OUTSIDE, TREE, Change
from harness.commands import open_directory, run
from harness.events import Recorder, Streams
from harness.layered import write_tree


def watched(layer: Path, shown: Path, everything: bool) -> dict[str, Path]:
    """The directories there are, and all else if `everything`. By their names in the layer: the mount is not asked."""
    found = {"": shown}
    for above, directories, files in os.walk(layer):
        for path in (Path(above, name) for name in sorted([*directories, *(files if everything else ())])):
            if everything or not path.is_symlink():
                found[str(path.relative_to(layer))] = shown / path.relative_to(layer)
    return found


@cache
def natively(change: str, everything: bool, first_id: int) -> Streams:
    """What is heard of one of CHANGES where nothing is mounted."""
    return recorded(CHANGES[change], everything, first_id)


def recorded(change: Change | Callable[[Path, Path, int], object], everything: bool, first_id: int = 0) -> Streams:
    """What is heard of a change where nothing is mounted."""
    base = open_directory("native-")
    root, outside = base / "root", base / "outside"
    for path, tree in ((root, TREE), (outside, OUTSIDE)):
        path.mkdir()
        write_tree(path, tree)
    run(["chown", "-hR", f"{first_id}:{first_id}", base])
    try:
        with Recorder() as recorder:
            recorder.watch(watched(root, root, everything))
            change(root, outside, first_id)
            return recorder.settled(0)  # the kernel tells before the call returns
    finally:
        run(["rm", "-rf", base])


# What tests do wherever the mount is seen from: only what has a name in a module can be called there.


def append(path: Path, content: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, content)
