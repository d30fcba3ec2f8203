"""A mounted tree against a plain directory: the same operations on both have the same results, errnos, attributes,
contents and listings."""

import itertools
import os
import shutil
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from model.operations import CALLERS, MAYBE, THERE, USER, Operations, Where

from harness import mounted, open_directory
from harness.calls import RENAME_WHITEOUT, renameat2

pytestmark = pytest.mark.root

FIRST_REAL_ID = 100000
MAP = tuple(f"{kind}mapping={FIRST_REAL_ID}:0:65536" for kind in ("uid", "gid"))
# Devices are honoured as on the plain directory: opening the whiteout that a rename leaves is ENXIO then, not EACCES.
KINDS: dict[str, tuple[str, ...]] = {
    "unshifted": ("allow_dev",),
    "unwatched": ("allow_dev", "watch=off", "timeout=3600"),
    "writeback": ("allow_dev", "writeback"),
    "writeback, OPEN served": ("allow_dev", "writeback", "open=serve"),
    "shifted": ("allow_dev", *MAP),
    "shifted, OPEN served": ("allow_dev", "open=serve", *MAP),
}

_numbers = itertools.count()


class Pair(Operations):
    sides = ("the mount", "the plain directory")

    def __init__(self, mount: Path, plain: Path) -> None:
        super().__init__()
        name = f"run{next(_numbers)}"
        self.roots = (mount / name, plain / name)
        for root in self.roots:
            root.mkdir()
            root.chmod(0o777)

    @initialize()
    def something_to_begin_with(self) -> None:
        for root in self.roots:
            (root / "a/b").mkdir(parents=True)
            (root / "a/c").write_bytes(b"content")
            (root / "b").write_bytes(b"more")
            (root / "a").chmod(0o777)
            (root / "a/c").chmod(0o666)
            os.chown(root / "a/b", USER, USER)
            os.chown(root / "b", USER, USER)
        self.opened[0] = [os.open(root / "a/c", os.O_RDWR) for root in self.roots]

    @rule(old=THERE, new=MAYBE, uid=CALLERS)
    def rename_leaving_a_whiteout(self, old: Where, new: Where, uid: int) -> None:
        self.same(lambda side: renameat2(self.at(side, old), self.at(side, new), RENAME_WHITEOUT), uid)

    def teardown(self) -> None:
        super().teardown()
        for root in self.roots:
            shutil.rmtree(root)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mounted_tree_is_like_a_plain_directory(kind: str) -> None:
    source, plain = open_directory("source-"), open_directory("plain-")
    if kind != "unshifted":
        os.chown(source, FIRST_REAL_ID, FIRST_REAL_ID)
    try:
        with mounted(source, None, *KINDS[kind]) as mount:
            factory = cast(type[Pair], partial(Pair, mount.path, plain))  # all it does is call it
            run_state_machine_as_test(factory, settings=SETTINGS)
    finally:
        shutil.rmtree(source)
        shutil.rmtree(plain)


SETTINGS = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    # Shrinking takes minutes here, and a failure names the first operation after which the two are not alike.
    phases=(Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
