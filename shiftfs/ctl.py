"""`shiftfsctl`: ask a running mount, and put the mount(8) helpers in place.

Talks to a mount by a private ioctl on its root, so no socket, no name and no namespace is between. Owns nothing.
"""

import argparse
import errno
import fcntl
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__
from .ops.control import REPORT, REPORT_IN, REPORT_OUT, REPORT_SIZE, REPORTS

_HELPERS = ("mount.shiftfs", "mount.fuse.shiftfs")


class CtlError(Exception):
    """One line for standard error."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="shiftfsctl", description="Ask running shiftfs mounts.")
    parser.add_argument("-V", "--version", action="version", version=f"shiftfsctl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("status", "what is mounted how"), ("stats", "counts and latency of each operation")):
        asking = commands.add_parser(name, help=what, description=what)
        asking.add_argument("mount", metavar="MOUNT")
        asking.add_argument("--json", action="store_true", help="as the mount gives it")
    helping = commands.add_parser(
        "install-helpers", help="let `mount -t shiftfs` and `mount -t fuse.shiftfs` find this shiftfs"
    )
    helping.add_argument("--directory", default="/sbin", help="where mount(8) looks (default: /sbin)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "install-helpers":
            install_helpers(arguments.directory, _program())
        else:
            report = ask(arguments.mount, arguments.command)
            print(report if arguments.json else _readable(json.loads(report)))
    except CtlError as error:
        print(f"shiftfsctl: {error}", file=sys.stderr)
        return 1
    return 0


def ask(mountpoint: str, name: str) -> str:
    """The report `name` of a mount, as JSON text. Raises CtlError."""
    try:
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CtlError(f"{mountpoint}: {error.strerror}; give the mountpoint of a running shiftfs") from None
    try:
        text = b""
        while True:
            argument = bytearray(REPORT_SIZE)
            REPORT_IN.pack_into(argument, 0, REPORTS.index(name), len(text))
            fcntl.ioctl(fd, REPORT, argument)
            (total,) = REPORT_OUT.unpack_from(argument)
            text += argument[REPORT_OUT.size : REPORT_OUT.size + total - len(text)]
            if len(text) >= total:
                return text.decode()
    except OSError as error:
        if error.errno == errno.EPERM:
            raise CtlError(f"{mountpoint}: only root and whoever mounted it may ask") from None
        raise CtlError(f"{mountpoint}: not the root of a shiftfs mount ({error.strerror})") from None
    finally:
        os.close(fd)


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
