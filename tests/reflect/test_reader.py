"""Reading a fanotify group natively: nothing that means something is left out, and what concerns nobody is."""

import os
import select
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import run
from harness.listening import WAYS, by_others
from shiftfs import native
from shiftfs.inodes import InodeTable
from shiftfs.layer import Layer
from shiftfs.sys import fanotify

FID, DFID, DFID_NAME, PIDFD, OLD, NEW = 1, 3, 2, 4, 10, 12
FSID = b"the disk"
ME, OTHER = os.getpid(), 1

handles = st.sampled_from([b"h" * 8, b"i" * 8, b"j" * 20, b""])
names = st.sampled_from([b".", b"name", b"a longer name", b"n" * 255])
masks = st.sampled_from(
    [fanotify.CREATE, fanotify.DELETE | fanotify.ONDIR, fanotify.RENAME, fanotify.ATTRIB, fanotify.MODIFY]
)


def token(handle: bytes) -> bytes:
    return FSID + struct.pack("=Ii", len(handle), 1) + handle


def record(kind: int, handle: bytes, name: bytes) -> bytes:
    content = token(handle) + (name + b"\0" if kind in (DFID_NAME, OLD, NEW) else b"")
    content += bytes(-len(content) % 4)
    return struct.pack("=BBH", kind, 0, 4 + len(content)) + content


def event(mask: int, pid: int, records: list[bytes]) -> bytes:
    rest = b"".join(records)
    return struct.pack("=IBBHQii", 24 + len(rest), 3, 0, 24, mask, -1, pid) + rest


records = st.lists(st.builds(record, st.sampled_from([FID, DFID_NAME, OLD, NEW]), handles, names), max_size=3)
one_event = st.builds(event, masks, st.sampled_from([ME, OTHER]), records)
reads = st.lists(st.lists(one_event, min_size=1, max_size=4).map(b"".join), max_size=10)


def understood(parts: list[bytes], known: set[bytes], links: bool) -> list[fanotify.Event]:
    return [one for part in parts for one in fanotify.events(part, ME, (), known, links)]


def all_read(reader: fanotify.Reader, reads: int) -> list[bytes]:
    """As often as there can be something at most: what is skipped is at an end for a while, too."""
    return [reader.read() for _ in range(reads + 1)]


@given(reads, st.sets(handles.map(token)), st.booleans())
def test_what_is_understood_is_the_same(parts: list[bytes], known: set[bytes], links: bool) -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, ours:
        ours.setblocking(False)
        for part in parts:
            kernel.send(part)
        reader = fanotify.reader(ours.fileno(), known, links)
        assert understood(all_read(reader, len(parts)), known, links) == understood(parts, known, links)
        assert not reader.holds


@given(st.binary(min_size=1, max_size=200))
def test_what_makes_no_sense_is_not_read_beyond_its_end(noise: bytes) -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, ours:
        ours.setblocking(False)
        kernel.send(noise)
        assert fanotify.reader(ours.fileno(), {token(b"h" * 8)}, True).read() in (noise, b"")


@pytest.mark.root
def test_of_what_the_kernel_tells_what_others_do_to_known_inodes_is_left(tmp_path: Path) -> None:
    known_place, other_place = tmp_path / "known", tmp_path / "other"
    known_place.mkdir()
    other_place.mkdir()
    group, opened = fanotify.new(unlimited=True), os.open(tmp_path, os.O_PATH)
    try:
        fanotify.mark(group, fanotify.ADD | fanotify.FILESYSTEM, fanotify.CREATE | fanotify.ATTRIB, opened)
        known = {fanotify.token(fanotify.filesystem(opened), opened, b"known")}
        reader = fanotify.reader(group, known, False)

        (known_place / "ours").touch()
        run(["touch", other_place / "theirs"])
        if native.Reader is not None:
            assert is_readable(group)
            assert reader.read() == b""
            assert not is_readable(group)

        run(["touch", known_place / "theirs"])
        told = understood(all_read(reader, 100), known, False)
        assert (fanotify.CREATE, b"theirs") in {(mask & fanotify.CREATE, name) for mask, _, name, *_ in told}
        assert b"ours" not in {one[2] for one in told}
    finally:
        os.close(opened)
        os.close(group)


def is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def test_what_fails_is_said() -> None:
    with pytest.raises(OSError):
        fanotify.reader(-1, set(), False).read()


NUMBERED = [one for one in sorted(WAYS) if WAYS[one]["fanotify"] == "fanotify filesystem"]


@pytest.mark.root
@pytest.mark.parametrize("place", NUMBERED)
def test_link_counts_of_inodes_that_nobody_knows_are_left_out(base: Path, place: str) -> None:
    """As all that is removed anywhere tells. A known inode's is told, wherever its new name is."""
    for name in ("known", "strange"):
        (base / name).touch()
        (base / "C" / name).touch()
    layer = Layer(os.fsencode(base))
    group, opened = fanotify.new(unlimited=True), os.open(base, os.O_PATH)
    try:
        fanotify.mark(group, fanotify.ADD | fanotify.FILESYSTEM, fanotify.ATTRIB | fanotify.DELETE, opened)
        inodes = InodeTable(layer.look(opened, b"")[0], None)
        inodes.add(layer.look(opened, b"known")[0], None)
        reader = fanotify.reader(group, set(), True, inodes)
        reader.numbers(fanotify.token(fanotify.filesystem(opened), opened, b""), os.fstat(opened).st_ino)

        for name in ("strange", "C/strange", "C/known"):
            by_others(lambda name=name: os.unlink(base / name))  # type: ignore[misc]
        told = reader.read()
        assert (told == b"") is (native.Reader is not None)
        by_others(lambda: os.link(base / "known", base / "C/new"))
        target = fanotify.token(fanotify.filesystem(opened), opened, b"known")
        assert [one[-1] for one in understood(all_read(reader, 100), set(), True)] == [target]
    finally:
        os.close(opened)
        os.close(group)


@pytest.mark.root
def test_handles_that_tell_no_number_leave_nothing_out(tmp_path: Path) -> None:
    (tmp_path / "strange").touch()
    layer = Layer(os.fsencode(tmp_path))
    group, opened = fanotify.new(unlimited=True), os.open(tmp_path, os.O_PATH)
    try:
        fanotify.mark(group, fanotify.ADD | fanotify.FILESYSTEM, fanotify.ATTRIB, opened)
        reader = fanotify.reader(group, set(), True, InodeTable(layer.look(opened, b"")[0], None))
        reader.numbers(fanotify.token(fanotify.filesystem(opened), opened, b""), os.fstat(opened).st_ino + 1)
        target = fanotify.token(fanotify.filesystem(opened), opened, b"strange")
        by_others(lambda: os.unlink(tmp_path / "strange"))
        assert target in [one[-1] for one in understood(all_read(reader, 100), set(), True)]
    finally:
        os.close(opened)
        os.close(group)
