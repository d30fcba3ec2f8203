"""Marks, and containers that mount them: user and mount namespaces of an unprivileged user.

Owns the containers, whose mounts go when they do.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from harness.commands import (
    EXIT_LIMIT,
    SHIFTFS,
    Argument,
    CommandFailed,
    Completed,
    open_directory,
    run,
    user_prefix,
)
from harness.layered import Layers
from harness.shifted import Mount, mounted

USER, OTHER = 65533, 65532
FIRST = 100000
"""Container root, on the host."""


class Container(NamedTuple):
    """Namespaces that live as long as their first process, `pid`; `target` is a directory to mount on."""

    pid: int
    target: Path
    first: int

    def command(self, args: Sequence[Argument], uid: int = 0, gid: int | None = None) -> list[Argument]:
        return [
            "nsenter", f"--user=/proc/{self.pid}/ns/user", f"--mount=/proc/{self.pid}/ns/mnt",
            "--setuid", str(uid), "--setgid", str(uid if gid is None else gid), "--wd=/", "--", *args,
        ]  # fmt: skip

    def run(self, *args: Argument, uid: int = 0, gid: int | None = None, **options: Any) -> Completed:
        """A command as an id of the container, amid its mounts."""
        return run(self.command(args, uid, gid), **options)

    def shell(self, script: str, uid: int = 0, **options: Any) -> str:
        """The output of a script that is run in the target, and ends at its first failure."""
        return self.run("sh", "-euc", f'cd "{self.target}"\n{script}', uid=uid, **options).stdout

    @contextmanager
    def locking(self, name: str) -> Iterator[None]:
        """With flock(2), by a process of its own."""
        command = self.command(["sh", "-c", f"exec 9< {self.target}/{name}; flock 9; echo; exec cat"])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holding:
            try:
                assert holding.stdout is not None and holding.stdout.readline() == b"\n"
                yield
            finally:
                holding.kill()

    def may_lock(self, name: str) -> bool:
        """Is it free?"""
        return self.run("flock", "-n", self.target / name, "true", check=False).returncode == 0

    def mount(self, mark: Path, *options: str, target: Path | None = None, **rest: Any) -> Completed:
        """`shiftfs MARK TARGET`."""
        words = ["-o", ",".join(options)] if options else []
        return self.run(*SHIFTFS, *words, mark, target or self.target, **rest)

    def unmount(self, target: Path | None = None) -> None:
        self.run("umount", target or self.target)


@contextmanager
def container(*ranges: tuple[int, int, int], owner: int = USER, target: Path | None = None) -> Iterator[Container]:
    """Its uids and gids alike are the ranges (inside, outside, count), by default 65,536 of them from FIRST."""
    ranges = ranges or ((0, FIRST, 65536),)
    lines = "".join("{} {} {}\n".format(*triple) for triple in ranges)
    # cat answers only once unshare has made the namespaces, and ends when its input does.
    holder = subprocess.Popen(
        [*user_prefix(owner), "unshare", "--user", "--mount", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        if holder.stdout.readline() != b"\n":
            raise CommandFailed("unshare made no namespaces")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{name}").write_text(lines)
        yield Container(holder.pid, target or open_directory("target-"), ranges[0][1])
    finally:
        holder.kill()
        holder.stdin.close()
        holder.stdout.close()
        holder.wait(EXIT_LIMIT)


class Marked(NamedTuple):
    """A mark: what it shows, and its own mount."""

    source: Path
    mount: Mount

    @property
    def path(self) -> Path:
        return self.mount.path


def hidden_directory() -> Path:
    """Beneath one that only root may search."""
    path = open_directory("hidden-")
    path.chmod(0o700)
    inner = path / "tree"
    inner.mkdir()
    inner.chmod(0o755)
    return inner


def named(layers: Layers) -> list[str]:
    """As options."""
    return [f"lowerdir={layers.lower}", f"upperdir={layers.upper}", f"workdir={layers.work}"]


@contextmanager
def marked(*options: str, source: Path | None = None, **rest: Any) -> Iterator[Marked]:
    source = source or hidden_directory()
    with mounted(source, None, "mark", *options, **rest) as mount:
        yield Marked(source, mount)


def with_memory(size: int) -> list[str]:
    """The program, which believes that half of the machine's memory is so many bytes."""
    script = f"""
import sys
from shiftfs.mark import limits
limits.half_of_the_memory = lambda: {size}
from shiftfs.__main__ import main
sys.exit(main())
"""
    return [sys.executable, "-P", "-c", script]
