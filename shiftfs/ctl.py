"""`shiftfsctl`: ask a running mount, and put the mount(8) helpers in place.

Owns the command line, the words for people and the exit status; asking.py talks to the mount.
"""

import argparse
import functools
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from . import __version__, events
from .asking import CtlError, ask

_HELPERS = ("mount.shiftfs", "mount.fuse.shiftfs")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names are bytes of any kind
    try:
        _run(arguments)
        print(end="", flush=True)
    except KeyboardInterrupt:
        events.abandon_output()
        return 130
    except events.BadTime as error:
        return _complain(str(error), 2)
    except CtlError as error:
        return _complain(str(error), 1)
    except BrokenPipeError:  # who reads has had enough
        events.abandon_output()
    except OSError as error:
        events.abandon_output()
        return _complain(f"standard output: {error.strerror}; give it a place that can be written", 1)
    return 0


def _complain(message: str, code: int) -> int:
    print(f"shiftfsctl: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shiftfsctl", description="Ask running shiftfs mounts.")
    parser.add_argument("-V", "--version", action="version", version=f"shiftfsctl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("status", "what is mounted how"),
        ("stats", "counts and latency of each operation"),
        ("locks", "who holds locks that the mount serves (locks=layers)"),
        ("events", "what changed in the layers"),
    ):
        asking = commands.add_parser(name, help=what, description=what)
        asking.add_argument("mount", metavar="MOUNT")
        asking.add_argument("--json", action="store_true", help="as the mount gives it")
    asking.add_argument("--follow", action="store_true", help="go on until the mount ends")
    asking.add_argument("--since", metavar="TIME", help="2026-01-31T12:00:00, 12:00, unix seconds, or 5m ago")
    helping = commands.add_parser(
        "install-helpers", help="let `mount -t shiftfs` and `mount -t fuse.shiftfs` find this shiftfs"
    )
    helping.add_argument("--directory", default="/sbin", help="where mount(8) looks (default: /sbin)")
    marking = commands.add_parser("mark", help="let users mount a directory in their user namespaces, for good")
    marking.add_argument("directory", metavar="DIR")
    marking.add_argument("--users", metavar="USER[:...]", help="only those (default: everybody)")
    marking.add_argument("--ro", action="store_true", help="read-only")
    marking.add_argument(
        "--locks", choices=("layers", "mount"), default="layers",
        help="locks of all mounts of DIR and of the host meet (layers, the default), or of each mount alone"
    )  # fmt: skip
    marking.add_argument("--allow-exposed", action="store_true", help="though others than root can come to DIR")
    unmarking = commands.add_parser("unmark", help="take that back; what is mounted stays")
    unmarking.add_argument("directory", metavar="DIR")
    listing = commands.add_parser("marks", help="what is marked for good")
    listing.add_argument("--json", action="store_true")
    commands.add_parser("serve", help="serve what is marked for good, in the foreground")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    """Raises CtlError, BadTime, OSError of standard output."""
    if arguments.command == "install-helpers":
        install_helpers(arguments.directory, _program())
    elif arguments.command in ("mark", "unmark", "marks", "serve"):
        from . import marks  # not for those who only ask

        try:
            marks.run(arguments)
        except marks.MarkError as error:
            raise CtlError(str(error)) from None
    elif arguments.command == "events":
        when = 0.0 if arguments.since is None else events.moment(arguments.since, time.time())
        asking = functools.partial(ask, arguments.mount, "events")
        events.show(asking, when, as_json=arguments.json, follow=arguments.follow)
    else:
        report = ask(arguments.mount, arguments.command)
        print(report if arguments.json else _readable(json.loads(report)))


def _readable(report: dict[str, Any]) -> str:
    lines = []
    for key, value in report.items():
        if key == "requests":
            lines.append(f"{'operation':<20}{'count':>10}{'errors':>8}{'mean us':>10}{'max us':>10}")
            lines += [
                f"{name:<20}{c['count']:>10}{c['errors']:>8}{c['mean_us']:>10}{c['max_us']:>10}"
                for name, c in value.items()
            ]
        elif isinstance(value, dict):
            lines += [f"{key}.{name}: {_word(item)}" for name, item in value.items()]
        elif isinstance(value, list):
            lines += [f"{key}: " + ", ".join(f"{k} {_word(v)}" for k, v in item.items()) for item in value]
        else:
            lines.append(f"{key}: {_word(value)}")
    return "\n".join(lines)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return " ".join(value) if isinstance(value, list) else str(value)


def _program() -> str:
    """The shiftfs beside this shiftfsctl."""
    program = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "shiftfs")
    if not os.access(program, os.X_OK):
        raise CtlError(f"{program}: there is no shiftfs beside this shiftfsctl; install the package first")
    return program


def install_helpers(directory: str, program: str) -> None:
    """Links by which mount(8) runs us. Raises CtlError."""
    for name in _HELPERS:
        path = os.path.join(directory, name)
        try:
            if os.path.lexists(path):
                if not os.path.islink(path):
                    raise CtlError(f"{path}: is not a link of ours; remove it first")
                os.unlink(path)
            os.symlink(program, path)
        except OSError as error:
            raise CtlError(f"{path}: {error.strerror}; run it as root, or give --directory") from None
        print(f"{path} -> {program}")


if __name__ == "__main__":
    sys.exit(main())
