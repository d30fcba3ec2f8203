"""Changes in any order, on every kind of upper there is, leave what they would leave in a plain directory."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import Layers, errno_of, read_tree, write_tree
from harness.layered import Tree, litter
from harness.overlaid import Overlay, without_attributes
from shiftfs.sys import files

pytestmark = pytest.mark.root

TOP: Tree = {"a": b"top a", "d": {"a": b"top d/a", "b": None}, "e": {}}
BOTTOM: Tree = {"a": b"no", "b": b"b" * 200, "d": {"a": b"no", "b": b"no", "c": {"a": b"deep"}}, "c": {"b": b"c/b"}}
PATHS = st.sampled_from(["a", "b", "c", "d", "e", "d/a", "d/b", "d/c", "e/a", "e/b", "c/b", "d/c/a", "c/a"])
OPERATIONS = ["create", "write", "unlink", "mkdir", "rmdir", "rename", "rename", "exchange", "link", "chmod", "remount"]
STEPS = st.lists(st.tuples(st.sampled_from(OPERATIONS), PATHS, PATHS), min_size=1, max_size=14)
KINDS = ["plain", "no index", "metacopy", "user attributes", "whiteouts by attribute", "whiteouts by name"]


def on_overlay(overlay: Overlay, operation: str, path: bytes, other: bytes) -> object:
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: overlay.create(path, b"new"),
        "write": lambda: overlay.write(path, b"W"),
        "unlink": lambda: overlay.unlink(path),
        "mkdir": lambda: overlay.mkdir(path),
        "rmdir": lambda: overlay.rmdir(path),
        "rename": lambda: overlay.rename(path, other),
        "exchange": lambda: overlay.rename(path, other, files.RENAME_EXCHANGE),
        "link": lambda: overlay.link(path, other),
        "chmod": lambda: overlay.up(path, None, True),
    }
    return calls[operation]()


def on_plain(operation: str, path: Path, other: Path) -> object:
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: path.write_bytes(b"new"),
        "write": lambda: _write(path),
        "unlink": path.unlink,
        "mkdir": path.mkdir,
        "rmdir": path.rmdir,
        "rename": lambda: path.rename(other),
        "exchange": lambda: files.rename(
            files.AT_FDCWD, os.fsencode(path), files.AT_FDCWD, os.fsencode(other), files.RENAME_EXCHANGE
        ),
        "link": lambda: os.link(path, other),
        "chmod": lambda: path.chmod(0o644),
    }
    return calls[operation]()


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"W", 0)
    os.close(fd)


def may_be(root: Path, operation: str, name: str, other_name: str) -> bool:
    """Does the kernel let it come to the filesystem, and would it succeed? What fails is for other tests."""
    path, other = root / name, root / other_name
    there = os.path.lexists(path)
    directory = path.is_dir()
    if not path.parent.is_dir() or not other.parent.is_dir():
        return False
    if operation in ("create", "mkdir"):
        return not there
    if not there or (operation in ("write", "unlink", "link") and directory):
        return False
    if operation == "rmdir":
        return directory and not os.listdir(path)
    if operation == "link":
        return not os.path.lexists(other)
    if operation in ("rename", "exchange"):
        if path == other or path in other.parents or (os.path.lexists(other) and os.path.samefile(path, other)):
            return False
        if operation == "exchange":
            return os.path.lexists(other) and other not in path.parents
        if os.path.lexists(other):
            return directory == other.is_dir() and not (directory and os.listdir(other))
    return True


_mknod = os.mknod


def _refused(path: bytes, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None) -> None:
    if stat.S_ISCHR(mode):
        raise PermissionError
    _mknod(path, mode, device, dir_fd=dir_fd)


@contextmanager
def upper_of(kind: str, layers: Layers) -> Iterator[dict[str, Any]]:
    options: dict[str, Any] = {
        "no index": {"index": False}, "metacopy": {"metacopy": True}, "user attributes": {"userxattr": True}
    }.get(kind, {})  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        if kind.startswith("whiteouts"):
            patched.setattr(os, "mknod", _refused)
        if kind != "whiteouts by name":
            yield options
            return
        with without_attributes(layers):
            yield options


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_every_kind_of_upper_holds_what_a_plain_directory_would(kind: str, steps: list[tuple[str, str, str]]) -> None:
    base = Path(tempfile.mkdtemp())
    try:
        layers = Layers(base, lowers=2)
        for lower, tree in zip(layers.lowers, (TOP, BOTTOM), strict=True):
            write_tree(lower, tree)
        plain = base / "plain"
        plain.mkdir()
        with upper_of(kind, layers) as options:
            follow(layers, plain, steps, options)
    finally:
        shutil.rmtree(base)


def follow(layers: Layers, plain: Path, steps: list[tuple[str, str, str]], options: dict[str, Any]) -> None:
    overlay = Overlay(layers, **options)
    assert overlay.work is not None
    redirects = bool(overlay.work.prefix)
    try:
        write_tree(plain, overlay.contents())
        for operation, name, other in steps:
            if operation == "remount":
                overlay.close()
                overlay = Overlay(layers, **options)
            elif may_be(plain, operation, name, other):
                said = errno_of(partial(on_overlay, overlay, operation, name.encode(), other.encode()))
                if said == errno.EXDEV and operation in ("rename", "exchange") and not redirects:
                    continue
                assert said == 0, (operation, name, other)
                on_plain(operation, plain / name, plain / other)
            assert overlay.contents() == read_tree(plain)
        overlay.close()
        overlay = Overlay(layers, **options)
        assert overlay.contents() == read_tree(plain)
        assert litter(layers.work) == []
    finally:
        overlay.close()
