"""Faults at the system calls of a running daemon, by strace: killed there, failed there, held up there.

Nothing in the program knows of it. What an operation does is first recorded, undisturbed; its calls that change
something on a layer, and its last answer, are the steps at which it is then disturbed. Owns each strace that it starts.
"""

import codecs
import hashlib
import itertools
import os
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.commands import EXIT_LIMIT, Argument, wait_until
from harness.mounts import connections

_ANSWERS = ("write", "writev")
_ATTRIBUTES = (
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
    *("chown", "lchown", "fchown", "fchownat", "chmod", "fchmod", "fchmodat", "fchmodat2", "utimensat"),
)
_CHANGES = (
    *_ATTRIBUTES,
    *("openat", "openat2", "mkdirat", "mknodat", "symlinkat", "linkat", "renameat", "renameat2", "unlinkat"),
    *("mkdir", "mknod", "symlink", "link", "rename", "unlink", "rmdir"),
    *("ioctl", "copy_file_range", "sendfile", "pwrite64", "pwritev", "pwritev2", "truncate", "ftruncate", "fallocate"),
)
_ONLY_WITH = {
    "openat": re.compile("O_CREAT|O_TMPFILE|O_TRUNC"),
    "openat2": re.compile("O_CREAT|O_TMPFILE|O_TRUNC"),
    "ioctl": re.compile("FICLONE|BTRFS_IOC_CLONE"),
}
_CALL = re.compile(r"(\d+) +(\w+)\((.*)")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
_HEADER = struct.Struct("=IiQ")  # length, error, unique
_DEATH_LIMIT = 3.0  # seconds
_OLD_NS = 10**18  # 2001: whatever is newer was made by the test


class Step(NamedTuple):
    """A system call of an operation: the `nth` of this name that its thread makes."""

    name: str
    nth: int


class Recording:
    """System calls of a process, as they come and when it is over."""

    def __init__(self, log: Path) -> None:
        self._read: Callable[[], str] = lambda: log.read_text(errors="replace")

    def end(self) -> None:
        """Keep what is in the log, which is about to go."""
        text = self._read()
        self._read = lambda: text

    def count(self, name: str) -> int:
        """How many calls of a name have been entered."""
        return sum(1 for _, called, _ in self._calls() if called == name)

    def changes(self) -> list[Step]:
        """The calls that change something, in order."""
        return [
            step
            for step, arguments in self._steps()
            if step.name not in _ANSWERS and (step.name not in _ONLY_WITH or _ONLY_WITH[step.name].search(arguments))
        ]

    def steps(self) -> list[Step]:
        """These, of attributes set in a row the first and the last, and the last answer that the kernel was given."""
        chosen = []
        for is_attribute, steps in itertools.groupby(self.changes(), lambda step: step.name in _ATTRIBUTES):
            row = list(steps)
            chosen += [row[0], *row[1:][-1:]] if is_attribute else row
        answers = [step for step, arguments in self._steps() if step.name in _ANSWERS and _is_answer(arguments)]
        return [*chosen, answers[-1]]

    def _steps(self) -> Iterator[tuple[Step, str]]:
        """With their arguments."""
        made: Counter[tuple[str, str]] = Counter()
        for thread, name, arguments in self._calls():
            made[thread, name] += 1
            yield Step(name, made[thread, name]), arguments

    def _calls(self) -> Iterator[tuple[str, str, str]]:
        for line in self._read().splitlines():
            # strace shows what it has no name for, whatever it is to trace.
            if (found := _CALL.match(line)) and found[2] in (*_CHANGES, *_ANSWERS):
                yield found[1], found[2], found[3]


def _is_answer(arguments: str) -> bool:
    """Does what is written begin with a header (struct fuse_out_header) of a request's? Notices are of none, and come
    when there is time."""
    text = _TEXT.search(arguments)
    header = codecs.escape_decode(text[1])[0][: _HEADER.size] if text else b""
    if len(header) < _HEADER.size:
        return False
    _, error, unique = _HEADER.unpack(header)
    return bool(error <= 0 and unique)


@contextmanager
def recorded(pid: int, *inject: str) -> Iterator[Recording]:
    """Record what a process calls; `inject` as strace(1) has it."""
    with tempfile.TemporaryDirectory(prefix="strace-") as directory:
        log = Path(directory, "log")
        recording = Recording(log)
        with _strace(pid, log, inject) as process:
            yield recording
            process.terminate()
        recording.end()


@contextmanager
def killed_at(pid: int, step: Step) -> Iterator[None]:
    """The process is killed as it enters this step, before the kernel does anything of it; if it does."""
    with _strace(pid, Path(os.devnull), [f"{step.name}:signal=SIGKILL:when={step.nth}"]) as process:
        yield
        # strace ends with the process; told to end while that does, it would wait for ever.
        try:
            process.wait(_DEATH_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def _strace(pid: int, log: Path, inject: Iterable[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Attached to a process. Whoever uses it sees to it that it ends."""
    disturbed = [rule.partition(":")[0] for rule in inject]
    traced = ",".join(f"?{name}" for name in {*_CHANGES, *_ANSWERS, *disturbed})
    command: list[Argument] = ["strace", "-f", "-p", str(pid), "-o", log, "-e", f"trace={traced}"]
    for rule in inject:
        command += ["-e", f"inject={rule}"]
    # What it still answers of before would be counted, too: the kernel lets a file go after close(2) has returned.
    with connections() as control:
        wait_until(lambda: _has_answered(pid, control), "all to be answered")
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=output)

        def said() -> str:
            return os.pread(output.fileno(), 4096, 0).decode(errors="replace")

        try:
            wait_until(lambda: "attached" in said() or process.poll() is not None, "strace to be attached")
            assert process.poll() is None, said()
            yield process
            process.wait(EXIT_LIMIT)
        finally:
            process.kill()  # which lets go of the process where that is still there
            process.wait(EXIT_LIMIT)


def _has_answered(pid: int, control: Path) -> bool:
    """The kernel waits for no answer of the process's."""
    numbers = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed just now
            numbers.update(re.findall(r"^fuse_connection:\s*(\d+)$", info.read_text(), re.MULTILINE))
    return all((control / number / "waiting").read_text() == "0\n" for number in numbers)


@contextmanager
def failed_at(pid: int, step: Step, error: str) -> Iterator[None]:
    """This step fails, once, with an errno such as "EIO"."""
    with recorded(pid, f"{step.name}:error={error}:when={step.nth}"):
        yield


def shown(path: Path) -> dict[str, Any]:
    """All that a user can tell of a tree but inode numbers and directories' times and link counts: which are one
    inode, owners, modes, content, xattrs, and times as far as they were not made by the test itself."""
    first: dict[int, str] = {}
    seen = {}
    for name, file in _walk(path):
        told = file.lstat()
        seen[name] = {
            "file": first.setdefault(told.st_ino, name),
            "content": _content(file),
            "attributes": (told.st_mode, told.st_uid, told.st_gid, told.st_rdev),
            "xattrs": _xattrs(file),
            "rest": None if file.is_dir() and not file.is_symlink() else _file_attributes(told),
        }
    return seen


def _file_attributes(told: os.stat_result) -> tuple[int | str, ...]:
    return told.st_nlink, told.st_size, told.st_mtime_ns if told.st_mtime_ns <= _OLD_NS else "new"


def untouched(path: Path) -> dict[str, Any]:
    """All there is to a tree on a layer: after any change to it, other than reading, this differs."""
    return {
        name: (*_all_attributes(file.lstat()), _content(file), _xattrs(file))
        for name, file in [("", path), *_walk(path)]
    }


def _all_attributes(told: os.stat_result) -> tuple[int, ...]:
    fields = ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "mtime_ns", "ctime_ns")
    return tuple(getattr(told, f"st_{field}") for field in fields)


def set_old(path: Path) -> None:
    """Give all files in a tree one time in the past."""
    for _, file in _walk(path):
        os.utime(file, ns=(_OLD_NS, _OLD_NS), follow_symlinks=False)


def _walk(path: Path) -> Iterator[tuple[str, Path]]:
    for directory, names, files in os.walk(path):
        names.sort()
        for name in sorted(names + files):
            file = Path(directory, name)
            yield str(file.relative_to(path)), file


def _content(file: Path) -> str | list[str]:
    if file.is_symlink():
        return os.readlink(file)
    if file.is_dir():
        return sorted(os.listdir(file))
    # Short, as pytest compares what differs letter by letter.
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _xattrs(file: Path) -> dict[str, bytes]:
    names = os.listxattr(file, follow_symlinks=False)
    return {name: os.getxattr(file, name, follow_symlinks=False) for name in sorted(names)}


def outcome(call: Callable[[Path], object], path: Path) -> OSError | None:
    """The error that a call ends with, if it does."""
    try:
        call(path)
    except OSError as error:
        return error
    return None
