"""shiftfs beside the native directory, the kernel's overlayfs, and other FUSE filesystems, all in one run.

Run as root, in the checkout, with what setup.cfg's `[bench]` names (`make bench` sees to all of it):

    python -m bench                          everything, 5 rounds: two hours
    python -m bench --quick                  less of everything, one round: ten minutes
    python -m bench --targets                what the targets are about, and whether they hold
    python -m bench --only lookup,files      groups, or jobs by a part of their name: --only "cold stat"
    python -m bench --peers fuse-overlayfs --ours "shiftfs overlay"
    python -m bench --checkout ../before     another checkout's shiftfs as well: did a change pay?
    python -m bench --json NEW.json          keep the result, and later:
    python -m bench compare OLD.json NEW.json
    python -m bench show NEW.json --targets --plot charts --document docs/performance.md
    python -m bench requests                 does anything cost more requests than it did? (seconds)

To see whether a change pays, measure both versions in one run (`git worktree add ../before HEAD~1`), since the machine
is another one each minute: rounds are interleaved, so that both see the same.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.leftovers import own_area

from . import charts, compare, document, exact, micro, mounts
from .jobs import FULL, QUICK, MicroJob, Scale
from .machine import machine
from .results import Results, joined, load, save
from .running import Runner, Turn, measurements, micro_subjects
from .subjects import SUBJECTS, Subject, chosen, rival
from .targets import TARGETS, judge


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["compare"]:
        return compare.main(argv[1:])
    if argv[:1] == ["requests"]:
        return exact.main(argv[1:])
    arguments = _arguments(argv)
    if argv[:1] == ["show"]:
        try:
            results = joined([load(path) for path in arguments.run])
        except (OSError, ValueError) as error:
            sys.exit(str(error))
    elif os.geteuid() != 0:
        sys.exit("caches are dropped and filesystems mounted: only root can do that")
    else:
        results = measure(arguments)
        if arguments.json:
            save(results, arguments.json)
    _show(results, arguments)
    if not results.is_whole:
        return 130
    return 1 if any(row.failed and row.subject in results.ours for row in results.rows) else 0


def _show(results: Results, arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from .table import print_results, print_targets

    console = Console(width=None if sys.stdout.isatty() else 240)
    print_results(results, console)
    if arguments.targets:
        print_targets(judge(results), console)
    drawn = charts.draw(results, arguments.plot) if arguments.plot else {}
    for path in (path for paths in drawn.values() for path in paths):
        console.print(f"{path}.svg, .png", highlight=False)
    if arguments.document:
        document.write(results, arguments.document, drawn)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if argv[:1] == ["show"]:
        parser.add_argument("show", choices=["show"])
        parser.add_argument("run", metavar="FILE.json", type=Path, nargs="+", help="several: as one run of more rounds")
    else:
        _add_choices(parser)
    parser.add_argument("--targets", action="store_true", help="whether they hold; only what they need is measured")
    parser.add_argument("--plot", metavar="DIR", type=Path, help="charts, SVG and PNG")
    parser.add_argument("--document", metavar="FILE", type=Path, help="docs/performance.md, whose tables are replaced")
    return parser.parse_args(argv)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="less of everything, one round unless --rounds says more")
    parser.add_argument("--only", metavar="WORD,...", help="groups, or jobs whose name has one of these in it")
    parser.add_argument("--peers", metavar="NAME,...", help="of those that are no shiftfs; none: none but native")
    parser.add_argument("--ours", metavar="NAME,...", help="of the ways to mount shiftfs")
    parser.add_argument("--checkout", metavar="DIR", action="append", default=[], help="of another shiftfs, as well")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--directory", default="/var/tmp", help="where everything is made; default: %(default)s")
    parser.add_argument("--json", metavar="FILE", type=Path, help="the result")


def measure(arguments: argparse.Namespace) -> Results:
    """Everything that was asked for."""
    scale = QUICK if arguments.quick else FULL
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    checkouts = [str(Path(checkout).resolve()) for checkout in arguments.checkout]
    try:
        subjects, left_out = chosen(arguments.peers, arguments.ours, checkouts)
    except ValueError as error:
        sys.exit(str(error))
    turns, micros = select(scale, arguments.only, arguments.targets)
    if not turns and not micros:
        sys.exit(f"nothing is named {arguments.only}; groups are {', '.join([*mounts.GROUPS, *micro.GROUPS])}")
    return _run(scale, rounds, subjects, left_out, turns, micros, arguments.directory)


def select(scale: Scale, only: str | None, targets: bool) -> tuple[list[Turn], list[tuple[str, MicroJob]]]:
    """What was asked for by name, or what the targets need."""
    turns = [Turn(group, job) for group, jobs in mounts.GROUPS.items() for job in jobs(scale)]
    micros = [(group, job) for group, jobs in micro.GROUPS.items() for job in jobs()]
    if targets:
        needed = {(target.group, job) for target in TARGETS for job in target.jobs}
        turns, micros = [turn for turn in turns if (turn.group, turn.job.name) in needed], []
    if only:
        words = only.split(",")
        turns = [turn for turn in turns if _is_named(turn.group, turn.job.name, words)]
        micros = [(group, job) for group, job in micros if _is_named(group, job.name, words)]
    return turns, micros


def _is_named(group: str, job: str, words: Sequence[str]) -> bool:
    return any(word == group or word in job for word in words)


def _run(
    scale: Scale,
    rounds: int,
    subjects: Sequence[Subject],
    left_out: dict[str, str],
    turns: Sequence[Turn],
    micros: Sequence[tuple[str, MicroJob]],
    directory: str,
) -> Results:
    from .progress import bar

    tempfile.tempdir = directory
    programs = list(dict.fromkeys(subject.program for subject in SUBJECTS if subject.program.isprintable()))
    results = Results(
        machine(Path(directory), [name for name in programs if "/" not in name and name != "mount"]),
        scale.name,
        rounds,
        left_out,
        [subject.name for subject in subjects if subject.ours],
        {subject.name: rival(subject) for subject in subjects},
    )
    for turn in turns:
        if turn.job.needs and not shutil.which(turn.job.needs):
            left_out[turn.label] = f"{turn.job.needs} is not on this machine"
    total = measurements(turns, subjects, rounds) + (rounds * len(micro_subjects()) if micros else 0)
    with own_area("bench") as area, bar(total) as progress:
        runner = Runner(area, scale, rounds, progress)
        try:
            runner.run_micro(micros)
            runner.run(turns, subjects)
        except KeyboardInterrupt:
            results.is_whole = False  # two hours are not thrown away
        finally:
            runner.end()
    results.rows, results.loads = runner.rows, runner.loads
    return results


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
