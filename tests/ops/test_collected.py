"""What the kernel has collected for files that can only be appended to: it comes in any order, and is there in
its own."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.calls import refuses
from shiftfs.ops import collected
from shiftfs.ops.collected import Collected
from shiftfs.tree import Descriptor

INODE: Any = object()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Descriptor]:
    path = tmp_path / "log"
    path.write_bytes(b"begin ")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    yield Descriptor(fd, lambda fd: None, writable=True)  # pytest holds it too long to let it close itself
    os.close(fd)


@pytest.fixture
def kept() -> Collected:
    return Collected()


def send(kept: Collected, log: Descriptor, offset: int, data: bytes) -> int:
    return kept.append(INODE, log, offset, memoryview(data))


def content(log: Descriptor) -> bytes:
    return Path(f"/proc/self/fd/{log.fd}").read_bytes()


def test_what_comes_in_its_order_is_there_at_once(kept: Collected, log: Descriptor) -> None:
    assert send(kept, log, 0, b"begin one") == 9
    assert content(log) == b"begin one" and not kept.ahead
    assert send(kept, log, 9, b" two") == 4
    assert content(log) == b"begin one two" and not kept.ahead


def test_what_is_ahead_waits_for_what_is_before_it(kept: Collected, log: Descriptor) -> None:
    for offset, data in ((13, b"three"), (10, b"two"), (18, b"four")):
        assert send(kept, log, offset, data) == len(data)
        assert content(log) == b"begin " and INODE in kept.ahead
        refuses(errno.EIO, kept.settle, INODE)
    assert send(kept, log, 0, b"begin one ") == 10
    assert content(log) == b"begin one twothreefour" and not kept.ahead
    kept.settle(INODE)


def test_what_comes_again_is_there_once(kept: Collected, log: Descriptor) -> None:
    for offset, data in ((8, b"a"), (8, b"abc"), (10, b"cd"), (0, b"begin 12abcd")):
        send(kept, log, offset, data)
    assert content(log) == b"begin 12abcd" and not kept.ahead


def test_what_is_there_stays(kept: Collected, log: Descriptor) -> None:
    refuses(errno.EPERM, send, kept, log, 0, b"Begin and more")
    send(kept, log, 8, b"kept")
    refuses(errno.EPERM, send, kept, log, 6, b"12other")
    assert content(log) == b"begin 12other" and not kept.ahead


def test_a_reader_has_all_that_has_been_answered(kept: Collected, log: Descriptor) -> None:
    send(kept, log, 8, b"34567")
    send(kept, log, 15, b"012")
    reading = Descriptor(os.open(f"/proc/self/fd/{log.fd}", os.O_RDONLY), os.close)
    shown = b"begin \0\x0034567\0\x00012"
    for offset in range(20):
        for size in range(20):
            assert kept.read(INODE, reading, size, offset) == shown[offset : offset + size]


def test_what_there_is_no_room_for_is_told_and_comes_with_the_next(
    kept: Collected, log: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) < 3:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, data[:1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        refuses(errno.ENOSPC, send, kept, log, 6, b"one")
        assert content(log) == b"begin o"
        refuses(errno.ENOSPC, kept.settle, INODE)
        refuses(errno.ENOSPC, send, kept, log, 12, b"three")
    send(kept, log, 9, b"two")
    assert content(log) == b"begin onetwothree" and not kept.ahead


@pytest.mark.parametrize("offset", [106, 6 + 10])
def test_there_is_a_bound(kept: Collected, log: Descriptor, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """To what is kept, and to what is missing."""
    monkeypatch.setattr(collected, "_MOST", 99)
    send(kept, log, 10, b"x" * 90)
    refuses(errno.EIO, send, kept, log, offset, b"y" * 10)
    send(kept, log, 6, b"1234")
    assert content(log) == b"begin 1234" + b"x" * 90


def test_in_the_end_what_is_missing_is_a_hole(
    kept: Collected, log: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collected, "_STEP", 3)
    send(kept, log, 14, b"end")
    kept.finish_all()
    assert content(log) == b"begin " + bytes(8) + b"end" and not kept.ahead
