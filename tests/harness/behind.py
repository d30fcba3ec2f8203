"""Layers that are changed behind a mount, and where the changes are to be seen: on mounts of every kind, and natively.

On "native" nothing is mounted: what a test demands there is what the kernel does, so the tests are a specification that
the program did not write itself.

Owns the layers and their mount from `behind` to the end of its `with`.
"""

import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from harness.callers import Caller
from harness.changes import Change
from harness.commands import open_directory, run
from harness.events import Recorder
from harness.layered import Layers, Tree, layered, write_tree
from harness.namespaces import UserNamespace, user_namespace
from harness.shifted import Mount, mounted
from harness.views import View, directly, inside

FIRST_ID = 100000
_MAP = (f"uidmapping={FIRST_ID}:0:65536", f"gidmapping={FIRST_ID}:0:65536")
VISIBLE_LIMIT = 20.0  # seconds


class Kind(NamedTuple):
    """`layer` is where changes are made: "source", "native", "upper", or the number of a lower. `merged`: the directory
    that is worked in is in all layers."""

    layer: str | int
    options: tuple[str, ...] = ()
    first_id: int = 0
    merged: bool = False
    namespace: bool = False


KINDS: dict[str, Kind] = {
    "native": Kind("native"),
    "source": Kind("source"),
    "serve": Kind("source", ("open=serve", "passthrough=off")),
    "passed": Kind("source", ("passthrough=on",)),
    "read-only": Kind("source", ("ro",)),
    "fanotify": Kind("source", ("watch=fanotify",)),
    "inotify": Kind("source", ("watch=inotify",)),
    "mapped": Kind("source", _MAP, FIRST_ID),
    "namespace": Kind("source", first_id=FIRST_ID, namespace=True),
    "lower": Kind(0),
    "lower mapped": Kind(0, (*_MAP, "open=serve"), FIRST_ID),
    "upper": Kind("upper"),
    "upper merged": Kind("upper", ("open=serve",), merged=True),
    "second lower merged": Kind(1, merged=True),
    "namespace upper merged": Kind("upper", ("userxattr",), FIRST_ID, merged=True, namespace=True),
}
LAYERED = [name for name, kind in KINDS.items() if kind.layer not in ("native", "source")]

_numbers = itertools.count()


@dataclass
class Behind:
    """`layer` is changed, `shown` is looked at by `view`; `others` are the layers that have each place as well.
    Real ids are shown ones plus `first_id`, those of the namespace of `owners`."""

    kind: str
    layer: Path
    shown: Path
    view: View
    mount: Mount | None
    outside: Path
    again: Callable[[], AbstractContextManager[Mount]]
    others: Sequence[Path] = ()
    first_id: int = 0
    owners: UserNamespace | None = None
    waits: list[float] = field(default_factory=list)

    @property
    def is_layered(self) -> bool:
        return self.kind in LAYERED

    def new(self, tree: Tree, outside: Tree | None = None) -> "Place":
        """A new directory to work in, made behind the mount, and what is to be in it and outside."""
        name = f"place{next(_numbers)}"
        for layer in (*self.others, self.layer, self.outside):
            (layer / name).mkdir()
        write_tree(self.layer / name, tree)
        write_tree(self.outside / name, outside or {})
        for layer in (*self.others, self.layer, self.outside):
            run(["chown", "-hR", f"{self.first_id}:{self.first_id}", layer / name])
        self.settled()
        known = set(describe(self.layer / name, 0, True))
        return Place(self, self.layer / name, self.shown / name, self.outside / name, known)

    def settled(self) -> None:
        """Wait until all that has been done in the layers has been told on the mount."""
        if self.mount is not None:
            self.view(self.mount.settled)

    def status(self) -> dict[str, Any]:
        assert self.mount is not None
        found: dict[str, Any] = self.view(self.mount.status)
        return found

    @contextmanager
    def another(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """A second, read-only mount of the same: a function that describes it."""
        if self.mount is None:
            yield lambda: describe(self.shown, 0, False)
            return
        # A mount of the same layers in this namespace shows root all that one in another shows its root.
        with self.again() as mount:
            yield lambda: describe(mount.path, 0, self.is_layered)

    def described(self) -> dict[str, Any]:
        """All that the mount shows."""
        found: dict[str, Any] = self.view(describe, self.shown, 0, self.is_layered)
        return found


@dataclass(frozen=True)
class Place:
    """A directory: on the layer, on the mount, and one beside it on the layer's filesystem which no mount shows."""

    behind: Behind
    layer: Path
    shown: Path
    outside: Path
    known: set[str] = field(default_factory=set)
    """Names that have been there."""

    def id(self, shown: int) -> int:
        """As the layer has it."""
        return shown + self.behind.first_id

    def see(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.behind.view(function, *args)

    def change(self, change: Change) -> None:
        """Behind the mount, as its owner's root: what others make there, an owner without a map may not look at."""
        if self.behind.owners is None:
            change(self.layer, self.outside, 0)
        else:
            Caller(0, 0, namespace=self.behind.owners)(change, self.layer, self.outside, 0)

    def recorder(self) -> Recorder:
        return Recorder(self.behind.view)

    def stale(self) -> str:
        """Where the mount shows something else than what is in the layer; empty if nowhere."""
        merged = self.behind.is_layered
        wanted = describe(self.layer, self.behind.first_id, merged)
        self.known.update(wanted)
        try:
            found: dict[str, Any] = self.see(describe, self.shown, 0, merged)
        except OSError as error:
            return str(error)  # a name that comes or goes just now
        gone = [f"{self.shown}{name}" for name in sorted(self.known.difference(wanted))]
        return difference(wanted, found) or ", ".join(self.see(there, gone))

    def visible(self, counts: bool = True) -> None:
        """The mount shows what is in the layer, or will at once. `counts`: it is idle, and how long this takes is told.
        """
        started = time.monotonic()
        while stale := self.stale():
            if time.monotonic() - started > VISIBLE_LIMIT:
                raise AssertionError(f"stale: {stale}")
            time.sleep(0.001)
        if counts:
            self.behind.waits.append(time.monotonic() - started)


def there(paths: Sequence[str]) -> list[str]:
    """Those of some paths that are found, as nobody should."""
    return [f"{path} is there" for path in paths if os.path.lexists(path)]


def describe(path: Path, first_id: int, merged: bool) -> dict[str, Any]:
    """All that can be seen beneath a directory, and of it, by path: names as listings have them, attributes, contents.
    Of directories that may be merged, only what they have of one layer."""
    found: dict[str, Any] = {}
    _describe(path, "", first_id, merged, found)
    return found


def _describe(path: Path, name: str, first_id: int, merged: bool, found: dict[str, Any]) -> None:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    is_directory = kind == stat.S_IFDIR
    seen: list[Any] = [oct(status.st_mode), status.st_uid - first_id, status.st_gid - first_id, status.st_rdev]
    if not is_directory:
        seen += [status.st_size, status.st_nlink]
    elif not merged:
        seen.append(status.st_nlink)
    if name or not merged:
        seen.append(status.st_mtime_ns)
    if kind != stat.S_IFLNK:
        seen.append({key: os.getxattr(path, key) for key in os.listxattr(path) if key.startswith("user.t")})
    if is_directory:
        names = sorted(os.listdir(path))
        found[name] = (*seen, names)
        for one in names:
            _describe(path / one, f"{name}/{one}", first_id, merged, found)
    elif kind == stat.S_IFLNK:
        found[name] = (*seen, os.readlink(path))
    else:
        found[name] = (*seen, path.read_bytes() if kind == stat.S_IFREG else None)


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Two descriptions, where they differ."""
    lines = [
        f"{name or '.'}: {wanted.get(name)} in the layer, {found.get(name)} on the mount"
        for name in sorted({*wanted, *found})
        if wanted.get(name) != found.get(name)
    ]
    return "\n  ".join([*lines[:20], *([f"… and {len(lines) - 20} more"] if len(lines) > 20 else [])])


@contextmanager
def behind(name: str, *options: str) -> Iterator[Behind]:
    """Layers and a mount of one of KINDS; `options` come in addition."""
    kind = KINDS[name]
    base = open_directory("behind-")
    layers = Layers(base, 2 if kind.merged else 1)
    outside, point = base / "outside", base / "mnt"
    for path in (outside, point):
        path.mkdir()
    run(["chown", "-R", f"{kind.first_id}:{kind.first_id}", base])
    owners = user_namespace((0, kind.first_id, 65536)) if kind.first_id else nullcontext()
    try:
        with owners as namespace:
            yield from _mounted(name, kind, layers, outside, point, (*kind.options, *options), namespace)
    finally:
        run(["rm", "-rf", base])


def _mounted(
    name: str,
    kind: Kind,
    layers: Layers,
    outside: Path,
    point: Path,
    options: tuple[str, ...],
    namespace: UserNamespace | None,
) -> Iterator[Behind]:
    if kind.layer == "native":
        yield Behind(name, layers.lower, layers.lower, directly, None, outside, again=lambda: mounted(layers.lower))
        return
    if kind.layer == "source":
        layer = layers.lower

        def mounting() -> AbstractContextManager[Mount]:
            return mounted(layer, point, *options)

        def again() -> AbstractContextManager[Mount]:
            return mounted(layer, None, *dict.fromkeys((*_mapping(kind), *options, "ro")))
    else:
        layer = layers.upper if kind.layer == "upper" else layers.lowers[int(kind.layer)]

        def mounting() -> AbstractContextManager[Mount]:
            return layered(layers.lowers, layers.upper, layers.work, *options, mountpoint=point)

        def again() -> AbstractContextManager[Mount]:
            lowers = [layers.upper, *layers.lowers]
            return layered(lowers, None, None, *dict.fromkeys((*_mapping(kind), *options)))

    others = [path for path in (layers.upper, *layers.lowers) if path != layer] if kind.merged else []
    with _seen(namespace if kind.namespace else None, mounting) as (view, mount):
        yield Behind(name, layer, mount.path, view, mount, outside, again, others, kind.first_id, namespace)


def _mapping(kind: Kind) -> tuple[str, ...]:
    return _MAP if kind.first_id else ()


@contextmanager
def _seen(
    namespace: UserNamespace | None, mounting: Callable[[], AbstractContextManager[Mount]]
) -> Iterator[tuple[View, Mount]]:
    if namespace is None:
        with mounting() as mount:
            yield directly, mount
        return
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    device.chmod(0o666)
    try:
        with inside(namespace, mounting) as seen:
            yield seen
    finally:
        device.chmod(mode)
