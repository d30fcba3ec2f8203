"""What inotify and fanotify say of directories and files, and whether two recordings say the same.

Owns the inotify instances from `watch` to the end of the recorder's `with`. Shares no code with the program.
"""

import ctypes
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from harness.views import View, directly

_libc = ctypes.CDLL(None, use_errno=True)

SETTLED = 0.3  # seconds without an event
LIMIT = 10.0

# Opening and reading are no changes: nobody is told of them.
_NAMES = {
    0x2: "MODIFY",
    0x4: "ATTRIB",
    0x8: "CLOSE_WRITE",
    0x40: "MOVED_FROM",
    0x80: "MOVED_TO",
    0x100: "CREATE",
    0x200: "DELETE",
    0x400: "DELETE_SELF",
    0x800: "MOVE_SELF",
}
_CHANGES = sum(_NAMES)
_IGNORED, _DONT_FOLLOW = 0x8000, 0x02000000
_SHOWN = {**_NAMES, 0x2000: "UNMOUNT", 0x4000: "Q_OVERFLOW", 0x40000000: "ISDIR"}

_SOFT = {"MODIFY", "ATTRIB", "CLOSE_WRITE"}


class Event(NamedTuple):
    """What happened ("CREATE", "CREATE ISDIR"), to which name in the watched directory; "" is the watched itself.
    Events with one cookie, which counts from 1, are one rename."""

    what: str
    name: str = ""
    cookie: int = 0


Streams = Mapping[str, list[Event]]
"""What each watch said, in order."""


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def new_watches(paths: Sequence[Path]) -> tuple[int, list[int]]:
    """An inotify descriptor, and its watch of each file: one for all names of an inode. Follows no symlinks."""
    fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        return fd, [_new_watch(fd, path) for path in paths]
    except BaseException:
        os.close(fd)
        raise


def _new_watch(fd: int, path: Path) -> int:
    watch: int = _libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(_CHANGES | _DONT_FOLLOW))
    if watch < 0:
        raise OSError(ctypes.get_errno(), "inotify_add_watch", str(path))
    return watch


def parse(content: bytes) -> Iterator[tuple[int, Event]]:
    """The events that one read(2) gave, each with its watch, and with the kernel's cookies."""
    position = 0
    while position < len(content):
        watch, mask, cookie, length = struct.unpack_from("=iIII", content, position)
        name = content[position + 16 : position + 16 + length].split(b"\0", 1)[0]
        position += 16 + length
        if not mask & _IGNORED:
            yield watch, Event(_words(mask), os.fsdecode(name), cookie)


def _words(mask: int) -> str:
    return " ".join(word for bit, word in _SHOWN.items() if mask & bit)


class Recorder:
    """Records from the moment of each `watch`."""

    def __init__(self, view: View = directly) -> None:
        """Paths are those that `view` sees."""
        self._view = view
        self._events: dict[str, list[Event]] = {}
        self._by_watch: dict[int, dict[int, list[list[Event]]]] = {}
        self._poll = select.poll()
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for fd in self._by_watch:
            os.close(fd)

    def watch(self, paths: Mapping[str, Path]) -> None:
        """Each by a label. The kernel merges only what follows each other among those that are watched by one call."""
        fd, watches = self._view.descriptor(new_watches, list(paths.values()))
        streams: dict[int, list[list[Event]]] = {-1: []}
        self._by_watch[fd] = streams
        for label, watch in zip(paths, watches, strict=True):
            streams.setdefault(watch, []).append(self._events.setdefault(label, []))
        streams[-1] = list(self._events.values())  # that the queue ran over concerns them all
        self._poll.register(fd, select.POLLIN)

    def collect(self, wait: float = 0.0) -> bool:
        """Read what there is, after waiting for it up to so many seconds. Was there anything?"""
        ready = self._poll.poll(wait * 1000)
        for fd, _ in ready:
            for watch, event in parse(os.read(fd, 1 << 16)):
                for stream in self._by_watch[fd][watch]:
                    stream.append(event)
        if ready:
            self._last = time.monotonic()
        return bool(ready)

    def settled(self, quiet: float = SETTLED, limit: float = LIMIT) -> Streams:
        """What was said by the time that nothing has been for `quiet` seconds."""
        end = time.monotonic() + limit
        self._last = time.monotonic()
        while self.collect(max(self._last + quiet - time.monotonic(), 0)):
            if time.monotonic() > end:
                raise AssertionError(f"events without end: {self.streams}")
        return self.streams

    def until(self, done: Callable[[Streams], bool], quiet: float = SETTLED, limit: float = LIMIT) -> Streams:
        """What was said once that is enough and all is quiet, or when it has not been enough within `limit` seconds."""
        end = time.monotonic() + limit
        self.collect()
        while not done(self.streams) and time.monotonic() < end:
            self.collect(0.01)
        return self.settled(quiet, limit)

    @property
    def streams(self) -> Streams:
        """So far; cookies are numbered in order."""
        numbers: dict[int, int] = {0: 0}
        return {
            label: [event._replace(cookie=numbers.setdefault(event.cookie, len(numbers))) for event in events]
            for label, events in sorted(self._events.items())
        }

    def counted(self, label: str) -> int:
        return len(self._events[label])

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Reads all the while, so that the kernel's queue never overflows. No other method meanwhile but `counted`."""
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                self.collect(0.02)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Run(NamedTuple):
    """Changes of one file, nothing else between them in its watch: what they were, and whether it was written after it
    was last closed."""

    name: str
    what: frozenset[str]
    unfinished: bool


def canonical(events: list[Event]) -> list[Event | Run]:
    """Without what the kernel's own merging may change: how often one file was written, closed or changed in its
    attributes in a row, and when in that row its attributes were."""
    found: list[Event | Run] = []
    for event in events:
        kind = event.what.removesuffix(" ISDIR")
        if kind not in _SOFT:
            found.append(event)
            continue
        run = found.pop() if found and isinstance(found[-1], Run) and found[-1].name == event.name else None
        before = run if isinstance(run, Run) else Run(event.name, frozenset(), False)
        unfinished = {"MODIFY": True, "CLOSE_WRITE": False}.get(kind, before.unfinished)
        found.append(Run(event.name, before.what | {event.what}, unfinished))
    return found


def same_stream(native: Streams, mounted: Streams) -> bool:
    """Do the watches say the same? In which order different ones spoke does not count."""
    return not differences(native, mounted)


def differences(native: Streams, mounted: Streams) -> dict[str, tuple[list[Event], list[Event]]]:
    """The watches that do not say the same, with what they say natively and on the mount."""
    found = {}
    for label in sorted({*native, *mounted}):
        one, other = native.get(label, []), mounted.get(label, [])
        if canonical(one) != canonical(other):
            found[label] = (one, other)
    return found


# --- fanotify ---

_FAN_REPORT_DFID_NAME, _FAN_CLOEXEC, _FAN_NONBLOCK = 0xC00, 1, 2
_FAN_MARK_ADD, _FAN_ONDIR, _FAN_EVENT_ON_CHILD = 1, 0x40000000, 0x08000000
_FAN_METADATA = struct.Struct("=IBBHQii")
_WITH_NAME = {2, 10, 12}


def new_mark(path: Path) -> tuple[int, None]:
    """A fanotify descriptor with one inode mark: of a directory with its children, by their names, or of a file."""
    fd = _checked(_libc.fanotify_init(ctypes.c_uint(_FAN_REPORT_DFID_NAME | _FAN_CLOEXEC | _FAN_NONBLOCK), 0))
    mask = _CHANGES | (_FAN_ONDIR | _FAN_EVENT_ON_CHILD if path.is_dir() else 0)
    if _libc.fanotify_mark(fd, _FAN_MARK_ADD, ctypes.c_uint64(mask), -100, os.fsencode(path)):
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, os.strerror(number), str(path))
    return fd, None


def marked(fd: int) -> dict[str, set[str]]:
    """What a mark says by now of each name ("." is the directory itself), in order of their first events; then it is
    closed. fanotify merges all that it holds about one name, so that is all which can be compared."""
    found: dict[str, set[str]] = {}
    try:
        while True:
            for name, mask in _fan_parse(os.read(fd, 1 << 16)):
                found.setdefault(name, set()).update(word for bit, word in _SHOWN.items() if mask & bit)
    except BlockingIOError:
        return found
    finally:
        os.close(fd)


def _fan_parse(content: bytes) -> Iterator[tuple[str, int]]:
    position = 0
    while position < len(content):
        length, _, _, head, mask, _, _ = _FAN_METADATA.unpack_from(content, position)
        record, name = position + head, b""
        while record < position + length:
            kind, _, size = struct.unpack_from("=BBH", content, record)
            if kind in _WITH_NAME:
                (handle,) = struct.unpack_from("=I", content, record + 12)
                name = content[record + 20 + handle : record + size].split(b"\0", 1)[0]
            record += size
        yield os.fsdecode(name), mask
        position += length
