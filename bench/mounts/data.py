"""Reading and writing a large file: by fio, one after another and here and there, in memory or not; and mapped.

What is read lies in a lower, where there are layers, and is never passed through beneath an upper. Or else it has been
written through the mount before, and so lies in the upper, from where it can be.
"""

import json
import mmap
import os
import subprocess
from collections.abc import Callable, Sequence

from ..jobs import Job, Mounted, Scale, Work
from ..mounting import drop_caches
from .copyup import LARGE
from .files import WORKSPACE

After = Callable[[], None]
Prepare = Callable[[str, Scale], After | None]
"""Gets a file ready, at a path; returns what is to be done at the end, if anything."""

_LIMIT = 280.0
_RANDOM = 4096
_BLOCK = 1 << 20


def _fio(mounted: Mounted, words: Sequence[str]) -> float:
    """Seconds that a job has waited for what it asked for, as fio has it."""
    done = subprocess.run(
        ["fio", "--name=job", "--output-format=json", "--ioengine=psync", "--invalidate=0", "--fallocate=none", *words],
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
        cwd="/",
    )
    if done.returncode:
        raise RuntimeError(f"fio {' '.join(words)}: {done.stderr or done.stdout}")
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    if job["error"]:
        raise RuntimeError(f"fio {' '.join(words)}: error {job['error']}")
    taken = (job[way]["lat_ns"] for way in ("read", "write", "sync"))
    return sum(float(each["mean"]) * float(each["N"]) for each in taken) / 1e9


def _job(name: str, words: Sequence[str], block: int, part: int, prepare: Prepare, *, is_own: bool) -> Job:
    """`part`: how much of the file is read or written: one over it. Random I/O has less to do. `is_own`: the file is
    written through the mount, which has it to itself; else it is the layer's."""

    def prepared(mounted: Mounted, _: None, scale: Scale) -> Work:
        size = (scale.large_mib << 20) // part
        path = f"{mounted.at}/{'written' if is_own else 'large'}"
        operations = size // block
        given = [f"--filename={path}", f"--bs={block}", f"--size={scale.large_mib}m", f"--io_size={size}", *words]
        after = prepare(path, scale)
        return Work(lambda: _fio(mounted, given) / operations, operations, after)

    return Job(name, WORKSPACE if is_own else LARGE, prepared, writes=is_own, needs="fio")


def _nothing(path: str, scale: Scale) -> None:
    pass


def _filled(path: str, scale: Scale) -> None:
    _fill(path, scale.large_mib)


def _in_memory(path: str, scale: Scale) -> After:
    """And nobody else's pages, or those of several mounts of a large file drive each other out. It is kept open: FUSE
    forgets an inode, and its pages, with its name (fs/fuse/inode.c, generic_delete_inode), and names are dropped by
    whatever else there is on the machine."""
    drop_caches(pages=True)
    held = os.open(path, os.O_RDONLY)
    _read_all(path)
    return lambda: os.close(held)


def _on_disk(path: str, scale: Scale) -> None:
    drop_caches(pages=True)


def _readers(what: str, first: Prepare, *, is_own: bool) -> tuple[Job, ...]:
    """In memory and on the disk, one after another and here and there; `first` makes the file, if it is to be made."""

    def after(then: Prepare) -> Prepare:
        def prepare(path: str, scale: Scale) -> After | None:
            first(path, scale)
            os.sync()
            return then(path, scale)

        return prepare

    cached, uncached = after(_in_memory), after(_on_disk)
    return (
        _job(f"sequential read{what}, cached", ["--rw=read"], _BLOCK, 1, cached, is_own=is_own),
        _job(f"sequential read{what}, uncached", ["--rw=read"], _BLOCK, 1, uncached, is_own=is_own),
        _job(f"random 4 KiB read{what}, cached", ["--rw=randread"], _RANDOM, 16, cached, is_own=is_own),
        _job(f"random 4 KiB read{what}, uncached", ["--rw=randread"], _RANDOM, 256, uncached, is_own=is_own),
    )


def _fill(path: str, mib: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(mib):
            file.write(bytes(_BLOCK))


def _read_all(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(_BLOCK):
            pass


def _mapped(mounted: Mounted, _: None, scale: Scale) -> Work:
    """One byte of each page, in memory or in the layer's."""
    fd = os.open(f"{mounted.at}/large", os.O_RDONLY)
    pages = (scale.large_mib << 20) // mmap.PAGESIZE

    def run() -> None:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
            sum(view[:: mmap.PAGESIZE])

    return Work(run, pages, lambda: os.close(fd))


def jobs(scale: Scale) -> tuple[Job, ...]:
    return (
        *_readers("", _nothing, is_own=False),
        Job("mapped read", LARGE, _mapped, "hot"),
        *_readers(" of what was written", _filled, is_own=True),
        _job("sequential write", ["--rw=write"], _BLOCK, 1, _nothing, is_own=True),
        _job("sequential write+fsync", ["--rw=write", "--end_fsync=1"], _BLOCK, 1, _nothing, is_own=True),
        _job("random 4 KiB write", ["--rw=randwrite"], _RANDOM, 16, _filled, is_own=True),
    )
