"""The demonstration, run by `make demo` as root.

Mounts a small root filesystem that belongs to real root so that it belongs to a container's root, lets that one
work in it, and shows each time what the layer below holds. The root filesystem is busybox, or a copy of the
directory that DEMO_ROOTFS names (one that debootstrap made, say). Exits with 1 when anything is not as expected;
leaves nothing behind either way.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from harness import Argument, UserNamespace, mounted, open_directory, run, shiftfsctl, user_namespace
from harness.leftovers import belongings, left_behind, remove_all

OPTIONS = ("uidmapping=0:100000:65536", "gidmapping=0:100000:65536")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LC_ALL": "C"}


class Step(NamedTuple):
    """A command, and what must be seen: a regular expression for something in its output, with its errors.

    `root` and `user` are ids 0 and 1000 of a container: of a user namespace that an unprivileged user made, with
    the mount as their /. `mount` and `layer` are real root outside, in the mount's root and in the layer's.
    """

    who: str
    command: str
    expected: str = ""
    fails: bool = False


SCENES = {
    "The same files, under other owners": [
        Step("layer", "stat -c '%u:%g %A %n' etc etc/shadow home/user", r"^0:42 -rw-r----- etc/shadow$"),
        Step("mount", "stat -c '%u:%g %A %n' etc etc/shadow home/user", r"^100000:100042 -rw-r----- etc/sh"),
        Step("root", "id", r"^uid=0\(root\) gid=0\(root\)"),
        Step("root", "ls -ln /etc/shadow", r"^-rw-r----- .* 0 +42 .*/etc/shadow$"),
        Step("user", "ls -ldn /home/user", r"^drwx------ .* 1000 +1000 .*/home/user$"),
    ],
    "Container root works as on a disk of its own": [
        Step("root", "mkdir /srv/web && echo hello >/srv/web/index && chown -R 33:33 /srv/web"),
        Step("root", "cd /srv/web && ln index hard && ln -s index soft && chmod 2775 ."),
        Step("root", "ls -lan /srv/web", r"^drwxrwsr-x .* 33 +33 .* \.$"),
        Step(
            "mount",
            "stat -c '%u:%g %A links %h: %n' srv/web/*",
            r"^100033:100033 -rw-r--r-- links 2: .*/hard$",
        ),
        Step(
            "layer", "stat -c '%u:%g %A links %h: %n' srv/web/*", r"^33:33 -rw-r--r-- links 2: srv/web/hard$"
        ),
        Step("layer", "cat srv/web/soft", r"^hello$"),
        Step("root", "tar -cf /tmp/etc.tar -C / etc && tar -xf /tmp/etc.tar -C /srv"),
        Step("layer", "stat -c '%u:%g %A %n' srv/etc/shadow", r"^0:42 -rw-r----- srv/etc/shadow$"),
        Step("layer", "echo 'put here by the host' >srv/note"),
        Step("root", "cat /srv/note && rm /srv/note", r"^put here by the host$"),
    ],
    "An ordinary user of the container": [
        Step("user", "echo mine >/home/user/file"),
        Step("layer", "stat -c '%u:%g %n' home/user/file", r"^1000:1000 home/user/file$"),
        Step("user", "cat /etc/shadow", r"Permission denied", fails=True),
        Step("user", "touch /etc/mine", r"Permission denied", fails=True),
        Step("layer", "stat -c '%u:%g %A %n' bin/su", r"^0:0 -rwsr-xr-x bin/su$"),
        Step("user", "su -c id", r"^uid=0\(root\)"),
    ],
    "What the map leaves out is in nobody's power": [
        Step("layer", "echo secret >srv/foreign && chmod 600 srv/foreign && chown 70000:70000 srv/foreign"),
        Step("root", "ls -ln /srv/foreign", r"^-rw------- .* 65534 +65534 "),
        Step("root", "cat /srv/foreign", r"Permission denied", fails=True),
        Step("root", "chown 0:0 /srv/foreign", r"foreign", fails=True),
        Step("root", "chmod 666 /srv/foreign", r"foreign", fails=True),
        Step("layer", "stat -c '%u:%g %A %n' srv/foreign", r"^70000:70000 -rw------- srv/foreign$"),
        Step("root", "mknod /dev/disk b 8 0", r"not permitted", fails=True),
    ],
}


def make_rootfs() -> Path:
    """A root filesystem of real root's, with an ordinary user and a root who needs no password."""
    root = open_directory("rootfs-")
    given = os.environ.get("DEMO_ROOTFS")
    if given:
        run(["cp", "--archive", "--reflink=auto", f"{given}/.", root], limit=300)
    else:
        for name in ("bin", "dev", "etc", "home", "root", "srv", "tmp"):
            (root / name).mkdir()
        shutil.copy("/bin/busybox", root / "bin/busybox")
        for applet in run(["busybox", "--list"]).stdout.split():
            if applet not in ("busybox", "su"):
                (root / "bin" / applet).symlink_to("busybox")
        shutil.copy("/bin/busybox", root / "bin/su")
        (root / "bin/su").chmod(0o4755)
        (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\nshadow:x:42:\nuser:x:1000:\n")
        (root / "tmp").chmod(0o1777)
    shadow, home = root / "etc/shadow", root / "home/user"
    shadow.write_text("root::20000:0:99999:7:::\n")
    os.chown(shadow, 0, 42)
    shadow.chmod(0o640)
    home.mkdir()
    home.chmod(0o700)
    os.chown(home, 1000, 1000)
    return root


def places(layer: Path, mount: Path, namespace: UserNamespace) -> dict[str, list[Argument]]:
    """The beginning of a command for each of those who run one."""

    def container(uid: int) -> list[Argument]:
        return namespace.command(["chroot", f"--userspec={uid}:{uid}", mount, "/bin/sh", "-c"])

    def host(path: Path) -> list[Argument]:
        return ["env", f"--chdir={path}", "sh", "-c"]

    return {"root": container(0), "user": container(1000), "mount": host(mount), "layer": host(layer)}


def play(step: Step, beginning: list[Argument]) -> bool:
    """Run a step, show it, and tell whether it was as expected."""
    result = run([*beginning, f"exec 2>&1; {step.command}"], check=False, env=ENVIRONMENT)
    who = f"container {step.who}" if step.who in ("root", "user") else f"host, {step.who}"
    show(f"{who} {'$' if step.who == 'user' else '#'} {step.command}", result.stdout)
    good = (result.returncode != 0) == step.fails and re.search(step.expected, result.stdout, re.MULTILINE)
    if not good:
        wanted = f"{'failure' if step.fails else 'success'} and {step.expected!r}"
        print(f"    NOT AS EXPECTED: exit status {result.returncode}; wanted {wanted}")
    return bool(good)


def show(command: str, output: str) -> None:
    print(command)
    for line in output.splitlines():
        print(f"    {line}")
    sys.stdout.flush()


def demonstrate() -> int:
    """Everything between mount and unmount; the number of steps that were not as expected."""
    layer = make_rootfs()
    failures = 0
    with mounted(layer, None, *OPTIONS) as mount, user_namespace((0, 100000, 65536)) as namespace:
        show(f"host # shiftfs -o {','.join(OPTIONS)} {layer} {mount.path}", "")
        beginnings = places(layer, mount.path, namespace)
        for title, steps in SCENES.items():
            print(f"\n{title}\n")
            failures += sum(not play(step, beginnings[step.who]) for step in steps)
        print("\nHow it is mounted\n")
        show(f"host # shiftfsctl status {mount.path}", shiftfsctl("status", mount.path).stdout)
        print("\nThe end\n")
        show(f"host # umount {mount.path}", "")
    return failures


def main() -> int:
    if os.geteuid() != 0:
        print("The demonstration needs root: it makes files of several owners, and mounts.", file=sys.stderr)
        return 1
    started = time.monotonic()
    area = open_directory("shiftfs-demo-")
    tempfile.tempdir = str(area)
    before = belongings(area)
    try:
        failures = demonstrate()
        left = left_behind(before, area)
    except AssertionError as error:  # a mount or a command of the harness failed, and says how
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        remove_all(area)
        shutil.rmtree(area)
    for thing in left:
        print(f"LEFT BEHIND, and removed: {thing}")
    steps = sum(map(len, SCENES.values()))
    print(f"{steps - failures} of {steps} steps as expected, {len(left)} things left behind, ", end="")
    print(f"{time.monotonic() - started:.1f} s.")
    return 1 if failures or left else 0


if __name__ == "__main__":
    sys.exit(main())
