"""Listening to changes of real directories with shiftfs's watchers, and the filesystems to do it on."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.calls import in_child
from harness.commands import open_directory, run
from harness.mounts import loop_filesystem, newest_mount, unmount
from shiftfs.reflect.watchers import Happening, Token, Watchers, What

KINDS = {"fanotify": "fanotify filesystem", "inodes": "fanotify", "inotify": "inotify"}
WAYS = {
    # mode: the kind that comes of it
    "ext4": KINDS,
    "xfs": KINDS,
    "btrfs": KINDS,
    "tmpfs": KINDS,
    "subvolume": {**KINDS, "fanotify": "fanotify"},
    "overlay": {**KINDS, "fanotify": "fanotify"},
}
ON = [(place, mode) for place, modes in WAYS.items() for mode in modes]
"""Places by the modes that serve there."""

_numbers = itertools.count()


class Listener:
    """Watches directories, and files, beneath `base`."""

    def __init__(self, base: Path, mode: str, *names: str) -> None:
        self.base = base
        self.fds: list[int] = []
        self.watchers = Watchers(mode, on_descriptor=self.fds.append)
        self.root = os.open(base, os.O_PATH | os.O_CLOEXEC)
        self.labels: dict[Token, str] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> Token | None:
        token = self.try_add(name)
        if token is not None:
            self.labels[token] = name
        return token

    def try_add(self, name: str) -> Token | None:
        path = self.base / name
        return self.watchers.add(device_of(path), self.root, os.fsencode(name), path.is_dir())

    @property
    def kind(self) -> str:
        return self.watchers.kind(device_of(self.base))

    def happenings(self, own: tuple[int, ...] = ()) -> list[Happening]:
        found: list[Happening] = []
        for fd in self.fds:
            while new := self.watchers.read(fd, own):
                found += new
        return found

    def words(self, found: list[Happening]) -> list[str]:
        """One for each happening; a link count of an inode that is not watched is none."""
        return [
            self._word(one)
            for one in found
            if one.what & (What.OVERFLOW | What.MOVED) or one.directory is not None or one.target in self.labels
        ]

    def heard(self) -> list[str]:
        return self.words(self.happenings())

    def _word(self, one: Happening) -> str:
        kinds = "|".join(sorted(str(what.name).lower() for what in What if one.what & what))
        places = [self._place(one.directory, one.name, one.target)]
        if one.what & What.MOVED:
            places = [self._place(one.directory, one.name, None), self._place(one.to, one.to_name, None)]
        return " ".join([kinds, *places]) + ("/" if one.is_directory else "")

    def _place(self, directory: Token | None, name: bytes, target: Token | None) -> str:
        if directory is not None:
            return self.labels[directory] + ("/" + os.fsdecode(name) if name else "")
        return f"={self.labels[target]}" if target in self.labels and target is not None else "-"

    def marks(self) -> int:
        lines = "".join(Path(f"/proc/self/fdinfo/{fd}").read_text() for fd in self.fds).splitlines()
        return sum(line.startswith(("fanotify ino:", "inotify wd:")) for line in lines)

    def close(self) -> None:
        self.watchers.close()
        os.close(self.root)


def device_of(path: Path) -> int:
    number = path.lstat().st_dev
    return os.major(number) << 20 | os.minor(number)


@contextmanager
def listening(base: Path, mode: str, *names: str) -> Iterator[Listener]:
    listener = Listener(base, mode, *names)
    try:
        yield listener
    finally:
        listener.close()


def by_others(call: Callable[[], object]) -> None:
    def quietly() -> None:
        call()

    in_child(quietly)


def fill(base: Path) -> None:
    for name in ("A", "B", "C"):
        (base / name / "sub").mkdir(parents=True)
        (base / name / "old").write_text("old")
        os.symlink("nowhere", base / name / "link")


@contextmanager
def new_base(above: Path) -> Iterator[Path]:
    """A directory with A, B and C, and something in each."""
    path = above / f"base{next(_numbers)}"
    path.mkdir()
    fill(path)
    yield path
    run(["rm", "-rf", path])


@contextmanager
def filesystems() -> Iterator[dict[str, Path]]:
    """A directory on each kind of filesystem. Needs root."""
    with ExitStack() as stack:
        found = {}
        for kind, size in (("ext4", 32), ("xfs", 300), ("btrfs", 128)):
            found[kind] = stack.enter_context(loop_filesystem(kind, size))
        found["subvolume"] = found["btrfs"] / "subvolume"
        run(["btrfs", "subvolume", "create", found["subvolume"]])
        found["tmpfs"] = stack.enter_context(new_mount(found["ext4"] / "tmpfs", "tmpfs"))
        layers = [found["ext4"] / name for name in ("lower", "upper", "work")]
        for layer in layers:
            layer.mkdir()
        options = ",".join(f"{name}dir={path}" for name, path in zip(("lower", "upper", "work"), layers, strict=True))
        found["overlay"] = stack.enter_context(new_mount(found["ext4"] / "merged", "overlay", options))
        yield found


@contextmanager
def new_mount(path: Path, kind: str, options: str = "") -> Iterator[Path]:
    path.mkdir()
    run(["mount", "-t", kind, *(["-o", options] if options else []), "none", path])
    entry = newest_mount(path)
    try:
        yield path
    finally:
        unmount(entry)


@contextmanager
def small_filesystem(size: int) -> Iterator[Path]:
    """With room for so many bytes."""
    above = open_directory("small-")
    with new_mount(above / "at", "tmpfs", f"size={size}") as path:
        yield path
    shutil.rmtree(above)
