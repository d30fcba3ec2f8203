"""What is measured side by side: the native directory, shiftfs in several ways, and its peers. One line each.

A peer that is not on the machine, and a shiftfs whose option this version does not have, are left out, and the
report says so.
"""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from harness import SHIFTFS
from shiftfs.options import MountOptions, UsageError, parse_command_line


class Place(NamedTuple):
    """Where a subject is mounted, and of what."""

    lowers: Sequence[Path]
    upper: Path
    work: Path
    at: Path

    @property
    def options(self) -> str:
        return f"lowerdir={':'.join(map(str, self.lowers))},upperdir={self.upper},workdir={self.work}"

    @property
    def branches(self) -> list[str]:
        return [str(self.upper), *map(str, self.lowers)]


class Subject(NamedTuple):
    """A way to see the layers. `layered`: all of them below an upper; else the one there is."""

    name: str
    command: Callable[[Place], list[str]] | None  # None: the directory itself
    layered: bool = False
    ours: bool = False
    option: str = ""  # of shiftfs, that it may not have
    program: str = ""  # that the machine may not have
    groups: tuple[str, ...] = ()  # those that it matters to; none: all
    environment: tuple[tuple[str, str], ...] = ()  # of another shiftfs


def _shiftfs(options: str, place: Place) -> list[str]:
    words = ["-o", options] if options else []
    return [*SHIFTFS, *words, str(place.lowers[0]), str(place.at)]


def _overlay(options: str, place: Place) -> list[str]:
    joined = ",".join(filter(None, (place.options, options)))
    return [*SHIFTFS, "-o", joined, str(place.at)]


def ours(name: str, options: str = "", *groups: str, environment: Mapping[str, str] | None = None) -> Subject:
    """shiftfs of a single directory."""
    return Subject(name, lambda place: _shiftfs(options, place), False, True, options, "", groups, _items(environment))


def our_overlay(name: str, options: str = "", *groups: str, environment: Mapping[str, str] | None = None) -> Subject:
    """shiftfs of layers, with an upper directory."""
    return Subject(name, lambda place: _overlay(options, place), True, True, options, "", groups, _items(environment))


def _items(environment: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    return tuple((environment or {}).items())


def peer(name: str, command: Callable[[Place], list[str]], layered: bool = False, program: str = "") -> Subject:
    """Another filesystem."""
    return Subject(name, command, layered, program=program or name)


_PASSTHROUGH: Final = Path(__file__).parent / "peers" / "passthrough.py"
_MAPS: Final = "uidmapping=0:100000:65536,gidmapping=0:100000:65536"
# What shiftfs does without being told to.
_KERNEL: Final = "redirect_dir=on,index=on,xino=on"

PURE: Final = ("SHIFTFS_PURE", "1")
"""In the environment: shiftfs in Python alone, where parts of it are compiled."""

NATIVE: Final = "native"
KERNEL: Final = "overlayfs"
SINGLE: Final = "shiftfs"
OVERLAY: Final = "shiftfs overlay"
COLLECTING: Final = "shiftfs overlay writeback"
VOLATILE: Final = "shiftfs overlay volatile"

SUBJECTS: Final = (
    Subject(NATIVE, None),
    ours(SINGLE),
    our_overlay(OVERLAY),
    ours("shiftfs mapped", _MAPS, "lookup", "listing"),
    ours("shiftfs pure", "", "lookup", "listing", "clients", "files", environment=dict([PURE])),
    our_overlay("shiftfs overlay pure", "", "lookup", "listing", "clients", "files", environment=dict([PURE])),
    ours("shiftfs open=serve", "open=serve", "files"),
    ours("shiftfs passthrough", "passthrough=on", "files", "data"),
    our_overlay("shiftfs overlay passthrough", "passthrough=on", "files", "data"),
    ours("shiftfs writeback", "writeback", "files", "data"),
    our_overlay(COLLECTING, "writeback", "files", "data"),
    ours("shiftfs locks=layers", "locks=layers", "locks"),
    our_overlay(VOLATILE, "volatile", "copyup"),
    peer(
        KERNEL,
        lambda place: ["mount", "-t", "overlay", "-o", f"{place.options},{_KERNEL}", "none", str(place.at)],
        True,
        "mount",
    ),
    peer("fuse-overlayfs", lambda place: ["fuse-overlayfs", "-o", place.options, str(place.at)], True),
    peer("bindfs", lambda place: ["bindfs", str(place.lowers[0]), str(place.at)]),
    peer(
        "mergerfs",
        lambda place: ["mergerfs", "-o", "category.create=ff", ":".join(place.branches), str(place.at)],
        True,
    ),
    peer(
        "unionfs-fuse",
        lambda place: [
            "unionfs",
            "-o",
            "cow",
            ":".join([f"{place.upper}=RW", *(f"{lower}=RO" for lower in place.lowers)]),
            str(place.at),
        ],
        True,
        "unionfs",
    ),
    peer(
        "mfusepy",
        lambda place: [sys.executable, str(_PASSTHROUGH), str(place.lowers[0]), str(place.at)],
        False,
        sys.executable,
    ),
)


def rival(subject: Subject) -> str:
    """Which of ours is compared with it: the one that shows the same."""
    return OVERLAY if subject.layered else SINGLE


def missing(subject: Subject) -> str:
    """Why it is to be left out; nothing if it is not."""
    if subject.program and not shutil.which(subject.program):
        return f"{subject.program} is not on this machine"
    if PURE in subject.environment and not find_spec("shiftfs._native"):
        return "nothing of this shiftfs is compiled"
    if not subject.option:
        return ""
    try:
        parsed = parse_command_line(["-o", subject.option, "source", "mount"], is_root=True)
    except UsageError as error:
        # What goes with layers alone is refused without: that it is known is what counts.
        return f"this shiftfs has no {subject.option}" if "unknown option" in str(error) else ""
    does_nothing = isinstance(parsed, MountOptions) and parsed.notes
    return f"{subject.option} does nothing in this shiftfs" if does_nothing else ""


def chosen(peers: str | None, mine: str | None, checkouts: Sequence[str]) -> tuple[list[Subject], dict[str, str]]:
    """Those that were asked for and can be had, and why others cannot. Raises ValueError for a name that is none."""
    asked = {name for text in (peers, mine) if text for name in text.split(",")} - {"none"}
    unknown = asked - {subject.name for subject in SUBJECTS}
    if unknown:
        raise ValueError(f"no subject is named {', '.join(sorted(unknown))}; there are {_names()}")
    left_out = {}
    taken = []
    for subject in SUBJECTS:
        words = mine if subject.ours else peers
        if words is not None and subject.name not in words.split(",") and subject.name != NATIVE:
            continue
        reason = missing(subject)
        if reason:
            left_out[subject.name] = reason
        else:
            taken.append(subject)
    for number, checkout in enumerate(checkouts):
        suffix = f" of {Path(checkout).name or number}"
        other = {"PYTHONPATH": checkout}
        taken += [ours(SINGLE + suffix, environment=other), our_overlay(OVERLAY + suffix, environment=other)]
    return taken, left_out


def _names() -> str:
    return ", ".join(subject.name for subject in SUBJECTS)
