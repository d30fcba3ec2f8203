"""Files to lock: on a plain filesystem, and on mounts of every kind; in an overlay also where they are in the lower.

Owns the layers and their mount from `ground` to the end of its `with`. What passes natively too is what Linux does.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.commands import open_directory, run
from harness.layered import Layers
from harness.shifted import Mount, mounted

_MAP = "0:0:1000:1000:101000:60000"
_MAPPED = (f"uidmapping={_MAP}", f"gidmapping={_MAP}")
CONTENT = b"content, " * 10


class Kind(NamedTuple):
    """`layer`: where files are, "native", "source", "upper" or "lower". `serves`: each open(2) is a request, and
    copies up what is opened for writing."""

    layer: str
    options: tuple[str, ...] = ()
    serves: bool = False


KINDS = {
    "native": Kind("native"),
    "source": Kind("source"),
    "serve": Kind("source", ("open=serve",), serves=True),
    "mapped": Kind("source", _MAPPED),
    "upper": Kind("upper"),
    "lower": Kind("lower"),
    "lower serve": Kind("lower", ("open=serve",), serves=True),
    "lower mapped": Kind("lower", _MAPPED),
}


SERVED = {
    "layers": Kind("source", ("locks=layers",), serves=True),
    "layers, upper": Kind("upper", ("locks=layers",), serves=True),
    "layers, lower": Kind("lower", ("locks=layers",), serves=True),
}
"""Where the mount serves locks."""


@dataclass(frozen=True)
class Lockable:
    """A file, `path`; `layer`, where it is; `upper`, where it is once it has been copied up. Nothing else is in its
    directory but its other names."""

    path: Path
    layer: Path
    upper: Path | None

    @property
    def is_copied_up(self) -> bool:
        """By any of its names."""
        return self.upper is not None and self.upper.parent.exists() and any(self.upper.parent.iterdir())


@dataclass(frozen=True)
class Ground:
    """A directory, `path`, and where its files come from."""

    kind: str
    path: Path
    layer: Path
    upper: Path | None
    mount: Mount | None
    serves: bool

    def file(self, content: bytes = CONTENT, mode: int = 0o666, linked: bool = False) -> Lockable:
        """A new one, in a directory of its own, made behind the mount; `linked`: it has another name there, "link". Its
        owner is an ordinary user."""
        name = f"place{next(_numbers)}"
        (self.layer / name).mkdir(mode=0o777)
        path = self.layer / name / "file"
        path.write_bytes(content)
        path.chmod(mode)
        os.chown(path, 1000, 1000)
        if linked:
            (path.parent / "link").hardlink_to(path)
        self.settled()
        return Lockable(self.path / name / "file", path, self.upper / name / "file" if self.upper else None)

    def settled(self) -> None:
        """Wait until what was done in the layer has been told on the mount."""
        if self.mount is not None:
            self.mount.settled()


_numbers = itertools.count()


@contextmanager
def ground(name: str, *options: str) -> Iterator[Ground]:
    """One of KINDS or SERVED; `options` come in addition."""
    kind = {**KINDS, **SERVED}[name]
    base = open_directory("locks-")
    layers = Layers(base)
    options = (*kind.options, *options)
    try:
        with ExitStack() as stack:
            if kind.layer == "native":
                yield Ground(name, layers.lower, layers.lower, None, None, False)
            elif kind.layer == "source":
                mount = stack.enter_context(mounted(layers.lower, None, *options))
                yield Ground(name, mount.path, layers.lower, None, mount, kind.serves)
            else:
                mount = stack.enter_context(layers.mount(*options))
                layer, upper = (layers.lower, layers.upper) if kind.layer == "lower" else (layers.upper, None)
                yield Ground(name, mount.path, layer, upper, mount, kind.serves)
    finally:
        run(["rm", "-rf", base])
