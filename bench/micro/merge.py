"""The names of several directories put together."""

import os
import shutil
import tempfile
from pathlib import Path

from overlay import merge
from shiftfs.tree import Descriptor

from ..jobs import MicroJob, Work

_NAMES = 1000


def _merged(lowers: int) -> MicroJob:
    def prepare() -> Work:
        base = Path(tempfile.mkdtemp(prefix="shiftfs-bench-"))
        descriptors = []
        for number in range(lowers):
            (base / str(number)).mkdir()
            for name in range(_NAMES // lowers):
                # Every tenth name is in all of them.
                (base / str(number) / (f"both{name}" if name % 10 == 0 else f"name{number}-{name}")).touch()
            descriptors.append(os.open(base / str(number), os.O_RDONLY | os.O_DIRECTORY))
        parts = tuple(merge.Part(Descriptor(fd, os.close), 7, False, merge.NUMBERS_OF_ALL) for fd in descriptors)

        return Work(lambda: _times(parts), 20 * _NAMES, lambda: shutil.rmtree(base))

    return MicroJob(f"{lowers} director{'y' if lowers == 1 else 'ies'}, per name", prepare)


def _times(parts: tuple[merge.Part, ...]) -> None:
    for _ in range(20):
        merge.merged(parts, 0)


def jobs() -> tuple[MicroJob, ...]:
    return tuple(_merged(lowers) for lowers in (1, 2, 10))
