"""Copy-up, step by step: what comes first, who waits for whom, and what is left when it fails."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Caller, Layers, errno_of, run, write_tree
from harness.layered import litter
from harness.overlaid import Fill, Overlay, finish, never, overlaid
from overlay.entry import Entry
from shiftfs.tree import Gate, Steps, Work

pytestmark = pytest.mark.root
BIG = b"content" * 40_000
PAST = (10**18 + 1, 10**18 + 2)


@pytest.fixture
def layers(fill: Fill) -> Layers:
    made = fill({"d": {"e": {"f": b"content", "big": BIG, "l": Path("target"), "p": os.mkfifo}}})
    for path in [made.lower, *made.lower.rglob("*")]:
        os.utime(path, ns=PAST, follow_symlinks=False)
    return made


@pytest.fixture
def overlay(layers: Layers) -> Iterator[Overlay]:
    with overlaid(layers) as made:
        yield made


def begun(overlay: Overlay, entry: Entry) -> tuple[Steps, Work | Gate]:
    """A copy-up that has come to its first wait."""
    steps = overlay.tree.copy_up(entry, None, False, never)
    return steps, next(steps)


def left_in_work(layers: Layers) -> list[str]:
    return litter(layers.work)


def times(path: Path) -> tuple[int, int]:
    return path.lstat().st_atime_ns, path.lstat().st_mtime_ns


# --- what comes up ---


@pytest.mark.parametrize("name", [b"f", b"big", b"l", b"p", b""], ids=["small", "big", "link", "fifo", "directory"])
def test_what_comes_up_is_as_it_was_with_its_parents(overlay: Overlay, layers: Layers, name: bytes) -> None:
    path = (b"d/e/" + name).rstrip(b"/")
    before = overlay.attributes(path)
    entry = overlay.up(path)
    assert overlay.tree.is_up(entry)
    after = overlay.attributes(path)
    unchanged = ("ino", "size", "atime", "atimensec", "mtime", "mtimensec", "mode", "uid", "gid", "rdev", "device")
    assert [getattr(after, field) for field in unchanged] == [getattr(before, field) for field in unchanged]
    assert stat.S_IFMT((layers.upper / os.fsdecode(path)).lstat().st_mode) == stat.S_IFMT(before.mode)
    assert left_in_work(layers) == []


def test_a_user_brings_up_what_he_may_not_write(layers: Layers) -> None:
    """user.* attributes take that right, and nobody but him has to know of them."""
    write_tree(layers.lower, {"own": {"file": b"content", "one": b"linked"}})
    os.link(layers.lower / "own/one", layers.lower / "own/two")
    for name in ("file", "one"):
        (layers.lower / "own" / name).chmod(0o444)
    run(["chown", "-R", "1000:1000", layers.base])

    def work() -> None:
        with overlaid(layers) as overlay:
            for name in (b"file", b"one"):
                overlay.up(b"own/" + name)

    Caller(1000, 1000)(work)
    for name, content in (("file", b"content"), ("one", b"linked")):
        path = layers.upper / "own" / name
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (content, 0o444)
        assert "user.overlay.origin" in os.listxattr(path)
    assert "user.overlay.nlink" in os.listxattr(layers.upper / "own/one")


def test_content_and_target_are_the_same(overlay: Overlay, layers: Layers) -> None:
    for name in (b"f", b"big", b"l"):
        overlay.up(b"d/e/" + name)
    assert overlay.read(b"d/e/f") == (layers.upper / "d/e/f").read_bytes() == b"content"
    assert overlay.read(b"d/e/big") == (layers.upper / "d/e/big").read_bytes() == BIG
    assert (layers.upper / "d/e/l").readlink() == Path("target")


def test_parents_keep_their_times(overlay: Overlay, layers: Layers) -> None:
    os.utime(layers.upper, ns=PAST)
    overlay.up(b"d/e/f")
    for path in (layers.upper, layers.upper / "d", layers.upper / "d/e", layers.upper / "d/e/f"):
        assert times(path) == PAST, path


def test_the_lower_layer_is_not_touched(overlay: Overlay, layers: Layers) -> None:
    before = [(path, path.lstat()) for path in sorted(layers.lower.rglob("*"))]
    for name in (b"f", b"big", b"l", b"p"):
        overlay.up(b"d/e/" + name)
    overlay.write(b"d/e/f", b"C")
    for path, was in before:
        now = path.lstat()
        assert (now.st_mode, now.st_mtime_ns, now.st_ctime_ns, now.st_ino) == (
            was.st_mode, was.st_mtime_ns, was.st_ctime_ns, was.st_ino
        )  # fmt: skip


def test_what_is_up_already_takes_no_step(overlay: Overlay) -> None:
    entry = overlay.up(b"d/e/big")
    before = entry.upper
    assert list(overlay.tree.copy_up(entry, None, False, never)) == []
    assert entry.upper is before


@pytest.mark.parametrize("size", [0, 1, len(BIG), len(BIG) + 1])
def test_no_more_content_comes_up_than_will_be_left(overlay: Overlay, layers: Layers, size: int) -> None:
    overlay.up(b"d/e/big", size)
    assert (layers.upper / "d/e/big").read_bytes() == BIG[:size]


def test_a_truncation_to_nothing_waits_for_no_worker(overlay: Overlay) -> None:
    assert list(overlay.tree.copy_up(overlay.at(b"d/e/big"), 0, False, never)) == []


# --- who waits ---


def test_content_is_copied_by_a_worker_and_nothing_is_seen_before(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"d/e/big")
    steps, call = begun(overlay, entry)
    assert not isinstance(call, Gate)
    assert sorted(os.listdir(layers.upper / "d/e")) == []
    assert (entry.upper, overlay.read(b"d/e/big")) == (None, BIG)
    finish(steps, call)
    assert os.listdir(layers.upper / "d/e") == ["big"]


def test_two_at_once_copy_it_once(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"d/e/big")
    first, call = begun(overlay, entry)
    second, gate = begun(overlay, entry)
    assert isinstance(gate, Gate)
    resumed: list[bool] = []
    gate.wait(lambda: resumed.append(True))
    assert resumed == []
    finish(first, call)
    assert resumed == [True]
    assert list(second) == [], "it finds the file up"
    assert (layers.upper / "d/e/big").read_bytes() == BIG


def test_whoever_waits_copies_it_himself_when_the_first_has_failed(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"d/e/big")
    first, _ = begun(overlay, entry)
    second, gate = begun(overlay, entry)
    assert isinstance(gate, Gate)
    resumed: list[bool] = []
    gate.wait(lambda: resumed.append(True))
    assert errno_of(lambda: first.throw(OSError(errno.ENOSPC, ""))) == errno.ENOSPC
    assert resumed == [True]
    finish(second)
    assert (layers.upper / "d/e/big").read_bytes() == BIG
    assert left_in_work(layers) == []


def test_another_inode_has_its_own_copy(overlay: Overlay, layers: Layers) -> None:
    first, call = begun(overlay, overlay.at(b"d/e/big"))
    overlay.write(b"d/e/f", b"C")
    overlay.mkdir(b"d/e/new")
    assert overlay.names(b"d/e") == [b"big", b"f", b"l", b"new", b"p"]
    finish(first, call)
    assert overlay.read(b"d/e/big") == BIG


def test_a_mount_that_syncs_nothing_copies_little_at_once(layers: Layers) -> None:
    with overlaid(layers, volatile=True) as overlay:
        assert list(overlay.tree.copy_up(overlay.at(b"d/e/f"), None, False, never)) == []
        assert overlay.read(b"d/e/f") == b"content"
        assert not isinstance(begun(overlay, overlay.at(b"d/e/big"))[1], Gate)


# --- what changes meanwhile ---


def test_a_file_removed_while_it_is_copied_is_copied_for_who_has_it_open(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"d/e/big")
    steps, call = begun(overlay, entry)
    overlay.unlink(b"d/e/big")
    finish(steps, call)
    assert not overlay.exists(b"d/e/big")
    assert overlay.tree.is_up(entry)
    assert os.pread(overlay.tree.data(entry, True).fd, len(BIG), 0) == BIG
    assert overlay.tree.attributes(entry).nlink == 0
    assert stat.S_ISCHR((layers.upper / "d/e/big").lstat().st_mode), "only the whiteout is there"


def test_a_removed_file_can_still_be_written(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"d/e/f")
    assert overlay.unlink(b"d/e/f")
    overlay.up_entry(entry)
    os.pwrite(overlay.tree.data(entry, True).fd, b"C", 0)
    assert os.pread(overlay.tree.data(entry, False).fd, 99, 0) == b"Content"
    assert overlay.names(b"d/e") == [b"big", b"l", b"p"]
    assert overlay.tree.descriptors()["unlinked"] == 1
    overlay.tree.release(entry)
    assert overlay.tree.descriptors()["unlinked"] == 0


def test_a_removed_directory_is_not_copied(overlay: Overlay, layers: Layers) -> None:
    (layers.lower / "empty").mkdir()
    entry = overlay.at(b"empty")
    overlay.rmdir(b"empty")
    assert errno_of(lambda: overlay.up_entry(entry)) == errno.ENOENT


def test_what_has_appeared_in_its_place_behind_the_mount_stays(overlay: Overlay, layers: Layers) -> None:
    steps, call = begun(overlay, overlay.at(b"d/e/big"))
    (layers.upper / "d/e/big").write_bytes(b"other")
    assert errno_of(lambda: finish(steps, call)) == errno.ESTALE
    assert (layers.upper / "d/e/big").read_bytes() == b"other"


# --- what fails ---


def test_whoever_is_not_waited_for_leaves_nothing_behind(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"d/e/big")
    assert errno_of(lambda: overlay.up_entry(entry, stopped=lambda: True)) == errno.EINTR
    assert (entry.upper, entry.gate) == (None, None)
    assert os.listdir(layers.upper / "d/e") == left_in_work(layers) == []
    overlay.up_entry(entry)
    assert (layers.upper / "d/e/big").read_bytes() == BIG


def test_a_copy_that_nobody_goes_on_with_leaves_nothing_behind(overlay: Overlay, layers: Layers) -> None:
    entry = overlay.at(b"d/e/big")
    steps, _ = begun(overlay, entry)
    steps.close()
    assert (entry.upper, entry.gate, overlay.tree.progress()) == (None, None, [])
    assert os.listdir(layers.upper / "d/e") == left_in_work(layers) == []


@pytest.mark.parametrize(
    "name, call",
    [(b"f", "chmod"), (b"f", "setxattr"), (b"f", "link"), (b"l", "setxattr"), (b"p", "chmod"), (b"p", "setxattr"),
     (b"", "chmod"), (b"", "setxattr")],
)  # fmt: skip
def test_an_error_at_any_step_leaves_nothing_behind(
    overlay: Overlay, layers: Layers, monkeypatch: pytest.MonkeyPatch, name: bytes, call: str
) -> None:
    overlay.up(b"d/e" if name else b"d")
    entry = overlay.at((b"d/e/" + name).rstrip(b"/"))

    def fails(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        assert errno_of(lambda: overlay.up_entry(entry)) == errno.EIO
    assert (entry.upper, entry.gate) == (None, None)
    assert left_in_work(layers) == []
    assert os.listdir(layers.upper / "d" / ("e" if name else "")) == []
    overlay.up_entry(entry)
    assert overlay.tree.is_up(entry)


@pytest.mark.parametrize("flag", ["+i", "+a"])
@pytest.mark.parametrize("path", ["d/e/f", "d"])
def test_what_may_not_be_changed_below_is_not_copied(overlay: Overlay, layers: Layers, flag: str, path: str) -> None:
    run(["chattr", flag, layers.lower / path])
    try:
        assert errno_of(lambda: overlay.up(b"d/e/f")) == errno.EPERM
    finally:
        run(["chattr", "-ia", layers.lower / path])
    assert not (layers.upper / "d/e/f").exists()


# --- hard links ---


@pytest.fixture
def linked(layers: Layers) -> Layers:
    os.link(layers.lower / "d/e/f", layers.lower / "other")
    return layers


def test_with_an_index_all_names_of_a_file_come_up_together(linked: Layers) -> None:
    with overlaid(linked) as overlay:
        overlay.at(b"other")
        overlay.write(b"d/e/f", b"C")
        assert overlay.at(b"other") is overlay.at(b"d/e/f")
        assert (overlay.read(b"other"), overlay.attributes(b"other").nlink) == (b"Content", 2)
    with overlaid(linked) as overlay:
        assert overlay.at(b"other") is overlay.at(b"d/e/f")
        assert (overlay.read(b"other"), overlay.attributes(b"other").nlink) == (b"Content", 2)


def test_without_one_they_part_as_the_first_comes_up(linked: Layers) -> None:
    with overlaid(linked, index=False) as overlay:
        overlay.write(b"d/e/f", b"C")
        assert (overlay.read(b"other"), overlay.read(b"d/e/f")) == (b"content", b"Content")
        assert overlay.at(b"other") is not overlay.at(b"d/e/f")
        overlay.write(b"other", b"O")
        assert (overlay.read(b"other"), overlay.read(b"d/e/f")) == (b"Oontent", b"Content")
    assert "trusted.overlay.origin" not in os.listxattr(linked.upper / "other"), "the lower's number is not its own"
    with overlaid(linked, index=False) as overlay:
        assert (overlay.read(b"other"), overlay.read(b"d/e/f")) == (b"Oontent", b"Content")
        assert overlay.number(b"other") != overlay.number(b"d/e/f")


def test_without_one_an_unlinked_name_can_be_written_by_who_has_it_open(linked: Layers) -> None:
    with overlaid(linked, index=False) as overlay:
        entry = overlay.at(b"d/e/f")
        overlay.unlink(b"d/e/f")
        overlay.up_entry(entry)
        os.pwrite(overlay.tree.data(entry, True).fd, b"C", 0)
        assert os.pread(overlay.tree.data(entry, False).fd, 99, 0) == b"Content"
        assert (overlay.read(b"other"), overlay.exists(b"d/e/f")) == (b"content", False)
    assert left_in_work(linked) == []
