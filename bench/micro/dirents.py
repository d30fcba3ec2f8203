"""Directory entries packed into replies."""

from shiftfs.wire import dirents

from ..jobs import MicroJob, Work, repeat

_NAMES = [f"entry{number:06}".encode() for number in range(20_000)]
_ENTRY = bytes(128)


def _plain() -> Work:
    pack, size = dirents.dirent, dirents.dirent_size

    def one(name: bytes) -> None:
        size(len(name))
        pack(42, 1, 8, name)

    return repeat(one, _NAMES)


def _plus() -> Work:
    pack, size = dirents.direntplus, dirents.direntplus_size

    def one(name: bytes) -> None:
        size(len(name))
        pack(_ENTRY, 42, 1, 8, name)

    return repeat(one, _NAMES)


def jobs() -> tuple[MicroJob, ...]:
    return MicroJob("pack READDIR", _plain), MicroJob("pack READDIRPLUS", _plus)
