"""User namespaces in which ranges of ids are mapped, made by root on an unprivileged user's behalf.

Root writes the maps itself, as newuidmap(1) would, so no entry in /etc/subuid is needed. Nothing here changes
the namespaces of the test's own process.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.commands import EXIT_LIMIT, Argument, CommandFailed, Completed, run, user_prefix


@dataclass(frozen=True)
class UserNamespace:
    """A user namespace, which lives as long as its first process, `pid`."""

    pid: int

    @property
    def path(self) -> Path:
        return Path(f"/proc/{self.pid}/ns/user")

    def command(self, args: Sequence[Argument], uid: int = 0, gid: int = 0) -> list[Argument]:
        return ["nsenter", f"--user={self.path}", "--setuid", str(uid), "--setgid", str(gid), "--", *args]

    def run(self, args: Sequence[Argument], uid: int = 0, gid: int = 0, **options: Any) -> Completed:
        """Run a command as an id of the namespace (by default its root), amid the mounts of this process."""
        return run(self.command(args, uid, gid), **options)


@contextmanager
def user_namespace(*ranges: tuple[int, int, int], owner: int = 65533) -> Iterator[UserNamespace]:
    """A user namespace made by the unprivileged user `owner`. Its uids and gids alike are the ranges (inside,
    outside, count), by default 65,536 of them from 100000."""
    lines = "".join("{} {} {}\n".format(*triple) for triple in ranges or [(0, 100000, 65536)])
    # cat answers only once unshare has made the namespace, and ends when its input does.
    holder = subprocess.Popen(
        [*user_prefix(owner), "unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        if holder.stdout.readline() != b"\n":
            raise CommandFailed("unshare --user made no namespace")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{name}").write_text(lines)
        yield UserNamespace(holder.pid)
    finally:
        holder.kill()
        holder.stdin.close()
        holder.stdout.close()
        holder.wait(EXIT_LIMIT)


def in_userns(
    args: Sequence[Argument], first_id: int = 100000, count: int = 65536, **options: Any
) -> Completed:
    """Run a command as root of a new user namespace that maps its ids from 0 on to first_id and following."""
    with user_namespace((0, first_id, count)) as namespace:
        return namespace.run(args, **options)
