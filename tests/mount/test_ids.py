"""Owners: shifted wherever one is shown, set or inherited."""

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Caller, Mount, environment, run, shifted_directory, user_namespace, wait_until
from harness.commands import SHIFTFS
from harness.kinds import MAKERS, make_file, make_socket, make_tmpfile, owner
from harness.traced import traced

# Users and groups go to different ranges, so that one taken for the other shows.
APART = ("uidmapping=0:100000:65536", "gidmapping=0:200000:65536")
ALIKE = ("uidmapping=0:100000:65536", "gidmapping=0:100000:65536")
OVERFLOW = 65534

USER = Caller(100005, 200007)


# Files are created by other requests where OPEN is refused.
@pytest.fixture(scope="module", params=["refuse", "serve"])
def apart(request: pytest.FixtureRequest) -> Iterator[Mount]:
    with shifted_directory(*APART, f"open={request.param}") as mount:
        yield mount


@pytest.fixture(scope="module", params=["refuse", "serve"])
def alike(request: pytest.FixtureRequest) -> Iterator[Mount]:
    with shifted_directory(*ALIKE, f"open={request.param}") as mount:
        yield mount


def directory(mount: Mount, name: str, mode: int = 0o777) -> tuple[Path, Path]:
    """A new directory of container root's: on the layer, and on the mount."""
    layer = mount.source / name
    layer.mkdir()
    layer.chmod(mode)
    return layer, mount.path / name


every_kind = pytest.mark.parametrize("kind", MAKERS)

_numbers = itertools.count()

# --- mapped owners ---


@every_kind
@pytest.mark.parametrize(("real", "shown"), [(0, 0), (1000, 1000), (65534, 65534), (65535, 65535)])
def test_owners_are_shown_shifted(apart: Mount, kind: str, real: int, shown: int) -> None:
    name = f"shown-{kind}-{real}-{next(_numbers)}"
    layer, seen = apart.source / name, apart.path / name
    MAKERS[kind](layer)
    os.chown(layer, real, real, follow_symlinks=False)
    # Whoever raises the events may have looked before the change of the owner, of which the kernel then hears.
    wait_until(lambda: owner(seen) == (100000 + shown, 200000 + shown), "its owner is shown")
    # stat(1) asks for the birth time as well, which is another request (STATX).
    assert (
        run(["stat", "--printf=%u %g %W", seen]).stdout
        == run(["stat", f"--printf={100000 + shown} {200000 + shown} %W", layer]).stdout
    )
    assert owner(next(Path(e.path) for e in os.scandir(apart.path) if e.name == seen.name)) == owner(seen)


@every_kind
def test_a_creator_owns_what_it_creates(apart: Mount, kind: str) -> None:
    layer, seen = directory(apart, f"create-{kind}")
    USER(MAKERS[kind], seen / "new")
    assert owner(layer / "new") == (5, 7)
    assert owner(seen / "new") == (100005, 200007)


def test_a_link_keeps_its_owner(apart: Mount) -> None:
    layer, seen = directory(apart, "link")
    USER(make_file, seen / "one")
    os.link(seen / "one", seen / "two")  # by host root, whose own id is not in the map: nothing of it is written
    assert owner(layer / "two") == (5, 7)


@pytest.mark.parametrize("given", [(7, 8), (-1, 8), (7, -1)])
@pytest.mark.parametrize("how", ["chown", "lchown", "fchown", "fchown of O_RDONLY directory"])
def test_chown_stores_real_ids(apart: Mount, given: tuple[int, int], how: str) -> None:
    layer, seen = directory(apart, f"chown-{how}-{given[0]}-{given[1]}")
    target = layer / "target"
    target.mkdir() if "directory" in how else target.touch()
    (layer / "soft").symlink_to("target")
    uid, gid = (base + number if number >= 0 else -1 for base, number in zip((100000, 200000), given, strict=True))
    if how.startswith("fchown"):
        fd = os.open(seen / "target", os.O_RDONLY)
        os.fchown(fd, uid, gid)
        os.close(fd)
    else:
        os.chown(seen / "soft", uid, gid, follow_symlinks=how == "chown")
    changed, other = (layer / "soft", target) if how == "lchown" else (target, layer / "soft")
    assert owner(changed) == (max(given[0], 0), max(given[1], 0))
    assert owner(other) == (0, 0)


MAPS = {
    "several ranges": (
        ["uidmapping=0:1000:1:1:100000:999:1000:500000:10", "gidmapping=:5:50:5"],
        {(0, 5): (1000, 50), (1, 9): (100000, 54), (999, 7): (100998, 52), (1009, 5): (500009, 50)},
    ),
    "containers/storage": (["uidmapping=:0:100000:10", "gidmapping=:0:1:10"], {(3, 4): (100003, 5)}),
    "users alone": (["uidmapping=0:100000:10"], {(3, 4): (100003, 4), (9, 70000): (100009, 70000)}),
    "groups alone": (["gidmapping=0:100000:10"], {(3, 4): (3, 100004), (70000, 9): (70000, 100009)}),
    "none": ([], {(3, 4): (3, 4), (70000, 4294967294): (70000, 4294967294)}),
    "onto 0": (["uidmapping=100000:0:10", "gidmapping=100000:0:10"], {(100000, 100003): (0, 3)}),
    "beyond 2**31": (["uidmapping=1:4000000000:2", "gidmapping=4000000000:1:2"], {(2, 4000000001): (4000000001, 2)}),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps(name: str) -> None:
    options, owners = MAPS[name]
    with shifted_directory(*options) as mount:
        for number, (real, shown) in enumerate(owners.items()):
            layer, seen = mount.source / str(number), mount.path / str(number)
            layer.touch()
            os.chown(layer, *real)
            assert owner(seen) == shown
            os.chown(layer, *next(iter(owners)))
            seen.lstat()
            os.chown(seen, *shown)
            assert owner(layer) == real


@pytest.mark.parametrize("by", ["process", "file"])
def test_the_map_of_a_user_namespace(by: str) -> None:
    with (
        user_namespace((0, 200000, 10), (10, 300000, 5)) as namespace,
        shifted_directory(f"userns={namespace.pid if by == 'process' else namespace.path}") as mount,
    ):
        (mount.source / "file").touch()
        os.chown(mount.source / "file", 3, 12)
        assert owner(mount.path / "file") == (200003, 300002)
        assert namespace.run(["stat", "--format=%u %g", mount.path / "file"]).stdout == "3 12\n"


def test_the_map_of_a_users_sub_ids(tmp_path: Path) -> None:
    """Root is the user itself, then come its ranges. In a mount namespace, where /etc/subuid is another."""
    source, mountpoint = tmp_path / "source", tmp_path / "mountpoint"
    source.mkdir()
    mountpoint.mkdir()
    for name, ids in (("zero", (0, 0)), ("one", (1, 1)), ("eleven", (11, 11)), ("out", (21, 21))):
        (source / name).touch()
        os.chown(source / name, *ids)
    (tmp_path / "subuid").write_text("other:5:5\ndaemon:700000:10\ndaemon:900000:10\n")
    (tmp_path / "subgid").write_text("daemon:800000:20\n")
    script = """
        mount --bind subuid /etc/subuid && mount --bind subgid /etc/subgid
        "$@" -o subid=daemon source mountpoint && stat -c '%u %g' mountpoint/*; umount mountpoint
    """
    said = run(["unshare", "-m", "sh", "-ec", script, "sh", *SHIFTFS], cwd=tmp_path, env=environment()).stdout
    assert said.splitlines() == ["900000 800010", "700000 800000", f"{OVERFLOW} {OVERFLOW}", "1 1"]


# --- groups, modes and umask: as on a local disk ---


def modes_after(place: Path, umask: int) -> dict[str, tuple[int, int]]:
    """Group and mode of one of each, made in a directory."""
    os.umask(umask)
    make_file(place / "file", 0o6777)
    make_file(place / "plain", 0o666)
    os.mkdir(place / "directory", 0o3777)
    os.mkfifo(place / "fifo", 0o6777)
    os.mknod(place / "mknod", stat.S_IFREG | 0o2775)
    os.mknod(place / "mknod without x", stat.S_IFREG | 0o2765)
    make_socket(place / "socket")
    make_tmpfile(place / "tmpfile", 0o2777)
    os.symlink("x", place / "symlink")
    return groups_and_modes(place)


def groups_and_modes(place: Path) -> dict[str, tuple[int, int]]:
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(place)}
    return {name: (status.st_gid, status.st_mode) for name, status in found.items()}


CALLERS = {
    "stranger": Caller(100005, 100007),
    "member": Caller(100005, 100007, (100050,)),
    "of that group": Caller(100005, 100050),
    "root": Caller(100000, 100000),
}
DEFAULTS = {"none": None, "short": "u::rwx,g::r-x,o::---", "long": "u::rw-,u:5:rwx,g::rwx,m::rw-,o::r--"}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("mode", [0o777, 0o2777], ids=["plain", "set-gid"])
@pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct)
def test_modes_and_groups_of_creation_are_those_of_a_local_disk(
    alike: Mount, tmp_path: Path, caller: str, default: str, mode: int, umask: int
) -> None:
    layer, seen = directory(alike, f"modes-{caller}-{default}-{mode}-{umask}")
    native = tmp_path / "native"
    native.mkdir()
    acl = DEFAULTS[default]
    for place, gid in ((layer, 50), (native, 100050)):
        os.chown(place, -1, gid)
        place.chmod(mode)
        if acl is not None:
            run(["setfacl", "-d", "-m", acl, place])
    shown, expected = (CALLERS[caller](modes_after, place, umask) for place in (seen, native))
    assert shown == expected
    assert groups_and_modes(layer) == {name: (gid - 100000, mode) for name, (gid, mode) in expected.items()}


# --- creation is atomic ---


def test_everything_is_born_with_its_owner_and_mode(alike: Mount, tmp_path: Path) -> None:
    """Nothing is ever there with the wrong ones, so nothing is put right afterwards: seen in the system calls."""
    layer, seen = directory(alike, "born", 0o2777)
    os.chown(layer, 0, 50)
    layer.chmod(0o2777)
    log = tmp_path / "strace"
    with traced(alike.pid, "file,desc", log):
        Caller(100005, 100007)(modes_after, seen, 0o027)
    calls = log.read_text()
    assert "mknod" in calls and "mkdir" in calls and "symlink" in calls and "O_TMPFILE" in calls
    for forbidden in ("chmod", "chown", "setxattr", "unlink", "rename"):
        assert forbidden not in calls, calls
    assert owner(layer / "file") == (5, 50)
