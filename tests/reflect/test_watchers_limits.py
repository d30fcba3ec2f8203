"""What the watchers release, what they cannot watch, and what ordinary users may."""

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from harness import run
from harness.calls import in_child
from harness.listening import KINDS, ON, WAYS, by_others, device_of, fill, listening
from shiftfs.reflect.watchers import What
from shiftfs.sys import fanotify

pytestmark = pytest.mark.root

USER = 65533
Found = TypeVar("Found")


# What is watched no more.


@pytest.mark.parametrize(("place", "mode"), ON)
def test_what_is_removed_is_released(base: Path, place: str, mode: str) -> None:
    with listening(base, mode, "A", "B", "A/old") as listener:
        before = listener.marks()
        assert before == (0 if listener.kind == "fanotify filesystem" else 3)
        for token, name in list(listener.labels.items()):
            assert listener.watchers.remove(token, listener.root, os.fsencode(name))
        assert listener.marks() == 0
        assert listener.watchers.counts()["watched"] == 0
        by_others(lambda: os.rename(base / "A/old", base / "B/new"))
        assert listener.heard() == []


@pytest.mark.parametrize(("place", "mode"), ON)
def test_what_has_moved_is_released(base: Path, place: str, mode: str) -> None:
    """The place now leads to another, which stays watched, or to nothing."""
    with listening(base, mode, "A", "B", "C") as listener:
        tokens = {label: token for token, label in listener.labels.items()}
        os.rename(base / "A", base / "elsewhere")
        os.rename(base / "B", base / "A")
        listener.happenings()
        os.rename(base / "C", base / "away")
        left = 0
        for name in ("A", "C"):
            left += not listener.watchers.remove(tokens[name], listener.root, os.fsencode(name))
        # An overlay's handles lead back to an inode only with nfs_export=on.
        assert left == (2 if place == "overlay" and mode != "inotify" else 0)
        assert listener.marks() == (0 if listener.kind == "fanotify filesystem" else 1 + left)
        by_others(lambda: os.mknod(base / "A/new"))
        assert listener.heard() == ["created B/new"]


@pytest.mark.parametrize(("place", "mode"), ON)
def test_a_deleted_directory_leaves_no_mark(base: Path, place: str, mode: str) -> None:
    with listening(base, mode, "A", "A/sub") as listener:
        (token,) = (token for token, label in listener.labels.items() if label == "A/sub")
        by_others((base / "A/sub").rmdir)
        assert listener.heard() == ["deleted A/sub/"]
        listener.watchers.remove(token, listener.root, b"A/sub")
        assert listener.marks() == (0 if listener.kind == "fanotify filesystem" else 1)
        assert listener.watchers.counts()["watched"] == 1


@pytest.mark.parametrize(("place", "mode"), [("ext4", "inodes")])
def test_without_a_way_a_mark_stays_and_is_silent(base: Path, place: str, mode: str) -> None:
    with listening(base, mode, "A") as listener:
        (token,) = listener.labels
        assert not listener.watchers.remove(token, -1, b"")
        assert listener.marks() == 1
        by_others(lambda: os.mknod(base / "A/new"))
        assert listener.happenings() == []
        assert listener.add("A") == token
        by_others(lambda: os.mknod(base / "A/new2"))
        assert listener.heard() == ["created A/new2"]


@pytest.mark.parametrize(("place", "mode"), ON)
def test_a_descriptor_that_failed_is_replaced(base: Path, place: str, mode: str) -> None:
    with listening(base, mode, "A") as listener:
        failed = listener.fds.pop()
        assert listener.watchers.reopen(failed)
        assert listener.kind == "timeout" and listener.watchers.counts()["watched"] == 0
        assert not listener.watchers.reopen(failed)
        listener.labels.clear()
        listener.add("A")
        assert len(listener.fds) == 1 and listener.kind == WAYS[place][mode]
        by_others(lambda: os.mknod(base / "A/new"))
        assert listener.heard() == ["created A/new"]


# What cannot be watched.


@pytest.mark.parametrize(("place", "mode"), ON)
def test_what_is_not_there(base: Path, place: str, mode: str) -> None:
    with listening(base, mode) as listener:
        for known in (False, True):
            refused = listener.watchers.add(device_of(base), listener.root, b"none", True)
            assert refused is None
            assert listener.watchers.counts() == {"watched": known, "refused": 1 + known, "limited": 0}
            listener.add("A")


def test_without_fanotify_there_is_inotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(unlimited: bool) -> int:
        raise OSError(errno.ENOSYS, "")

    monkeypatch.setattr(fanotify, "new", none)
    for mode, kind in (("auto", "inotify"), ("fanotify", "timeout")):
        with listening(tmp_path, mode, "") as listener:
            assert listener.kind == kind
            assert len(listener.fds) == listener.watchers.counts()["watched"] == (kind == "inotify")
            assert listener.watchers.counts()["refused"] == (kind == "timeout")


def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    fill(tmp_path)
    os.symlink("B", tmp_path / "to B")
    for mode in KINDS:
        with listening(tmp_path, mode) as listener:
            token = listener.watchers.add(device_of(tmp_path), listener.root, b"to B", False)
            assert token is not None
            by_others(lambda: (tmp_path / "B/old").chmod(0o600))
            assert not [one for one in listener.happenings() if token in (one.directory, one.target)]
            by_others(lambda: os.lchown(tmp_path / "to B", 5, 5))
            (one,) = (one for one in listener.happenings() if token in (one.directory, one.target))
            assert one.what is What.ATTRIBUTES


# Users without privileges.


def enter_namespace() -> None:
    """Become root of a user namespace that has this user only."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    assert libc.prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE, lost with a change of ids, and /proc/self with it
    assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def unprivileged(place: Path, call: Callable[[Path], Found], namespace: bool = True) -> Found:
    """What a call returns as an ordinary user, who owns the directory that it gets."""
    base = place / "users"
    base.mkdir()
    fill(base)
    run(["chown", "-R", "-h", f"{USER}:{USER}", base])

    def act() -> Found:
        if namespace:
            enter_namespace()
        return call(base)

    try:
        return in_child(act, USER)
    finally:
        run(["rm", "-rf", base])


DOING: list[Callable[[Path], object]] = [
    lambda base: os.rename(base / "A/old", base / "B/new"),
    lambda base: os.rename(base / "A/old", base / "C/new"),
    lambda base: (base / "A/new").write_text("x"),
    lambda base: (base / "A").chmod(0o700),
]


@pytest.mark.parametrize("place", WAYS)
@pytest.mark.parametrize("namespace", [False, True])
def test_users_have_marks_of_inodes(places: dict[str, Path], place: str, namespace: bool) -> None:
    def act(base: Path) -> list[list[str]]:
        found = []
        for number, do in enumerate(DOING):
            there = base / str(number)
            there.mkdir()
            fill(there)
            with listening(there, "auto", "A", "B") as listener:
                assert listener.kind == "fanotify" and len(listener.fds) == 1
                by_others(lambda there=there, do=do: do(there))  # type: ignore[misc]
                found.append(listener.heard())
                (there / "A/mine").write_text("x")
                assert listener.heard() == []
                for token, label in listener.labels.items():
                    assert listener.watchers.remove(token, listener.root, os.fsencode(label))
                assert listener.marks() == 0
        return found

    assert unprivileged(places[place], act, namespace) == [
        ["moved A/old B/new"],
        ["moved A/old -"],
        ["closed|created|modified A/new"],
        ["attributes A/"],
    ]


@pytest.mark.parametrize(("mode", "setting"), [("auto", "max_fanotify_marks"), ("inotify", "max_inotify_watches")])
def test_a_limit_of_marks(places: dict[str, Path], mode: str, setting: str) -> None:
    def act(base: Path) -> tuple[dict[str, int], str, bool, bool]:
        Path(f"/proc/sys/user/{setting}").write_text("3")
        with listening(base, mode) as listener:
            names = ["A", "B", "C", "A/sub", "B/sub"]
            added = [listener.add(name) for name in names]
            assert [token is None for token in added] == [False, False, False, True, True]
            counts, kind = listener.watchers.counts(), listener.kind
            assert added[0] is not None
            listener.watchers.remove(added[0], listener.root, b"A")
            return counts, kind, listener.add("A/sub") is not None, listener.add("B/sub") is None

    kind = "fanotify" if mode == "auto" else mode
    counts = {"watched": 3, "refused": 0, "limited": 2}
    assert unprivileged(places["tmpfs"], act) == (counts, kind, True, True)


def test_a_limit_of_groups_leaves_inotify_and_then_nothing(places: dict[str, Path]) -> None:
    def act(base: Path) -> list[Any]:
        Path("/proc/sys/user/max_fanotify_groups").write_text("0")
        with listening(base, "auto", "A") as listener:
            found = [listener.kind, listener.watchers.counts()]
        Path("/proc/sys/user/max_inotify_instances").write_text("0")
        with listening(base, "auto", "A", "B") as listener:
            found += [listener.kind, listener.watchers.counts()]
            Path("/proc/sys/user/max_inotify_instances").write_text("5")
            listener.add("B")
            return [*found, listener.kind, listener.watchers.counts()]

    assert unprivileged(places["tmpfs"], act) == [
        "inotify", {"watched": 1, "refused": 0, "limited": 0},
        "timeout", {"watched": 0, "refused": 0, "limited": 2},
        "inotify", {"watched": 1, "refused": 0, "limited": 2},
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["auto", "inotify"])
def test_a_queue_that_overflows(places: dict[str, Path], mode: str) -> None:
    """Without privileges it is bounded. What fits is told, then that some was lost, then all goes on."""
    places_in_it = int(Path(f"/proc/sys/fs/{mode.replace('auto', 'fanotify')}/max_queued_events").read_text())

    def fill_up(base: Path) -> None:
        for n in range(places_in_it + 500):
            os.mknod(base / f"A/{n}")

    def act(base: Path) -> tuple[list[str], int, list[str]]:
        with listening(base, mode, "A") as listener:
            by_others(lambda: fill_up(base))
            found = listener.heard()
            by_others(lambda: os.unlink(base / "A/0"))
            return found[-1:], len(found), listener.heard()

    last, told, after = unprivileged(places["tmpfs"], act)
    assert last == ["overflow -"]
    assert told <= places_in_it + 1
    assert after == ["deleted A/0"]


def test_what_may_not_be_read_is_not_watched(places: dict[str, Path]) -> None:
    def act(base: Path) -> tuple[list[bool], dict[str, int], str]:
        (base / "B").chmod(0o300)
        with listening(base, "auto") as listener:
            return [listener.add(name) is None for name in ("B", "A")], listener.watchers.counts(), listener.kind

    counts = {"watched": 1, "refused": 1, "limited": 0}
    assert unprivileged(places["tmpfs"], act, namespace=False) == ([True, False], counts, "fanotify")
