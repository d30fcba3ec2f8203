"""Runs LTP's inotify07 and inotify08 (linux-test-project/ltp) on overlays of shiftfs instead of the kernel's.

    python tests/ltp.py --suite /path/to/ltp [--only inotify08] [--kind kernel] [--option watch=inotify]...

The tests mount an overlay by mount(2); a library that is loaded before libc runs shiftfs for that instead. Each test
runs as it is, which lets the kernel drop its caches, and once more where dropping them does nothing; and each with
layers that are watched and with some that are not.

inotify08 touches the upper behind the mount, and holds that nobody hears of it. That nobody does is the kernel's
overlay; shiftfs tells what changes in the upper. Such events, after all that the test waits for, are counted by
themselves, and are no failure where layers are watched.

Builds nothing of LTP: `make autotools && ./configure && make -C lib && make -C testcases/kernel/syscalls/inotify`.
Prints a table and each failure; exit status 1 if there is one. Needs root, gcc, and a free loop device.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness import CommandFailed, environment, run
from harness.leftovers import own_area

TESTS = ("inotify07", "inotify08")
TEST_LIMIT = 120.0  # seconds

SUMMARY = re.compile(r"^(passed|failed|broken|skipped|warnings)\s+(\d+)$", re.MULTILINE)
BAD = re.compile(r"^.*\b(?:TFAIL|TBROK|TCONF|TWARN)\b.*$", re.MULTILINE)
# ATTRIB, OPEN and CLOSE_WRITE: what touch(1) does.
OF_THE_UPPER = re.compile(r"TFAIL: get unnecessary event: wd=\d+ mask=000000(?:04|08|20) cookie=0 +len=0")

# What LTP finds in place of mount(2). The data of an overlay's mount are options that shiftfs takes as well.
LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)
{
    char options[4096];
    int status;
    pid_t child;

    if (!type || strcmp(type, "overlay")) {
        int (*other)(const char *, const char *, const char *, unsigned long, const void *) = dlsym(RTLD_NEXT, "mount");
        return other(source, target, type, flags, data);
    }
    snprintf(options, sizeof options, "%s%s", (const char *)data, getenv("SHIFTFS_OPTIONS"));
    child = fork();
    if (child == 0) {
        unsetenv("LD_PRELOAD");
        execl(getenv("SHIFTFS_PROGRAM"), "shiftfs", "-o", options, "overlay", target, (char *)0);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0 || status) {
        errno = EINVAL;
        return -1;
    }
    return 0;
}
"""

# The shiftfs that this program imports, from a checkout or installed.
PROGRAM = """\
#!{python} -P
import sys
sys.path.insert(0, {path!r})
from shiftfs.__main__ import main
sys.exit(main())
"""

# Runs $2 amid mounts of its own; with `kept` for $1 no cache is dropped.
IN_OWN_MOUNTS = r"""
set -eu
[ "$1" = dropped ] || mount --bind /dev/null /proc/sys/vm/drop_caches
shift
exec "$@"
"""


class Result(NamedTuple):
    counts: dict[str, int]
    failures: list[str]
    of_the_upper: int


class Suite:
    """The built tests, and what runs one of them."""

    def __init__(self, root: Path, kind: str, area: Path) -> None:
        self._tests = root / "testcases/kernel/syscalls/inotify"
        for name in TESTS:
            if not (self._tests / name).is_file():
                raise SystemExit(f"{self._tests / name}: is not there; build LTP first, as --help says")
        self._environment = {**environment(), "TMPDIR": str(area), "LTP_COLORIZE_OUTPUT": "n"}
        if kind == "shiftfs":
            self._environment |= _loaded_first(area)

    def run(self, name: str, caches: str, options: Sequence[str]) -> Result:
        own = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_OWN_MOUNTS, "sh", caches]
        env = {**self._environment, "SHIFTFS_OPTIONS": "".join(f",{option}" for option in options)}
        try:
            result = run([*own, self._tests / name], env=env, check=False, limit=TEST_LIMIT)
        except CommandFailed as failure:
            return Result({}, [str(failure)], 0)
        said = result.stdout + result.stderr
        counts = {word: int(count) for word, count in SUMMARY.findall(said)}
        upper = len(OF_THE_UPPER.findall(said)) if name == "inotify08" and "watch=off" not in options else 0
        bad = [line for line in BAD.findall(said) if not (upper and OF_THE_UPPER.search(line))]
        if not counts:
            bad.append(f"it came to no end: {said[-2000:]}")
        elif not counts["passed"]:
            bad.append("nothing passed")
        return Result(counts, bad, upper)


def _loaded_first(area: Path) -> dict[str, str]:
    """What lets a program's mounts of overlays be shiftfs's."""
    source, library, program = area / "mount.c", area / "mount.so", area / "shiftfs"
    source.write_text(LIBRARY)
    run(["gcc", "-shared", "-fPIC", "-O", "-Wall", "-Werror", "-o", library, source, "-ldl"])
    program.write_text(PROGRAM.format(python=sys.executable, path=environment()["PYTHONPATH"]))
    program.chmod(0o755)
    return {"LD_PRELOAD": str(library), "SHIFTFS_PROGRAM": str(program)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True, help="directory in which LTP has been built")
    parser.add_argument("--only", default="", help="only tests whose names contain this")
    parser.add_argument("--kind", choices=("shiftfs", "kernel"), default="shiftfs", help="what is mounted")
    parser.add_argument("--option", action="append", default=[], metavar="OPTION", help="a mount option in addition")
    arguments = parser.parse_args()
    with own_area("ltp") as area:
        suite = Suite(arguments.suite.resolve(), arguments.kind, area)
        watched = [[], ["watch=off"]] if arguments.kind == "shiftfs" else [[]]
        return report(suite, arguments.only, [[*arguments.option, *options] for options in watched])


def report(suite: Suite, only: str, configurations: list[list[str]]) -> int:
    failures: list[str] = []
    print("| test | options | caches | passed | failed | of the upper |\n|---|---|---|---|---|---|")
    for name in (name for name in TESTS if only in name):
        for options in configurations:
            for caches in ("dropped", "kept"):
                result = suite.run(name, caches, options)
                words = [name, " ".join(options), caches, result.counts.get("passed", 0)]
                print("|", " | ".join(map(str, [*words, len(result.failures), result.of_the_upper])), "|", flush=True)
                failures += [f"{name}, {' '.join(options)}, caches {caches}: {line}" for line in result.failures]
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
