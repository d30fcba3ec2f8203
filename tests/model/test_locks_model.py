"""Lockers of one file over two overlays that share its lower, in the layers themselves too, against a model: each real
file has the locks of all who hold theirs on it, and an attempt fails exactly if one of them is in the way.

A and B are on the first mount, S on the second, H has the lower file open, U the upper one of the first mount, once it
is there. Locks of processes, of open file descriptions and flock(2)'s, never waited for.
"""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from harness import Layers, Mount, open_directory, wait_until
from harness.layered import layered
from harness.machines import run_machine
from harness.served import ServedStage
from shiftfs.asking import ask
from shiftfs.locks.ranges import FileLocks
from shiftfs.sys.locks import END, NONE, READ, WRITE

pytestmark = pytest.mark.root

SERVED: Final = "locks=layers"
SOON: Final = 5.0  # seconds
REAL: Final = {"A": ("lower", "upper"), "B": ("lower", "upper"), "S": ("lower",), "H": ("lower",), "U": ("upper",)}
"""Whose locks are held on which of the real files that somebody else has too: the second mount's upper is its own.
Until the first mount's is there nobody sees what A and B hold on it."""
MATES: Final = {"A": "AB", "B": "AB", "S": "S", "H": "H", "U": "U"}
"""Who is on the same mount, or in the same layer."""
KINDS: Final = {"read": READ, "write": WRITE, "none": NONE}
KIND_NAMES: Final = {kind: name for name, kind in KINDS.items()}
WHOLE: Final = {"shared": READ, "exclusive": WRITE, "none": NONE}

NAMES = st.sampled_from("ABSHU")
DESCRIPTORS = st.sampled_from("ffg")
HOW = st.sampled_from(["read", "both"])
SPANS = st.one_of(
    *[st.tuples(st.integers(0, 9), st.integers(0, 3)).map(lambda span: f"{span[0]}-{sum(span)}")] * 4,
    st.sampled_from(["0-12", "5-end"]),
)
_numbers = itertools.count()


class Owner(NamedTuple):
    """Of locks: a process, or what one of its descriptors is open on."""

    name: str
    descriptor: str

    @property
    def number(self) -> int:
        return ord(self.name) << 8 | (ord(self.descriptor) if self.descriptor else 0)


class Told(ServedStage):
    def says(self, step: str) -> str:
        """What comes of it."""
        return self._step(*step.split())


class Lockers(RuleBasedStateMachine):
    """Each run has a file of its own. `opened` are the descriptors that are open, and whether for writing too."""

    def __init__(self, layers: Layers, upper2: Path, first: Mount, second: Mount) -> None:
        super().__init__()
        name = f"file{next(_numbers)}"
        self.upper, self.upper2 = layers.upper / name, upper2 / name
        (layers.lower / name).write_bytes(b"content")
        shown, other = first.path / name, second.path / name
        self.paths = {"A": shown, "B": shown, "S": other, "H": layers.lower / name, "U": self.upper}
        self.first, self.second = first, second
        self.stage, self.seen_by_second = Told(shown, first.path), ServedStage(other, second.path)
        self.opened: dict[Owner, bool] = {}
        self.ranges = {"lower": FileLocks(), "upper": FileLocks()}
        self.whole: dict[Owner, int] = {}

    def teardown(self) -> None:
        self.stage.__exit__(None, None, None)

    # What is done.

    @initialize(is_up=st.booleans())
    def somebody_to_begin_with(self, is_up: bool) -> None:
        for name in "ABS":
            self.opens(name, "f", "read")
        self.opens("H", "f", "both")
        if is_up:
            self.opens("A", "g", "both")
            self.opens("U", "f", "both")

    @rule(name=NAMES, descriptor=DESCRIPTORS, how=HOW)
    def opens(self, name: str, descriptor: str, how: str) -> None:
        """For writing, on a mount: this copies it up."""
        owner = Owner(name, descriptor)
        if owner not in self.opened and self._is_there(name):
            self.stage.play(f"{name} opens {descriptor} {how} {self.paths[name]}")
            self.opened[owner] = how == "both"

    @rule(name=NAMES, descriptor=DESCRIPTORS, which=st.sampled_from(["posix", "posix", "ofd"]),
          kind=st.sampled_from([*KINDS]), span=SPANS)  # fmt: skip
    def lock(self, name: str, descriptor: str, which: str, kind: str, span: str) -> None:
        descriptor, owner = self._some(name, descriptor, which)
        if owner is None:
            return
        start, end = bytes_of(span)
        outcome = "it"
        if kind == "write" and not self.opened[Owner(name, descriptor)]:
            outcome = "EBADF"
        elif self._in_the_way(owner, start, end, KINDS[kind]):
            outcome = "EAGAIN"
        self.stage.play(f"{name} {which} {kind} {span} {descriptor} -> {outcome}")
        if outcome == "it":
            for real in REAL[name]:
                self.ranges[real].set(owner.number, start, end, KINDS[kind], 0, 0)
        elif outcome == "EAGAIN":
            for other in "SHU":  # nothing is left of it, on no file
                self.ask(other, "f", "ofd", "write", span)

    @rule(name=st.sampled_from("AB"), kind=st.sampled_from(["read", "write"]), span=SPANS)
    def meet_above(self, name: str, kind: str, span: str) -> None:
        """The last file to be locked is the one that somebody else has locked; another lock keeps all of them open."""
        self.lock("U", "f", "posix", "write", span)
        self.lock(name, "g", "posix", "read", "100-100")
        self.lock(name, "g", "posix", kind, span)

    @rule(name=NAMES, descriptor=DESCRIPTORS, kind=st.sampled_from([*WHOLE]))
    def flock(self, name: str, descriptor: str, kind: str) -> None:
        """Whoever asks for another kind than he holds loses that first, also where he gets nothing instead."""
        descriptor, owner = self._some(name, descriptor, "flock")
        if owner is None:
            return
        wanted, held = WHOLE[kind], self.whole.get(owner, NONE)
        refused = wanted != held and any(
            WRITE in (wanted, other) and wanted != NONE
            for one, other in self.whole.items()
            if one != owner and share(one.name, name)
        )
        self.stage.play(f"{name} flock {kind} {descriptor} -> {'EAGAIN' if refused else 'it'}")
        self.whole.pop(owner, None)
        if wanted != NONE and not refused:
            self.whole[owner] = wanted

    @rule(name=NAMES, descriptor=DESCRIPTORS, which=st.sampled_from(["posix", "ofd"]),
          kind=st.sampled_from(["read", "write"]), span=SPANS)  # fmt: skip
    def ask(self, name: str, descriptor: str, which: str, kind: str, span: str) -> None:
        """F_GETLK: whoever is on the same mount or in the same layer is named, with what he holds."""
        descriptor, owner = self._some(name, descriptor, which)
        if owner is None:
            return
        start, end = bytes_of(span)
        said = self.stage.says(f"{name} asks {which} {kind} {span} {descriptor}")
        found = self._in_the_way(owner, start, end, KINDS[kind])
        assert (said == "free") == (not found), f"{name} asks {which} {kind} {span}: {said}, in the way: {found}"
        if not found:
            return
        held, where, _, holder = said.split()
        first, last = bytes_of(where)
        assert first <= end and start <= last and WRITE in (KINDS[held], KINDS[kind]), said
        mates = [one for one in found if one[0] in MATES[name]]
        if mates and name in "AB":  # first who is on the mount; in the layer it may be a mount's
            assert (KINDS[held], first, last) in [one[1:] for one in mates], f"{said}, in the way: {found}"
        if holder in self.paths:
            assert (holder, KINDS[held], first, last) in found, f"{said}, in the way: {found}"

    @rule(name=NAMES, descriptor=DESCRIPTORS)
    def close(self, name: str, descriptor: str) -> None:
        """All of the process's go, by whichever descriptor they were taken."""
        owner = Owner(name, descriptor)
        if self.opened.pop(owner, None) is None:
            return
        self.stage.play(f"{name} closes {descriptor}")
        self.whole.pop(owner, None)
        for locks in self.ranges.values():
            locks.drop(owner.number)
            locks.drop(Owner(name, "").number)
        # The kernel tells a mount of the last close without waiting for an answer.
        wait_until(lambda: self._held_on_mounts() == self._expected_on_mounts(), "all that was held is free", SOON)

    @rule(name=st.sampled_from("AAS"), kind=st.sampled_from(["shared", "exclusive"]))
    def copy_up(self, name: str, kind: str) -> None:
        """By somebody who locks nothing. Whoever comes to the new file meets what was held before."""
        with open(self.paths[name], "r+b", buffering=0) as file:
            file.write(b"changed")
        assert (self.upper2 if name == "S" else self.upper).exists()
        if name == "A":
            self.opens("U", "f", "both")
            self.flock("U", "f", kind)
            self.ask("U", "f", "posix", "write", "0-end")

    def _is_there(self, name: str) -> bool:
        return name != "U" or self.upper.exists()

    def _some(self, name: str, descriptor: str, which: str) -> tuple[str, Owner | None]:
        """The descriptor, or the other one where it is not open, and whose the lock would be."""
        for one in (descriptor, "f", "g"):
            if Owner(name, one) in self.opened:
                return one, Owner(name, "" if which == "posix" else one)
        return "", None

    def _in_the_way(self, owner: Owner, start: int, end: int, kind: int) -> list[tuple[str, int, int, int]]:
        """All that others hold and that conflicts; what FileLocks says of it is the same."""
        found = {
            (chr(held.owner >> 8), held.kind, held.start, held.end)
            for real in REAL[owner.name]
            for held in self.ranges[real]
            if held.owner != owner.number and held.start <= end and start <= held.end
            and kind != NONE and WRITE in (kind, held.kind)
        }  # fmt: skip
        refused = [self.ranges[real].conflict(owner.number, start, end, kind) for real in REAL[owner.name]]
        assert bool(found) == any(refused)
        return sorted(found)

    # What is held.

    def _held_on_mounts(self) -> tuple[list[str], list[str]]:
        return self.stage.held(), self.seen_by_second.held()

    def _expected_on_mounts(self) -> tuple[list[str], list[str]]:
        return self._expected("AB"), self._expected("S")

    def _expected(self, names: str) -> list[str]:
        ranges = [
            f"{KIND_NAMES[held.kind]} {held.start}-{'end' if held.end == END else held.end}"
            for held in self.ranges["lower"]
            if chr(held.owner >> 8) in names
        ]
        whole = [
            f"flock {'exclusive' if kind == WRITE else 'shared'}"
            for owner, kind in self.whole.items()
            if owner.name in names
        ]
        return sorted(ranges + whole)

    @invariant()
    def the_mounts_report_what_is_held(self) -> None:
        assert self._held_on_mounts() == self._expected_on_mounts()

    @invariant()
    def it_is_held_on_all_real_files(self) -> None:
        for mount, path, upper in (
            (self.first, self.paths["A"], self.upper),
            (self.second, self.paths["S"], self.upper2),
        ):
            number = path.stat().st_ino
            roles = {"place", "lower", "upper"} if upper.exists() else {"place", "lower"}
            held: list[dict[str, Any]] = json.loads(ask(str(mount.path), "locks"))["locks"]
            assert all(set(lock["on"]) == roles for lock in held if lock["number"] == number)


def share(one: str, other: str) -> bool:
    """A real file."""
    return bool({*REAL[one]} & {*REAL[other]})


def bytes_of(span: str) -> tuple[int, int]:
    first, _, last = span.partition("-")
    return int(first), END if last == "end" else int(last)


def test_lockers_over_layers_and_mounts() -> None:
    base = open_directory("locks-model-")
    layers = Layers(base)
    others = base / "upper2", base / "work2"
    for path in others:
        path.mkdir()
    try:
        with layers.mount(SERVED) as first, layered([layers.lower], *others, SERVED) as second:
            run_machine(partial(Lockers, layers, others[0], first, second), examples=40)
    finally:
        shutil.rmtree(base)
