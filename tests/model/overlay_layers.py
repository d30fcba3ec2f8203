"""Random lower layers for an overlay, and a plain directory that holds what is seen through them.

Owns nothing. What the plain directory gets is merged here in the plainest way, from the bottom to the top: each layer
is copied over what is there. What that takes away is kept in a directory apart, since a hard link counts although it
is hidden.
"""

import os
import stat
from pathlib import Path

from hypothesis import strategies as st
from model.operations import PATHS, USER

from harness import run
from harness.layered import make_whiteout

OPAQUE = "trusted.overlay.opaque"
CONTENTS = [b"", b"lower", b"l" * 5000, b"\0" * 100_000 + b"end"]
LOWER_MODES = [0o644, 0o755, 0o600, 0o777, 0o666, 0o2755, 0o4755, 0o444, 0o000]

# What to make, where, and a number that everything else about it follows from.
KINDS = ("file", "file", "file", "file", "directory", "opaque", "symlink", "fifo", "link", "whiteout", "whiteout")
Instruction = tuple[str, str, int]
Layer = list[Instruction]
INSTRUCTIONS = st.tuples(st.sampled_from(KINDS), PATHS, st.integers(0, 999))
LAYERS = st.lists(st.lists(INSTRUCTIONS, min_size=8, max_size=20), min_size=2, max_size=4)


def build(layers: list[Layer], lowers: list[Path], plain: Path, hidden: Path) -> None:
    """Make the layers in `lowers`, both from top to bottom, and in `plain` what is seen through them."""
    for layer, lower in reversed(list(zip(layers, lowers, strict=True))):
        for instruction in layer:
            if lower != lowers[-1] or instruction[0] != "whiteout":
                _follow(instruction, lower, plain)
        # At last, since whatever is made in a directory changes its times.
        for number, path in enumerate(sorted(lower.rglob("*"), reverse=True)):
            if _is_directory(path):
                os.utime(path, ns=(0, number * 1_000_000_007))
        _merge(lower, plain, hidden, {})


def translate(lower: Path, copy: Path) -> None:
    """A copy of a layer in which whiteouts and opaque directories are said in all the ways there are, in turn. The
    kernel knows but some of them."""
    run(["cp", "-a", f"{lower}/.", copy])
    for number, path in enumerate(sorted(copy.rglob("*"))):
        times = path.parent.stat().st_mtime_ns
        if _is_whiteout(path):
            path.unlink()
            _whiteout(path, number)
        elif _is_opaque(path):
            _make_opaque(path, number)
        os.utime(path.parent, ns=(0, times))


def _whiteout(path: Path, number: int) -> None:
    if number % 3 == 0:
        make_whiteout(path)
    elif number % 3 == 1:
        path.touch()
        os.setxattr(path, "trusted.overlay.whiteout", b"y")
        os.setxattr(path.parent, OPAQUE, b"x")
    else:
        (path.parent / f".wh.{path.name}").touch()


def _make_opaque(path: Path, number: int) -> None:
    times = path.stat().st_mtime_ns
    os.removexattr(path, OPAQUE)
    if number % 3 == 0:
        os.setxattr(path, "user.overlay.opaque", b"y")
    elif number % 3 == 1:
        os.setxattr(path, "user.fuseoverlayfs.opaque", b"y")
    else:
        (path / ".wh..wh..opq").touch()
    os.utime(path, ns=(0, times))


def _follow(instruction: Instruction, lower: Path, plain: Path) -> None:
    """Make one thing in a layer, unless there is something in its way. `plain` is what lies beneath the layer."""
    kind, name, number = instruction
    path = lower / name
    for parent in reversed(path.relative_to(lower).parents[:-1]):
        if not os.path.lexists(lower / parent):
            (lower / parent).mkdir()
        if not _is_directory(lower / parent):
            return
    if os.path.lexists(path):
        return
    if kind == "whiteout":
        # The kernel shows a whiteout in a directory that merges with none beneath as a file that cannot be looked up.
        beneath = path.relative_to(lower).parent
        if all(not _is_opaque(lower / at) and _is_directory(plain / at) for at in (beneath, *beneath.parents)):
            make_whiteout(path)
    elif kind == "link":
        files = [other for other in sorted(lower.rglob("*")) if not _is_directory(other) and not _is_whiteout(other)]
        if files:
            os.link(files[number % len(files)], path, follow_symlinks=False)
    else:
        _make(kind, path, number)
        _set_attributes(path, number)


def _make(kind: str, path: Path, number: int) -> None:
    if kind == "file":
        path.write_bytes(CONTENTS[number % len(CONTENTS)])
    elif kind == "symlink":
        path.symlink_to("abcd"[number % 4])
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
        if kind == "opaque":
            os.setxattr(path, OPAQUE, b"y")


def _set_attributes(path: Path, number: int) -> None:
    owner = USER if number % 3 == 0 else 0
    os.chown(path, owner, owner, follow_symlinks=False)
    if not path.is_symlink():
        os.chmod(path, LOWER_MODES[number % len(LOWER_MODES)])
        if number % 5 == 0:
            os.setxattr(path, "trusted.x", b"%d" % number)
    os.utime(path, ns=(0, number * 1_000_000_001), follow_symlinks=False)


def _merge(layer: Path, plain: Path, hidden: Path, copies: dict[int, Path]) -> None:
    """Put a directory of a layer over the one that is seen beneath it. `copies` of its inodes there are already."""
    for path in sorted(layer.iterdir()):
        target = plain / path.name
        merged = _is_directory(path) and not _is_opaque(path) and _is_directory(target)
        if os.path.lexists(target) and not merged:
            target.rename(hidden / str(len(os.listdir(hidden))))
        if not _is_whiteout(path):
            _copy(path, target, copies)
        if _is_directory(path):
            _merge(path, target, hidden, copies)
            copy_attributes(path, target)
    copy_attributes(layer, plain)


def _copy(path: Path, target: Path, copies: dict[int, Path]) -> None:
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode):
        target.mkdir(exist_ok=True)
        return
    if found.st_ino in copies:
        os.link(copies[found.st_ino], target, follow_symlinks=False)
        return
    if stat.S_ISREG(found.st_mode):
        target.write_bytes(path.read_bytes())
    elif stat.S_ISLNK(found.st_mode):
        target.symlink_to(path.readlink())
    else:
        os.mknod(target, found.st_mode)
    copies[found.st_ino] = target
    copy_attributes(path, target)


def copy_attributes(path: Path, target: Path) -> None:
    """All that stat and listxattr tell, but for what an overlay keeps there."""
    found = path.lstat()
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(target, follow_symlinks=False):
        os.removexattr(target, name, follow_symlinks=False)
    for name in os.listxattr(path, follow_symlinks=False):
        if not name.startswith("trusted.overlay."):
            value = os.getxattr(path, name, follow_symlinks=False)
            os.setxattr(target, name, value, follow_symlinks=False)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_opaque(path: Path) -> bool:
    return _is_directory(path) and OPAQUE in os.listxattr(path) and os.getxattr(path, OPAQUE) == b"y"


def _is_whiteout(path: Path) -> bool:
    return stat.S_ISCHR(path.lstat().st_mode)
