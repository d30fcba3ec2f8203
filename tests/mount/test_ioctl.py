"""Flags, projects and generations of files by ioctl, on filesystems that have them."""

import errno
import fcntl
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import loop_filesystem, mounted, run
from harness.calls import (
    FS_APPEND,
    FS_IMMUTABLE,
    FS_IOC_FSGETXATTR,
    FS_IOC_FSSETXATTR,
    FS_IOC_GETFLAGS,
    FS_NOATIME,
    FS_NODUMP,
    get_flags,
    get_version,
    opened,
    refuses,
    set_flags,
)
from harness.places import USER

LAYERS = {"ext4": 16, "xfs": 310, "btrfs": 120}  # megabytes
FSXATTR = struct.Struct("=IIIII8x")  # struct fsxattr of linux/fs.h: xflags extsize nextents projid cowextsize
FS_XFLAG_NODUMP, FS_XFLAG_EXTSIZE, FS_XFLAG_EXTSZINHERIT = 0x80, 0x800, 0x1000

_numbers = itertools.count()


class Both(NamedTuple):
    """A file or a directory on the mount and on the layer."""

    path: Path
    layer: Path


@pytest.fixture(scope="module", params=LAYERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["open=refuse", "open=serve"])
def base(request: pytest.FixtureRequest, kind: str) -> Iterator[Both]:
    with loop_filesystem(kind, LAYERS[kind]) as source, mounted(source, None, request.param) as mount:
        yield Both(mount.path, source)


@pytest.fixture(params=["file", "dir"])
def target(request: pytest.FixtureRequest, base: Both) -> Iterator[Both]:
    name = f"{request.param}{next(_numbers)}"
    if request.param == "file":
        (base.path / name).write_text("content")
    else:
        (base.path / name).mkdir()
    yield Both(base.path / name, base.layer / name)
    set_flags(base.layer / name, get_flags(base.layer / name) & ~(FS_IMMUTABLE | FS_APPEND))


@pytest.mark.parametrize("flag", [FS_NODUMP, FS_NOATIME, FS_APPEND, FS_IMMUTABLE])
def test_flags(target: Both, flag: int) -> None:
    before = get_flags(target.path)
    assert before == get_flags(target.layer)
    set_flags(target.path, before | flag)
    assert get_flags(target.path) == get_flags(target.layer) == before | flag
    set_flags(target.path, before)
    assert get_flags(target.path) == get_flags(target.layer) == before


def test_what_the_flags_forbid_is_forbidden(target: Both) -> None:
    set_flags(target.path, get_flags(target.path) | FS_IMMUTABLE)
    refuses(errno.EPERM, os.rename, target.path, f"{target.path}2")
    refuses(errno.EPERM, os.chmod, target.path, 0o700)
    refuses(errno.EPERM, os.rmdir if target.path.is_dir() else os.unlink, target.path)
    if target.path.is_dir():
        refuses(errno.EPERM, (target.path / "new").touch)
    else:
        refuses(errno.EPERM, os.link, target.path, f"{target.path}2")
        refuses(errno.EPERM, os.truncate, target.path, 0)


def test_an_append_only_directory(base: Both) -> None:
    path = base.path / f"dir{next(_numbers)}"
    path.mkdir()
    (path / "old").touch()
    set_flags(path, get_flags(path) | FS_APPEND)
    (path / "new").touch()
    refuses(errno.EPERM, os.unlink, path / "old")
    refuses(errno.EPERM, os.rename, path / "old", path / "other")
    set_flags(path, get_flags(path) & ~FS_APPEND)


def test_an_append_only_file(base: Both) -> None:
    path = base.path / f"file{next(_numbers)}"
    path.write_text("content")
    set_flags(path, get_flags(path) | FS_APPEND)
    for _ in range(2):
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b", more")
    refuses(errno.EPERM, os.truncate, path, 0)
    refuses(errno.EPERM, path.write_text, "other")
    assert path.read_text() == (base.layer / path.name).read_text() == "content, more, more"
    set_flags(path, get_flags(path) & ~FS_APPEND)


def test_lsattr_and_chattr(target: Both) -> None:
    run(["chattr", "+d", target.path])
    seen = [run(["lsattr", "-d", path]).stdout.split()[0] for path in target]
    assert seen[0] == seen[1]
    assert "d" in seen[0]


def test_only_owners_change_flags(target: Both) -> None:
    target.path.chmod(0o777)
    before = get_flags(target.layer)
    done = run(["setpriv", f"--reuid={USER}", "--clear-groups", "chattr", "+d", target.path], check=False)
    assert done.returncode != 0
    assert get_flags(target.layer) == before


def get_extended(path: Path) -> tuple[int, ...]:
    with opened(path) as fd:
        return FSXATTR.unpack(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR.size)))


def set_extended(path: Path, xflags: int, extent_size: int, project: int) -> None:
    with opened(path) as fd:
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, FSXATTR.pack(xflags, extent_size, 0, project, 0))


def test_extended_flags(target: Both) -> None:
    xflags, extent_size, _, project, _ = before = get_extended(target.path)
    assert before == get_extended(target.layer)
    set_extended(target.path, xflags | FS_XFLAG_NODUMP, extent_size, project)
    assert get_extended(target.path) == get_extended(target.layer) == (xflags | FS_XFLAG_NODUMP, *before[1:])


def test_project_and_extent_size(target: Both, kind: str) -> None:
    if kind != "xfs":  # ext4 has projects only if made with them
        refuses(errno.EOPNOTSUPP, set_extended, target.layer, 0, 0, 4711)
        refuses(errno.EOPNOTSUPP, set_extended, target.path, 0, 0, 4711)
        return
    wanted = FS_XFLAG_EXTSZINHERIT if target.path.is_dir() else FS_XFLAG_EXTSIZE
    if not target.path.is_dir():
        os.truncate(target.path, 0)  # no extent size for a file that has extents
    set_extended(target.path, wanted, 65536, 4711)
    seen = get_extended(target.path)
    assert seen == get_extended(target.layer)
    assert (seen[0] & wanted, seen[1], seen[3]) == (wanted, 65536, 4711)


def test_generation(target: Both) -> None:
    assert get_version(target.path) == get_version(target.layer)


@pytest.mark.parametrize("request_number", [0x5401, 0x80045390, 0xC0045390, 0x40045390, 0x5390])
def test_an_ioctl_that_nobody_knows(target: Both, request_number: int) -> None:
    """TCGETS, which isatty(3) uses, and numbers without a meaning."""
    with opened(target.path) as fd:
        refuses(errno.ENOTTY, fcntl.ioctl, fd, request_number, bytes(64))
        assert not os.isatty(fd)


def test_a_filesystem_without_flags_has_none_here(tmp_path: Path) -> None:
    """What the layer refuses is refused with the layer's error."""
    source = Path("/proc")
    native = refused(source / "version", FS_IOC_GETFLAGS)
    with mounted(source) as mount:
        assert refused(mount.path / "version", FS_IOC_GETFLAGS) == native


def refused(path: Path, request: int) -> int | None:
    with opened(path) as fd, pytest.raises(OSError) as caught:
        fcntl.ioctl(fd, request, bytes(8))
    return caught.value.errno
