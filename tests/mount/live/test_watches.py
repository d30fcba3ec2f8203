"""Watches on the mount live as long as they would natively, whatever the kernel forgets, and hear as much."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.behind import Behind, Place
from harness.calls import drop_dentries, opened
from harness.changes import CHANGES, OUTSIDE, TREE
from harness.events import Event, Streams, differences, marked, new_mark, same_stream
from harness.recorded import append, natively, watched


@pytest.mark.parametrize("change", ["create", "append", "chmod", "rename-across", "unlink", "atomic-save", "rmdir"])
def test_names_are_forgotten(change: str, some: Behind) -> None:
    """The kernel forgets names; the inodes that are watched it keeps, and what is found by a name is found again."""
    place = some.new(TREE, OUTSIDE)
    with place.recorder() as recorder:
        recorder.watch(watched(place.layer, place.shown, True))
        place.visible()
        drop_dentries()
        place.change(CHANGES[change])
        native = natively(change, True, some.first_id)
        assert differences(native, recorder.until(lambda streams: same_stream(native, streams))) == {}
        drop_dentries()
        place.visible()


def test_forgotten_again_and_again(place: Place) -> None:
    with place.recorder() as recorder:
        recorder.watch({"log": place.shown / "log", "dir": place.shown / "dir"})
        for number in range(1, 6):
            drop_dentries()
            append(place.layer / "log", b"more\n")
            (place.layer / f"dir/new{number}").mkdir()
            expected = {
                "log": [Event("MODIFY"), Event("CLOSE_WRITE")] * number,
                "dir": [Event("CREATE ISDIR", f"new{one}") for one in range(1, number + 1)],
            }
            assert recorder.until(lambda streams: streams == expected, 0.05) == expected  # noqa: B023


def test_only_a_file_is_watched(place: Place) -> None:
    """Nobody has looked at anything but its path; what is changed through another name is heard as well."""
    drop_dentries()
    with place.recorder() as recorder:
        recorder.watch({"file": place.shown / "dir/name of two"})
        append(place.layer / "file with two names", b"more")
        written = [Event("MODIFY"), Event("CLOSE_WRITE")]
        assert recorder.until(lambda streams: streams["file"] == written)["file"] == written


KINDS = ["native", "source", "fanotify", "mapped", "namespace", "lower", "upper merged"]


@pytest.mark.parametrize("some", [*KINDS, "inotify"], indirect=True)
def test_the_watched_name_goes_and_the_file_stays(place: Place) -> None:
    """It has another name, which nobody has looked up."""
    drop_dentries()
    with place.recorder() as recorder:
        recorder.watch({"file": place.shown / "dir/name of two", "dir": place.shown / "dir"})
        (place.layer / "dir/name of two").unlink()
        expected = {"file": [Event("ATTRIB")], "dir": [Event("DELETE", "name of two")]}
        assert recorder.until(lambda streams: streams == expected) == expected
        append(place.layer / "file with two names", b"more")
        expected["file"] += [Event("MODIFY"), Event("CLOSE_WRITE")]
        assert recorder.until(lambda streams: streams == expected) == expected
        place.visible()
        (place.layer / "file with two names").unlink()
        expected["file"] += [Event("ATTRIB"), Event("DELETE_SELF")]
        assert recorder.until(lambda streams: streams == expected) == expected


@pytest.mark.parametrize("some", KINDS, indirect=True)  # inotify does not tell whose name has gone
def test_the_last_name_goes_that_nobody_has_looked_up(place: Place) -> None:
    """The file ends with it, by whatever name it was watched."""
    drop_dentries()
    with place.recorder() as recorder:
        recorder.watch({"file": place.shown / "dir/name of two"})
        (place.layer / "dir/name of two").unlink()
        assert recorder.until(lambda streams: bool(streams["file"]))["file"] == [Event("ATTRIB")]
        (place.layer / "file with two names").unlink()
        expected = [Event("ATTRIB"), Event("ATTRIB"), Event("DELETE_SELF")]
        assert recorder.until(lambda streams: streams["file"] == expected)["file"] == expected


def test_names_are_watched_that_nobody_has_looked_up(place: Place) -> None:
    """Not even whether they are there."""
    with place.recorder() as recorder:
        recorder.watch({"": place.shown})
        (place.layer / "file").unlink()
        (place.layer / "other").rename(place.layer / "moved")
        append(place.layer / "log", b"more")
        expected = [
            Event("DELETE", "file"),
            Event("MOVED_FROM", "other", 1),
            Event("MOVED_TO", "moved", 1),
            Event("MODIFY", "log"),
            Event("CLOSE_WRITE", "log"),
        ]
        assert recorder.until(lambda streams: streams[""] == expected)[""] == expected
        place.visible()


def test_names_are_known_not_to_be(place: Place) -> None:
    """The kernel remembers that a name is not there; when it is, it is seen at once."""
    for name in ("new", "directory", "linked"):
        with pytest.raises(FileNotFoundError):
            (place.shown / name).lstat()
    with place.recorder() as recorder:
        recorder.watch({"": place.shown})
        (place.layer / "new").symlink_to("file")
        (place.layer / "directory").mkdir()
        os.link(place.layer / "other", place.layer / "linked")
        expected = [Event("CREATE", "new"), Event("CREATE ISDIR", "directory"), Event("CREATE", "linked")]
        assert recorder.until(lambda streams: streams[""] == expected)[""] == expected
        place.visible()


SOFT = {"MODIFY", "CLOSE_WRITE"}


def without(streams: Streams, kinds: set[str]) -> dict[str, list[Event]]:
    return {label: [event for event in events if event.what not in kinds] for label, events in streams.items()}


def test_the_root(each: Behind) -> None:
    """Of the mount itself, which has no name in anything that it shows."""
    with each.new({}).recorder() as recorder:
        recorder.watch({"": each.shown})
        each.layer.chmod(each.layer.stat().st_mode & 0o7777 ^ 0o004)
        (each.layer / "top").write_bytes(b"content")
        (each.layer / "top").rename(each.layer / "moved")
        (each.layer / "moved").unlink()
        expected = [
            Event("ATTRIB ISDIR"),
            Event("CREATE", "top"),
            Event("MODIFY", "top"),
            Event("CLOSE_WRITE", "top"),
            Event("MOVED_FROM", "top", 1),
            Event("MOVED_TO", "moved", 1),
            Event("DELETE", "moved"),
        ]
        if each.kind == "mapped":  # root's file has no owner there, and is not opened to be written to, if it is seen
            expected = [event for event in expected if event.what not in SOFT]
            heard = recorder.until(lambda streams: without(streams, SOFT)[""] == expected)
            assert without(heard, SOFT)[""] == expected
            return
        if each.is_layered:  # the upper's attributes are shown
            heard = recorder.until(lambda streams: expected[-1] in streams[""])
            assert next(event for event in heard[""] if event.name) == expected[1]
            return
        heard = recorder.until(lambda streams: same_stream({"": expected}, streams))
        assert differences({"": expected}, heard) == {}


def test_a_file_without_a_name_gets_one(place: Place) -> None:
    with place.recorder() as recorder, opened(place.layer, os.O_TMPFILE | os.O_WRONLY) as fd:
        recorder.watch({"": place.shown})
        os.write(fd, b"content")
        with opened(place.layer) as directory:
            os.link(f"/proc/self/fd/{fd}", "new", dst_dir_fd=directory, follow_symlinks=True)
        created = Event("CREATE", "new")
        assert recorder.until(lambda streams: created in streams[""])[""].count(created) == 1
        place.visible()


@pytest.mark.parametrize(
    "change", ["create", "append", "chmod", "rename", "rename-across", "unlink", "mkdir", "rmdir", "atomic-save"]
)
def test_inode_marks_of_fanotify_say_the_same(change: str, place: Place) -> None:
    def marks(root: Path) -> dict[str, int]:
        return {name: place.behind.view.descriptor(new_mark, root / name)[0] for name in (".", "dir", "dir/sub")}

    native = place.behind.new(TREE, OUTSIDE)
    on_layer, on_mount = marks(native.layer), marks(place.shown)
    CHANGES[change](native.layer, native.outside, 0)
    with place.recorder() as recorder:
        recorder.watch(watched(place.layer, place.shown, False))
        place.change(CHANGES[change])
        expected = natively(change, False, 0)
        recorder.until(lambda streams: same_stream(expected, streams))
    for name in on_layer:
        wanted, found = marked(on_layer[name]), marked(on_mount[name])
        assert list(found.items()) == list(wanted.items()), name


GONE: dict[str, Callable[[Place], Any]] = {
    "stat": lambda place: (place.shown / "dir/in").lstat(),
    "open": lambda place: (place.shown / "dir/in").read_bytes(),
    "list": lambda place: os.listdir(place.shown / "dir"),
    "create": lambda place: (place.shown / "dir/new").touch(),
    "unlink": lambda place: (place.shown / "dir/in").unlink(),
}


@pytest.mark.parametrize("use", GONE)
def test_what_is_gone_is_gone_at_once(use: str, place: Place) -> None:
    """And nothing is found in what the kernel has remembered."""
    place.visible()
    CHANGES["rm-r"](place.layer, place.outside, 0)
    place.visible()
    with pytest.raises(OSError) as caught:
        GONE[use](place)
    assert caught.value.errno == errno.ENOENT
