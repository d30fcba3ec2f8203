"""Overlays of directories: shiftfs's with the real command, or the kernel's to hold it against.

Owns the mount it makes from `mount` to the end. Where both kinds pass one test, the test says what Linux says, and
the program did not write its own specification.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union

from harness.commands import open_directory, run
from harness.mounts import newest_mount, unmount
from harness.shifted import Mount, mounted

Kind = Literal["shiftfs", "kernel"]

# A file's content, a directory, a symlink's target, whatever the call makes at the path, a whiteout device.
Tree = Mapping[str, Union[bytes, "Tree", Path, Callable[[Path], object], None]]

_MAP = "0:0:1000:1000:101000:60000"
OVERLAYS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "kernel": ("kernel", ()),
    "shiftfs": ("shiftfs", ()),
    "shifted": ("shiftfs", (f"uidmapping={_MAP}", f"gidmapping={_MAP}", "open=serve")),
}
"""What an overlay's tests run on. Ids up to 999 are the same on all; 101000 on "shifted" is 1000 in the layers, and
there opening copies up, as on the kernel's."""

_numbers = itertools.count()


@contextmanager
def layered(
    lowers: Sequence[Path],
    upper: Path | None = None,
    work: Path | None = None,
    *options: str,
    kind: Kind = "shiftfs",
    mountpoint: Path | None = None,
    **as_mounted: Any,
) -> Iterator[Mount]:
    """Mount `lowers`, from top to bottom, beneath `upper`; `as_mounted` as for `mounted`. Ends as `mounted` does."""
    top = lowers[0] if upper is None else upper
    if kind == "kernel":
        with _kernel_overlay(lowers, upper, work, options, mountpoint) as path:
            yield Mount(top, path, newest_mount(path))
        return
    named = [f"lowerdir={_joined(lowers)}", *_upper_options(upper, work)]
    with mounted(Path("overlay"), mountpoint, *named, *options, **as_mounted) as mount:
        yield replace(mount, source=top)


@contextmanager
def _kernel_overlay(
    lowers: Sequence[Path],
    upper: Path | None,
    work: Path | None,
    options: Sequence[str],
    mountpoint: Path | None,
) -> Iterator[Path]:
    path = mountpoint or open_directory("mnt-")
    # mount(2) takes one page of options: names relative to one directory let 500 layers fit.
    base = os.path.commonpath([path.parent for path in lowers])
    named = [f"lowerdir={_joined([path.relative_to(base) for path in lowers])}", *_upper_options(upper, work)]
    # What the program does by default; userxattr excludes redirects. Later options win.
    redirects = [] if "userxattr" in options else ["redirect_dir=on"]
    defaults = ["xino=on", *([*redirects, "index=on"] if upper else [])]
    run(["mount", "-t", "overlay", "-o", ",".join([*named, *defaults, *options]), "overlay", path], cwd=base)
    entry = newest_mount(path)
    try:
        yield path
    finally:
        unmount(entry)
    if mountpoint is None:
        path.rmdir()


def _joined(lowers: Sequence[Path]) -> str:
    return ":".join(_escaped(path).replace(":", "\\:") for path in lowers)


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace(",", "\\,")


def _upper_options(upper: Path | None, work: Path | None) -> list[str]:
    named = {"upperdir": upper, "workdir": work}
    return [f"{name}={_escaped(path)}" for name, path in named.items() if path]


def litter(work: Path) -> list[str]:
    """What a work directory holds of operations that did not end."""
    return sorted(entry.name for entry in (work / "work").iterdir() if entry.name not in ("incompat", "#whiteout"))


class Layers:
    """New directories to make an overlay of, in one new directory: `lowers` from top to bottom, `upper`, `work`."""

    def __init__(self, base: Path, lowers: int = 1, kind: str = "shiftfs") -> None:
        """`kind` is one of OVERLAYS."""
        self.base = base
        self.kind, self.options = OVERLAYS[kind]
        self.lowers = [self._new(f"lower{number}") for number in range(lowers)]
        self.upper, self.work = self._new("upper"), self._new("work")

    @property
    def lower(self) -> Path:
        """The topmost lower directory."""
        return self.lowers[0]

    def add_lower(self, tree: Tree | None = None) -> Path:
        """A lower directory beneath those there are."""
        self.lowers.append(self._new(f"lower{len(self.lowers)}"))
        write_tree(self.lowers[-1], tree or {})
        return self.lowers[-1]

    def mount(self, *options: str, **rest: Any) -> AbstractContextManager[Mount]:
        """The overlay, writable. `kind=` in `rest` makes it another kind's, without this one's options."""
        own = () if "kind" in rest else self.options
        return layered(self.lowers, self.upper, self.work, *own, *options, **{"kind": self.kind, **rest})

    def mount_lowers(self, *options: str, **rest: Any) -> AbstractContextManager[Mount]:
        """The lower directories alone, which is read-only. The kernel wants at least two."""
        own = () if "kind" in rest else self.options
        return layered(self.lowers, None, None, *own, *options, **{"kind": self.kind, **rest})

    def _new(self, name: str) -> Path:
        path = self.base / name
        path.mkdir()
        path.chmod(0o755)
        return path


@dataclass(frozen=True)
class Merged:
    """A directory to work in on an overlay, and the same in each of its layers: `upper` only once it is copied up."""

    path: Path
    upper: Path
    lowers: list[Path]
    mount: Mount
    kind: str

    @property
    def lower(self) -> Path:
        """In the topmost lower layer."""
        return self.lowers[0]

    def write(self, *lowers: Tree, upper: Tree | None = None) -> Path:
        """Fill the lower layers from top to bottom, and the upper. For names not looked up before. Its path."""
        for path, tree in zip(self.lowers, lowers, strict=False):
            write_tree(path, tree)
        if upper is not None:
            self.upper.mkdir(exist_ok=True)
            self.upper.chmod(0o777)
            write_tree(self.upper, upper)
        self.settled()
        return self.path

    def settled(self) -> None:
        """Wait until what was done in the layers has been told on the mount."""
        if self.kind != "kernel":
            self.mount.settled()


def new_merged(layers: Layers, mount: Mount, kind: str) -> Merged:
    """A new directory in all lower layers of a mount, in which everybody may write."""
    name = f"place{next(_numbers)}"
    for lower in layers.lowers:
        (lower / name).mkdir()
        (lower / name).chmod(0o777)
    return Merged(mount.path / name, layers.upper / name, [lower / name for lower in layers.lowers], mount, kind)


def write_tree(path: Path, tree: Tree) -> None:
    """Make what `tree` says in an existing directory."""
    for name, what in tree.items():
        _write(path / name, what)


def _write(path: Path, what: Any) -> None:
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif isinstance(what, Path):
        path.symlink_to(what)
    elif what is None:
        make_whiteout(path)
    elif callable(what):
        what(path)
    else:
        path.mkdir(exist_ok=True)
        write_tree(path, what)


def make_whiteout(path: Path) -> None:
    """A character device 0/0."""
    os.mknod(path, 0o020000, os.makedev(0, 0))


def read_tree(path: Path) -> dict[str, Any]:
    """What is in a directory, in the form that `write_tree` takes; any other kind of file as its st_mode."""
    return {name: _read(path / name) for name in sorted(os.listdir(path))}


def _read(path: Path) -> Any:
    if path.is_symlink():
        return path.readlink()
    if path.is_dir():
        return read_tree(path)
    return path.read_bytes() if path.is_file() else path.lstat().st_mode
