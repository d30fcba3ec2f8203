"""What the watchers tell of what others do to real directories, in each of their ways, on several filesystems."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.calls import in_child, renameat2
from harness.listening import KINDS, ON, WAYS, by_others, device_of, fill, listening
from shiftfs.reflect.watchers import Happening, What

pytestmark = pytest.mark.root

EXCHANGE = 2


def write(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(b"x")


class Case(NamedTuple):
    do: Callable[[Path], object]
    heard: list[str]
    inotify: list[str] | None = None  # where that tells other things


def moves(old: str, new: str, flags: int = 0) -> Callable[[Path], object]:
    return lambda base: renameat2(base / old, base / new, flags)


CASES: dict[str, Case] = {
    "create": Case(lambda b: os.mknod(b / "A/new"), ["created A/new"]),
    "create and write": Case(
        lambda b: (b / "A/new").write_text("x"),
        ["closed|created|modified A/new"],
        ["created A/new", "modified A/new", "closed A/new"],
    ),
    "mkdir": Case(lambda b: (b / "A/new").mkdir(), ["created A/new/"]),
    "mkfifo": Case(lambda b: os.mkfifo(b / "A/new"), ["created A/new"]),
    "symlink": Case(lambda b: os.symlink("there", b / "A/new"), ["created A/new"]),
    "link": Case(lambda b: os.link(b / "A/old", b / "B/new"), ["created B/new"]),
    "unlink": Case(lambda b: os.unlink(b / "A/old"), ["deleted A/old"]),
    "rmdir": Case(lambda b: os.rmdir(b / "A/sub"), ["deleted A/sub/"]),
    "write": Case(lambda b: write(b / "A/old"), ["closed|modified A/old"], ["modified A/old", "closed A/old"]),
    "truncate": Case(lambda b: os.truncate(b / "A/old", 1), ["modified A/old"]),
    "read": Case(lambda b: (b / "A/old").read_bytes(), []),
    "chmod": Case(lambda b: (b / "A/old").chmod(0o600), ["attributes A/old"]),
    "chown": Case(lambda b: os.chown(b / "A/old", 5, 5), ["attributes A/old"]),
    "utimes": Case(lambda b: os.utime(b / "A/old", ns=(1, 1)), ["attributes A/old"]),
    "chown of a symlink": Case(lambda b: os.lchown(b / "A/link", 5, 5), ["attributes A/link"]),
    "xattr": Case(lambda b: os.setxattr(b / "A/old", "trusted.x", b"1"), ["attributes A/old"]),
    "attributes of the directory": Case(lambda b: (b / "A").chmod(0o700), ["attributes A/"]),
    "attributes of a directory in it": Case(lambda b: (b / "A/sub").chmod(0o700), [], ["attributes A/sub/"]),
    "rename within": Case(moves("A/old", "A/new"), ["moved A/old A/new"]),
    "rename across": Case(moves("A/old", "B/new"), ["moved A/old B/new"]),
    "rename of a directory": Case(moves("A/sub", "B/new"), ["moved A/sub B/new/"]),
    "rename onto": Case(moves("A/old", "B/old"), ["moved A/old B/old"]),
    "rename out": Case(moves("A/old", "C/new"), ["moved A/old -"]),
    "rename in": Case(moves("C/old", "A/new"), ["moved - A/new"]),
    "rename elsewhere": Case(moves("C/old", "C/new"), []),
    "exchange": Case(moves("A/old", "B/sub", EXCHANGE), ["moved A/old B/sub", "moved B/sub A/old/"]),
    "elsewhere": Case(lambda b: (b / "C/new").write_text("x"), []),
}


@pytest.mark.parametrize(("place", "mode"), ON)
def test_each_operation(base: Path, place: str, mode: str) -> None:
    wrong = {}
    for name, case in CASES.items():
        there = base / name
        there.mkdir()
        fill(there)
        with listening(there, mode, "A", "B") as listener:
            assert listener.kind == WAYS[place][mode]
            by_others(lambda there=there, case=case: case.do(there))  # type: ignore[misc]
            expected = case.inotify if mode == "inotify" and case.inotify is not None else case.heard
            if (heard := listener.heard()) != expected:
                wrong[name] = (heard, expected)
    assert wrong == {}


@pytest.mark.parametrize(("place", "mode"), ON)
def test_auto_takes_the_best(base: Path, place: str, mode: str) -> None:
    with listening(base, "auto", "A") as listener:
        assert listener.kind == WAYS[place]["fanotify"]


@pytest.mark.parametrize(("place", "mode"), ON)
def test_the_target_is_told(base: Path, place: str, mode: str) -> None:
    """By fanotify: the token that the inode has or would have, also of a subdirectory, and of what is moved."""
    with listening(base, mode, "A", "B") as listener:
        token = listener.try_add("A/sub")
        by_others(lambda: os.rename(base / "A/sub", base / "B/sub2"))
        (one,) = listener.happenings()
        assert one.target == (None if mode == "inotify" else token)


@pytest.mark.parametrize(("place", "mode"), ON)
def test_watching_twice_gives_the_same_token(base: Path, place: str, mode: str) -> None:
    with listening(base, mode) as listener:
        first = listener.add("A")
        with_fd = os.open(base / "A", os.O_PATH)
        try:
            again = listener.watchers.add(device_of(base), with_fd, b"", True)
        finally:
            os.close(with_fd)
        assert first is not None and first == again
        assert listener.watchers.counts() == {"watched": 1, "refused": 0, "limited": 0}
        by_others(lambda: os.mknod(base / "A/new"))
        assert listener.heard() == ["created A/new"]


@pytest.mark.parametrize(("place", "mode"), ON)
def test_watched_files(base: Path, place: str, mode: str) -> None:
    """A file of several names, changed by one in a directory that is not watched."""
    os.link(base / "A/old", base / "C/other")
    with listening(base, mode, "A", "A/old") as listener:
        by_others(lambda: write(base / "C/other"))
        by_others(lambda: (base / "C/other").chmod(0o600))
        by_others(lambda: os.link(base / "C/other", base / "C/third"))
        found = listener.happenings()
        if mode == "inotify":
            # One event like another right after it is merged with it.
            assert listener.words(found) == ["modified A/old", "closed A/old", "attributes A/old"]
            return
        about = [one for one in found if one.target in listener.labels]
        if listener.kind == "fanotify filesystem":
            one = about.pop()
            assert (one.what, one.directory, one.name) == (What.CREATED, None, b"third")
        assert listener.words(about) == ["closed|modified =A/old", "attributes =A/old", "attributes =A/old"]
        assert [one.name for one in about] == [b"other", b"other", b""]  # the last is of the link count


@pytest.mark.parametrize(("place", "mode"), [on for on in ON if on[1] != "inotify"])
def test_a_watched_file_changed_by_its_known_name_is_told_once(base: Path, place: str, mode: str) -> None:
    with listening(base, mode, "A", "A/old") as listener:
        by_others(lambda: write(base / "A/old"))
        assert listener.heard() == ["closed|modified A/old"]


@pytest.mark.parametrize(("place", "mode"), [("ext4", "fanotify"), ("ext4", "inodes")])
def test_link_counts_of_files_that_are_not_watched(base: Path, place: str, mode: str) -> None:
    """They are told where a whole filesystem is watched, and only there."""
    with listening(base, mode, "A") as listener:
        by_others(lambda: os.link(base / "A/old", base / "C/other"))
        found = listener.happenings()
        if mode == "inodes":
            assert found == []
            return
        with listening(base, mode) as another:
            target = another.try_add("A/old")
        assert found == [Happening(What.ATTRIBUTES, False, None, b"", target=target)]


@pytest.mark.parametrize(("place", "mode"), [on for on in ON if on[1] != "inotify"])
def test_own_changes_are_not_told(base: Path, place: str, mode: str) -> None:
    with listening(base, mode, "A", "B") as listener:
        (base / "A/mine").write_text("x")
        os.rename(base / "A/mine", base / "B/mine")
        (base / "A").chmod(0o711)
        assert listener.happenings() == []

        def make() -> int:
            os.mknod(base / "A/theirs")
            return os.getpid()

        pid = in_child(make)
        assert listener.happenings(own=(pid,)) == []
        by_others(lambda: (base / "A/theirs").unlink())
        assert listener.heard() == ["deleted A/theirs"]


@pytest.mark.parametrize(("place", "mode"), ON)
def test_order_is_kept(base: Path, place: str, mode: str) -> None:
    def act() -> None:
        for n in range(300):
            os.mknod(base / f"A/{n}")
            os.rename(base / f"A/{n}", base / f"B/{n}")
            os.unlink(base / f"B/{n}")

    with listening(base, mode, "A", "B") as listener:
        by_others(act)
        heard = listener.heard()
        for n in range(300):
            assert heard[3 * n : 3 * n + 3] == [f"created A/{n}", f"moved A/{n} B/{n}", f"deleted B/{n}"]
        assert len(heard) == 900


@pytest.mark.parametrize("place", ["ext4"])
def test_a_rename_is_whole_across_reads(base: Path, place: str) -> None:
    """The two halves of inotify may be in two reads; names of all lengths shift where these end."""
    with listening(base, "inotify", "A", "B") as listener:
        for length in range(1, 60, 7):
            name = "n" * length

            def act(name: str = name) -> None:
                for _ in range(200):
                    os.rename(base / "A/old", base / "B" / name)
                    os.rename(base / "B" / name, base / "A/old")

            by_others(act)
            assert listener.heard() == [f"moved A/old B/{name}", f"moved B/{name} A/old"] * 200


def on_each(call: Callable[[bytes], object], names: list[bytes], above: Path) -> None:
    for name in names:
        call(os.fsencode(above) + b"/" + name)


@pytest.mark.parametrize("place", ["ext4"])
def test_names_of_any_bytes(base: Path, place: str) -> None:
    names = [b"\xff\xfe", b"n" * 255, b".x", b"a\nb", b" "]
    for mode in KINDS:
        with listening(base, mode, "A") as listener:
            by_others(lambda: on_each(os.mkdir, names, base / "A"))
            assert [one.name for one in listener.happenings()] == names
            by_others(lambda: on_each(os.rmdir, names, base / "A"))
