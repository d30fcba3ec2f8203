"""What a process that serves does about garbage."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

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
    sys.exit(held - len(os.listdir("/proc/self/fd")))
"""


def test_a_tick_closes_what_an_error_has_kept(tmp_path: Path) -> None:
    """Whichever tick it is. In a process of its own: the settings are those of the whole interpreter."""
    for before in range(6):
        program = textwrap.dedent(PROGRAM.format(before=before))
        ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ, timeout=30, check=False)
        assert ended.returncode == 1, "descriptors that have been closed"
