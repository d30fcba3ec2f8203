"""The private ioctl of reports: who may ask, and how a long one comes in parts."""

import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.commands import user_prefix, wait_until
from harness.device import Answer, Served, served
from harness.memory import MemoryTree
from shiftfs.ops.control import REPORT, REPORT_IN, REPORT_OUT, REPORT_SIZE, REPORTS
from shiftfs.wire.abi import ROOT_ID, Opcode

RESULT = 16  # bytes of struct fuse_ioctl_out
ROOM = REPORT_SIZE - REPORT_OUT.size


class Reports:
    """Counts how often each was made; long enough for three parts."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.wanted: list[tuple[int, float]] = []

    def __call__(self, name: str, after: int, when: float) -> bytes:
        self.made.append(name)
        self.wanted.append((after, when))
        return b"%s %d " % (name.encode(), len(self.made)) + bytes(2 * ROOM)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def mount(reports: Reports) -> Iterator[Served]:
    tree = MemoryTree()
    tree.add(tree.root, b"directory", 0o040755)
    with served(tree, report=reports) as running:
        yield running
    tree.close()


def ask(
    mount: Served, which: int = 0, offset: int = 0, after: int = 0, when: float = 0.0, *, uid: int = 0,
    pid: int = 1, nodeid: int = ROOT_ID, command: int = REPORT, size: int = REPORT_SIZE,
) -> Answer:  # fmt: skip
    argument = REPORT_IN.pack(which, offset, after, when).ljust(size, b"\0")[:size]
    body = struct.pack("@QIIQII", 0, 0, command, 0, len(argument), REPORT_SIZE) + argument
    return mount.device.ask(Opcode.IOCTL, body, nodeid, uid=uid, pid=pid)


def part(answer: Answer) -> tuple[int, bytes]:
    """Total length and bytes."""
    assert answer.errno == 0 and len(answer.payload) <= RESULT + REPORT_SIZE
    (total,) = REPORT_OUT.unpack_from(answer.payload, RESULT)
    return int(total), answer.payload[RESULT + REPORT_OUT.size :]


def test_parts_are_of_one_report(mount: Served, reports: Reports) -> None:
    total, first = part(ask(mount, 0))
    found = first
    while len(found) < total:
        again, more = part(ask(mount, 0, len(found)))
        assert again == total and more
        found += more
    assert len(found) == total and found.startswith(b"status 1 ")
    assert reports.made == ["status"], "only offset 0 makes it anew"
    assert part(ask(mount, 0, total)) == (total, b"")
    assert part(ask(mount, 0, 2**32 - 1)) == (total, b"")
    assert part(ask(mount, 0))[1].startswith(b"status 2 ")


def test_a_long_report_comes_whole() -> None:
    tree, text = MemoryTree(), os.urandom(2 * REPORT_SIZE)
    with served(tree, report=lambda name, *wanted: text) as running:
        found = b""
        while len(found) < len(text):
            total, more = part(ask(running, offset=len(found)))
            assert total == len(text)
            found += more
        assert found == text
    tree.close()


def test_one_does_not_disturb_the_other(mount: Served) -> None:
    part(ask(mount, REPORTS.index("status")))
    assert part(ask(mount, REPORTS.index("stats")))[1].startswith(b"stats 2 ")
    assert part(ask(mount, REPORTS.index("status"), ROOM))[1] == bytes(ROOM)


def test_a_later_part_before_the_first_makes_it(mount: Served, reports: Reports) -> None:
    assert len(part(ask(mount, 1, ROOM))[1]) > 0
    assert reports.made == ["stats"]


def test_what_is_wanted_of_events_reaches_the_report(mount: Served, reports: Reports) -> None:
    which = REPORTS.index("events")
    assert part(ask(mount, which, 0, 2**64 - 1, 1.5))[1].startswith(b"events 1 ")
    assert part(ask(mount, which, ROOM, 2**64 - 1, 1.5))[1] == bytes(ROOM), "a part of the same"
    assert part(ask(mount, which))[1].startswith(b"events 2 ")
    assert reports.wanted == [(2**64 - 1, 1.5), (0, 0.0)]


def test_a_part_of_what_another_has_asked_for_meanwhile_is_none_of_theirs(mount: Served, reports: Reports) -> None:
    which = REPORTS.index("events")
    part(ask(mount, which, 0, 7))
    part(ask(mount, which, 0, 8))
    assert part(ask(mount, which, ROOM, 7))[1] == bytes(ROOM)
    assert [after for after, _ in reports.wanted] == [7, 8, 7]


def test_an_argument_of_which_and_offset_alone_is_as_good(mount: Served, reports: Reports) -> None:
    """As shiftfsctl gave it before there were events: zeros follow."""
    assert REPORT_IN.pack(1, 0, 0, 0.0) == struct.pack("=II", 1, 0).ljust(REPORT_IN.size, b"\0")
    assert part(ask(mount, 1))[1].startswith(b"stats 1 ")
    assert reports.wanted == [(0, 0.0)]


@pytest.mark.parametrize("owner", [0, 1000])
def test_for_root_and_whoever_mounted(mount: Served, owner: int, reports: Reports) -> None:
    mount.session.context.owner = owner
    tried = {uid: ask(mount, uid=uid).errno for uid in (0, 1000, 1001, 2**32 - 1)}
    assert tried == {0: 0, 1000: 0 if owner else errno.EPERM, 1001: errno.EPERM, 2**32 - 1: errno.EPERM}
    assert len(reports.made) == list(tried.values()).count(0), "none is made for those that are refused"


@pytest.mark.root
def test_who_asks_is_seen_where_requests_do_not_tell(mount: Served) -> None:
    """With FUSE_ALLOW_IDMAP they tell the process alone."""
    mount.session.context.requests_tell_ids = False
    with subprocess.Popen([*user_prefix(1000), "sleep", "60"]) as process:
        try:
            wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "a user's process")
            asked = {pid: ask(mount, uid=2**32 - 1, pid=pid).errno for pid in (os.getpid(), process.pid, 0, 1 << 22)}
        finally:
            process.kill()
    assert list(asked.values()) == [0, errno.EPERM, errno.EPERM, errno.EPERM]


@pytest.mark.parametrize("which", [len(REPORTS), 2**32 - 1])
def test_unknown_report(mount: Served, which: int) -> None:
    assert ask(mount, which).errno == errno.EINVAL


@pytest.mark.parametrize("size", [0, 7, 8, REPORT_SIZE - 1])
def test_argument_of_another_size(mount: Served, size: int) -> None:
    assert ask(mount, size=size).errno == errno.EINVAL
    assert mount.log == []


@pytest.mark.parametrize("command", [REPORT, 0, 0x5413, REPORT + 1])
def test_not_a_report_of_this_mount(mount: Served, command: int) -> None:
    nodeid = mount.device.look(b"directory") if command == REPORT else ROOT_ID
    assert ask(mount, nodeid=nodeid, command=command).errno == errno.ENOTTY


def test_the_command_is_what_the_kernel_passes_on() -> None:
    """_IOWR('S', 0xf5, char[REPORT_SIZE]): of a size that 14 bits hold, so that the kernel copies it all."""
    assert REPORT >> 16 & 0x3FFF == REPORT_SIZE
    assert REPORT >> 30 == 3 and REPORT & 0xFFFF == 0x53F5
    assert os.sysconf("SC_PAGE_SIZE") * 256 > REPORT_SIZE
