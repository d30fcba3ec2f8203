"""Small files: opened and read, made, written, renamed, removed by the thousand."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from ..jobs import Job, Layout, Mounted, Scale, Work, make_tree, picked, repeat, write_file

_CONTENT = b"x" * 2000


class Small(NamedTuple):
    names: list[str]


def _make(base: Path, scale: Scale) -> Small:
    names = make_tree(base / "lower0", scale.small)
    for name in names:
        (base / "lower0" / name).write_bytes(_CONTENT)
    return Small(names)


def _make_empty(base: Path, scale: Scale) -> None:
    (base / "lower0").mkdir()


SMALL = Layout("small files", _make)
WORKSPACE = Layout("empty", _make_empty)


def _read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)


def _open_read_close(mounted: Mounted, small: Small, scale: Scale) -> Work:
    return repeat(_read, picked(mounted, small.names, scale.hot))


def _hot_open_read_close(mounted: Mounted, small: Small, scale: Scale) -> Work:
    return repeat(_read, picked(mounted, small.names, scale.hot), max(1, scale.passes // 5))


def _new(mounted: Mounted, scale: Scale, make: Callable[[str], object] | None = None) -> list[str]:
    """Paths in a new directory, with something at each of them."""
    new = mkdtemp(dir=mounted.at)
    paths = [f"{new}/file{number}" for number in range(scale.small)]
    if make:
        for path in paths:
            make(path)
    return paths


def _write_new(path: str) -> None:
    write_file(path, _CONTENT)


def _create(mounted: Mounted, _: None, scale: Scale) -> Work:
    return repeat(_write_new, _new(mounted, scale))


def _unlink(mounted: Mounted, _: None, scale: Scale) -> Work:
    return repeat(os.unlink, _new(mounted, scale, _write_new))


def _rename(mounted: Mounted, _: None, scale: Scale) -> Work:
    return repeat(lambda path: os.rename(path, f"{path}-renamed"), _new(mounted, scale, _write_new))


def _replace(mounted: Mounted, _: None, scale: Scale) -> Work:
    """As editors and package managers do: write beside, rename over."""

    def replace(path: str) -> None:
        _write_new(f"{path}.tmp")
        os.rename(f"{path}.tmp", path)

    return repeat(replace, _new(mounted, scale, _write_new))


def _mkdir(mounted: Mounted, _: None, scale: Scale) -> Work:
    return repeat(os.mkdir, _new(mounted, scale))


def _rmdir(mounted: Mounted, _: None, scale: Scale) -> Work:
    return repeat(os.rmdir, _new(mounted, scale, os.mkdir))


def _symlink(mounted: Mounted, _: None, scale: Scale) -> Work:
    return repeat(lambda path: os.symlink("target", path), _new(mounted, scale))


def _hard_link(mounted: Mounted, _: None, scale: Scale) -> Work:
    paths = _new(mounted, scale)
    one = f"{paths[0]}-linked"
    _write_new(one)
    return repeat(lambda path: os.link(one, path), paths)


def _chmod(mounted: Mounted, _: None, scale: Scale) -> Work:
    return repeat(lambda path: os.chmod(path, 0o600), _new(mounted, scale, _write_new))


def _small_writes(mounted: Mounted, _: None, scale: Scale) -> Work:
    """Of 100 bytes, one after another, to one open file."""
    fd = os.open(f"{mounted.at}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    work = repeat(lambda line: os.write(fd, line), [b"x" * 100] * scale.small)
    return work._replace(after=lambda: os.close(fd))


def _fsync(mounted: Mounted, _: None, scale: Scale) -> Work:
    fd = os.open(f"{mounted.at}/synced", os.O_RDWR | os.O_CREAT, 0o644)

    def sync(number: int) -> None:
        os.pwrite(fd, b"x" * 100, number)
        os.fsync(fd)

    return repeat(sync, range(scale.small // 10))._replace(after=lambda: os.close(fd))


def _storm(name: str, prepare: Callable[[Mounted, None, Scale], Work]) -> Job:
    return Job(name, WORKSPACE, prepare, writes=True, exact=True)


def jobs(scale: Scale) -> tuple[Job, ...]:
    return (
        Job("cold open+read+close", SMALL, _open_read_close, "cold", exact=True),
        Job("hot open+read+close", SMALL, _hot_open_read_close, "hot", exact=True),
        _storm("create+write+close", _create),
        _storm("unlink", _unlink),
        _storm("rename", _rename),
        _storm("write beside, rename over", _replace),
        _storm("mkdir", _mkdir),
        _storm("rmdir", _rmdir),
        _storm("symlink", _symlink),
        _storm("link", _hard_link),
        _storm("chmod", _chmod),
        _storm("write of 100 bytes", _small_writes),
        _storm("write+fsync", _fsync),
    )
