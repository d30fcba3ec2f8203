"""Parts of shiftfs by themselves, without a mount: seconds per operation of one thread."""

from collections.abc import Callable, Sequence

from ..jobs import MicroJob
from . import codec, dirents, inodes, maps, merge

GROUPS: dict[str, Callable[[], Sequence[MicroJob]]] = {
    "codec": codec.jobs,
    "inodes": inodes.jobs,
    "maps": maps.jobs,
    "dirents": dirents.jobs,
    "merge": merge.jobs,
}
