"""What takes set-id bits and file capabilities away; on a plain directory and on mounts alike."""

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.calls import (
    fallocate,
    in_child,
    opened,
)
from harness.places import USER, Place, same_as_layer

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # version 2, effective: cap_net_bind_service


def written(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def allocated(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        fallocate(fd, 0, 0, 20000)


def truncated_by_open(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        pass


# What takes set-id bits away. Mode before, mode after; a directory keeps them.


def append(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"x")


def copied_into(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.copy_file_range(fd, fd, 2, 0, 10)


def long_write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x" * 300_000)


MODES = {0o4777: 0o777, 0o6777: 0o777, 0o2777: 0o777, 0o1777: 0o1777}
BY_A_USER: dict[str, Callable[[Path], object]] = {
    "write": written,
    "append": append,
    "long write": long_write,
    "truncate": lambda path: os.truncate(path, 3),
    "O_TRUNC": truncated_by_open,
    "fallocate": allocated,
    "copy_file_range": copied_into,
}


@pytest.mark.parametrize("mode", MODES, ids=oct)
@pytest.mark.parametrize("what", BY_A_USER)
def test_set_id_bits_fall_when_a_user_writes(place: Place, what: str, mode: int) -> None:
    path = place.new("file", b"content")
    path.chmod(mode)
    in_child(lambda: BY_A_USER[what](path), uid=USER)
    assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(MODES[mode])
    same_as_layer(place, path)


@pytest.mark.parametrize("what", BY_A_USER)
def test_set_id_bits_stay_when_root_writes(place: Place, what: str) -> None:
    path = place.new("file", b"content")
    path.chmod(0o6777)
    BY_A_USER[what](path)
    # With these two requests the kernel does not say whether the caller has CAP_FSETID: they fall to be safe.
    falls = place.mount and what in ("fallocate", "copy_file_range")
    assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(0o777 if falls else 0o6777)
    same_as_layer(place, path)


@pytest.mark.parametrize("mode", [*MODES, 0o2666], ids=oct)
@pytest.mark.parametrize("owner", [(USER, -1), (-1, USER), (USER, USER), (0, 0), (-1, -1)])
def test_set_id_bits_fall_with_chown(place: Place, mode: int, owner: tuple[int, int]) -> None:
    path = place.new("file")
    path.chmod(mode)
    (place.path / "dir").mkdir()
    (place.path / "dir").chmod(mode)
    os.chown(path, *owner)
    os.chown(place.path / "dir", *owner)
    assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(MODES.get(mode, mode))
    assert oct(stat.S_IMODE((place.path / "dir").stat().st_mode)) == oct(mode)
    same_as_layer(place, path)


def has_capability(path: Path) -> bool:
    try:
        return os.getxattr(path, "security.capability") == CAPABILITY
    except OSError as error:
        assert error.errno == errno.ENODATA
        return False


@pytest.mark.parametrize("what", ["write", "long write", "truncate", "O_TRUNC", "fallocate", "chown"])
def test_file_capabilities_fall_with_any_write_and_with_chown(place: Place, what: str) -> None:
    path = place.new("file", b"content")
    os.setxattr(path, "security.capability", CAPABILITY)
    assert has_capability(path)
    if what == "chown":
        os.chown(path, USER, USER)
    else:
        BY_A_USER[what](path)
    assert not has_capability(path)
    assert "security.capability" not in os.listxattr(place.layer / "file")


def test_file_capabilities_stay_otherwise(place: Place) -> None:
    path = place.new("file", b"content")
    os.setxattr(path, "security.capability", CAPABILITY)
    path.chmod(0o700)
    os.utime(path)
    path.rename(place.path / "other")
    (place.path / "other").read_bytes()
    assert has_capability(place.path / "other")
