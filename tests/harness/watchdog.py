"""A process beside the run that aborts its FUSE connections when a test does not end.

A test that waits for a filesystem which does not answer heeds no signal but SIGKILL, and one that does so
over a mapped page stops every thread of its process: so only another process can help. Once aborted, the wait
ends with an error, and the test fails by its timeout.

Reads lines from standard input: the number of seconds from now after which to act, 0 for never. When its
input ends, as it does when the run is killed, it removes what the run has left mounted, and ends.
"""

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from harness.commands import environment
from harness.leftovers import mounts_of, remove_all
from harness.mounts import abort_connection


class Watchdog:
    """The run's side: starts the process and sets its alarm."""

    def __init__(self, area: Path) -> None:
        directory = str(Path(__file__).parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "import harness.watchdog as it; it.watch()", area],
            stdin=subprocess.PIPE,
            # The commands that it runs are given shiftfs as well, which may be a checkout that is not installed.
            env={**os.environ, "PYTHONPATH": f"{directory}:{environment()['PYTHONPATH']}"},
            start_new_session=True,  # an interrupt from the keyboard is for the run
        )

    def alarm(self, seconds: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n".encode())
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def watch() -> None:
    area = Path(sys.argv[1])
    deadline = 0.0
    while True:
        left = max(0.0, deadline - time.monotonic()) if deadline else None
        if select.select([0], [], [], left)[0]:
            lines = os.read(0, 4096).splitlines()
            if not lines:
                break
            seconds = float(lines[-1])
            deadline = time.monotonic() + seconds if seconds else 0.0
        else:
            deadline = 0.0
            _abort_all(area)
    for found in remove_all(area):
        print(f"watchdog: removed {found}", file=sys.stderr, flush=True)


def _abort_all(area: Path) -> None:
    for entry in mounts_of(area):
        if entry.kind.startswith("fuse"):
            print(f"watchdog: aborts the mount at {entry.path}", file=sys.stderr, flush=True)
            abort_connection(entry.device)
