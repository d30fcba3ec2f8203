"""The table of inodes: found by number and by real key, made known, forgotten."""

from shiftfs.inodes import InodeTable
from shiftfs.tree import RealKey

from ..jobs import MicroJob, Work, repeat

_COUNT = 20_000


def _key(number: int) -> RealKey:
    return 7, number, 0, 0o100000


def _table() -> InodeTable:
    table = InodeTable(_key(1), None)
    for number in range(2, _COUNT + 2):
        table.add(_key(number), None).nlookup = 1
    return table


def _get() -> Work:
    return repeat(_table().get, range(2, _COUNT + 2))


def _known() -> Work:
    return repeat(_table().known, [_key(number) for number in range(2, _COUNT + 2)])


def _come_and_go() -> Work:
    keys = [_key(number) for number in range(2, _COUNT + 2)]

    def run() -> None:
        table = InodeTable(_key(1), None)
        for key in keys:
            inode = table.add(key, None)
            inode.nlookup = 1
            table.tell(table.root, b"%d" % inode.nodeid, inode)
        for nodeid in range(2, _COUNT + 2):
            table.forget(nodeid, 1)

    return Work(run, _COUNT)


def jobs() -> tuple[MicroJob, ...]:
    return (
        MicroJob("by number", _get),
        MicroJob("by real key", _known),
        MicroJob("made known, told, forgotten", _come_and_go),
    )
