"""A small FUSE filesystem that refuses all locks with one errno: a directory as it is but for that, by libfuse.

Owns the mount and its process from `refusing_at` to the end of the `with`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.commands import EXIT_LIMIT, environment, wait_until
from harness.mounts import mount_table, newest_mount, unmount

_STATUS = ("dev", "ino", "mode", "nlink", "uid", "gid", "size", "atime_ns", "mtime_ns", "ctime_ns")
_SERVE = "import sys; from harness.refusing import serve; serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))"


@contextmanager
def refusing_at(path: Path, backing: Path, error: int) -> Iterator[None]:
    """`backing` at `path`. Both kinds of locks are asked of the process: libfuse tells the kernel which it answers."""
    command = [sys.executable, "-c", _SERVE, str(backing), str(path), str(error)]
    known = environment()
    known["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), known["PYTHONPATH"]])

    def ended_or_mounted() -> bool:
        return process.poll() is not None or any(entry.path == str(path) for entry in mount_table())

    process = subprocess.Popen(command, env=known, stdin=subprocess.DEVNULL)
    try:
        wait_until(ended_or_mounted, f"a filesystem at {path}")
        entry = newest_mount(path)
        try:
            yield
        finally:
            unmount(entry)
            process.wait(EXIT_LIMIT)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(EXIT_LIMIT)


def serve(backing: str, path: str, error: int) -> None:
    """In a process of its own, until it is unmounted."""
    os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
    import mfusepy

    class Refusing(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def lock(self, path: str, fh: int, cmd: int, lock: object) -> int:
            raise mfusepy.FuseOSError(error)

        def flock(self, path: str, fh: int, op: int) -> int:
            raise mfusepy.FuseOSError(error)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = os.lstat(backing + path)
            return {f"st_{name.removesuffix('_ns')}": getattr(found, f"st_{name}") for name in _STATUS}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(backing + path)]

        def open(self, path: str, flags: int) -> int:
            return os.open(backing + path, flags)

        def create(self, path: str, mode: int, fi: object = None) -> int:
            return os.open(backing + path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(backing + path, length)
            return 0

        def chmod(self, path: str, mode: int) -> int:
            os.chmod(backing + path, mode)
            return 0

        def rename(self, old: str, new: str) -> int:
            os.rename(backing + old, backing + new)
            return 0

        def unlink(self, path: str) -> int:
            os.unlink(backing + path)
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    mfusepy.FUSE(Refusing(), path, foreground=True, nothreads=True, use_ino=True)
