"""What a measurement was made on, in a few lines to stand above it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import shiftfs


def machine(*programs: str) -> str:
    """Load, kernel, processor, memory; the versions of shiftfs and of `programs`, as they tell themselves."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    versions = [f"shiftfs {shiftfs.__version__}", *filter(None, map(_version, programs))]
    return (
        f"load {os.getloadavg()[0]:.1f}, kernel {os.uname().release}, {os.cpu_count()} cores ({_processor()}), "
        f"{memory:.0f} GiB\n{', '.join(versions)}"
    )


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else os.uname().machine


def _version(program: str) -> str:
    if not shutil.which(program):
        return ""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    found = re.search(rf"{re.escape(program)}\S*\s+(?:version\s+)?(\d[\w.]*)", said)
    return f"{program} {found[1] if found else '(of unknown version)'}"
