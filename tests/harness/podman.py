"""A rootless podman of a user's own, with images, storage and namespaces that go when it goes.

Owns a mount and a pid namespace in which the machine has one user more, with ids to give to containers, a /dev/fuse
that everybody may open, and control groups of one kind, which crun asks for. The machine itself stays as it is.
Whatever is started in there ends with its first process. Needs root, podman and crun.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.commands import (
    EXIT_LIMIT,
    Argument,
    CommandFailed,
    Completed,
    environment,
    open_directory,
    run,
    user_prefix,
    wait_until,
)

USER = 64321
FIRST_SUBORDINATE, SUBORDINATES = 300000, 400000
PODMAN_LIMIT = 60.0
PROGRAMS = ("podman", "crun", "buildah", "newuidmap", "fuse-overlayfs", "debootstrap")
"""What the tests of containers need."""

# Of sockets, whose paths have to be short: with a long one podman waits 20 s for each container that has ended.
_RUN = "/media"

# $1 is the directory for all that is made, $2 the user's id, $3 where others have mounts, which would not go as long as
# they are in here as well. Ends with its standard input; orphans are not waited for.
_BEGIN = f"""
findmnt -lno TARGET | grep "^$3/" | tac | while IFS= read -r place; do umount --lazy "$place" || true; done
cp -a /etc "$1/etc"
echo "engine:x:$2:$2::$1/home:/bin/sh" >>"$1/etc/passwd"
echo "engine:x:$2:" >>"$1/etc/group"
for file in subuid subgid; do echo "engine:{FIRST_SUBORDINATE}:{SUBORDINATES}" >"$1/etc/$file"; done
mkdir -p "$1/dev" "$1/home/.config/containers"
chown -R "$2:$2" "$1/home"
mount --make-rshared /
mount --bind "$1/etc" /etc
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs -o "mode=700,uid=$2,gid=$2" none {_RUN}
mount -t tmpfs none "$1/dev"
mknod -m 666 "$1/dev/fuse" c 10 229
mount --bind "$1/dev/fuse" /dev/fuse
echo ready
exec env --ignore-signal=CHLD cat
"""

_CONTAINERS = """
[containers]
cgroups = "disabled"
netns = "host"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Engine:
    """Commands as the user amid the namespaces; podman's storage is mounted by the program named last."""

    def __init__(self, base: Path, holder: int) -> None:
        self.base = base
        self.home = base / "home"
        self._holder = holder
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "USER": "engine",
            "XDG_RUNTIME_DIR": _RUN,
            "TMPDIR": _RUN,
            "LC_ALL": "C",
        }
        self.program = executable(base)
        (self.home / ".config/containers/containers.conf").write_text(_CONTAINERS)
        self.use(self.program)

    def use(self, program: str | Path) -> None:
        """Have the layers of all containers mounted by this program from now on."""
        settings = (
            f'[storage]\ndriver = "overlay"\n'
            f'graphroot = "{self.home}/storage"\nrunroot = "{_RUN}/containers"\n'
            f'[storage.options.overlay]\nmount_program = "{program}"\n'
        )
        (self.home / ".config/containers/storage.conf").write_text(settings)

    def run(self, args: Sequence[Argument], **options: Any) -> Completed:
        namespaces = [f"--mount=/proc/{self._holder}/ns/mnt", f"--pid=/proc/{self._holder}/ns/pid_for_children"]
        inside = ["nsenter", *namespaces, f"--wd={self.home}", "--", *user_prefix(USER)]
        options = {"env": self._environment, "limit": PODMAN_LIMIT, **options}
        return run([*inside, *args], **options)

    def podman(self, *args: Argument, **options: Any) -> str:
        """What podman prints, less the newline at the end."""
        return self.run(["podman", *args], **options).stdout.removesuffix("\n")

    def shell(self, image: str, script: str, *options: str) -> str:
        """What a script prints in a new container, which is removed."""
        return self.podman("run", "--rm", *options, image, "sh", "-ec", script)

    def mounts(self) -> list[str]:
        """Its FUSE mounts, as /proc/mounts has them."""
        lines = self.podman("unshare", "cat", "/proc/mounts").splitlines()
        return [line for line in lines if line.split()[2].startswith("fuse.")]

    def mounting(self) -> list[int]:
        """The processes that serve mounts, without what these have started themselves."""
        found = {}
        for line in self.run(["ps", "-u", str(USER), "-o", "pid=,ppid=,args="]).stdout.splitlines():
            pid, parent, command = line.split(maxsplit=2)
            if "lowerdir=" in command:
                found[int(pid)] = int(parent)
        return [pid for pid, parent in found.items() if parent not in found]

    def is_idle(self) -> bool:
        """Is nothing mounted, and nobody there who would serve it?"""
        return not self.mounts() and not self.mounting()


def absent() -> list[str]:
    """The programs that are missing here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def engine() -> Iterator[Engine]:
    """At the end everything is removed by `podman system reset`, which must leave nothing mounted."""
    base = open_directory("podman-")
    apart = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    holder = subprocess.Popen(
        [*apart, "sh", "-euc", _BEGIN, "sh", base, str(USER), _others()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        if holder.stdout.readline() != b"ready\n":
            raise CommandFailed("no place for podman could be made")
        made = Engine(base, holder.pid)
        yield made
        made.podman("rm", "--force", "--time=0", "--all")
        made.podman("system", "reset", "--force")
        wait_until(made.is_idle, "nothing mounted after podman system reset")
    finally:
        holder.stdin.close()
        holder.stdout.close()
        try:
            holder.wait(EXIT_LIMIT)
        finally:
            holder.kill()
        run(["rm", "-rf", "--one-file-system", base])


def _others() -> str:
    """Where other runs of tests mount."""
    return os.environ.get("TMPDIR", "/tmp").rstrip("/")


def executable(base: Path) -> Path:
    """The program under its one name, as whoever configures podman gives it, for everybody to run."""
    installed = Path(sys.executable).with_name("shiftfs")
    spec = importlib.util.find_spec("shiftfs")
    if spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(sys.prefix):
        return installed
    path = base / "shiftfs"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={environment()["PYTHONPATH"]} exec {sys.executable} -P -m shiftfs "$@"\n')
    path.chmod(0o755)
    return path
