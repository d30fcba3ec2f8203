"""What cannot be mounted: one line on standard error that says what, why and what to do; nothing is mounted.

What the machine must lack is hidden in a mount namespace of its own, so that nobody else misses it.
"""

import os
import pwd
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import SHIFTFS, Completed, environment, mount_table, run
from harness.commands import user_prefix

DAEMON = pwd.getpwnam("daemon").pw_uid


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a source, a mountpoint of daemon's, and things that are neither."""
    for name in ("source", "mountpoint", "secret", "of root's"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret").chmod(0o700)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "source/deep/inside").mkdir(parents=True)
    (tmp_path / "link-to-inside").symlink_to("source/deep/inside")
    for name in ("mountpoint", "source/deep/inside"):
        os.chown(tmp_path / name, DAEMON, DAEMON)
    return tmp_path


def refused(said: Completed, here: Path, *patterns: str) -> None:
    """The line is the program's, it alone, and has all that the patterns ask for; nothing is mounted."""
    assert said.returncode in (1, 2)
    assert said.stdout == ""
    assert re.fullmatch(r"shiftfs: [^\n]+\n", said.stderr), said.stderr
    for pattern in patterns:
        assert re.search(pattern, said.stderr), f"{pattern!r} is not in {said.stderr}"
    assert not [entry for entry in mount_table() if entry.path.startswith(str(here))]
    assert run(["pgrep", "-f", str(here)], check=False).stdout == ""


class Bad(NamedTuple):
    """The words after the program's name, and what the line must have."""

    words: list[str]
    patterns: list[str]
    user: bool = False


def maps(text: str, *patterns: str, name: str = "uidmapping") -> Bad:
    return Bad(["-o", f"{name}={text}", "source", "mountpoint"], [name, *patterns])


BAD = {
    "no words": Bad([], ["SOURCE and MOUNTPOINT are missing", "usage: "]),
    "one word": Bad(["source"], ["MOUNTPOINT is missing", "usage: "]),
    "three words": Bad(["source", "mountpoint", "more"], ["'more'", "too many"]),
    "an unknown letter": Bad(["-x", "source", "mountpoint"], ["'-x'", "usage: "]),
    "a missing source": Bad(
        ["absent", "mountpoint"], ["source .*absent", "No such file", "give an existing directory"]
    ),
    "a source that is a file": Bad(["file", "mountpoint"], ["source .*file", "[Nn]ot a directory", "give an existing"]),
    "a source that is a loop": Bad(["loop", "mountpoint"], ["source .*loop", "symbolic links"]),
    "a source that a user cannot read": Bad(["secret", "mountpoint"], ["source .*secret", "Permission denied"], True),
    "a source beyond what a user can enter": Bad(["secret/x", "mountpoint"], ["source .*secret", "Permission"], True),
    "a missing mountpoint": Bad(["source", "absent"], ["mountpoint .*absent", "No such file", "existing directory"]),
    "a mountpoint that is a file": Bad(
        ["source", "file"], ["mountpoint .*file", "not a directory", "existing directory"]
    ),
    "a mountpoint of another's": Bad(
        ["source", "of root's"], ["of root's", "no write access", "directory of their own"], True
    ),
    "a mountpoint inside a user's source": Bad(
        ["source", "source/deep/inside"],
        ["mountpoint source/deep/inside", "inside the source", "over .*/source itself"],
        True,
    ),
    "a mountpoint inside by another name": Bad(
        [".", "link-to-inside"], ["mountpoint link-to-inside", "inside the source", "outside of it"], True
    ),
    "an empty map": maps("", "empty"),
    "a map of colons": maps("::", "':'", "REAL:SHOWN:COUNT"),
    "two numbers": maps("0:1", "0:1", "REAL:SHOWN:COUNT"),
    "words": maps("0:100000:many", "0:100000:many", "REAL:SHOWN:COUNT"),
    "a negative number": maps("0:-1:5", "0:-1:5"),
    "none at all": maps("0:100000:0", "0:100000:0", "count"),
    "beyond 32 bits": maps("0:4294967290:10", "0:4294967290:10", "4294967294"),
    "overlap on the layer": maps("0:100000:10:5:200000:10", "5:200000:10", "0:100000:10", "overlap"),
    "overlap on the mount": maps("0:100000:10:50:100009:10", "50:100009:10", "0:100000:10", "overlap"),
    "a group map": maps("0:1", "0:1", "REAL:SHOWN:COUNT", name="gidmapping"),
    "a namespace that is none": maps("no-such", "no-such", name="userns"),
    "a process that is none": maps("4194999", "4194999", name="userns"),
    "a user that is none": maps("no-such-user", "no such user", name="subid"),
    "two sources of maps": Bad(
        ["-o", "uidmapping=0:1:1,subid=daemon", "source", "mountpoint"], ["subid", "uidmapping"]
    ),
    "an unknown option": Bad(["-o", "timout=3", "source", "mountpoint"], ["'timout'", "did you mean timeout"]),
    "an option like no other": Bad(["-o", "qqqqqq", "source", "mountpoint"], ["'qqqqqq'", "--help"]),
    "a value that cannot be": Bad(
        ["-o", "open=maybe", "source", "mountpoint"], ["open=maybe", "auto, refuse or serve"]
    ),
    "a remount": Bad(
        ["-o", "rw,remount,ro", "source", "mountpoint"], ["remount", "`mount -i -o remount,bind,ro MOUNTPOINT`"]
    ),
    "what only the kernel's overlay has": Bad(
        ["-o", "nfs_export=on", "source", "mountpoint"], ["nfs_export", "not supported"]
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("foreground", [False, True], ids=["daemon", "foreground"])
def test_bad_words(here: Path, name: str, foreground: bool) -> None:
    bad = BAD[name]
    prefix = user_prefix(DAEMON) if bad.user else []
    command = [*prefix, *SHIFTFS, *(["-f"] if foreground else []), *bad.words]
    refused(run(command, check=False, cwd=here), here, *bad.patterns)


class Lack(NamedTuple):
    """What is hidden by a script, run as root in a mount namespace; who mounts; what the line must have."""

    script: str
    patterns: list[str]
    user: bool = True
    options: str = ""
    environment: dict[str, str] | None = None


FUSERMOUNT = shutil.which("fusermount3") or "/usr/bin/fusermount3"
LIBRARIES = "$(ldconfig -p | sed -n 's/.*libfuse3.*=> //p')"
LACKS = {
    "no /dev/fuse": Lack("mount -t tmpfs none /dev", ["/dev/fuse", "does not exist", "modprobe fuse"], user=False),
    "no permission": Lack(
        # Not the machine's own, which others are using.
        "mknod -m 600 {here}/secret/fuse c 10 229; mount --bind {here}/secret/fuse /dev/fuse",
        ["/dev/fuse", "no permission", "0666"],
    ),
    "no libfuse": Lack(
        "", ["libfuse 3", "install"], user=False, environment={"FUSE_LIBRARY_NAME": "no-such-library"}
    ),
    "a broken libfuse": Lack(
        f"for library in {LIBRARIES}; do mount --bind /dev/null $library; done", ["libfuse 3", "install"], user=False
    ),
    "no user_allow_other": Lack(
        "mount --bind /dev/null /etc/fuse.conf",
        ["allow_other", "user_allow_other", "/etc/fuse.conf"],
        options="allow_other",
    ),
    "no fusermount3": Lack(
        # A whiteout hides the one name.
        f"""
        mount -t tmpfs none {{here}}/secret; mkdir {{here}}/secret/upper {{here}}/secret/work
        mknod {{here}}/secret/upper/{os.path.basename(FUSERMOUNT)} c 0 0; chmod 755 {{here}}/secret/*
        mount -t overlay none -o lowerdir={os.path.dirname(FUSERMOUNT)},upperdir={{here}}/secret/upper,\
workdir={{here}}/secret/work {os.path.dirname(FUSERMOUNT)}
        """,
        ["fusermount3", "not found", "install"],
    ),
    "a fusermount3 without set-id": Lack(
        f"mount -t tmpfs none {{here}}/secret; chmod 755 {{here}}/secret; cp {FUSERMOUNT} {{here}}/secret/copy;"
        f" mount --bind {{here}}/secret/copy {FUSERMOUNT}",
        ["mountpoint", "[Pp]ermi|[Nn]ot permitted"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKS)
def test_what_the_machine_lacks(here: Path, name: str) -> None:
    lack = LACKS[name]
    command = [*(user_prefix(DAEMON) if lack.user else []), *SHIFTFS]
    command += [*(["-o", lack.options] if lack.options else []), "source", "mountpoint"]
    script = f"set -e; {lack.script.format(here=here)}\n"
    # The line that tells of a mount goes to the output, where nothing may be.
    script += '"$@" || status=$?; grep " $PWD/mountpoint " /proc/self/mountinfo || true; exit ${status:-0}'
    env = {**environment(), **(lack.environment or {})}
    said = run(["unshare", "--mount", "sh", "-c", script, "sh", *command], check=False, cwd=here, env=env)
    refused(said, here, *lack.patterns)
