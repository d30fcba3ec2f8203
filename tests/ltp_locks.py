"""Runs LTP's tests of flock(2) and fcntl(2) (linux-test-project/ltp), leases among them, on mounts and natively.

    python tests/ltp_locks.py --suite /path/to/ltp [--only fcntl3] [--mount layers]

Each works in a directory of its own: natively, on mounts of one directory and on overlays, with locks that the kernel
keeps and with those that go to the layers. What fails or is not tried on a mount, and passes natively, is a failure.

Builds nothing of LTP: `make autotools && ./configure && make -C lib`, then `make -C testcases/kernel/syscalls/flock`
and the same for fcntl. Prints a table and each failure; exit status 1 if there is one. Needs root.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from ltp import BAD, SUMMARY

from harness import CommandFailed, Layers, environment, mounted, open_directory, run
from harness.leftovers import own_area

TEST_LIMIT = 120.0  # seconds
OLD = re.compile(r"^\S+\s+\d+\s+T(PASS|FAIL|BROK|CONF)\b", re.MULTILINE)  # of tests of LTP's first interface

PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "native": ("native", ()),
    "mount": ("source", ()),
    "mount, overlay": ("overlay", ()),
    "layers": ("source", ("locks=layers",)),
    "layers, overlay": ("overlay", ("locks=layers",)),
}


class Result(NamedTuple):
    """`passed` is how many checks did; `bad` what was said of others."""

    passed: int
    bad: list[str]


@contextmanager
def place(kind: str, options: tuple[str, ...]) -> Iterator[Path]:
    layers = Layers(open_directory("layers-"))
    with ExitStack() as stack:
        if kind == "native":
            yield layers.lower
        elif kind == "source":
            yield stack.enter_context(mounted(layers.lower, None, *options)).path
        else:
            yield stack.enter_context(layers.mount(*options)).path


def tried(program: Path, directory: Path) -> Result:
    env = {**environment(), "TMPDIR": str(directory), "LTP_COLORIZE_OUTPUT": "n"}
    directory.chmod(0o777)
    try:
        done = run([program], env=env, check=False, limit=TEST_LIMIT)
    except CommandFailed as failure:
        return Result(0, [str(failure)])
    said = done.stdout + done.stderr
    counts = {word: int(count) for word, count in SUMMARY.findall(said)}
    passed = counts.get("passed", 0) + OLD.findall(said).count("PASS")
    bad = BAD.findall(said)
    return Result(passed, bad if passed or bad else [f"it came to no end: {said[-500:]}"])


def programs(suite: Path, only: str) -> list[Path]:
    found = []
    for directory in ("flock", "fcntl"):
        sources = sorted((suite / "testcases/kernel/syscalls" / directory).glob(f"{directory}[0-9]*.c"))
        found += [path for source in sources if (path := source.with_suffix("")).is_file() and only in path.name]
    if not found:
        raise SystemExit(f"{suite}: has no such tests; build them first, as --help says")
    return found


def compare(suite: Path, only: str, mount: str) -> int:
    tests = programs(suite, only)
    natively: dict[str, Result] = {}
    failures: list[str] = []
    print("| on | tests | checks that passed | natively | other than natively |\n|---|---|---|---|---|")
    for name, (kind, options) in PLACES.items():
        if kind != "native" and mount not in name:
            continue
        with place(kind, options) as directory:
            results = {program.name: tried(program, directory) for program in tests}
        natively = natively or results
        other = [test for test, result in results.items() if is_worse(natively[test], result)]
        failures += [f"{name}: {test}: {word}" for test in other for word in results[test].bad or ["fewer checks"]]
        passed, before = (sum(one.passed for one in each.values()) for each in (results, natively))
        print(f"| {name} | {len(tests)} | {passed} | {before} | {len(other)} |", flush=True)
    print("\n".join(failures))
    return 1 if failures else 0


def is_worse(native: Result, result: Result) -> bool:
    return result.passed < native.passed or len(result.bad) > len(native.bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True, help="directory in which LTP has been built")
    parser.add_argument("--only", default="", help="only tests whose names contain this")
    parser.add_argument("--mount", default="", help="only mounts whose names contain this, as the table has them")
    arguments = parser.parse_args()
    with own_area("ltp-locks"):
        return compare(arguments.suite.resolve(), arguments.only, arguments.mount)


if __name__ == "__main__":
    sys.exit(main())
