"""Runs an already built pjdfstest on a plain directory and on mounts of one, and compares them test by test.

    python tests/conformance.py --suite /path/to/pjdfstest [--only rename] [--layer xfs] [--mount "map, open=serve"]

The plain directory says what the kernel and the layer's filesystem do; a test on a mount has to end as it does there.
Prints the table of docs/conformance.md and each deviation; exit status 1 if there is one. Needs root. Builds nothing.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harness import environment, layered, loop_filesystem, mounted, open_directory, run
from harness.leftovers import own_area

FIRST_REAL_ID = 100000
MAP = tuple(f"{kind}mapping={FIRST_REAL_ID}:0:65536" for kind in ("uid", "gid"))
"""Everything that the suite does as one of its ids, root and the nobodies among them, is another's on the layer."""

FILE_LIMIT = 300.0  # seconds; the slowest file sleeps for half a minute
LAYER_MB = 600  # with less, mkfs.ext4 takes blocks of 1 KiB, and symlinks of PATH_MAX do not fit
LINE = 300  # characters of a test's line to print; some name a path of PATH_MAX
PLAN = re.compile(r"1\.\.(\d+)")
RESULT = re.compile(r"(?:not )?ok (\d+)\b")
TO_DO = re.compile(r"# TODO\b")


class Configuration(NamedTuple):
    """How a directory is mounted; `options` is None for the plain directory. An overlay has an empty lower."""

    name: str
    options: tuple[str, ...] | None
    owner: int = 0
    is_overlay: bool = False


def configurations(overlays: bool) -> list[Configuration]:
    """The plain directory first, then every combination of what changes which requests the process sees."""
    found = [Configuration("native", None)]
    if overlays:
        for opening in ("auto", "serve"):
            for mapped in (False, True):
                name = f"overlay, {'map' if mapped else 'no map'}, open={opening}"
                options = (*(MAP if mapped else ()), f"open={opening}")
                found.append(Configuration(name, options, FIRST_REAL_ID if mapped else 0, is_overlay=True))
        return found
    for watching in ("auto", "off"):
        for opening in ("auto", "serve"):
            for mapped in (False, True):
                name = f"{'map' if mapped else 'no map'}, open={opening}, watch={watching}"
                options = (*(MAP if mapped else ()), f"open={opening}", f"watch={watching}")
                found.append(Configuration(name, options, FIRST_REAL_ID if mapped else 0))
    return found


class Results(NamedTuple):
    """What one run said: each test's line by file and number, and which of them begin with `ok`."""

    lines: dict[tuple[str, int], str]
    passed: frozenset[tuple[str, int]]


class Suite:
    """A built suite, or the part of it whose path contains `only`."""

    def __init__(self, root: Path, only: str, layer: str, helpers: Path) -> None:
        program, tests = root / "pjdfstest", root / "tests"
        if not program.is_file() or not tests.is_dir():
            raise SystemExit(f"{root}: not a built pjdfstest (no {program.name} or no tests/ in it); build it first")
        self.files = sorted(path for path in tests.rglob("*.t") if only in str(path.relative_to(tests)))
        if not self.files:
            raise SystemExit(f"--only {only}: no test file's path contains this")
        self._tests = tests
        self._environment = {**environment(), "PATH": f"{_df_that_says(layer, helpers)}:{environment()['PATH']}"}

    def run(self, directory: Path, jobs: int) -> Results:
        """Run all files, each in a directory of its own, `jobs` at a time: most of the time they sleep."""
        lines: dict[tuple[str, int], str] = {}
        with ThreadPoolExecutor(jobs) as pool:
            outputs = pool.map(lambda path: self._run(path, directory), self.files)
            for path, output in zip(self.files, outputs, strict=True):
                name = str(path.relative_to(self._tests))
                lines |= {(name, number): line for number, line in parse(output)}
        return Results(lines, frozenset(test for test, line in lines.items() if line.startswith("ok")))

    def _run(self, path: Path, directory: Path) -> str:
        own = directory / "-".join(path.relative_to(self._tests).parts)
        own.mkdir(mode=0o755)
        return run(["sh", path], cwd=own, env=self._environment, limit=FILE_LIMIT, check=False).stdout


def _df_that_says(kind: str, helpers: Path) -> Path:
    """The suite asks df(1) for the kind of filesystem, and leaves tests out where it does not know that kind. A mount
    is held to all that its layer does, so it is told the layer's kind."""
    program = helpers / "df"
    program.write_text(f"#!/bin/sh\necho 'layer {kind} 1 1 1 1% /'\n")
    program.chmod(0o755)
    return helpers


def parse(output: str) -> Iterator[tuple[int, str]]:
    """The tests of one file, by number. What was planned and not run has failed; so has a file without a plan."""
    planned, found = 1, dict[int, str]()
    for line in output.splitlines():
        if plan := PLAN.fullmatch(line.strip()):
            planned = int(plan[1])
        elif result := RESULT.match(line):
            found[int(result[1])] = line if len(line) <= LINE else f"{line[: LINE // 2]} … {line[-LINE // 2 :]}"
    for number in range(1, max([planned, *found]) + 1):
        yield number, found.get(number, "not ok - planned, and not run")


@contextmanager
def prepared(configuration: Configuration, layer: Path) -> Iterator[Path]:
    """A directory to run in: on the layer itself, or a mount of one."""
    with tempfile.TemporaryDirectory(dir=layer) as name:
        source = Path(name)
        source.chmod(0o755)
        if configuration.options is None:
            yield source
            return
        shutil.chown(source, configuration.owner, configuration.owner)
        if configuration.is_overlay:
            with overlay(source, configuration) as path:
                yield path
            return
        with mounted(source, None, *configuration.options) as mount:
            yield mount.path


@contextmanager
def overlay(place: Path, configuration: Configuration) -> Iterator[Path]:
    """Whatever the suite does is done in the upper; the lower has the directory that it is done in, so that one comes
    up first."""
    lower, upper, work = (place / name for name in ("lower", "upper", "work"))
    for path in (lower, upper, work, lower / "run"):
        path.mkdir()
        path.chmod(0o755)
        shutil.chown(path, configuration.owner, configuration.owner)
    with layered([lower], upper, work, *configuration.options or ()) as mount:
        yield mount.path / "run"


def deviations(native: Results, other: Results) -> list[str]:
    """Tests that begin otherwise on the mount than on the plain directory, with what they say there. So do tests count
    that the suite marks as ones to do, though prove(1) passes them either way: it is the same kernel."""
    differing = sorted(native.passed ^ other.passed)
    return [f"{file}: {other.lines.get((file, number), f'{number} not run')}" for file, number in differing]


def failures(results: Results) -> list[str]:
    """Tests that fail, but for those that the suite marks as ones to do."""
    lines = results.lines.items()
    return [f"{file}: {line}" for (file, _), line in lines if not line.startswith("ok") and not TO_DO.search(line)]


def row(name: str, results: Results, native: Results) -> str:
    total, ok, failed = len(results.lines), len(results.passed), len(failures(results))
    return f"| {name} | {total} | {ok} | {total - ok - failed} | {failed} | {len(deviations(native, results))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True, help="directory in which pjdfstest has been built")
    parser.add_argument("--only", default="", help="only test files whose path contains this: rename, chown/00.t")
    parser.add_argument("--mount", default="", help="only mounts whose name contains this, as the table has it")
    parser.add_argument("--layer", default="ext4", choices=("ext4", "xfs", "btrfs"), help="filesystem beneath")
    parser.add_argument("--overlay", action="store_true", help="on overlays instead of single directories")
    parser.add_argument("--jobs", type=int, default=4, help="test files at a time")
    arguments = parser.parse_args()
    with own_area("conformance"):
        return compare(arguments)


def compare(arguments: argparse.Namespace) -> int:
    native: Results | None = None
    native_failures: list[str] = []
    found: list[str] = []
    suite = Suite(arguments.suite.resolve(), arguments.only, arguments.layer, open_directory("bin-"))
    print(f"| on {arguments.layer} | tests | ok | to do | failed | other than native |\n|---|---|---|---|---|---|")
    with loop_filesystem(arguments.layer, LAYER_MB) as layer:
        for configuration in configurations(arguments.overlay):
            if native is not None and arguments.mount not in configuration.name:
                continue
            with prepared(configuration, layer) as directory:
                results = suite.run(directory, arguments.jobs)
                if native is None:
                    native = results
                    native_failures = [f"{configuration.name}: {line}" for line in failures(native)]
                print(row(configuration.name, results, native), flush=True)
            found += [f"{configuration.name}: {line}" for line in deviations(native, results)]
    print("\n".join([*native_failures, *found]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
