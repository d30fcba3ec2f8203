"""Runs unionmount-testsuite (amir73il/unionmount-testsuite) on overlays, each of its tests by itself.

    python tests/unionmount.py --suite /path/to/unionmount-testsuite [--only rename] [--configuration "ov=10"]...

The suite mounts, as root, at fixed paths in the root directory, runs a program that it finds in the system's own
path, and stops at its first failure. So each test gets a root directory, a mount namespace and a pid namespace of its
own: nothing of it is seen, or left, outside. Prints the table of docs/conformance.md and each failure; exit status 1
if there is one. Needs root. `--kind kernel` and `--kind fuse-overlayfs` say what others make of the same tests.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harness import CommandFailed, environment, run
from harness.leftovers import own_area

TEST_LIMIT = 600.0  # seconds; with ten layers some mount more than a hundred times

# Type of filesystem, as /proc/mounts shows it, and the suite's words for it.
KINDS = {
    "shiftfs": ("fuse.shiftfs", ["--fuse=shiftfs"]),
    "fuse-overlayfs": ("fuse.fuse-overlayfs", ["--fuse=fuse-overlayfs"]),
    "kernel": ("overlay", []),
}


class Configuration(NamedTuple):
    """Words for the suite, before and after those of the kind, and mount options instead of `rw`."""

    overlay: str = "--ov"
    words: tuple[str, ...] = ()
    options: str = ""


CONFIGURATIONS = {
    "plain": Configuration(),
    "samefs": Configuration(words=("--samefs",)),
    "maxfs=2": Configuration(words=("--maxfs=2",)),
    "ts=1": Configuration(words=("--ts=1",)),
    "verify": Configuration(words=("--verify",)),
    "ov=10": Configuration("--ov=10"),
    # Only with these two together does the suite compare inode numbers from before a remount and after it.
    "ov=10 verify": Configuration("--ov=10", ("--verify",)),
    "ov=10 samefs verify": Configuration("--ov=10", ("--samefs", "--verify")),
    "ov=10 maxfs=2 verify": Configuration("--ov=10", ("--maxfs=2", "--verify")),
    "xdev": Configuration(words=("--xdev",), options="redirect_dir=off"),
}

# In the suite's own program: the tests for all, those of directories that cannot be renamed, and of those that can.
LIST = re.compile(r"^ *tests \+?= \[(.*?)\]", re.MULTILINE | re.DOTALL)
NAME = re.compile(r'"([\w-]+)"')

# Runs a command amid the root's directories, save those which the suite mounts on: these are new and empty. First in
# the path that mount(8) gives its helpers stand the programs in $2, in place of an installed helper too. The shell
# stays as the first process, and reaps what the mounts leave; with it everything else ends.
IN_OWN_ROOT = r"""
set -eu
root=$1 programs=$2 kind=$3
shift 3
mount -t tmpfs -o mode=0755 unionmount "$root"
mount --make-unbindable "$root"
for path in /*; do
    case $path in
        /base|/lower|/upper|/mnt) continue ;;
        /proc) mkdir "$root/proc"; mount -t proc proc "$root/proc"; continue ;;
    esac
    if [ -L "$path" ]; then
        cp -P "$path" "$root$path"
    elif [ -d "$path" ]; then
        mkdir "$root$path"
        mount --rbind "$path" "$root$path"
    fi
done
mkdir "$root/base" "$root/lower" "$root/upper" "$root/mnt"
# Of tmpfs it drops nothing, of the rest of the machine all.
mount --bind /dev/null "$root/proc/sys/vm/drop_caches"
mount --bind "$programs" "$root/usr/local/sbin"
cd "$root"
pivot_root . .
umount -l .
cd /
helper=mount.fuse.shiftfs
[ ! -e /sbin/$helper ] || mount --bind /usr/local/sbin/$helper /sbin/$helper
"$@" &
wait $!
# The suite leaves its last overlay mounted.
if ! grep -q " $kind " /proc/self/mounts; then
    echo "nothing of kind $kind is mounted at the end" >&2
    exit 1
fi
"""

# What mount(8) runs: the shiftfs that this program imports, from a checkout or installed.
PROGRAM = """\
#!{python} -P
import sys
sys.path.insert(0, {path!r})
from shiftfs.__main__ import main
sys.exit(main())
"""


class Suite:
    """The suite's tests whose names contain `only`, and what runs one of them."""

    def __init__(self, root: Path, only: str, kind: str, area: Path) -> None:
        self._runner = root / "run"
        try:
            lists = [NAME.findall(names) for names in LIST.findall(self._runner.read_text())]
            self._common, self._without, self._with = lists
        except (OSError, ValueError):
            raise SystemExit(f"{root}: not unionmount-testsuite (no program `run` with its lists of tests)") from None
        self._only = only
        self._type, self._words = KINDS[kind]
        self._root = area / "root"
        self._root.mkdir()
        self._programs = _programs(area / "programs")

    def tests(self, configuration: Configuration) -> list[str]:
        """All that the suite itself would run so, in its order."""
        names = self._common + (self._without if "--xdev" in configuration.words else self._with)
        found = [name for name in names if self._only in name]
        if not found:
            raise SystemExit(f"--only {self._only}: no test's name contains this")
        return found

    def run(self, configuration: Configuration, options: str, test: str) -> str:
        """Why the test failed, in one line; empty where it passed."""
        command = [sys.executable, str(self._runner), configuration.overlay]
        command += [*self._words, *configuration.words, test]
        given = ",".join(filter(None, ["rw", configuration.options, options]))
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "UNIONMOUNT"))}
        variables |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "UNIONMOUNT_MNTOPTIONS": given}
        try:
            done = run(self._in_own_root(command), env=variables, limit=TEST_LIMIT, check=False, cwd="/")
        except CommandFailed as failure:
            return _last_lines(str(failure), f"did not end within {TEST_LIMIT:g} s")
        if done.returncode == 0 and "TEST " in done.stdout:
            return ""
        return _last_lines(done.stdout, _complaint(done.stderr) or f"exit status {done.returncode}")

    def _in_own_root(self, command: Sequence[str]) -> list[str]:
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        arguments = [str(self._root), str(self._programs), self._type]
        return [*namespaces, "sh", "-c", IN_OWN_ROOT, "sh", *arguments, *command]


def _programs(directory: Path) -> Path:
    directory.mkdir()
    text = PROGRAM.format(python=sys.executable, path=environment()["PYTHONPATH"])
    for name in ("shiftfs", "mount.fuse.shiftfs"):
        program = directory / name
        program.write_text(text)
        program.chmod(0o755)
    return directory


def _complaint(errors: str) -> str:
    """The suite's last words; where these are an exception of its own, after those of the command that caused it."""
    command, _, trace = errors.rpartition("Traceback (most recent call last):")
    lines = [text.strip().splitlines()[-1:] for text in (command, trace)]
    return ": ".join(line for last in lines for line in last)


def _last_lines(output: str, reason: str) -> str:
    """The subtest that ran last and its last step, with the reason for which it ended."""
    lines = [line.strip() for line in output.splitlines()]
    subtest = [line for line in lines if line.startswith("TEST ")][-1:]
    step = [line for line in lines if line.startswith(("./run --", "- rmtree"))][-1:]
    return " | ".join([*subtest, *step, reason])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True, help="a checkout of unionmount-testsuite")
    parser.add_argument("--only", default="", help="only tests whose name contains this: rename, hard-link-sym")
    parser.add_argument("--configuration", action="append", choices=CONFIGURATIONS, help="only this one; repeatable")
    parser.add_argument("--kind", default="shiftfs", choices=KINDS, help="what mounts the overlays")
    parser.add_argument("--options", default="", help="mount options besides: timeout=3600,open=serve")
    parser.add_argument("--jobs", type=int, default=2, help="tests at a time")
    arguments = parser.parse_args()
    with own_area("unionmount") as area:
        return table(arguments, area)


def table(arguments: argparse.Namespace, area: Path) -> int:
    suite = Suite(arguments.suite.resolve(), arguments.only, arguments.kind, area)
    failures: list[str] = []
    print(f"| {arguments.kind} | tests | passed | failed |\n|---|---|---|---|")
    for name in arguments.configuration or CONFIGURATIONS:
        configuration = CONFIGURATIONS[name]
        tests = suite.tests(configuration)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            reasons = list(pool.map(partial(suite.run, configuration, arguments.options), tests))
        failed = [f"{name}: {test}: {reason}" for test, reason in zip(tests, reasons, strict=True) if reason]
        print(f"| {name} | {len(tests)} | {len(tests) - len(failed)} | {len(failed)} |", flush=True)
        failures += failed
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
