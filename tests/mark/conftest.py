"""What all at a mark's door have."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftfs.sys import handover


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What passes for one."""
    made = os.eventfd(0, os.EFD_CLOEXEC)

    def join(fd: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.dup(fd)

    monkeypatch.setattr(handover, "join_connection", join)
    yield made
    os.close(made)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"
