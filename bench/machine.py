"""What a measurement was made on: kernel, processor, memory, filesystem, load, versions."""

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import shiftfs


def machine(directory: Path, programs: Sequence[str]) -> dict[str, Any]:
    """As it is now; programs that are not there have no version."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "kernel": os.uname().release,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
        "filesystem": _filesystem(directory),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "idle": how_idle(),
        "versions": {"shiftfs": _own_version()}
        | {program: _version(program) for program in programs if shutil.which(program)},
    }


def described(found: dict[str, Any]) -> str:
    """Two lines to stand above results."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    processor = f"{found['cores']} cores ({found['processor']}), {found['memory_gib']:.0f} GiB"
    return (
        f"{found['date']} UTC, load {found['load']:.1f}, Linux {found['kernel']}, {processor}, "
        f"{found['filesystem']}, idle processors: {found.get('idle', 'not told')}, Python {found['python']}\n{versions}"
    )


def _own_version() -> str:
    """With the commit of the checkout, and whether there are compiled parts."""
    where = str(Path(shiftfs.__file__).parent)
    command = ["git", "-C", where, "-c", "safe.directory=*", "describe", "--always", "--dirty"]
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    parts = "with compiled parts" if find_spec("shiftfs._native") else "all Python"
    return f"{shiftfs.__version__} ({', '.join(filter(None, (commit, parts)))})"


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else os.uname().machine


def how_idle(cpuidle: Path = Path("/sys/devices/system/cpu/cpuidle"), modules: Path = Path("/sys/module")) -> str:
    """How processors wait that have nothing to do: to wake one is much of what a request costs on a virtual machine."""
    try:
        driver = (cpuidle / "current_driver").read_text().strip()
    except OSError:
        return "as the kernel has it"
    polls = modules / "haltpoll/parameters/guest_halt_poll_ns"
    return f"haltpoll, {polls.read_text().strip()} ns" if driver == "haltpoll" and polls.exists() else driver


def _filesystem(path: Path) -> str:
    command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    said = done.stdout + done.stderr
    found = re.search(rf"{re.escape(program)}\S*?[:\s-]+(?:version:?\s+)?(\d[\w.]*)", said)
    return found[1] if found else "of unknown version"
