"""Changes layers at random behind two mounts, while both are used: at the end they show what fresh ones do.

    python tests/live_soak.py [--minutes 10] [--seed 1] [--option watch=inotify]...

One mount is an overlay of an upper and two lower layers, the other one of the first of these lowers alone. Four
processes change the layers, and two use the mounts, one of them writing. A third watches all directories by inotify.

Prints what was done and what the processes hold, before and after; exit status 1 if a tree is stale, a call failed as
no call may, or inodes, watches or descriptors were left over once the kernel has dropped its caches. Needs root.
"""

import argparse
import errno
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from harness import Layers, Mount, layered, make_whiteout, mounted, open_directory, run
from harness.behind import describe, difference
from harness.calls import RENAME_EXCHANGE, drop_dentries, in_children, renameat2
from harness.leftovers import own_area

SETTLE_LIMIT = 60.0  # seconds until all that happened must be seen
STUCK_LIMIT = 60  # seconds that one call may take before it ends the process
SHOWN = ("live", "journal", "descriptors", "listings", "handles", "waiting")  # of what a mount says of itself
SLACK = 8  # descriptors that a mount may hold more after than before

# What any call may say where others change names at the same time.
EXPECTED = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP, errno.ESTALE,
    errno.EXDEV, errno.ENXIO, errno.EBUSY, errno.EMLINK, errno.EPERM,
}  # fmt: skip

BRIEFLY = ("timeout", "--signal=KILL", "2")  # cp(1) opens a fifo that came into a file's place, and waits

NAMES = [f"{letter}{number}" for letter in "abc" for number in range(2)]


def somewhere(root: Path, choose: random.Random) -> Path:
    """A path up to three names deep, which may or may not be there."""
    return root.joinpath(*(choose.choice(NAMES) for _ in range(choose.choice((1, 1, 2, 2, 3)))))


def change(root: Path, choose: random.Random, is_layer: bool) -> None:
    """One thing that people do with files."""
    path, other = somewhere(root, choose), somewhere(root, choose)
    content = b"%d" % choose.getrandbits(40) * choose.randint(1, 300)
    actions: list[Callable[[], object]] = [
        lambda: _write(path, content, os.O_CREAT | os.O_TRUNC),
        lambda: _write(path, content, os.O_CREAT | os.O_TRUNC),
        lambda: path.parent.mkdir(parents=True, exist_ok=True),
        lambda: path.mkdir(),
        lambda: path.mkdir(),
        lambda: path.unlink(),
        lambda: path.rmdir(),
        lambda: path.rename(other),
        lambda: path.rename(other),
        lambda: path.rename(path.with_name(choose.choice(NAMES))),
        lambda: os.link(path, other),
        lambda: path.symlink_to(choose.choice(NAMES)),
        lambda: os.mkfifo(path),
        lambda: path.chmod(choose.choice((0o600, 0o644, 0o755))),
        lambda: os.chown(path, choose.randint(0, 3), -1, follow_symlinks=False),
        lambda: os.utime(path, (choose.randint(1, 10**9), choose.randint(1, 10**9)), follow_symlinks=False),
        lambda: os.truncate(path, choose.randint(0, 5000)),
        lambda: os.setxattr(path, "user.test", content[:20]),
        lambda: _write(path, content[:50], os.O_APPEND),
        lambda: _save(path, content),
        lambda: run(["rm", "-rf", path], check=False),  # shutil.rmtree opens a fifo, and waits
        lambda: renameat2(path, other, RENAME_EXCHANGE),
    ]
    if is_layer:
        actions += [lambda: make_whiteout(path), lambda: run([*BRIEFLY, "cp", "-a", path, other], check=False)]
    choose.choice(actions)()


def _write(path: Path, content: bytes, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | flags)  # it may be a fifo
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def _read(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while os.read(fd, 1 << 16):
            pass
    finally:
        os.close(fd)


def _save(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.rename(path)


def use(root: Path, choose: random.Random) -> None:
    """One thing that readers do."""
    path = somewhere(root, choose)
    match choose.randrange(4):
        case 0:
            path.lstat()
        case 1:
            os.listdir(path.parent)
        case 2:
            if stat.S_ISREG(path.lstat().st_mode):
                _read(path)
        case _:
            for _ in os.walk(path.parent):
                pass


def repeat(act: Callable[[random.Random], None], end: float, seed: int, pause: float) -> Counter[str]:
    """Until `end`: how often it was done, and what it said otherwise."""
    choose, said = random.Random(seed), Counter[str]()
    signal.alarm(int(end - time.monotonic()) + STUCK_LIMIT)
    while time.monotonic() < end:
        try:
            act(choose)
            said["done"] += 1
        except OSError as error:
            said[errno.errorcode.get(error.errno or 0, str(error.errno))] += 1
            if error.errno not in EXPECTED:
                calls = traceback.extract_tb(error.__traceback__)[1:]
                said[f"UNEXPECTED {error} in {' > '.join(call.line or call.name for call in calls)}"] += 1
        time.sleep(pause * choose.random())
    return said


def anywhere(roots: list[Path], choose: random.Random) -> None:
    """Changes layers, mostly one; now and then much of it goes at once."""
    root = choose.choice(roots)
    if choose.random() < 0.002:
        for path in root.iterdir():
            if path.name in NAMES[:3]:
                run(["rm", "-rf", path], check=False)  # others put something there meanwhile
        return
    change(root, choose, True)


def through(root: Path, choose: random.Random) -> None:
    (change if choose.random() < 0.4 else lambda root, choose, _: use(root, choose))(root, choose, False)


def watch(root: Path, end: float, seed: int) -> Counter[str]:
    """Somebody who watches all directories by inotify, as far as his watches go."""
    with tempfile.TemporaryFile() as output:
        left = max(int(end - time.monotonic()), 1)
        args = ["timeout", str(left), "sh", "-c", 'inotifywait -q -m -r "$1" >/dev/null 2>&1 || true', "sh", str(root)]
        os.dup2(output.fileno(), 2)
        run(args, check=False, limit=left + 30)
    return Counter()


class Held:
    """What the process of a mount holds while the kernel remembers little."""

    def __init__(self, mount: Mount) -> None:
        drop_dentries()
        time.sleep(2)  # what is forgotten is let go of a little later
        drop_dentries()
        time.sleep(1)
        self.status = mount.status()
        self.inodes: int = self.status["inodes"]
        self.watched: int = (self.status.get("live") or {}).get("watched", 0)
        self.links = [os.readlink(path) for path in Path(f"/proc/{mount.pid}/fd").iterdir()]
        self.descriptors = len(self.links)
        self.threads = len(os.listdir(f"/proc/{mount.pid}/task"))
        self.memory_kib: int = self.status["memory_kib"]

    def __str__(self) -> str:
        counts = {name: value for name, value in vars(self).items() if name not in ("status", "links")}
        return ", ".join([str(counts), *(f"{name}: {self.status.get(name)}" for name in SHOWN)])


def left_over(before: Held, after: Held, shown: int) -> list[str]:
    """In words; `shown` is how many inodes the kernel may know: those that the mount shows now, at most."""
    found = []
    for what in ("inodes", "watched"):
        # What is in use is remembered; nothing is, but the root and what was looked at last.
        if getattr(after, what) > getattr(before, what) + SLACK:
            found.append(f"{what}: {getattr(before, what)} before, {getattr(after, what)} after, {shown} files")
    if after.descriptors > before.descriptors + SLACK:
        some = "\n  ".join(sorted(set(after.links).difference(before.links))[:20])
        found.append(f"descriptors: {before.descriptors} before, {after.descriptors} after, among them\n  {some}")
    return found


def complaints(mount: Mount) -> list[str]:
    """What its process has said that it should not have had to say."""
    said = Path(f"/proc/{mount.pid}/fd/2")
    lines = said.read_text(errors="replace")
    return [f"{mount.path} said: {lines[-5000:]}"] if "Traceback" in lines else []


def same(mount: Mount, fresh: Callable[[], Any]) -> str:
    """Where a mount shows something else than a fresh one, once all has settled; empty if nowhere."""
    end = time.monotonic() + SETTLE_LIMIT
    while True:
        with fresh() as other:
            wanted = describe(other.path, 0, True)
            try:
                stale = difference(wanted, describe(mount.path, 0, True))
            except OSError as error:
                stale = str(error)
        if not stale or time.monotonic() > end:
            return stale
        time.sleep(0.2)


def soak(minutes: float, seed: int, options: list[str]) -> list[str]:
    """What went wrong, in words."""
    base = open_directory("layers-")
    layers = Layers(base, 2)
    with ExitStack() as stack:
        union = stack.enter_context(layers.mount(*options))
        single = stack.enter_context(mounted(layers.lower, None, *options))
        before = {mount.path: Held(mount) for mount in (union, single)}
        end = time.monotonic() + 60 * minutes
        all_layers = [layers.upper, *layers.lowers]
        print(f"seed {seed}; two mounts of {base}", flush=True)
        counts = in_children(
            [
                *(partial(repeat, partial(anywhere, [root]), end, seed + number, 0.004)
                  for number, root in enumerate(all_layers)),
                partial(repeat, partial(anywhere, all_layers), end, seed + 3, 0.004),
                partial(repeat, partial(through, union.path), end, seed + 4, 0.004),
                partial(repeat, partial(use, single.path), end, seed + 5, 0.004),
                partial(watch, union.path, end, seed + 6),
            ],
            60 * minutes + 120,
        )  # fmt: skip
        wrong = []
        for name, said in zip(("upper", "lower", "second", "all", "use union", "use single"), counts, strict=False):
            print(f"{name}: {dict(said)}")
            # Layers are the filesystem's own: only what the mounts say is theirs to answer for.
            wrong += [f"{name}: {word}" for word in said if word.startswith("UNEXPECTED") and "use" in name]
        for mount, fresh in (
            (union, lambda: layered(all_layers, None, None, "watch=off")),
            (single, lambda: mounted(layers.lower, None, "ro", "watch=off")),
        ):
            if stale := same(mount, fresh):
                wrong.append(f"{mount.path} is stale: {stale}")
            shown = sum(1 for _ in mount.path.rglob("*"))
            after = Held(mount)
            print(f"{mount.path}\n  before: {before[mount.path]}\n  after:  {after}")
            wrong += left_over(before[mount.path], after, shown)
            wrong += complaints(mount)
    shutil.rmtree(base)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--option", action="append", default=[], metavar="OPTION", help="a mount option, for both")
    arguments = parser.parse_args()
    with own_area("soak"):
        wrong = soak(arguments.minutes, arguments.seed, arguments.option)
    print("\n".join(wrong) or "all is well")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
