"""Running commands to their end within a limit, as root or as somebody else.

Owns each process it starts until that has ended, with all its children. Never leaves one behind, except one
that even SIGKILL does not end, of which it says so.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

COMMAND_LIMIT = 60.0  # seconds, as all limits here
EXIT_LIMIT = 10.0

# -P: the package that is tested is the installed one, whichever directory the command starts in.
SHIFTFS = [sys.executable, "-P", "-m", "shiftfs"]
SHIFTFSCTL = [sys.executable, "-P", "-m", "shiftfs.ctl"]

Argument = str | bytes | os.PathLike[str]
Completed = subprocess.CompletedProcess[str]


class CommandFailed(AssertionError):
    """A command ended otherwise than it should, or not in time; the message holds all it said."""


def environment() -> dict[str, str]:
    """What a child needs to import the very shiftfs that the tests import, installed or from a checkout."""
    spec = importlib.util.find_spec("shiftfs")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("shiftfs is neither installed nor in the path")
    return {**os.environ, "PYTHONPATH": str(Path(spec.origin).parent.parent)}


def run(
    args: Sequence[Argument],
    *,
    check: bool = True,
    limit: float = COMMAND_LIMIT,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Argument | None = None,
) -> Completed:
    """Run a command to its end.

    CommandFailed on an exit status other than 0 (unless `check` is false), and when it and whoever holds its
    output have not ended after `limit` seconds. Output is text, bytes that are not UTF-8 as surrogates.
    """
    process = subprocess.Popen(
        args,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment() if env is None else env,
        cwd=cwd,
        start_new_session=True,
        encoding="utf-8",
        errors="surrogateescape",
    )
    try:
        out, err = process.communicate(stdin, timeout=limit)
    except subprocess.TimeoutExpired:
        out, err = _kill_group(process)
        raise CommandFailed(report(args, f"did not end within {limit:g} s", out, err)) from None
    except BaseException:
        _kill_group(process)
        raise
    if check and process.returncode != 0:
        raise CommandFailed(report(args, f"exit status {process.returncode}", out, err))
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def _kill_group(process: subprocess.Popen[str]) -> tuple[str, str]:
    # All of its session, since a grandchild that holds the pipes open would make us wait as well.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        return process.communicate(timeout=EXIT_LIMIT)
    except subprocess.TimeoutExpired:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        return "", "(its output is still held open after SIGKILL: something waits in the kernel)"


def report(args: Sequence[Argument], what: str, out: str, err: str) -> str:
    words = " ".join(os.fsdecode(word) for word in args)
    return f"{words}\n  {what}\n  stdout: {out.strip()}\n  stderr: {err.strip()}"


def shiftfs(*args: Argument, **options: Any) -> Completed:
    """Run the program itself, `options` as for `run`: for what is not a mount that works."""
    return run([*SHIFTFS, *args], **options)


def shiftfsctl(*args: Argument, **options: Any) -> Completed:
    return run([*SHIFTFSCTL, *args], **options)


def as_user(uid: int, args: Sequence[Argument], *, gid: int | None = None, **options: Any) -> Completed:
    """Run a command as an ordinary user id, without groups or capabilities. Needs root."""
    return run([*user_prefix(uid, gid), *args], **options)


def user_prefix(uid: int, gid: int | None = None) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid if gid is None else gid}", "--clear-groups", "--"]


def wait_until(condition: Callable[[], object], what: str, limit: float = EXIT_LIMIT) -> None:
    """Poll until the condition holds; AssertionError naming `what` when it has not after `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit:g} s: {what}")
        time.sleep(0.02)


def open_directory(prefix: str) -> Path:
    """A new temporary directory that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    path.chmod(0o755)
    return path
