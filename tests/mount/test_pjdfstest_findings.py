"""What a run of pjdfstest has brought to light; docs/conformance.md tells how to run it."""

import os
from contextlib import suppress

import pytest

from harness import wait_until
from harness.calls import in_child, opened
from harness.places import USER, Place

OTHER = USER + 1


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


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6711])
def test_nobody_else_can_clear_set_id_bits_by_a_chown_that_changes_nothing(place: Place, mode: int) -> None:
    path = place.new("file")
    path.chmod(mode)
    # EPERM on a plain file. On a mount the kernel does not check, and tells such a chown from a write by nothing.
    with suppress(PermissionError):
        in_child(lambda: os.chown(path, -1, -1), uid=USER)
    assert path.stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("uid", [USER, OTHER])
def test_a_write_clears_the_set_id_bits_of_a_file_that_all_may_write(place: Place, uid: int) -> None:
    path = place.new("file")
    os.chown(path, USER, USER)
    path.chmod(0o6777)

    def write() -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.write(fd, b"content")

    in_child(write, uid=uid)
    assert path.stat().st_mode & 0o7777 == 0o777


def test_the_owner_can_clear_them(place: Place) -> None:
    path = place.new("file")
    os.chown(path, USER, USER)
    path.chmod(0o6755)
    in_child(lambda: os.chown(path, -1, -1), uid=USER)
    assert path.stat().st_mode & 0o7777 == 0o755


def test_a_directory_keeps_its_set_group_id_bit(place: Place) -> None:
    path = place.path / "directory"
    path.mkdir()
    path.chmod(0o2755)
    for uid in (None, USER):
        in_child(lambda: os.chown(path, -1, -1), uid=uid)
        assert path.stat().st_mode & 0o7777 == 0o2755
