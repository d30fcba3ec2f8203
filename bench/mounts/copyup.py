"""The first change of lower files: by the thousand, and of a large one."""

import os
from pathlib import Path

from ..jobs import Job, Layout, Mounted, Scale, Work, picked, repeat
from .files import SMALL, Small


def _append(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x")
    os.close(fd)


def _append_each(mounted: Mounted, small: Small, scale: Scale) -> Work:
    return repeat(_append, picked(mounted, small.names, scale.small))


def _chmod_each(mounted: Mounted, small: Small, scale: Scale) -> Work:
    return repeat(lambda path: os.chmod(path, 0o600), picked(mounted, small.names, scale.small))


def _unlink_each(mounted: Mounted, small: Small, scale: Scale) -> Work:
    """Which leaves a whiteout."""
    return repeat(os.unlink, picked(mounted, small.names, scale.small))


def _make_large(base: Path, scale: Scale) -> None:
    (base / "lower0").mkdir()
    block = os.urandom(1 << 20)
    with (base / "lower0" / "large").open("wb") as file:
        for _ in range(scale.large_mib):
            file.write(block)


LARGE = Layout("a large file", _make_large)


def _append_large(mounted: Mounted, _: None, scale: Scale) -> Work:
    """The bytes are in memory, since they have just been written, or copied."""
    return repeat(_append, [f"{mounted.at}/large"])


def _large(filesystem: str, scale: Scale) -> Job:
    """Where the layers are on xfs or btrfs, their blocks can be shared."""
    name = f"append to {scale.large_mib} MiB{f' on {filesystem}' if filesystem else ''}"
    layout = LARGE._replace(name=f"{LARGE.name}, {filesystem}", filesystem=filesystem) if filesystem else LARGE
    needs = f"mkfs.{filesystem}" if filesystem else ""
    return Job(name, layout, _append_large, writes=True, layered=True, needs=needs)


def jobs(scale: Scale) -> tuple[Job, ...]:
    return (
        Job("append", SMALL, _append_each, "cold", writes=True, layered=True, exact=True),
        Job("chmod of a lower file", SMALL, _chmod_each, "cold", writes=True, layered=True, exact=True),
        Job("unlink of a lower file", SMALL, _unlink_each, "cold", writes=True, layered=True, exact=True),
        _large("", scale),
        _large("xfs", scale),
        _large("btrfs", scale),
    )
