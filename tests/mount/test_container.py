"""A container lives in a root filesystem of real root's: what its users do in it, and what nobody else can.

The scripts run in busybox, chrooted into the mount, as ids of a user namespace that an unprivileged user made. Each
leaves what it makes beneath a directory of its own.
"""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import Argument, Caller, Completed, Mount, UserNamespace, errno_of, run, shifted_directory, user_namespace

OPTIONS = ("uidmapping=0:100000:65536", "gidmapping=0:100000:65536")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LC_ALL": "C"}
ANN, BOB = 1001, 1002


@dataclass(frozen=True)
class Container:
    mount: Mount
    namespace: UserNamespace

    def run(self, script: str, uid: int = 0, *, prefix: tuple[str, ...] = (), check: bool = True) -> Completed:
        """A script as one of the container's users, the mount being its root."""
        inside: list[Argument] = [
            *prefix,
            "chroot",
            f"--userspec={uid}:{uid}",
            self.mount.path,
            "/bin/sh",
            "-ec",
            script,
        ]
        return run(self.namespace.command(inside), env=ENVIRONMENT, check=check)

    def layer(self, path: str) -> Path:
        return self.mount.source / path.lstrip("/")


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with shifted_directory(*OPTIONS) as mount, user_namespace((0, 100000, 65536)) as namespace:
        make_root(mount.source)
        yield Container(mount, namespace)


def make_root(root: Path) -> None:
    for name in ("bin", "dev", "etc", "home", "proc", "root", "srv", "tmp"):
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "dev/null").touch()  # where a container would have the host's bound
    (root / "dev/null").chmod(0o666)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in run(["busybox", "--list"]).stdout.split():
        if applet not in ("busybox", "su"):
            (root / "bin" / applet).symlink_to("busybox")
    shutil.copy("/bin/busybox", root / "bin/su")
    (root / "bin/su").chmod(0o4755)
    people = {"root": 0, "ann": ANN, "bob": BOB}
    (root / "etc/passwd").write_text("".join(f"{name}:x:{uid}:{uid}::/tmp:/bin/sh\n" for name, uid in people.items()))
    (root / "etc/group").write_text("".join(f"{name}:x:{uid}:\n" for name, uid in people.items()))
    (root / "etc/shadow").write_text("".join(f"{name}::20000:0:99999:7:::\n" for name in people))
    (root / "etc/shadow").chmod(0o640)
    os.chown(root / "etc/shadow", 0, 42)


class Work(NamedTuple):
    """A script, who runs it, what it says, and `path owner:group mode` of what it leaves on the layer."""

    script: str
    uid: int = 0
    says: str = ""
    leaves: str = ""


WORKS = {
    "adduser": Work(
        "echo carl:x:1003:1003::/home/carl:/bin/sh >>/etc/passwd; echo carl::20000:0:99999:7::: >>/etc/shadow;"
        " mkdir /home/carl; cp /etc/passwd /home/carl/own; chown -R 1003:1003 /home/carl; chmod 2750 /home/carl;"
        " su carl -c 'id -u; echo more >>~/own'",
        says="1003\n",
        leaves="home/carl 1003:1003 2750, home/carl/own 1003:1003 644, etc/passwd 0:0 644",
    ),
    "su to root": Work("su -c 'id -u; grep -c ^bob: /etc/shadow'", ANN, "0\n1\n"),
    "chown -R": Work(
        "mkdir -p /srv/own/a/b; touch /srv/own/a/b/c; chown -R 33:34 /srv/own; chmod 750 /srv/own",
        leaves="srv/own 33:34 750, srv/own/a/b/c 33:34 644",
    ),
    "mkdir -p": Work(
        "cd /tmp; umask 077; mkdir -p a/b/c/d; rmdir -p a/b/c/d; mkdir -p e/f", ANN, leaves="tmp/e/f 1001:1001 700"
    ),
    "cp -a": Work(
        "cd /srv; mkdir from; touch from/f; chmod 4711 from/f; chown 33:33 from; ln -s f from/l; mkfifo from/p;"
        " chown -h 5:6 from/l; touch -d '1999-12-31 23:59:59' from/f; cp -a from to; stat -c %y to/f | cut -c1-19",
        says="1999-12-31 23:59:59\n",
        leaves="srv/to 33:33 755, srv/to/f 0:0 4711, srv/to/l 5:6 777, srv/to/p 0:0 644",
    ),
    "hard links": Work(
        "cd /srv; echo one >h1; ln h1 h2; echo two >>h2; cat h1; [ h1 -ef h2 ]; stat -c %h h1; rm h1; stat -c %h h2",
        says="one\ntwo\n2\n1\n",
        leaves="srv/h2 0:0 644",
    ),
    "rm -rf": Work(
        "cd /srv; mkdir -p tree/a/b tree/c; for i in 1 2 3 4 5 6 7 8 9; do >tree/a/b/$i; ln -s x tree/c/$i; done;"
        " chown -R 7:8 tree; rm -rf tree; ls -d tree* || echo gone",
        says="gone\n",
    ),
    "mv over": Work(
        "cd /tmp; echo old >m1; echo new >m2; mv m2 m1; cat m1; [ ! -e m2 ]", BOB, "new\n", "tmp/m1 1002:1002 644"
    ),
    "sed -i": Work("cd /srv; echo a >s; chown 9:9 s; chmod 640 s; sed -i s/a/b/ s; cat s", says="b\n"),
    "find": Work("cd /srv; mkdir fi; touch fi/x; chown 77 fi/x; find . -user 77", says="./fi/x\n"),
    "append": Work("cd /tmp; for i in 1 2 3; do echo $i >>log & done; wait; sort log", ANN, "1\n2\n3\n"),
    "exec": Work("cd /tmp; printf '#!/bin/sh\\necho $1' >prog; chmod +x prog; ./prog ran", BOB, "ran\n"),
    "dd and truncate": Work(
        "cd /tmp; dd if=/bin/busybox of=d bs=64k 2>/dev/null; cmp d /bin/busybox; truncate -s 3 d; wc -c <d", ANN, "3\n"
    ),
}


@pytest.mark.parametrize("name", WORKS)
def test_work(container: Container, name: str) -> None:
    work = WORKS[name]
    assert container.run(work.script, work.uid).stdout == work.says
    for left in work.leaves.split(", ") if work.leaves else ():
        path = container.layer(left.split()[0])
        status = path.lstat()
        assert left == f"{left.split()[0]} {status.st_uid}:{status.st_gid} {status.st_mode & 0o7777:o}"


@pytest.mark.parametrize("tool", ["busybox tar", "GNU tar"])
def test_an_archive_with_owners(container: Container, tool: str) -> None:
    place = f"srv/{tool.split()[0]}"
    container.layer(place).mkdir()
    expected = {}
    with tarfile.open(container.layer(place) / "in.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for number, (kind, mode) in enumerate(
            ((tarfile.DIRTYPE, 0o2750), (tarfile.REGTYPE, 0o4755), (tarfile.SYMTYPE, 0o777), (tarfile.FIFOTYPE, 0o600))
        ):
            info = tarfile.TarInfo(f"t/{number}")
            info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, 10 + number, 20 + number, 946684799
            info.linkname = "0" if kind == tarfile.SYMTYPE else ""
            archive.addfile(info, io.BytesIO())
            expected[str(number)] = (mode, info.uid, info.gid, 946684799)
    if tool == "busybox tar":
        del expected["2"]  # it leaves symlinks to whoever extracts them
    if tool == "busybox tar":
        container.run(f"cd /{place}; tar -xpf in.tar")
    else:
        container.namespace.run(["tar", "-xpf", "in.tar"], cwd=container.mount.path / place)
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(container.layer(place) / "t")}
    for name, wanted in expected.items():
        status = found[name]
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid, int(status.st_mtime)) == wanted


REFUSALS = {
    "a file of root's alone": ("cat /etc/shadow", ANN, "Permission denied"),
    "a directory of root's": ("touch /etc/new", ANN, "Permission denied"),
    "another's file": ("echo x >/tmp/bobs", ANN, "Permission denied"),
    "another's mode": ("chmod 666 /tmp/bobs", ANN, "not permitted"),
    "another's owner": ("chown 1001 /tmp/bobs", ANN, "not permitted"),
    "giving away": ("chown 1001 /tmp/bobs", BOB, "not permitted"),
    "a sticky directory: unlink": ("rm -f /tmp/bobs", ANN, "not permitted"),
    "a sticky directory: rename": ("mv /tmp/bobs /tmp/anns", ANN, "not permitted"),
    "a device": ("mknod /srv/disk b 8 0", 0, "not permitted"),
    "a foreign owner": ("chown 70000 /etc/passwd", 0, "Invalid argument"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(container: Container, name: str) -> None:
    script, uid, reason = REFUSALS[name]
    bobs = container.layer("tmp/bobs")
    bobs.write_text("mine")
    os.chown(bobs, BOB, BOB)
    before = bobs.stat()
    said = container.run(script, uid, check=False)
    assert said.returncode != 0 and reason in said.stderr
    assert bobs.stat() == before


def test_sticky_lets_owner_and_root_remove(container: Container) -> None:
    for uid in (BOB, 0):
        container.layer("tmp/sticky").touch()
        os.chown(container.layer("tmp/sticky"), BOB, BOB)
        container.run("rm /tmp/sticky", uid)
        assert not container.layer("tmp/sticky").exists()


def test_mounts_inside(container: Container) -> None:
    """A container has its own /proc, tmpfs and bind mounts; they stay while the names beneath are looked up anew."""
    script = """
        mount -t proc proc /proc; mount -t tmpfs none /srv; mount --bind /bin /home
        echo $$; cat /proc/self/status | grep -c Name; echo kept >/srv/file; sleep 1.1; ls -d /proc/self/root
        cat /srv/file; [ /home/busybox -ef /bin/busybox ]; grep -c ' /srv ' /proc/mounts
    """
    namespaces = ("unshare", "--mount", "--pid", "--fork")
    assert container.run(script, prefix=namespaces).stdout == "1\n1\n/proc/self/root\nkept\n1\n"
    assert not container.layer("srv/file").exists()


def test_what_the_host_does_beneath_is_seen(container: Container) -> None:
    container.layer("srv/note").write_text("from the host")
    os.chown(container.layer("srv/note"), ANN, ANN)
    assert container.run("cat /srv/note; stat -c %u /srv/note; rm /srv/note", ANN, check=False).stdout == (
        f"from the host{ANN}\n"
    )
    assert container.layer("srv/note").exists()  # the directory is root's


@pytest.mark.parametrize(
    ("caller", "may"),
    [(Caller(5555, 5555), False), (Caller(ANN, ANN), False), (Caller(100000 + ANN, 100000 + ANN), True)],
    ids=["somebody", "the same number outside", "the one who is ann"],
)
def test_users_outside_have_what_the_mode_gives(container: Container, caller: Caller, may: bool) -> None:
    name = f"tmp/anns-{caller.uid}"
    layer, seen = container.layer(name), container.mount.path / name
    layer.write_text("mine")
    layer.chmod(0o600)
    os.chown(layer, ANN, ANN)
    for call in (seen.read_text, lambda: seen.chmod(0o640), lambda: os.unlink(seen)):
        assert (errno_of(lambda call=call: caller(call)) == 0) == may  # type: ignore[misc]
    layer.unlink(missing_ok=True)
    passwd = container.mount.path / "etc/passwd"
    assert "root" in caller(passwd.read_text)
    assert errno_of(lambda: caller(passwd.write_text, "x")) != 0


def test_set_id_programs_make_nobody_outside_root(container: Container) -> None:
    """su is container root's: who runs it outside becomes 100000, whose power is the container."""
    layer = container.layer("bin/id-of-root")
    shutil.copy("/usr/bin/id", layer)  # busybox gives such rights up
    layer.chmod(0o4755)
    said = run(["setpriv", "--reuid=5555", "--clear-groups", container.mount.path / "bin/id-of-root", "-u"])
    assert said.stdout == "100000\n"
