"""Entries of a source tree by their path."""

from shiftfs.descriptors import Entry
from shiftfs.source import SourceTree


def find(tree: SourceTree, path: bytes) -> Entry:
    """The entry at a path; nothing is held of it nor of what leads to it."""
    entry = tree.root
    for name in path.split(b"/"):
        entry = tree.entry(entry, name, tree.lookup(entry, name)[0])
    above: Entry | None = entry
    while above is not None and above.parent is not None:
        tree.release(above)
        above = above.parent
    return entry
