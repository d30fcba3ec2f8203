"""Every change that can be made in a layer, on mounts of every kind: it is visible at once, and whoever watches the
mount hears what he would have heard natively, once."""

import time
from collections.abc import Iterator
from functools import partial

import pytest

from harness import run
from harness.behind import KINDS, Behind, Place, difference
from harness.changes import CHANGES, EVERYWHERE, FULLY, OF_WHAT_THERE_IS, ORDERED, OUTSIDE, TREE
from harness.events import differences, same_stream
from harness.recorded import natively, watched

QUIET = 0.15  # seconds; what comes twice or too much comes at once

PAIRS = [
    (kind, change)
    for kind in KINDS
    for change in (ORDERED if kind in FULLY else EVERYWHERE)
    if change in OF_WHAT_THERE_IS or KINDS[kind].first_id == 0  # what root makes in a layer is nobody's on such a mount
]


@pytest.fixture
def places(each: Behind) -> Iterator[tuple[Place, Place]]:
    """Two directories, each to see the same change."""
    found = each.new(TREE, OUTSIDE), each.new(TREE, OUTSIDE)
    yield found
    for place in found:
        run(["rm", "-rf", place.layer])


@pytest.mark.parametrize(("each", "change"), PAIRS, indirect=["each"])
def test_change(change: str, each: Behind, places: tuple[Place, Place]) -> None:
    """In one place the mount has looked at everything before; in the other it knows only the directories."""
    known, unknown = places
    with known.recorder() as of_known, unknown.recorder() as of_unknown:
        of_known.watch(watched(known.layer, known.shown, True))
        of_unknown.watch(watched(unknown.layer, unknown.shown, False))
        known.change(CHANGES[change])
        known.visible()
        unknown.change(CHANGES[change])
        both = [(of_known, natively(change, True, each.first_id)), (of_unknown, natively(change, False, each.first_id))]
        for recorder, native in both:
            recorder.until(partial(same_stream, native), 0)
        time.sleep(QUIET)
        for recorder, native in both:
            assert differences(native, recorder.settled(0)) == {}
        unknown.visible()


@pytest.mark.parametrize("each", KINDS, indirect=True)
def test_nothing_differs_from_a_fresh_mount(each: Behind) -> None:
    """After all this, with what is left of it."""
    for name in ("dir", "dir/sub"):
        (each.new(TREE).layer / name / "more").mkdir()
    with each.another() as described:
        assert difference(described(), each.described()) == ""
