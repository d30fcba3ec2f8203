"""`shiftfsctl events`: times, lines, and how it goes on and ends, with a mount that is made up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import IO, Any

import pytest

from harness import wait_until
from harness.commands import environment
from shiftfs import ctl, events
from shiftfs.asking import CtlError, NotThere
from shiftfs.reflect.journal import Journal


@pytest.fixture(autouse=True, params=["UTC", "Asia/Kolkata"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# --- times ---


def at(*when: int) -> float:
    return datetime(*when).timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-01-31T12:00:00", (2026, 1, 31, 12)),
        ("2026-01-31 12:00:07", (2026, 1, 31, 12, 0, 7)),
        ("2026-01-31T12:00:00.25", (2026, 1, 31, 12, 0, 0, 250_000)),
        ("2026-01-31", (2026, 1, 31)),
        ("11:59", (2026, 3, 4, 11, 59)),
        ("9:05", (2026, 3, 4, 9, 5)),
        ("12:00:30", (2026, 3, 4, 12, 0, 30)),
        ("12:00:31", (2026, 3, 3, 12, 0, 31)),  # yesterday
        ("23:59:59", (2026, 3, 3, 23, 59, 59)),
        (" 00:00 ", (2026, 3, 4)),
    ],
)
def test_times_are_local(text: str, when: tuple[int, ...]) -> None:
    assert events.moment(text, datetime(2026, 3, 4, 12, 0, 30, 500_000).timestamp()) == at(*when)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("0", 0.0),
        ("1700000000", 1.7e9),
        ("1700000000.25", 1.7e9 + 0.25),
        ("@1700000000", 1.7e9),
        ("2023-11-14T22:13:20Z", 1.7e9),
        ("2023-11-15T00:13:20+02:00", 1.7e9),
        ("10s", 1.8e9 - 10),
        ("1.5s", 1.8e9 - 1.5),
        ("5m", 1.8e9 - 300),
        ("5m ago", 1.8e9 - 300),
        ("1h", 1.8e9 - 3600),
        ("2d", 1.8e9 - 172_800),
        ("0s", 1.8e9),
    ],
)
def test_times_that_are_the_same_everywhere(text: str, when: float) -> None:
    assert events.moment(text, 1.8e9) == when


@pytest.mark.parametrize(
    "text",
    ["", "x", "-5", "-1s", "5 parsecs", "1e9", "24:00", "12:60", "2026-13-01", "9" * 400, "nan", "\udcff", "\u0663s"],
)
def test_what_is_no_time_is_told_in_a_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["events", "/nowhere", f"--since={text}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("shiftfsctl: --since ") and "is no time; give 2026-01-31T12:00:00" in said
    assert len(said.splitlines()) == 1


# --- lines ---


def event(**given: Any) -> dict[str, Any]:
    return {"number": 1, "time": 0.0, "layer": 0, "kind": "create", "path": "/a", "shown": True} | given


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "0 create            /a"),
        ({"layer": 12, "kind": "attributes"}, "12 attributes        /a"),
        ({"shown": False}, "0 create     hidden /a"),
        ({"kind": "move", "to": "/b c"}, "0 move              /a -> /b c"),
        ({"layer": None, "kind": "overflow"}, "- overflow          /a"),
        ({"path": "/a\nb\\c\x1b[31m\udcff\u202eé"}, "0 create            /a\\x0ab\\\\c\\x1b[31m\\xff\\xe2\\x80\\xaeé"),
    ],
)
def test_a_line(given: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 3, 4, 12, 0, 30, 500_000).timestamp()
    when, rest = events.line(event(time=now) | given).split(" ", 1)
    assert when == "2026-03-04T12:00:30.500"
    assert rest.lstrip() == expected


class Mounted:
    """The report of a mount with a journal of its own."""

    def __init__(self, size: int = 100) -> None:
        self.journal = Journal(size)
        self.asked: list[tuple[int, float]] = []

    def __call__(self, after: int, when: float) -> str:
        self.asked.append((after, when))
        return json.dumps(self.journal.report(after, when))

    def add(self, count: int) -> None:
        for _ in range(count):
            self.journal.add(0, b"/%d" % (self.journal.total + 1), "create")


def numbers(lines: Iterator[str]) -> list[int]:
    return [json.loads(line).get("number") or -json.loads(line)["dropped"] for line in lines]


def test_each_change_is_told_once_and_what_is_gone_is_told() -> None:
    mount = Mounted(5)
    told = events.Events(mount, 0.0, as_json=True)
    assert numbers(told.more()) == []
    mount.add(3)
    assert numbers(told.more()) == [1, 2, 3]
    assert numbers(told.more()) == []
    mount.add(5)
    assert numbers(told.more()) == [4, 5, 6, 7, 8]
    mount.add(7)
    assert numbers(told.more()) == [-2, 11, 12, 13, 14, 15]


def test_what_was_gone_before_leads() -> None:
    mount = Mounted(5)
    mount.add(6)
    told = [*events.Events(mount, 0.0, as_json=False).more()]
    assert told[0] == "1 earlier change is dropped: the last 5 are kept"
    assert len(told) == 6
    mount.add(1)
    told = [*events.Events(mount, 0.0, as_json=False).more()]
    assert told[0] == "2 earlier changes are dropped: the last 5 are kept"


def test_what_is_gone_is_not_missed_if_all_that_is_wanted_is_there() -> None:
    mount = Mounted(5)
    mount.add(10)
    before = time.time() - 1000
    assert numbers(events.Events(mount, before, as_json=True).more()) == [-5, 6, 7, 8, 9, 10]
    after = time.time() + 1000
    assert numbers(events.Events(mount, after, as_json=True).more()) == []


def test_many_come_in_parts() -> None:
    mount = Mounted(10_000)
    mount.add(1000)
    assert numbers(events.Events(mount, 0.0, as_json=True).more()) == [*range(1, 1001)]
    assert len(mount.asked) > 5


def test_another_mount_in_the_place_of_the_first_ends_it() -> None:
    mount = Mounted()
    told = events.Events(mount, 0.0, as_json=True)
    assert [*told.more()] == []
    mount.journal = Journal()
    mount.journal.started += 1
    with pytest.raises(NotThere):
        [*told.more()]


# --- the command ---


def run(mount: Mounted, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(ctl, "ask", lambda path, name, after, when: mount(after, when))
    return ctl.main(["events", "/mnt", *options])


def test_text_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mount = Mounted()
    mount.journal.add(1, b"/a\xff", "move", b"/b\n", shown=False)
    assert run(mount, monkeypatch) == 0
    assert capsys.readouterr().out.endswith("  1 move       hidden /a\\xff -> /b\\x0a\n")
    assert run(mount, monkeypatch, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert os.fsencode(json.loads(line)["path"]) == b"/a\xff"
    assert (json.loads(line)["to"], json.loads(line)["shown"]) == ("/b\n", False)


def test_since_reaches_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mounted()
    assert run(mount, monkeypatch, "--since", "1700000000") == 0
    assert mount.asked == [(0, 1.7e9)]


def test_what_cannot_be_asked_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["events", "/nowhere", "--follow"]) == 1
    assert capsys.readouterr().err == (
        "shiftfsctl: /nowhere: No such file or directory; give the mountpoint of a running shiftfs\n"
    )


def test_following_ends_with_the_mount(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mount = Mounted()

    def ask(path: str, name: str, after: int, when: float) -> str:
        if len(mount.asked) == 3:
            raise NotThere("gone")
        mount.add(1)
        return mount(after, when)

    monkeypatch.setattr(ctl, "ask", ask)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert ctl.main(["events", "/mnt", "--follow", "--json"]) == 0
    out, err = capsys.readouterr()
    assert numbers(iter(out.splitlines())) == [1, 2, 3] and err == ""


def test_following_does_not_hide_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mount = Mounted()

    def ask(path: str, name: str, after: int, when: float) -> str:
        if mount.asked:
            raise CtlError("no descriptors")
        return mount(after, when)

    monkeypatch.setattr(ctl, "ask", ask)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert ctl.main(["events", "/mnt", "--follow"]) == 1
    assert capsys.readouterr().err == "shiftfsctl: no descriptors\n"


FOLLOW = """
import json, sys
from shiftfs import ctl
from shiftfs.reflect.journal import Journal
journal = Journal()
def ask(path, name, after, when):
    if journal.total < int(sys.argv[1]):
        journal.add(0, b"/" + b"x" * 200, "create")
    return json.dumps(journal.report(after, when))
ctl.ask = ask
sys.exit(ctl.main(["events", "/mnt", *sys.argv[2:]]))
"""


def follower(changes: int, *options: str, stdout: int | IO[bytes] = subprocess.PIPE) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", "-c", FOLLOW, str(changes), *options]
    return subprocess.Popen(command, env=environment(), stdout=stdout, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_following_ends_at_signals_and_has_told_each_line_at_once(number: int, status: int) -> None:
    process = follower(2, "--follow")
    assert process.stdout is not None and process.stderr is not None
    with process:
        assert process.stdout.readline().endswith(b"xxx\n")
        assert process.stdout.readline().endswith(b"xxx\n")
        process.send_signal(number)
        assert process.wait(10) == status
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")


@pytest.mark.parametrize("changes", [1, 10_000_000])
def test_following_ends_when_nobody_reads_any_more(changes: int) -> None:
    """Even if there is nothing to be written."""
    process = follower(changes, "--follow")
    assert process.stdout is not None and process.stderr is not None
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


def test_a_place_that_cannot_be_written_is_told_in_a_line() -> None:
    with open("/dev/full", "wb") as full:
        process = follower(1, stdout=full)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert err == b"shiftfsctl: standard output: No space left on device; give it a place that can be written\n"


def test_following_into_a_file() -> None:
    """Which cannot be waited for."""
    with open(os.memfd_create("out"), "r+b") as out:
        process = follower(3, "--follow", stdout=out)
        try:
            wait_until(lambda: os.pread(out.fileno(), 10_000, 0).count(b"\n") == 3, "three lines")
        finally:
            process.terminate()
            process.communicate(timeout=10)
    assert process.returncode == 0
