"""What a process that serves does about garbage."""

import subprocess
import sys
import textwrap
from pathlib import Path

from harness import environment

PROGRAM = """
    import os, sys
    from shiftfs.interpreter import Interpreter
    from shiftfs.tree import Descriptor

    def failing(held):
        try:
            raise OSError(5, "cycle")
        except OSError as error:
            kept = error  # the frame keeps the error, and that the frame

    interpreter = Interpreter()
    for number in range({before}):
        interpreter.tick()
    failing(Descriptor(os.open("/", os.O_PATH), os.close))
    held = len(os.listdir("/proc/self/fd"))
    interpreter.tick()
    sys.exit(10 + held - len(os.listdir("/proc/self/fd")))
"""

OLD = """
    import os, sys, time
    from shiftfs.interpreter import Interpreter
    from shiftfs.tree import Descriptor

    class Old:
        def __init__(self):
            self.itself = self
            self.held = Descriptor(os.open("/", os.O_PATH), os.close)

    interpreter = Interpreter()
    held = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        old = Old()
        for tick in range(20):
            interpreter.tick()
        del old
        interpreter.much_has_gone()
        end = time.monotonic() + 20
        while interpreter.tick() and time.monotonic() < end:
            time.sleep(0.01)
    sys.exit(len(os.listdir("/proc/self/fd")) - held)
"""


def test_ticks_go_on_until_what_was_known_for_long_is_closed(tmp_path: Path) -> None:
    """Again and again, where little is known and a look at all is soon done."""
    program = textwrap.dedent(OLD)
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(), timeout=60, check=False)
    assert ended.returncode == 0, "descriptors that are left"


def test_a_tick_closes_what_an_error_has_kept(tmp_path: Path) -> None:
    """Whichever tick it is. In a process of its own: the settings are those of the whole interpreter."""
    for before in range(6):
        program = textwrap.dedent(PROGRAM.format(before=before))
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, cwd=tmp_path, env=environment(), timeout=30, check=False)
        assert ended.returncode == 10 + 1, "descriptors that have been closed"
