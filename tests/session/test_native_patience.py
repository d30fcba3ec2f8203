"""Reads of what a disk has to give first: waited for awake while it is quick, on a thread while it is not."""

import gc
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import newest_mount, run, wait_until
from harness.bodies import reading
from harness.device import LIMIT, Served
from harness.mounts import loop_filesystem, stoppable_bindfs
from harness.twins import following
from shiftfs.layer import Layer
from shiftfs.shift.idmap import IDENTITY
from shiftfs.source import SourceTree
from shiftfs.wire.abi import Opcode

PAGE = 4096
PAGES = 64
CONTENT = b"".join(bytes([number]) * PAGE for number in range(PAGES))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The process that a filesystem's disk is in, which can be stopped."""
    (tmp_path / "images").mkdir()
    at = tmp_path / "disk"
    at.mkdir()
    with stoppable_bindfs(tmp_path / "images", at) as process:
        yield process


@pytest.fixture
def layer(disk: "subprocess.Popen[bytes]", tmp_path: Path) -> Iterator[Path]:
    with loop_filesystem("ext4", 32, image_in=tmp_path / "disk") as path:
        run(["losetup", "--direct-io=on", newest_mount(path).source])
        for name in ("file", "other"):
            (path / name).write_bytes(CONTENT)
        yield path
        disk.send_signal(signal.SIGCONT)


@pytest.fixture
def served(disk: "subprocess.Popen[bytes]", layer: Path) -> Iterator[Served]:
    tree = SourceTree(Layer(os.fsencode(layer)), 1000)
    with following(tree, IDENTITY) as made:
        yield made
        disk.send_signal(signal.SIGCONT)
        wait_until(lambda: made.session.waiting == 0, "all reads to end", LIMIT)
    vars(made).clear()  # pytest holds it longer than it may hold descriptors
    del tree
    gc.collect()


def drop(path: Path) -> None:
    """Have the disk asked for what is in a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def expect_dropped(path: Path) -> None:
    """It is being read from then on."""
    with path.open("rb") as file, pytest.raises(BlockingIOError):
        os.preadv(file.fileno(), [bytearray(PAGE)], 0, os.RWF_NOWAIT)


def on_threads(served: Served) -> int:
    """How many reads have been."""
    native = served.session.reads.native
    return int(native.counts()[0][0])


def test_a_quick_disk_is_waited_for_awake(served: Served, layer: Path) -> None:
    nodeid = served.device.look(b"file")
    drop(layer / "file")
    expect_dropped(layer / "file")
    awake, until = 0, time.monotonic() + LIMIT
    while not awake and time.monotonic() < until:  # the machine may be busy
        for number in range(PAGES):
            drop(layer / "file")
            answer = served.device.ask(Opcode.READ, reading(number * PAGE, PAGE), nodeid)
            assert answer.payload == CONTENT[number * PAGE : (number + 1) * PAGE]
        wait_until(lambda: served.session.waiting == 0, "all reads to end", LIMIT)
        awake = PAGES - on_threads(served)
    assert awake > 0


def test_the_end_of_a_file_that_the_disk_has(served: Served, layer: Path) -> None:
    nodeid = served.device.look(b"file")
    for offset, count in ((len(CONTENT) - 10, 10), (len(CONTENT), 0), (PAGE + 1, 2 * PAGE)):
        drop(layer / "file")
        assert len(served.device.ask(Opcode.READ, reading(offset, 2 * PAGE), nodeid).payload) == count


def test_a_disk_that_does_not_answer_delays_nobody(
    served: Served, disk: "subprocess.Popen[bytes]", layer: Path
) -> None:  # fmt: skip
    nodeid, other = served.device.look(b"file"), served.device.look(b"other")
    assert served.device.ask(Opcode.READ, reading(0, 10), other).payload == CONTENT[:10]
    drop(layer / "file")
    disk.send_signal(signal.SIGSTOP)
    expect_dropped(layer / "file")
    unique = served.device.send(Opcode.READ, reading(PAGE, PAGE), nodeid)
    wait_until(lambda: served.session.waiting == 1, "the read to wait", LIMIT)
    assert served.device.ask(Opcode.READ, reading(0, 10), other).payload == CONTENT[:10]
    disk.send_signal(signal.SIGCONT)
    assert served.device.receive() == (unique, 0, CONTENT[PAGE : 2 * PAGE])
