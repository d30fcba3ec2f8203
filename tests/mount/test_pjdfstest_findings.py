"""What a run of pjdfstest has brought to light; docs/conformance.md tells how to run it."""

import os

from harness import wait_until
from harness.places import Place


def test_a_chown_that_changes_nothing_moves_the_change_time(place: Place) -> None:
    path = place.new("file")
    before = path.stat()

    def moved() -> bool:
        # Again and again: the layer's clock ticks every few milliseconds only.
        os.chown(path, -1, -1)
        return path.stat().st_ctime_ns > before.st_ctime_ns

    wait_until(moved, "a later change time")
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_mtime_ns == before.st_mtime_ns


def test_a_chown_that_changes_nothing_clears_the_set_user_id_bit(place: Place) -> None:
    path = place.new("file")
    path.chmod(0o6755)
    os.chown(path, -1, -1)
    assert path.stat().st_mode & 0o7777 == 0o755
