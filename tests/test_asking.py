"""Reports that come in parts while others ask, and what becomes of a refusal, with an ioctl that is made up."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from shiftfs.asking import CtlError, NotThere, ask
from shiftfs.ops.control import REPORT, REPORT_IN, REPORT_OUT, REPORT_SIZE, REPORTS

ROOM = REPORT_SIZE - REPORT_OUT.size


class Process:
    """Has another report of these lengths at each question; the last of them for good."""

    def __init__(self, *lengths: int) -> None:
        self.texts = [bytes([ord("a") + number]) * length for number, length in enumerate(lengths)]
        self.asked: list[tuple[str, int, int, float]] = []

    def __call__(self, fd: int, command: int, argument: bytearray) -> None:
        assert command == REPORT and len(argument) == REPORT_SIZE
        which, offset, after, when = REPORT_IN.unpack_from(argument)
        text = self.texts[min(len(self.asked), len(self.texts) - 1)]
        self.asked.append((REPORTS[which], offset, after, when))
        part = text[offset : offset + ROOM]
        argument[: REPORT_OUT.size + len(part)] = REPORT_OUT.pack(len(text)) + part


def answers(monkeypatch: pytest.MonkeyPatch, process: Process) -> Process:
    monkeypatch.setattr(fcntl, "ioctl", process)
    return process


@pytest.mark.parametrize("length", [0, 1, ROOM, ROOM + 1, 3 * ROOM])
def test_a_report_is_put_together(length: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    process = answers(monkeypatch, Process(length))
    assert ask(str(tmp_path), "events", 7, 1.5) == "a" * length
    assert process.asked == [("events", offset, 7, 1.5) for offset in range(0, length or 1, ROOM)]


def test_a_report_that_another_has_had_made_anew_is_begun_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    process = answers(monkeypatch, Process(2 * ROOM, 2 * ROOM + 5))
    assert ask(str(tmp_path), "status") == "b" * (2 * ROOM + 5)
    assert [offset for _, offset, _, _ in process.asked] == [0, ROOM, 0, ROOM, 2 * ROOM]


def test_it_is_not_begun_again_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers(monkeypatch, Process(*(2 * ROOM + number for number in range(100))))
    with pytest.raises(CtlError, match="others ask") as caught:
        ask(str(tmp_path), "stats")
    assert not isinstance(caught.value, NotThere)


@pytest.mark.parametrize(
    ("name", "number", "kind", "said"),
    [
        ("events", errno.EPERM, CtlError, "only root and whoever mounted it may ask"),
        ("events", errno.EINVAL, CtlError, "its process is of a version without events; mount it anew"),
        ("status", errno.EINVAL, NotThere, "not the root of a shiftfs mount (Invalid argument)"),
        ("events", errno.ENOTTY, NotThere, "not the root of a shiftfs mount (Inappropriate ioctl for device)"),
        ("events", errno.ENOTCONN, NotThere, "not the root of a shiftfs mount (Transport endpoint is not connected)"),
        ("events", errno.ENOMEM, CtlError, "Cannot allocate memory; ask again"),
    ],
)
def test_refusals(
    name: str, number: int, kind: type[CtlError], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(fd: int, command: int, argument: bytearray) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CtlError) as caught:
        ask(str(tmp_path), name)
    assert (type(caught.value), str(caught.value)) == (kind, f"{tmp_path}: {said}")
    assert len(os.listdir("/proc/self/fd")) == before
