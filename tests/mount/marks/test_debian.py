"""A Debian on a mark, in a namespace that a user has made for himself with newuidmap: its own tools unpack, install and
change ids there as on a machine of their own, and the ids on the disk are those."""

import os
import stat
import struct
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import SHIFTFS, Argument, Completed, Layers, open_directory, run, user_prefix
from harness.debian import MAKING_LIMIT, PACKAGES_PLACE, debian_tar
from harness.marks import Marked, hidden_directory, marked, named

RESIDENT = 64322
FIRST, MANY = 400000, 65536
LIMIT = 240.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# $1 is a copy of /etc, $2 the user's id, $3 and $4 his first id and how many; the rest is done as he.
_AS_RESIDENT = """
etc=$1 user=$2 first=$3 many=$4; shift 4
cp -a /etc/. "$etc"
echo "resident:x:$user:$user::/:/bin/sh" >>"$etc/passwd"
for file in subuid subgid; do echo "resident:$first:$many" >"$etc/$file"; done
mount --bind "$etc" /etc
exec "$@"
"""

# $1 is the root of what is executed there, $2; /dev has no more than packages ask for.
_ENTER = """
for file in null zero urandom; do touch "$1/dev/$file"; mount --bind "/dev/$file" "$1/dev/$file"; done
exec unshare --mount --root="$1" --mount-proc=/proc --wd=/ /bin/sh -euc "$2"
"""

# $1 is the archive, $2 where to; of the packages that lie in it those that are to be installed.
_UNPACK = f"""
tar --numeric-owner -xpf "$1" -C "$2" --exclude='.{PACKAGES_PLACE}/*'
tar --numeric-owner -xpf "$1" -C "$2" --wildcards '.{PACKAGES_PLACE}/libcap2*' '.{PACKAGES_PLACE}/iputils*'
"""

INSTALLS = f"""
dpkg -i {PACKAGES_PLACE}/libcap2_*.deb {PACKAGES_PLACE}/libcap2-bin_*.deb {PACKAGES_PLACE}/iputils-ping_*.deb
getcap /bin/ping /usr/bin/ping
dpkg --verify
"""

LIVES = """
useradd --create-home --uid 1234 ann
groupadd --gid 4321 friends
touch /srv/given; chown ann:friends /srv/given; chmod 2770 /srv/given
mkdir /srv/shared; chgrp friends /srv/shared; chmod 2775 /srv/shared
install -o ann -g friends -m 4755 /bin/true /srv/set-id
su ann -c 'id -u; touch ~/mine; mkdir -p ~/d/e; passwd -S | cut -d" " -f1'
su ann -c '! cat /etc/shadow || exit 1; ! touch /etc/mine || exit 1; ! touch /srv/shared/mine || exit 1' 2>/dev/null
usermod -a -G friends ann
su ann -c 'touch /srv/shared/mine'
"""


class Debian(NamedTuple):
    """What is marked, and where what is changed ends up."""

    mark: Marked
    image: Path
    disk: Path

    def as_resident(self, script: str, *args: Argument) -> Completed:
        """In namespaces of his own, amid which the mark is mounted at $target."""
        target = open_directory("target-")
        mounting = 'target=$1; shift; "$@" "$mark" "$target"'
        whole = f'mark="$1"; shift\n{mounting}\n{script}'
        base = open_directory("etc-")
        names: list[Argument] = ["unshare", "--mount", "--propagation=private", "sh", "-euc", _AS_RESIDENT, "sh"]
        names += [base, str(RESIDENT), str(FIRST), str(MANY), *user_prefix(RESIDENT)]
        names += ["unshare", "-Urmpf", "--map-auto", "--kill-child", "sh", "-euc", whole, "sh"]
        environment = {**os.environ, "PATH": PATH, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        return run([*names, self.mark.path, target, *SHIFTFS], limit=LIMIT, env=environment)

    def runs(self, script: str) -> list[str]:
        """The lines that a script says which Debian's own shell runs."""
        return self.as_resident(f"set -- \"$target\" '{quoted(script)}'\n{_ENTER}").stdout.splitlines()

    def stored(self, name: str) -> Path:
        up = self.disk / name
        return up if os.path.lexists(up) else self.image / name

    def owner(self, name: str) -> tuple[int, int]:
        found = self.stored(name).lstat()
        return found.st_uid, found.st_gid


def quoted(script: str) -> str:
    return script.replace("'", "'\\''")


@pytest.fixture(scope="module", params=["unpacked inside", "an image below"])
def debian(request: pytest.FixtureRequest, area: Path) -> Iterator[Debian]:
    source = hidden_directory()
    with ExitStack() as stack:
        if request.param == "an image below":
            layers = Layers(source)
            run(["sh", "-euc", _UNPACK, "sh", debian_tar(), layers.lower], limit=LIMIT)
            mark = stack.enter_context(marked(*named(layers), source=source))
            yield Debian(mark, layers.lower, layers.upper)
        else:
            mark = stack.enter_context(marked(source=source))
            made = Debian(mark, source, source)
            archive = open_directory("archive-") / "tar"
            os.link(debian_tar(), archive)
            made.as_resident(f'set -- {archive} "$target"\n{_UNPACK}')
            yield made


@pytest.mark.timeout(2 * MAKING_LIMIT)
def test_what_is_unpacked_has_the_owners_of_the_archive(debian: Debian) -> None:
    with tarfile.open(debian_tar()) as archive:
        members = [member for member in archive if PACKAGES_PLACE not in member.name and member.name != "."]
    kinds = {tarfile.REGTYPE: stat.S_IFREG, tarfile.LNKTYPE: stat.S_IFREG, tarfile.DIRTYPE: stat.S_IFDIR}
    others = []
    for member in members:
        found = debian.stored(member.name).lstat()
        kind = kinds.get(member.type, stat.S_IFLNK)
        mode = 0o777 if kind == stat.S_IFLNK else member.mode
        if (found.st_uid, found.st_gid, found.st_mode) != (member.uid, member.gid, kind | mode):
            others.append((member.name, found))
    assert others == [] and len(members) > 1000


@pytest.mark.timeout(2 * MAKING_LIMIT)
def test_packages_are_installed(debian: Debian) -> None:
    """One of them gives its program a capability, which is the container's alone."""
    said = debian.runs(INSTALLS)
    assert [line for line in said if line.endswith("ping cap_net_raw=ep")] != []
    assert "Package: iputils-ping\nStatus: install ok installed" in debian.stored("var/lib/dpkg/status").read_text()
    assert debian.owner("usr/bin/ping") == (0, 0)
    value = os.getxattr(debian.stored("usr/bin/ping"), "security.capability")
    revision, root = struct.unpack_from("<I", value)[0] & 0xFF000000, struct.unpack_from("<I", value, 20)[0]
    assert (revision, root) == (0x03000000, RESIDENT), "whom newuidmap makes root"


@pytest.mark.timeout(2 * MAKING_LIMIT)
def test_its_users_are_themselves_on_the_disk(debian: Debian) -> None:
    said = debian.runs(LIVES)
    assert said[-2:] == ["1234", "ann"]
    owners = {
        "home/ann": (1234, 1234), "home/ann/mine": (1234, 1234), "home/ann/d/e": (1234, 1234),
        "srv/given": (1234, 4321), "srv/shared": (0, 4321), "srv/shared/mine": (1234, 4321),
        "srv/set-id": (1234, 4321), "etc/shadow": (0, 42),
    }  # fmt: skip
    assert {name: debian.owner(name) for name in owners} == owners
    assert debian.stored("srv/set-id").stat().st_mode & 0o7777 == 0o4755
    assert debian.stored("srv/shared").stat().st_mode & 0o7777 == 0o2775
