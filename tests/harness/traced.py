"""What a running process calls, by strace. Disturbs nothing, as harness/faults.py does."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.commands import EXIT_LIMIT, wait_until


@contextmanager
def traced(pid: int, calls: str, log: Path, *options: str) -> Iterator[None]:
    """All threads of a process, for as long as the body lasts; `calls` as `strace -e trace=` has them."""
    command = ["strace", "-f", *options, "-o", str(log), "-e", f"trace={calls}", "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
        try:
            status = Path(f"/proc/{pid}/status")
            wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), "strace to attach")
            yield
        finally:
            tracer.terminate()
            tracer.wait(EXIT_LIMIT)
