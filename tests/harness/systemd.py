"""A machine of its own whose first process is systemd, for the tests of units: systemd-nspawn boots this machine's
programs, and nothing of its configuration.

Owns the machine, whose /etc, /run, /srv and the like are new and go with it; its control group; and the namespace in
which it is begun, so that this machine has nothing of it to see. It is in the initial user namespace, as marks demand
of who serves them. Needs root and systemd-nspawn.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.commands import (
    CommandFailed,
    Completed,
    environment,
    open_directory,
    run,
    user_prefix,
    wait_until,
)
from harness.mounts import new_cgroup

PROGRAMS = ("systemd-nspawn", "systemctl", "journalctl", "newuidmap", "nsenter")
USER = 1001
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
BOOT_LIMIT = 60.0
END_LIMIT = 20.0

_PACKAGES = "/opt/tested"
"""Where the package that the tests import is in the machine."""

# $1 is the control group for it all, $2 where others have mounts, which would not go as long as they are in here too.
_BEGIN = """
echo $$ >"$1/cgroup.procs"
findmnt -lno TARGET | grep "^$2/" | tac | while IFS= read -r place; do umount --lazy "$place" || true; done
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
shift 2
exec "$@"
"""


class Machine(NamedTuple):
    """`pid`: its first process."""

    pid: int

    def run(self, *args: str, user: int = 0, **options: Any) -> Completed:
        """A command in it."""
        return run(self.command(*args, user=user), env=ENVIRONMENT, **options)

    def command(self, *args: str, user: int = 0) -> list[str]:
        """To be started with ENVIRONMENT."""
        return ["nsenter", f"--target={self.pid}", "--all", "--wdns=/", "--", *user_prefix(user), *args]

    def shell(self, script: str, *args: str, **options: Any) -> str:
        """What a script prints that ends at its first failure."""
        return self.run("sh", "-euc", script, "sh", *args, **options).stdout

    def unit(self, name: str, *properties: str) -> list[str]:
        """Properties of a unit, in this order."""
        show = ["systemctl", "show", "--value", name]
        return [self.run(*show, f"--property={one}").stdout.strip() for one in properties]

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout


def absent() -> list[str]:
    """The programs that are missing here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def booted(units: Path) -> Iterator[Machine]:
    """With these units, none of which has been begun, and `shiftfs` and `shiftfsctl` where these look for them."""
    base = open_directory("machine-")
    try:
        _configure(base, units)
        with new_cgroup() as group:
            try:
                with _running(base, group) as machine:
                    yield machine
            finally:
                _remove_groups(group)
    finally:
        run(["rm", "-rf", "--one-file-system", base])


def _configure(base: Path, units: Path) -> None:
    etc, programs = base / "etc", base / "bin"
    shutil.copytree(units, etc / "systemd/system")
    (etc / "machine-id").touch()  # else it is begun for the first time, and enables all units that are installed here
    (etc / "os-release").write_text("ID=tested\n")
    (etc / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\nann:x:{USER}:{USER}::/srv:/bin/sh\n")
    (etc / "group").write_text(f"root:x:0:\nann:x:{USER}:\n")
    for name in ("subuid", "subgid"):
        (etc / name).write_text("ann:100000:65536\n")
    programs.mkdir()
    for name, module in {"shiftfs": "shiftfs", "shiftfsctl": "shiftfs.ctl"}.items():
        command = f'PYTHONPATH={_PACKAGES} exec {sys.executable} -P -m {module} "$@"'
        (programs / name).write_text(f"#!/bin/sh\n{command}\n")
        (programs / name).chmod(0o755)


def _command(base: Path) -> list[str]:
    interpreter = {path for path in (sys.prefix, sys.base_prefix) if not path.startswith("/usr")}
    return [
        "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--console=pipe", "--link-journal=no",
        "--machine=tested", "--private-network", "--directory=/", "--volatile=yes",
        f"--bind={base}/etc:/etc", f"--bind-ro={base}/bin:/usr/local/bin", "--bind=/dev/fuse",
        f"--bind-ro={environment()['PYTHONPATH']}:{_PACKAGES}", *(f"--bind-ro={path}" for path in interpreter),
        "--boot", "systemd.unit=basic.target", "systemd.show_status=no",
    ]  # fmt: skip


@contextmanager
def _running(base: Path, group: Path) -> Iterator[Machine]:
    apart = ["unshare", "--mount", "--propagation=private", "sh", "-euc", _BEGIN, "sh"]
    others = os.environ.get("TMPDIR", "/tmp").rstrip("/")
    # nspawn's filter of system calls keeps systemd from those by which it guards devices (bpf(2)).
    env = {**os.environ, "SYSTEMD_SECCOMP": "0"}
    with (base / "said").open("w+b") as said:
        process = subprocess.Popen(
            [*apart, str(group), others, *_command(base)], stdin=subprocess.DEVNULL, stdout=said,
            stderr=subprocess.STDOUT, env=env, start_new_session=True,
        )  # fmt: skip
        try:
            machine = Machine(_first_process(process, base / "said"))
            _expect_running(machine)
            yield machine
        finally:
            process.terminate()  # as a machine's power button
            try:
                process.wait(END_LIMIT)
            finally:
                process.kill()
                process.wait()


def _first_process(process: "subprocess.Popen[bytes]", said: Path) -> int:
    """Once there is somebody in it to talk to."""

    def found() -> list[int]:
        if process.poll() is not None:
            raise CommandFailed(f"systemd-nspawn has ended:\n{said.read_text(errors='replace')}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(one) for one in children if Path(f"/proc/{one}/root/run/systemd/private").exists()]

    wait_until(found, "systemd is there", BOOT_LIMIT)
    return found()[0]


def _expect_running(machine: Machine) -> None:
    said = machine.run("systemctl", "is-system-running", "--wait", check=False, limit=BOOT_LIMIT).stdout.strip()
    if said != "running":
        raise CommandFailed(f"the machine is {said}:\n{machine.run('systemctl', '--failed', '--no-pager').stdout}")


def _remove_groups(group: Path) -> None:
    """All that are in it, when what ran there has ended."""

    def is_empty() -> bool:
        for path, _, _ in os.walk(group, topdown=False):
            if path != str(group):
                with suppress(OSError):
                    os.rmdir(path)
        return not [entry for entry in group.iterdir() if entry.is_dir()]

    for pid in (group / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    wait_until(is_empty, "the machine's control groups are gone", END_LIMIT)
