"""`shiftfsctl mark`, `unmark`, `marks` and `serve`: directories that are marked for good.

Owns the words for people. Main thread.
"""

import argparse
import errno
import json
import os
import sys
from typing import Any

from .mark import marking, permanent, serving
from .mark.permanent import Mark, NoMark
from .mount import MountError


class MarkError(Exception):
    """One line for standard error."""


def run(arguments: argparse.Namespace) -> None:
    """Raises MarkError, OSError of standard output."""
    try:
        _CALLS[arguments.command](arguments)
    except MountError as error:
        raise MarkError(str(error)) from None


def _mark(arguments: argparse.Namespace) -> None:
    users = marking.users(tuple(arguments.users.split(":"))) if arguments.users is not None else None
    mark = Mark(users, arguments.ro, arguments.allow_exposed, arguments.locks == "mount")
    try:
        permanent.put(arguments.directory, mark)
    except NoMark as reason:
        raise MarkError(
            f"{arguments.directory} {reason}; put it beneath a directory that only root may search, or give"
            " --allow-exposed"
        ) from None
    except OSError as error:
        advice = "its filesystem takes no such attribute" if error.errno == errno.EOPNOTSUPP else "run it as root"
        raise MarkError(f"{arguments.directory}: {error.strerror}; {advice}") from None


def _unmark(arguments: argparse.Namespace) -> None:
    try:
        permanent.remove(arguments.directory)
    except OSError as error:
        what = "is not marked" if error.errno == errno.ENODATA else f"{error.strerror}; run it as root"
        raise MarkError(f"{arguments.directory}: {what}") from None


def _marks(arguments: argparse.Namespace) -> None:
    found: list[dict[str, Any]] = []
    try:
        paths = permanent.listed()
    except OSError as error:
        raise MarkError(f"{permanent.LIST}: {error.strerror}; run it as root") from None
    for path in paths:
        try:
            fd, mark = permanent.find(os.fsencode(path))
        except NoMark as reason:
            found.append({"directory": path, "problem": str(reason)})
        except OSError as error:
            found.append({"directory": path, "problem": os.strerror(error.errno or errno.EIO)})
        else:
            os.close(fd)
            users = sorted(mark.users) if mark.users is not None else None
            locks = "mount" if mark.locks_stay else "layers"
            found.append({"directory": path, "users": users, "read_only": mark.read_only, "locks": locks})
    if arguments.json:
        print(json.dumps({"marks": found}, indent=1))
        return
    for one in found:
        if "problem" in one:
            print(f"{one['directory']}: {one['problem']}")
            continue
        whose = "everybody" if one["users"] is None else "users " + " ".join(map(str, one["users"]))
        also = ", read-only" * one["read_only"] + ", locks stay on each mount" * (one["locks"] == "mount")
        print(f"{one['directory']}: {whose}{also}")


def _serve(arguments: argparse.Namespace) -> None:
    serving.check()
    serving.Server(lambda text: print(f"shiftfsctl: {text}", file=sys.stderr, flush=True)).run()


_CALLS = {"mark": _mark, "unmark": _unmark, "marks": _marks, "serve": _serve}
