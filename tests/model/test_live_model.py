"""Layers that are changed at random behind a mount that is in use, against a new mount of the same: once all is quiet,
both show the same tree."""

import itertools
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from harness import open_directory
from harness.behind import describe, difference
from harness.calls import RENAME_EXCHANGE, renameat2
from harness.layered import layered, make_whiteout, write_tree
from harness.machines import run_machine
from harness.shifted import Mount, mounted
from shiftfs.asking import ask

pytestmark = pytest.mark.root

QUIET_LIMIT = 10.0
KINDS = {
    "source": (1, False, ()),
    "source by inotify": (1, False, ("watch=inotify",)),
    "lowers": (2, True, ()),
    "overlay": (2, True, ()),
    "overlay by inotify": (2, True, ("watch=inotify",)),
}
"""How many directories are changed, the upper one apart, and whether they are merged."""

NAMES = ("a", "b", "c")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
LAYERS = st.integers(0, 2)
TREE: dict[str, Any] = {"a": {"b": b"first", "c": {"a": b"deep"}}, "b": b"second", "c": {"b": {}}}

_numbers = itertools.count()


class Changed(RuleBasedStateMachine):
    """Each run has a directory of its own, in all layers."""

    def __init__(self, layers: list[Path], mount: Mount, again: Callable[[], Any], merged: bool) -> None:
        super().__init__()
        self._name = f"run{next(_numbers)}"
        self._layers = [layer / self._name for layer in layers]
        self._mount, self._again, self._merged = mount, again, merged
        self._shown = mount.path / self._name

    @initialize()
    def something_to_begin_with(self) -> None:
        for layer in self._layers:
            layer.mkdir()
        write_tree(self._layers[-1], TREE)
        describe(self._shown, 0, self._merged)

    def _change(self, call: Callable[..., object], layer: int, *paths: str) -> None:
        root = self._layers[layer % len(self._layers)]
        try:
            call(*(root / path for path in paths))
        except OSError:
            pass  # there is nothing, or something else

    @rule(layer=LAYERS, path=PATHS)
    def make_a_directory(self, layer: int, path: str) -> None:
        self._change(Path.mkdir, layer, path)

    @rule(layer=LAYERS, path=PATHS, content=st.binary(max_size=3))
    def write(self, layer: int, path: str, content: bytes) -> None:
        self._change(lambda at: not at.is_char_device() and at.write_bytes(content), layer, path)

    @rule(layer=LAYERS, path=PATHS)
    def remove(self, layer: int, path: str) -> None:
        self._change(lambda at: at.rmdir() if stat.S_ISDIR(at.lstat().st_mode) else at.unlink(), layer, path)

    @rule(layer=LAYERS, path=PATHS)
    def remove_all(self, layer: int, path: str) -> None:
        self._change(shutil.rmtree, layer, path)

    @rule(layer=LAYERS, path=PATHS, to=PATHS)
    def make_a_symlink(self, layer: int, path: str, to: str) -> None:
        self._change(lambda at: at.symlink_to(to), layer, path)

    @rule(layer=LAYERS, old=PATHS, new=PATHS)
    def link(self, layer: int, old: str, new: str) -> None:
        self._change(lambda one, other: os.link(one, other, follow_symlinks=False), layer, old, new)

    @rule(layer=LAYERS, old=PATHS, new=PATHS)
    def rename(self, layer: int, old: str, new: str) -> None:
        self._change(os.rename, layer, old, new)

    @rule(layer=LAYERS, old=PATHS, new=PATHS)
    def exchange(self, layer: int, old: str, new: str) -> None:
        self._change(lambda one, other: renameat2(one, other, RENAME_EXCHANGE), layer, old, new)

    @rule(layer=LAYERS, path=PATHS, mode=st.sampled_from([0o600, 0o644, 0o755, 0o1777]))
    def change_the_mode(self, layer: int, path: str, mode: int) -> None:
        self._change(lambda at: at.is_symlink() or at.chmod(mode), layer, path)

    @rule(layer=LAYERS, path=PATHS)
    def hide(self, layer: int, path: str) -> None:
        if self._merged:
            self._change(make_whiteout, layer, path)

    @rule(path=PATHS)
    def look(self, path: str) -> None:
        try:
            os.stat(self._shown / path)
            os.listdir((self._shown / path).parent)
        except OSError:
            pass

    @rule()
    def look_at_all(self) -> None:
        try:
            describe(self._shown, 0, self._merged)
        except OSError:
            pass

    def _quiet(self) -> None:
        limit = time.monotonic() + QUIET_LIMIT
        before: object = None
        while time.monotonic() < limit:
            status = json.loads(ask(str(self._mount.path), "status"))
            now = status["live"]["waiting"], status["journal"]["total"], status["live"]["reflected"]
            if now == before and now[0] == 0:
                return
            before = now
            time.sleep(0.05)
        raise AssertionError(f"not quiet: {status}")

    def teardown(self) -> None:
        self._quiet()
        with self._again() as other:
            wanted = describe(other.path / self._name, 0, self._merged)
        assert not difference(wanted, describe(self._shown, 0, self._merged))


@pytest.mark.parametrize("kind", KINDS)
def test_after_changes_behind_it_a_mount_shows_what_a_new_one_does(kind: str) -> None:
    count, merged, options = KINDS[kind]
    base = open_directory("live-model-")
    lowers = [base / f"lower{number}" for number in range(count)]
    upper, work = base / "upper", base / "work"
    for path in (*lowers, upper, work):
        path.mkdir()
    with_upper = kind.startswith("overlay")
    changed = [upper, *lowers] if with_upper else lowers
    if merged:
        mounting = layered(lowers, *((upper, work) if with_upper else (None, None)), *options)
        again = partial(layered, changed, None, None)
    else:
        mounting, again = mounted(lowers[0], None, *options), partial(mounted, lowers[0], None, "ro")
    try:
        with mounting as mount:
            run_machine(partial(Changed, changed, mount, again, merged), examples=5)
    finally:
        shutil.rmtree(base)
