"""While a large file is copied up: others are served, and whoever waits for it can end."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Layers, Mount, wait_until, write_tree
from harness.commands import EXIT_LIMIT
from harness.faults import Recording, recorded, untouched
from harness.layered import litter

EXTENTS = 120
"""Each is at least one call of copy_file_range, which strace holds up: so a small file takes as long as a large one."""
DELAY = "copy_file_range:delay_enter=50000"  # microseconds


def large(path: Path) -> None:
    with path.open("wb") as file:
        for number in range(EXTENTS):
            file.seek(number * 128 << 10)
            file.write(bytes([number]) * 4096)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


@pytest.fixture
def slow(layers: Layers) -> Iterator[tuple[Mount, Recording]]:
    """A mount whose copies take long."""
    write_tree(layers.lower, {"large": large, "small": b"small", "other": {"lower": b"lower", "name": b""}})
    lower = untouched(layers.lower)
    with layers.mount() as mount:
        with recorded(mount.pid, DELAY) as recording:
            yield mount, recording
        assert (mount.path / "large").read_bytes()[:4096] == bytes(4096)
    assert untouched(layers.lower) == lower


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes one byte at the end of a file, and outlives SIGUSR1."""
    program = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: None); open(sys.argv[1], 'ab').write(b'x')"
    writer = subprocess.Popen([sys.executable, "-c", program, path])
    try:
        yield writer
    finally:
        writer.kill()
        writer.wait(EXIT_LIMIT)


def copying(recording: Recording, count: int = 3) -> None:
    wait_until(lambda: recording.count("copy_file_range") >= count, "a copy under way")


def removed_files(pid: int) -> list[str]:
    """Files without a name that the process holds: copies that are not finished among them."""
    directory = Path(f"/proc/{pid}/fd")
    return [target for fd in os.listdir(directory) if (target := _target(directory / fd)).endswith(" (deleted)")]


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def test_a_copy_ends_with_its_writer(slow: tuple[Mount, Recording], layers: Layers) -> None:
    mount, recording = slow
    with writing(mount.path / "large") as writer:
        copying(recording)
        writer.kill()
        writer.wait(EXIT_LIMIT)
    wait_until(lambda: not removed_files(mount.pid) and not litter(layers.work), "the copy to be given up")
    made = recording.count("copy_file_range")
    assert made < EXTENTS // 2
    assert os.listdir(layers.upper) == []
    assert (mount.path / "large").read_bytes() == (layers.lower / "large").read_bytes()
    assert recording.count("copy_file_range") == made


def test_others_are_served_during_a_copy(slow: tuple[Mount, Recording], layers: Layers) -> None:
    mount, recording = slow
    with writing(mount.path / "large") as writer:
        copying(recording)
        assert (mount.path / "small").read_bytes() == b"small"
        assert sorted(os.listdir(mount.path)) == ["large", "other", "small"]
        assert (mount.path / "large").stat().st_size == (layers.lower / "large").stat().st_size
        (mount.path / "new").write_bytes(b"new")
        (mount.path / "small").chmod(0o600)
        (mount.path / "other/lower").rename(mount.path / "other/to")
        (mount.path / "other/name").unlink()
        assert os.listdir(mount.path / "other") == ["to"]
        assert writer.poll() is None
        assert not (layers.upper / "large").exists()


def test_a_copy_that_another_waits_for_goes_on(slow: tuple[Mount, Recording], layers: Layers) -> None:
    mount, recording = slow
    with writing(mount.path / "large") as first:
        copying(recording)
        with writing(mount.path / "large") as second:
            copying(recording, recording.count("copy_file_range") + 5)
            first.kill()
            assert second.wait(EXIT_LIMIT * 2) == 0
    size = (layers.lower / "large").stat().st_size
    assert (layers.upper / "large").stat().st_size in (size + 1, size + 2)
    assert (mount.path / "large").read_bytes()[:size] == (layers.lower / "large").read_bytes()
    assert litter(layers.work) == []


def test_a_writer_who_had_another_signal_before_can_be_killed(slow: tuple[Mount, Recording], layers: Layers) -> None:
    """The kernel tells the program of the first signal alone."""
    mount, recording = slow
    with writing(mount.path / "large") as writer:
        copying(recording)
        writer.send_signal(signal.SIGUSR1)
        copying(recording, recording.count("copy_file_range") + 5)
        assert writer.poll() is None, "it waits on"
        writer.kill()
        wait_until(lambda: writer.poll() is not None, "its end")
        made = recording.count("copy_file_range")
    assert made < EXTENTS
    wait_until(lambda: not removed_files(mount.pid) and not litter(layers.work), "the copy to be given up")
    assert (mount.path / "large").read_bytes() == (layers.lower / "large").read_bytes()


def test_a_signal_alone_stops_no_copy(slow: tuple[Mount, Recording], layers: Layers) -> None:
    mount, recording = slow
    with writing(mount.path / "large") as writer:
        copying(recording)
        writer.send_signal(signal.SIGUSR1)
        assert writer.wait(EXIT_LIMIT * 2) == 0
    assert (layers.upper / "large").stat().st_size == (layers.lower / "large").stat().st_size + 1


NOT_READ = "preadv2:error=EAGAIN"
"""As of a disk that has not read it yet, for ever."""


def test_a_small_file_that_the_disk_is_slow_with_comes_up_all_the_same(layers: Layers) -> None:
    """What is waited for awake is given up after a moment, and nothing of it is left."""
    write_tree(layers.lower, {f"file{number}": b"content" for number in range(4)})
    with layers.mount() as mount:
        (mount.path / "file0").chmod(0o600)
        with recorded(mount.pid, NOT_READ) as recording:
            (mount.path / "file1").chmod(0o640)
            with (mount.path / "file2").open("ab") as file:
                file.write(b" and more")
        assert recording.count("copy_file_range") + recording.count("ioctl") >= 2, "both were copied by a worker"
        assert stat.S_IMODE((layers.upper / "file1").stat().st_mode) == 0o640
        assert (layers.upper / "file1").read_bytes() == b"content"
        assert (layers.upper / "file2").read_bytes() == b"content and more"
        assert litter(layers.work) == []
