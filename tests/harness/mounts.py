"""The kernel's table of mounts; unmounting, by force where it must be; filesystems on loop devices; control groups.

Never touches a path beneath a mount: a filesystem that hangs would take the test with it.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from harness.commands import CommandFailed, open_directory, run, wait_until

UNMOUNT_LIMIT = 20.0
BUSY_LIMIT = 5.0


class Leftover(AssertionError):
    """A mount or a process did not end by itself and had to be removed by force."""


class MountEntry(NamedTuple):
    """A line of /proc/self/mountinfo (proc(5))."""

    mount_id: int
    device: int  # as the kernel numbers it inside: major << 20 | minor
    root: str
    path: str
    kind: str
    source: str


def mount_table() -> list[MountEntry]:
    return [_mount_entry(line) for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]


def _mount_entry(line: bytes) -> MountEntry:
    fields = [os.fsdecode(_unescape(field)) for field in line.split(b" ")]
    major, _, minor = fields[2].partition(":")
    rest = fields.index("-", 6)
    kind, source = fields[rest + 1 : rest + 3]
    return MountEntry(int(fields[0]), int(major) << 20 | int(minor), fields[3], fields[4], kind, source)


def _unescape(field: bytes) -> bytes:
    # Space, tab, newline and backslash stand as three octal digits.
    head, *rest = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def newest_mount(path: Path) -> MountEntry:
    """The uppermost mount at a mountpoint."""
    found = [entry for entry in mount_table() if entry.path == str(path)]
    if not found:
        raise AssertionError(f"nothing is mounted at {path}")
    return found[-1]


def is_mounted(entry: MountEntry) -> bool:
    return any(entry.mount_id == other.mount_id for other in mount_table())


def unmount(entry: MountEntry) -> None:
    """Unmount as a user does; when that hangs, or fails for BUSY_LIMIT seconds, by force, and Leftover."""
    end = time.monotonic() + BUSY_LIMIT
    while is_mounted(entry):
        try:
            run(["umount", entry.path], limit=UNMOUNT_LIMIT)
        except CommandFailed as failure:
            if time.monotonic() > end:
                unmount_by_force(entry)
                raise Leftover(f"had to be unmounted by force: {failure}") from None
            time.sleep(0.1)


def unmount_by_force(entry: MountEntry) -> None:
    """Abort, then detach: never waits for the filesystem."""
    if entry.kind.startswith("fuse"):
        abort_connection(entry.device)
    if is_mounted(entry):
        run(["umount", "--lazy", "--no-canonicalize", entry.path], limit=UNMOUNT_LIMIT)


def abort_connection(device: int) -> None:
    """End a FUSE connection from outside: whoever waits for it gets ECONNABORTED or ENOTCONN. Needs root."""
    with connections() as control:
        _write_abort(control / str(device))


@contextmanager
def connections() -> Iterator[Path]:
    """A directory for each FUSE connection, by device number, with what there is to be seen and done. Needs root."""
    control = Path("/sys/fs/fuse/connections")
    if control.is_mount():
        yield control
        return
    # The control filesystem is not mounted everywhere. At a place of our own it is in nobody's way.
    place = Path(tempfile.mkdtemp(prefix="fusectl-"))
    run(["mount", "-t", "fusectl", "none", place])
    try:
        yield place
    finally:
        run(["umount", place])
        place.rmdir()


def _write_abort(connection: Path) -> None:
    try:
        (connection / "abort").write_text("1")
    except FileNotFoundError:
        pass  # it ended meanwhile


@contextmanager
def loop_filesystem(kind: str, size_mb: int, *options: str, image_in: Path | None = None) -> Iterator[Path]:
    """An ext4, xfs (from 300 MB) or btrfs (from 110 MB) of its own, mounted with `options`. Needs root."""
    make = {"ext4": ["-q", "-F", "-I", "256"], "xfs": ["-q", "-f"], "btrfs": ["-q", "-f"]}[kind]
    path = open_directory(f"{kind}-")
    try:
        with tempfile.NamedTemporaryFile(prefix=f"{kind}-", suffix=".img", dir=image_in) as image:
            os.truncate(image.name, size_mb << 20)
            run([f"mkfs.{kind}", *make, image.name])
            # umount frees the loop device that mount took for it.
            run(["mount", "-t", kind, "-o", ",".join(["loop", *options]), image.name, path])
            entry = newest_mount(path)
            try:
                yield path
            finally:
                unmount(entry)
    finally:
        path.rmdir()


@contextmanager
def stoppable_bindfs(beneath: Path, at: Path, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """bindfs of a directory, which can be stopped (SIGSTOP): what is asked of it waits then. It goes on at the end."""
    with subprocess.Popen(["bindfs", "-f", *options, beneath, at]) as process:
        try:
            wait_until(lambda: os.path.ismount(at), "bindfs")
            entry = newest_mount(at)
            try:
                yield process
            finally:
                process.send_signal(signal.SIGCONT)
                unmount(entry)
        finally:
            process.kill()


@contextmanager
def new_cgroup() -> Iterator[Path]:
    """A new group at the top of the cgroup2 tree, in a mount of its own. Needs root."""
    place = open_directory("cgroup2-")
    with ExitStack() as stack:
        stack.callback(place.rmdir)
        run(["mount", "-t", "cgroup2", "none", place])
        stack.callback(unmount, newest_mount(place))
        group = place / f"shiftfs-test-{os.getpid()}"
        group.mkdir()
        stack.callback(group.rmdir)
        yield group
