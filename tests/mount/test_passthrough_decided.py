"""Which files are passed through, and which are not: decided at the first open, and kept until the last release."""

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import (
    SHIFTFS,
    CommandFailed,
    Layers,
    Mount,
    mounted,
    newest_mount,
    run,
    shiftfs,
    unmount,
    wait_until,
)
from harness.calls import opened, refuses
from harness.events import Recorder, Streams
from shiftfs.backing import WORTH


def passed(mount: Mount) -> dict[str, Any]:
    found: dict[str, Any] = mount.stats()["passthrough"]
    return found


def is_passed(mount: Mount, path: Path, flags: int) -> bool:
    """Is a file that nobody has open passed on for whoever opens it so?"""
    wait_until(lambda: passed(mount)["files"] == 0, "the last release")
    with opened(path, flags):
        return bool(passed(mount)["files"])


def says(mount: Mount) -> tuple[bool, str | None]:
    found = mount.status()["passthrough"]
    return found["on"], found["why"]


# By itself, where OPEN is served anyway.


def test_in_an_overlay_what_is_written_is_passed_on(our_layers: Layers) -> None:
    with our_layers.mount("open=serve") as mount:
        assert says(mount) == (True, None)
        (mount.path / "file").write_bytes(b"content")
        assert is_passed(mount, mount.path / "file", os.O_WRONLY)
        assert is_passed(mount, mount.path / "file", os.O_RDWR)


@pytest.mark.parametrize("size", [0, WORTH - 1, WORTH])
def test_what_is_only_read_is_passed_on_if_it_is_large(our_layers: Layers, size: int) -> None:
    (our_layers.upper / "file").write_bytes(bytes(size))
    with our_layers.mount("open=serve") as mount:
        assert is_passed(mount, mount.path / "file", os.O_RDONLY) is (size >= WORTH)
    with our_layers.mount("passthrough=on") as mount:
        assert is_passed(mount, mount.path / "file", os.O_RDONLY)


def test_a_lower_file_is_not_passed_on(our_layers: Layers) -> None:
    """A copy-up would leave whoever has it open with the old one."""
    (our_layers.lower / "file").write_bytes(bytes(WORTH))
    with our_layers.mount("passthrough=on") as mount:
        assert not is_passed(mount, mount.path / "file", os.O_RDONLY)
        assert is_passed(mount, mount.path / "file", os.O_RDWR)
        assert is_passed(mount, mount.path / "file", os.O_RDONLY)


def test_metadata_alone_being_up_is_not_enough(our_layers: Layers) -> None:
    (our_layers.lower / "file").write_bytes(b"content")
    with our_layers.mount("passthrough=on", "metacopy=on") as mount:
        (mount.path / "file").chmod(0o600)
        assert "trusted.overlay.metacopy" in os.listxattr(our_layers.upper / "file")
        assert not is_passed(mount, mount.path / "file", os.O_RDONLY)
        assert is_passed(mount, mount.path / "file", os.O_RDWR)


def test_who_has_it_open_before_copy_up_sees_what_is_written_after(our_layers: Layers) -> None:
    """All go through the page cache then, until the last of them has closed it."""
    (our_layers.lower / "file").write_bytes(b"old")
    with our_layers.mount("passthrough=on") as mount:
        shown = mount.path / "file"
        with opened(shown, os.O_RDONLY) as before:
            assert os.pread(before, 10, 0) == b"old"
            with opened(shown, os.O_RDWR) as fd:
                os.pwrite(fd, b"NEW", 0)
                assert os.pread(before, 10, 0) == os.pread(fd, 10, 0) == b"NEW"
                assert passed(mount)["files"] == 0
            with opened(shown, os.O_RDWR) as fd:
                assert passed(mount)["files"] == 0
        assert is_passed(mount, shown, os.O_RDONLY)
        assert shown.read_bytes() == (our_layers.upper / "file").read_bytes() == b"NEW"


def test_lowers_alone_are_passed_on(our_layers: Layers) -> None:
    (our_layers.lower / "file").write_bytes(b"content")
    with our_layers.mount_lowers("passthrough=on") as mount:
        assert is_passed(mount, mount.path / "file", os.O_RDONLY)
        assert (mount.path / "file").read_bytes() == b"content"


def test_what_was_passed_on_and_is_not_any_more_shows_what_it_has(our_layers: Layers) -> None:
    (our_layers.upper / "file").write_bytes(b"1")
    with our_layers.mount("open=serve") as mount:
        shown = mount.path / "file"
        assert shown.read_bytes() == b"1"  # in the mount's page cache
        shown.write_bytes(b"2")
        time.sleep(2)  # and is not opened for a while
        assert not is_passed(mount, shown, os.O_RDONLY)
        assert shown.read_bytes() == b"2"


def test_after_the_upper_has_lost_it_the_lower_shows(our_layers: Layers) -> None:
    """Nobody tells of it: a file that is open is the removed one, and who opens the name gets the other."""
    (our_layers.lower / "file").write_bytes(b"lower")
    with our_layers.mount("passthrough=on", "watch=off", "timeout=0") as mount:
        shown = mount.path / "file"
        shown.write_bytes(b"upper")
        with opened(shown, os.O_RDONLY) as fd:
            assert passed(mount)["files"] == 1
            (our_layers.upper / "file").unlink()
            assert shown.read_bytes() == b"lower"
            assert os.pread(fd, 10, 0) == b"upper"


# Elsewhere.


@pytest.mark.parametrize("kind", ["single", "overlay"])
def test_nothing_is_passed_on_unless_open_is_served(kind: str, our_layers: Layers) -> None:
    def mounting(*options: str) -> AbstractContextManager[Mount]:
        return mounted(our_layers.upper, None, *options) if kind == "single" else our_layers.mount(*options)

    (our_layers.upper / "file").touch()
    with mounting() as mount:
        is_on, why = says(mount)
        assert not is_on
        assert why is not None
        assert "open=" in why
    for option in ("open=serve", "locks=layers", "passthrough=on"):
        with mounting(option) as mount:
            assert mount.status()["options"]["open"] == "serve"
            assert says(mount) == (True, None)
            assert is_passed(mount, mount.path / "file", os.O_WRONLY)


def test_where_locks_go_to_the_layer_everything_does(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"small")
    with mounted(tmp_path, None, "locks=layers") as mount:
        assert is_passed(mount, mount.path / "file", os.O_RDONLY)


def test_it_can_be_left_out(our_layers: Layers) -> None:
    with our_layers.mount("passthrough=off") as mount:
        assert says(mount) == (False, "passthrough=off")
        (mount.path / "file").write_bytes(b"content")
        assert "PASSTHROUGH" not in mount.status()["protocol"]["flags"]


def test_a_read_only_mount_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with mounted(tmp_path, None, "ro", "passthrough=on") as mount:
        assert is_passed(mount, mount.path / "file", os.O_RDONLY)
        assert (mount.path / "file").read_bytes() == b"content"
        refuses(errno.EROFS, os.open, mount.path / "file", os.O_WRONLY)


def test_pseudo_files_are_read_in_full() -> None:
    with mounted(Path("/proc"), None, "passthrough=on") as mount:
        assert (mount.path / "version").read_bytes() == Path("/proc/version").read_bytes()
        assert passed(mount)["opened"] == 0


@contextmanager
def other(path: Path, kind: str, options: str = "") -> Iterator[None]:
    """A mount of another filesystem."""
    path.mkdir(exist_ok=True)
    run(["mount", "-t", kind, *(["-o", options] if options else []), "none", path])
    try:
        yield
    finally:
        unmount(newest_mount(path))


@pytest.mark.parametrize("kind", ["kernel", "shiftfs"])
def test_what_is_stacked_already_is_read_as_without(tmp_path: Path, our_layers: Layers, kind: str) -> None:
    options = ["passthrough=on"] if kind == "shiftfs" else []
    with (
        our_layers.mount(*options, kind=kind) as below,
        mounted(below.path, None, "passthrough=on", "watch=off") as mount,
    ):
        shown = mount.path / "file"
        shown.write_bytes(b"content")
        assert not is_passed(mount, shown, os.O_RDWR)
        assert shown.read_bytes() == (below.path / "file").read_bytes() == b"content"
        if kind == "kernel":  # what lies beyond another process is never passed on, nor tried
            assert passed(mount)["why"] == os.strerror(errno.ELOOP)


def test_overlays_and_other_mounts_go_on_top(our_layers: Layers, tmp_path: Path) -> None:
    """One more filesystem may be stacked on what passes through."""
    upper, work, merged = (tmp_path / name for name in ("upper2", "work2", "merged"))
    for path in (upper, work, merged):
        path.mkdir()
    (our_layers.lower / "file").write_bytes(b"content")
    with our_layers.mount("passthrough=on") as mount:
        options = f"lowerdir={mount.path},upperdir={upper},workdir={work}"
        with other(merged, "overlay", options):
            (merged / "file").write_bytes(b"changed")
            assert (merged / "file").read_bytes() == b"changed"
            assert (mount.path / "file").read_bytes() == b"content"
        with mounted(mount.path) as shifted:
            assert (shifted.path / "file").read_bytes() == b"content"


def test_direct_io_is_as_the_layer_has_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with other(source, "ramfs"):  # which has none
        for name in ("first", "second"):
            (source / name).write_bytes(b"content")
        with mounted(source, None, "passthrough=on", "watch=off") as mount:
            with opened(mount.path / "first", os.O_RDONLY | os.O_DIRECT):
                assert passed(mount)["files"] == 0  # as everywhere on FUSE
                assert (mount.path / "first").read_bytes() == b"content"
            shown = mount.path / "second"
            with opened(shown, os.O_RDONLY):
                assert passed(mount)["files"] == 1
                refuses(errno.EINVAL, os.open, shown, os.O_RDONLY | os.O_DIRECT)
            assert shown.read_bytes() == b"content"


def test_where_others_could_not_be_told_from_users_nothing_is_passed_on(tmp_path: Path) -> None:
    """ramfs has no number by which a mark of a mount could go."""
    source = tmp_path / "source"
    with other(source, "ramfs"):
        (source / "file").write_bytes(b"content")
        with mounted(source, None, "passthrough=on", "watch=fanotify") as mount:
            assert not is_passed(mount, mount.path / "file", os.O_RDWR)
            assert "told from" in passed(mount)["why"]
        with mounted(source, None, "passthrough=on", "watch=inotify") as mount:
            assert is_passed(mount, mount.path / "file", os.O_RDWR)


@pytest.mark.parametrize("atime", [False, True])
def test_reading_counts_as_an_access_if_that_is_asked_for(tmp_path: Path, atime: bool) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.utime(tmp_path / "file", (1, 2))  # so that relatime takes a new one
    with (
        mounted(tmp_path, None, "passthrough=on", *(["atime"] if atime else [])) as mount,
        opened(mount.path / "file", os.O_RDONLY) as fd,
    ):
        assert os.read(fd, 100) == b"content"
        assert passed(mount)["files"] == 1
    assert ((tmp_path / "file").stat().st_atime > 1) is atime


# Where it cannot be.


def refusal(*args: str, **options: Any) -> str:
    with pytest.raises(CommandFailed) as failure:
        shiftfs(*args, **options)
    return str(failure.value)


def test_a_user_is_refused_in_one_line(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "place"
    source.mkdir()
    place.mkdir()
    said = refusal("-o", "passthrough=on,open=refuse", str(source), str(place))
    assert "passthrough=on and open=refuse cannot go together" in said
    said = refusal("-o", "passthrough=on,mark,allow_exposed", str(source), str(place))
    assert "mark and passthrough=on cannot go together" in said


def test_in_a_user_namespace_it_is_refused_or_done_without(tmp_path: Path) -> None:
    for name in ("l", "u", "w", "m"):
        (tmp_path / name).mkdir()
    layers = "lowerdir=l,upperdir=u,workdir=w"
    command = " ".join(SHIFTFS)
    script = f"""
        {command} -o passthrough=on,{layers} none m 2>said && exit 1
        {command} -o {layers} none m || exit 2
        echo content >m/file && cat m/file && umount m
    """
    run(["unshare", "-Urm", "--propagation", "private", "sh", "-c", script], cwd=tmp_path)
    said = (tmp_path / "said").read_text()
    assert said.count("\n") == 1
    assert "passthrough=on: CAP_SYS_ADMIN is needed in the initial user namespace" in said
    assert (tmp_path / "u" / "file").read_text() == "content\n"


# What is told.


@pytest.fixture(params=["single", "overlay"])
def both(request: pytest.FixtureRequest, tmp_path: Path, our_layers: Layers) -> Iterator[tuple[Mount, Path]]:
    if request.param == "single":
        source = tmp_path / "source"
        source.mkdir()
        with mounted(source, None, "passthrough=on") as mount:
            yield mount, source
    else:
        with our_layers.mount("passthrough=on") as mount:
            yield mount, our_layers.upper


def test_others_are_heard_of_while_somebody_writes(both: tuple[Mount, Path]) -> None:
    """And he himself no more than once: here by a program that has ended before anybody could look who it was."""
    mount, layer = both
    (layer / "log").touch()
    mount.settled()
    with Recorder() as recorder, opened(mount.path / "log", os.O_WRONLY | os.O_APPEND) as fd:
        recorder.watch({"": mount.path / "log"})
        for number in range(1, 11):
            os.write(fd, b"own\n")
            # The kernel makes one event of two that are alike, and that nobody has read yet.
            recorder.until(lambda streams: counted(streams) >= (2 * number - 1, number - 1), 0)  # noqa: B023
            run(["sh", "-c", f"echo other >>{layer}/log"])
            recorder.until(lambda streams: counted(streams) >= (2 * number, number), 0)  # noqa: B023
        assert counted(recorder.settled(0.3)) == (20, 10)
    assert (mount.path / "log").read_bytes() == b"own\nother\n" * 10


def counted(streams: Streams) -> tuple[int, int]:
    """How often it was modified, and closed by who had it open for writing."""
    heard = [event.what for event in streams[""]]
    return heard.count("MODIFY"), heard.count("CLOSE_WRITE")


def test_opening_never_fails_whatever_the_agent_has_open(both: tuple[Mount, Path]) -> None:
    """Which opens what others have changed, to tell that it has been closed."""
    mount, layer = both
    (layer / "file").touch()
    mount.settled()
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            with open(layer / "file", "ab") as file:
                file.write(b"x")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for number in range(1500):
            flags = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)[number % 3]
            with opened(mount.path / "file", flags):
                pass
    finally:
        ended.set()
        thread.join()
    mount.settled()
    assert (mount.path / "file").read_bytes() == (layer / "file").read_bytes()
    assert mount.status()["live"]["unreflected"] == 0


def test_nothing_is_kept_of_what_has_been_closed(both: tuple[Mount, Path]) -> None:
    mount, _ = both
    before = mount.stats()["descriptors"]["open"]
    for number in range(300):
        (mount.path / f"file{number}").write_bytes(b"content")
    for number in range(300):
        (mount.path / f"file{number}").unlink()
    wait_until(lambda: passed(mount)["files"] == 0, "the last release")
    wait_until(lambda: mount.stats()["descriptors"]["open"] <= before + 10, "all descriptors closed")


def test_the_process_may_be_killed_while_a_file_is_open(tmp_path: Path) -> None:
    """Who has it mapped goes on; nothing hangs."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    place = tmp_path / "place"
    place.mkdir()
    process = subprocess.Popen([*SHIFTFS, "-f", "-o", "passthrough=on", source, place])
    try:
        wait_until(lambda: os.path.ismount(place) and (place / "file").exists(), "the mount", 20)
        with opened(place / "file", os.O_RDWR) as fd:
            process.send_signal(signal.SIGKILL)
            process.wait(20)
            assert os.pread(fd, 100, 0) == b"content"
    finally:
        process.kill()
        process.wait(20)
        unmount(newest_mount(place))
