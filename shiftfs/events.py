"""`shiftfsctl events`: what changed in the layers, as text or JSON, once or as it happens.

Reads times, prints changes, waits. The mount is asked again and again from here; it never waits for us. Owns nothing.
"""

import contextlib
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from .asking import NotThere

Ask = Callable[[int, float], str]
"""The report of what is after a number and not before a time."""

_INTERVAL: Final = 250
"""Milliseconds between questions."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])(?: ago)?", re.ASCII)
_UNIX: Final = re.compile(r"@?([0-9]{1,12}(?:\.[0-9]*)?)", re.ASCII)
_CLOCK: Final = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?", re.ASCII)


class BadTime(Exception):
    """One line: what --since was given, and what it takes."""


class _Stopped(Exception):
    """By SIGTERM."""


# --- when ---


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of what --since was given. Raises BadTime."""
    try:
        return _moment(text.strip(), now)
    except (ValueError, OverflowError, OSError):
        raise BadTime(
            f"--since {text!r} is no time; give 2026-01-31T12:00:00, 12:00, seconds since the epoch,"
            " or how long ago: 10s, 5m, 1h, 2d"
        ) from None


def _moment(text: str, now: float) -> float:
    if ago := _AGO.fullmatch(text):
        return now - float(ago[1]) * _UNITS[ago[2]]
    if unix := _UNIX.fullmatch(text):
        return float(unix[1])
    if not _CLOCK.fullmatch(text):
        return datetime.fromisoformat(text).timestamp()  # local, unless it says otherwise
    hour, minute, second = [*map(int, text.split(":")), 0][:3]
    today = datetime.fromtimestamp(now)
    found = today.replace(hour=hour, minute=minute, second=second, microsecond=0)
    if found > today:
        found -= timedelta(days=1)
    return found.timestamp()


# --- what ---


def line(event: dict[str, Any]) -> str:
    """One change for people."""
    when = datetime.fromtimestamp(event["time"]).isoformat(timespec="milliseconds")
    layer = "-" if event["layer"] is None else event["layer"]
    to = f" -> {escaped(event['to'])}" if "to" in event else ""
    hidden = "" if event["shown"] else "hidden"
    return f"{when} {layer:>3} {event['kind']:<10} {hidden:<6} {escaped(event['path'])}{to}"


def escaped(name: str) -> str:
    r"""Bytes that are no text, and characters that are not to be seen, as `\xNN`; a backslash is doubled."""
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(map(_escaped, name))


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))


def _gone(count: int, size: int, as_json: bool) -> str:
    if as_json:
        return json.dumps({"dropped": count})
    return f"{count} earlier {'change is' if count == 1 else 'changes are'} dropped: the last {size} are kept"


class Events:
    """What one mount tells, from some change on."""

    def __init__(self, ask: Ask, when: float, *, as_json: bool) -> None:
        self._ask = ask
        self._when = when
        self._as_json = as_json
        self._after = 0
        self._started: float | None = None

    def more(self) -> Iterator[str]:
        """What there is by now and was not told, in lines. Raises CtlError, and NotThere if another mount is in the
        place of the first."""
        while True:
            report = json.loads(self._ask(self._after, self._when))
            if report["started"] != (self._started or report["started"]):
                raise NotThere("another mount is there now")
            self._started = report["started"]
            gone = report["dropped"] - self._after
            # Those that are gone were older than what is there: none was asked for, if that was to be had as well.
            if gone > 0 and (self._after or not self._when or report["oldest"] >= self._when):
                yield _gone(gone, report["size"], self._as_json)
            for event in report["entries"]:
                yield json.dumps(event) if self._as_json else line(event)
            self._after = report["next"]
            if self._after >= report["total"]:
                return


# --- how long ---


def show(ask: Ask, when: float, *, as_json: bool, follow: bool) -> None:
    """Print what changed; with `follow` until SIGTERM, the end of the mount or of whoever reads. Raises CtlError,
    OSError of standard output, KeyboardInterrupt."""
    events = Events(ask, when, as_json=as_json)
    if not follow:
        for text in events.more():
            print(text)
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        _print(events)
        while not _reader_left(_INTERVAL):
            try:
                _print(events)
            except NotThere:
                return
    except _Stopped:
        abandon_output()


def _print(events: Events) -> None:
    for text in events.more():
        print(text + "\n", end="", flush=True)  # in one, so that a signal comes before or after a line


def _stop(number: int, frame: object) -> None:
    raise _Stopped


def abandon_output() -> None:
    """What is still to be written must not keep us from ending: nobody reads."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())


def _reader_left(limit: int) -> bool:
    """Wait that many milliseconds, and no longer than somebody reads: without changes no write would tell."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # there is none, or none that can be waited for
        time.sleep(limit / 1000)
        return False
    return bool(poll.poll(limit))
