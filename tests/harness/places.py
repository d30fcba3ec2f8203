"""Where tests of operations work: a new directory on a plain filesystem, or on a mount of one kind or another.

What passes on the plain directory as well is what Linux does, so such tests are a specification that the program
did not write itself.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

from harness.shifted import Mount

_MAP = "0:0:1000:1000:101000:60000"
USER = 101000
"""An ordinary user, mapped on all of these mounts, and nobody on this machine."""

KINDS: dict[str, tuple[str, ...] | None] = {
    "native": None,
    "refuse": ("open=refuse", "allow_dev", f"uidmapping={_MAP}", f"gidmapping={_MAP}"),
    "serve": ("open=serve", "passthrough=off", "allow_dev"),
    "passed": ("passthrough=on", "allow_dev"),
}

_numbers = itertools.count()


@dataclass(frozen=True)
class Place:
    """A directory to work in, `path`, and where that is on the layer: the same where nothing is mounted."""

    path: Path
    layer: Path
    mount: Mount | None
    kind: str

    def new(self, name: str, content: bytes = b"") -> Path:
        """A file made here, through the mount."""
        path = self.path / name
        path.write_bytes(content)
        return path


def new_place(source: Path, mount: Mount | None, kind: str) -> Place:
    """A new directory in the source of a mount, in which everybody may write."""
    name = f"place{next(_numbers)}"
    layer = source / name
    layer.mkdir()
    layer.chmod(0o777)
    return Place((mount.path if mount else source) / name, layer, mount, kind)


def same_as_layer(place: Place, path: Path) -> None:
    """What is here has the attributes that it has on the layer, all but the owner."""
    seen, real = path.lstat(), (place.layer / path.relative_to(place.path)).lstat()
    for field in ("mode", "ino", "nlink", "size", "blocks", "blksize", "rdev", "atime_ns", "mtime_ns", "ctime_ns"):
        assert getattr(seen, f"st_{field}") == getattr(real, f"st_{field}"), field
