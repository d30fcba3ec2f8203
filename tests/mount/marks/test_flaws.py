"""The ideas behind the known flaws of overlayfs and of Ubuntu's shiftfs, each tried on a mount of a mark."""

import errno
import fcntl
import mmap
import os
import shutil
import socket
import stat
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from harness import Caller, Layers, as_user, errno_of, open_directory, run
from harness.calls import RENAME_EXCHANGE, RENAME_WHITEOUT, fallocate, in_child, in_children, opened, refuses, renameat2
from harness.inside import Place, by
from harness.marks import FIRST, USER, Container, container, hidden_directory, marked

NAME = "security.capability"
NET_BIND = 1 << 10
STRANGER = 300000
"""Root of another container."""


def version_2(bits: int = NET_BIND) -> bytes:
    return struct.pack("<5I", 0x02000001, bits, 0, 0, 0)


def version_3(root: int, bits: int = NET_BIND) -> bytes:
    return struct.pack("<6I", 0x03000001, bits, 0, 0, 0, root)


# --- set-id files and devices ---


def test_set_id_files_are_nothing_to_those_outside(place: Place) -> None:
    """On disk they are real root's, where nobody comes to them; on the mount they are the container's."""
    place.shell("cp /usr/bin/id id; chmod 6755 id; cp id users; chown 1000:1000 users; chmod 6755 users")
    status = place.stored("id").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o6755)
    assert place.shell("./id -u; ./users -u", uid=33) == "0\n1000\n"
    for uid in (USER, FIRST, FIRST + 33, 1000):
        for way in (place.stored("id"), place.path / "id"):
            assert as_user(uid, [way, "-u"], check=False).returncode in (126, 127)
    assert errno_of((place.path / "id").stat) == errno.EACCES


@pytest.mark.parametrize("name", ["id", "capable"])
@pytest.mark.parametrize("uid", [None, USER, FIRST])
def test_a_program_given_away_by_its_descriptor_gives_nothing(place: Place, uid: int | None, name: str) -> None:
    """To a process outside, which has it from one inside."""
    place.shell("cp /usr/bin/id id; chmod 6755 id; cp id capable; setcap all=ep capable")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        place.as_root(lambda: socket.send_fds(theirs, [b"."], [os.open(place.path / name, os.O_RDONLY)]))
        _, (fd,), *_ = socket.recv_fds(ours, 1, 1)
    try:
        refuses(errno.EACCES, lambda: in_child(lambda: os.execve(fd, ["id", "-u"], {}), uid))
    finally:
        os.close(fd)


def test_no_devices_are_made_and_none_are_used(place: Place) -> None:
    for number in (os.makedev(1, 3), os.makedev(5, 0), os.makedev(0, 1)):
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            refuses(errno.EPERM, place.as_root, os.mknod, place.path / "device", kind | 0o666, number)
    os.mknod(place.image / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    refuses(errno.EACCES, place.as_root, os.open, place.path / "null", os.O_RDONLY)
    place.user.run("mount", "-i", "-o", "remount,dev", place.user.target, check=False)
    refuses(errno.EACCES, place.as_root, os.open, place.path / "null", os.O_RDONLY)


def test_no_whiteouts_are_made_where_there_are_layers(place: Place) -> None:
    """A 0/0 device would hide what is below. Elsewhere it is a device that nobody can open."""
    shown = place.put("file")
    moving = (renameat2, shown, place.path / "moved", RENAME_WHITEOUT)
    if place.has_layers:
        refuses(errno.EPERM, place.as_root, os.mknod, place.path / "hidden", stat.S_IFCHR, 0)
        assert place.ends(*moving) in (errno.EPERM, errno.EINVAL)
        assert place.shell("cat file; ls") == "contentfile\n"
        return
    place.as_root(os.mknod, place.path / "hidden", stat.S_IFCHR, 0)
    place.as_root(*moving)
    assert place.shell("stat -c '%t:%T %u %n' *") == "0:0 0 file\n0:0 0 hidden\n0:0 0 moved\n"
    refuses(errno.EACCES, place.as_root, os.open, shown, os.O_RDONLY)


# --- file capabilities ---


def effective(place: Place, user: Container | None = None, name: str = "busybox") -> int:
    """The capabilities with which a user of a container runs a program."""
    return int(place.shell(f"./{name} grep CapEff /proc/self/status", user, uid=33).split()[1], 16)


def test_capabilities_set_inside_are_that_containers_alone(place: Place) -> None:
    place.shell("cp /bin/busybox busybox; setcap cap_net_bind_service=ep busybox")
    busybox = place.stored("busybox")
    assert place.as_root(os.getxattr, place.path / "busybox", NAME) == version_2()
    assert effective(place) == NET_BIND
    assert os.getxattr(busybox, NAME) == version_3(FIRST)
    shutil.copy2(busybox, copy := open_directory("outside-") / "busybox")
    assert os.getxattr(copy, NAME) == version_3(FIRST)
    assert int(as_user(USER, [copy, "grep", "CapEff", "/proc/self/status"]).stdout.split()[1], 16) == 0
    with container((0, STRANGER, 65536)) as stranger:
        stranger.mount(place.mark.path)
        assert effective(place, stranger) == 0
        assert errno_of(lambda: by(stranger, os.getxattr, place.seen_by(stranger) / "busybox", NAME)) == errno.ENODATA
        place.shell("! getfattr -m - busybox | grep capability", stranger)
        place.shell("setcap cap_net_raw=ep busybox", stranger)
        assert os.getxattr(busybox, NAME) == version_3(STRANGER, 1 << 13)
    assert effective(place) == 0
    place.shell("setcap -r busybox")
    assert NAME not in os.listxattr(busybox)


def test_no_capability_is_set_for_somebody_elses_root(place: Place) -> None:
    """For an id inside, it is that id's on the host: a container within this one has it."""
    program = place.put("program")
    for root in (65536, FIRST, STRANGER, 0xFFFFFFFF):
        code = place.ends(os.setxattr, program, NAME, version_3(root))
        assert code in (errno.EPERM, errno.EINVAL, errno.EOVERFLOW)
    for value in (b"", version_2()[:12], version_2() + b"\0", version_2() * 2):
        assert place.ends(os.setxattr, program, NAME, value) != 0
    assert NAME not in os.listxattr(place.stored("program"))
    place.as_root(os.setxattr, program, NAME, version_3(1000))
    assert os.getxattr(place.stored("program"), NAME) == version_3(FIRST + 1000)
    assert place.as_root(os.getxattr, program, NAME) == version_3(1000)


def test_capabilities_of_the_image_are_the_containers_there(place: Place) -> None:
    """Version 2 on disk, as images have it."""
    shutil.copy("/bin/busybox", place.image / "busybox")
    os.setxattr(place.image / "busybox", NAME, version_2())
    assert effective(place) == NET_BIND
    assert place.as_root(os.getxattr, place.path / "busybox", NAME) == version_2()
    with container((0, STRANGER, 65536)) as stranger:
        stranger.mount(place.mark.path)
        assert effective(place, stranger) == NET_BIND
    with container((0, FIRST + 10, 10)) as few:
        few.mount(place.mark.path)
        assert by(few, os.getxattr, place.seen_by(few) / "busybox", NAME) == version_2()


def through(flags: int, call: Callable[[int], object]) -> Callable[[Path], None]:
    """A call on an open file."""

    def called(path: Path) -> None:
        with opened(path, flags) as fd:
            call(fd)

    return called


REPLACED: dict[str, Callable[[Path], object]] = {
    "written": through(os.O_WRONLY, lambda fd: os.write(fd, b"another")),
    "mapped": through(os.O_RDWR, lambda fd: mmap.mmap(fd, 7).write(b"another")),
    "cut": lambda path: os.truncate(path, 3),
    "cut by open": through(os.O_WRONLY | os.O_TRUNC, os.fstat),
    "allocated": through(os.O_RDWR, lambda fd: fallocate(fd, 0, 0, 9000)),
    "copied into": through(os.O_RDWR, lambda fd: os.copy_file_range(fd, fd, 3, 0, 4)),
    "given": lambda path: os.chown(path, 33, 33),
    "kept": lambda path: os.chown(path, 0, 0),
}


@pytest.mark.parametrize("how", REPLACED)
def test_other_content_does_not_get_a_capability_of_the_images(place: Place, how: str) -> None:
    """That would be the host's, version 2, on what container root has written."""
    program = place.put("program", mode=0o6755)
    os.setxattr(place.image / "program", NAME, version_2())
    assert place.as_root(os.getxattr, program, NAME) == version_2()
    place.as_root(REPLACED[how], program)
    assert NAME not in os.listxattr(place.stored("program"))
    assert place.ends(os.getxattr, program, NAME) == errno.ENODATA


def test_no_capability_is_set_by_root_of_a_namespace_that_has_the_hosts_root(place: Place) -> None:
    with container((0, 0, 65536)) as powerful:
        powerful.mount(place.mark.path)
        program = place.put("program")
        refuses(errno.EPERM, by, powerful, os.setxattr, place.seen_by(powerful) / "program", NAME, version_2())
        refuses(errno.EPERM, by, powerful, os.setxattr, place.seen_by(powerful) / "program", NAME, version_3(0))
    assert NAME not in os.listxattr(place.stored("program"))
    refuses(errno.ENODATA, place.as_root, os.getxattr, program, NAME)


# --- what comes up ---


def test_what_comes_up_is_whose_it_was_and_worth_what_it_was(place: Place) -> None:
    """CVE-2023-2640, CVE-2023-32629: attributes were copied up without being asked for. CVE-2016-1576, CVE-2023-0386:
    set-id files came up as another's."""
    place.put("program", mode=0o6755)
    os.chown(place.image / "program", 33, 34)
    place.image.joinpath("program").chmod(0o6755)
    os.setxattr(place.image / "program", NAME, version_3(FIRST))
    place.shell("touch -h program; setfattr -n user.name -v value program")
    status = place.stored("program").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (33, 34, 0o6755)
    assert os.getxattr(place.stored("program"), NAME) == version_3(FIRST)
    assert place.stored("program").parent == place.disk


def test_a_layer_of_a_nosuid_mount_gives_nothing_to_the_host(tmp_path: Path) -> None:
    """CVE-2021-3847: what such a mount keeps from having effect was copied up, to where it has. Here that is hidden
    from users, and the container could have set as much itself."""
    lower = tmp_path / "lower"
    lower.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "nosuid,mode=755", "none", lower])
    try:
        layers = Layers(hidden_directory(), 0)
        layers.lowers = [lower]
        shutil.copy("/bin/busybox", lower / "busybox")
        os.setxattr(lower / "busybox", NAME, version_2())
        with marked(f"lowerdir={lower},upperdir={layers.upper},workdir={layers.work}") as mark, container() as user:
            user.mount(mark.path)
            user.shell("touch busybox")
            assert os.getxattr(layers.upper / "busybox", NAME) == version_2()
            assert as_user(USER, ["stat", layers.upper / "busybox"], check=False).returncode
            words = user.shell("./busybox grep CapEff /proc/self/status", uid=33).split()
            assert int(words[1], 16) == NET_BIND
            refuses(errno.EACCES, os.listdir, f"/proc/{user.pid}/root{user.target}")
    finally:
        run(["umount", lower])


# --- what is asked of the process ---

TRIED: dict[str, Callable[[Path], object]] = {
    "read": lambda path: (path / "file").read_bytes(),
    "write": lambda path: (path / "file").write_bytes(b"inside"),
    "chmod": lambda path: os.chmod(path / "file", 0o4777),
    "chown": lambda path: os.chown(path / "file", 1000, 1000),
    "attribute": lambda path: os.setxattr(path / "file", "user.name", b"y"),
    "capability": lambda path: os.setxattr(path / "file", NAME, version_2()),
    "unlink": lambda path: os.unlink(path / "file"),
    "link": lambda path: os.link(path / "file", path / "linked"),
    "rename": lambda path: os.rename(path / "file", path / "moved"),
    "exchange": lambda path: renameat2(path / "file", path / "directory", RENAME_EXCHANGE),
    "list": lambda path: os.listdir(path / "directory"),
    "mkdir": lambda path: (path / "directory/new").mkdir(),
    "create": lambda path: (path / "new").write_bytes(b"inside"),
    "tmpfile": lambda path: os.close(os.open(path, os.O_TMPFILE | os.O_RDWR)),
}


@pytest.mark.parametrize("what", TRIED)
@pytest.mark.parametrize("is_up", [False, True], ids=["below", "up"])
def test_users_inside_may_what_modes_let_them(place: Place, what: str, is_up: bool) -> None:
    """CVE-2015-1328, CVE-2015-8660, CVE-2020-16120: whoever was let at the union was not asked for the layer."""
    place.put("file", mode=0o600)
    (place.image / "directory").mkdir(mode=0o700)
    if is_up:
        place.shell("touch -h file directory")
    before = place.stored("file").stat()

    def by_a_user() -> None:
        with opened(place.path) as here:  # by which he comes there: the way through /proc/PID/root is not for users
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            TRIED[what](Path(f"/proc/self/fd/{here}"))

    code = place.ends(by_a_user)
    assert code in (errno.EPERM, errno.EACCES)
    assert place.stored("file").stat()[:7] == before[:7]
    assert sorted(os.listdir(place.stored("file").parent)) == ["directory", "file"]


IOCTLS = {
    "FICLONE": 0x40049409, "FICLONERANGE": 0x4020940D, "SNAP_CREATE": 0x50009401, "SUBVOL_CREATE": 0x5000940E,
    "SNAP_DESTROY": 0x5000940F, "SNAP_CREATE_V2": 0x50009417, "SUBVOL_GETFLAGS": 0x80089419, "FITRIM": 0xC0185879,
    "FIEMAP": 0xC020660B, "CLONE": 0x8004E500, "shiftfsctl": 0xFE8053F5,
}  # fmt: skip


@pytest.mark.parametrize("name", IOCTLS)
def test_no_ioctl_takes_a_descriptor_to_a_layer(place: Place, name: str) -> None:
    """CVE-2019-15791, CVE-2019-15792: one named in a request to btrfs was replaced by the layer's own, whatever it was
    of. CVE-2021-3492: where the request's memory could not be read, it was given back twice."""
    shown = place.put("file")

    def tried() -> list[int]:
        codes = []
        with opened(place.path) as directory, opened(shown, os.O_RDWR) as file, opened(Path("/dev/null")) as other:
            for fd in (directory, file):
                for named in (directory, file, other, 99, -1):
                    argument = struct.pack("=q", named).ljust(4096, b"\0")
                    codes.append(errno_of(lambda: fcntl.ioctl(fd, IOCTLS[name], bytearray(argument))))  # noqa: B023
                codes.append(errno_of(lambda: fcntl.ioctl(fd, IOCTLS[name], 8)))  # noqa: B023
        return codes

    place.as_root(tried)
    before = place.mark.mount.status()["descriptors"]["open"]
    for _ in range(5):
        assert 0 not in place.as_root(tried)
    assert place.mark.mount.status()["descriptors"]["open"] <= before + 2
    assert place.shell("cat file") == "content"


def test_a_mapping_that_is_refused_loses_nothing(place: Place) -> None:
    """CVE-2019-15794: a file of the layer was given back where a mapping failed, instead of the one mapped."""
    shown = place.put("file", b"content" * 1000)

    def tried() -> bytes:
        with opened(shown) as reading, opened(place.path) as directory:
            for _ in range(50):
                assert errno_of(lambda: mmap.mmap(reading, 4096)) == errno.EACCES
                assert errno_of(lambda: mmap.mmap(directory, 4096)) in (errno.ENODEV, errno.EACCES)
            with mmap.mmap(reading, 7000, prot=mmap.PROT_READ) as memory:
                os.unlink(shown)
                return bytes(memory[:7]) + bytes(memory[-7:])

    before = place.mark.mount.status()["descriptors"]["open"]
    assert place.as_root(tried) == b"contentcontent"
    assert place.mark.mount.status()["descriptors"]["open"] <= before + 3


# --- ways out of the tree ---


@pytest.fixture
def outside() -> Path:
    """Which root alone may come to, as the process could. As long as it is not changed, all is well."""
    path = hidden_directory()
    (path / "file").write_bytes(b"outside")
    (path / "directory").mkdir()
    return path


def unchanged(outside: Path) -> None:
    assert sorted(os.listdir(outside)) == ["directory", "file"]
    assert os.listdir(outside / "directory") == []
    assert (outside / "file").read_bytes() == b"outside"
    assert (outside / "file").stat().st_uid == 0 and os.listxattr(outside / "file") == []


@pytest.mark.parametrize("target", ["absolute", "relative", "in the image"])
def test_links_lead_where_the_container_may_go(place: Place, outside: Path, target: str) -> None:
    """And with its rights: the process follows none."""
    link = Path(os.path.relpath(outside, place.user.target / place.name)) if target == "relative" else outside
    if target == "in the image":
        (place.image / "link").symlink_to(link)
    else:
        place.as_root(os.symlink, link, place.path / "link")
    for what, call in TRIED.items():
        assert place.ends(call, place.path / "link") in (errno.EACCES, errno.ENOENT), what
    place.shell("chown -h 7:7 link; ! cat ../../../../../../../../../etc/shadow; mv link renamed; cp -P renamed again")
    assert place.stored("renamed").lstat().st_uid == 7
    unchanged(outside)


def until(end: float, *calls: Callable[[], object]) -> set[str]:
    """Make the calls again and again; what they have returned."""
    found: set[str] = set()
    while time.monotonic() < end:
        for call in calls:
            with suppress(OSError):
                found.add(str(call()))
    return found


@pytest.mark.parametrize("where", ["layer", "mount"])
def test_a_directory_that_is_a_link_by_then_leads_nowhere(place: Place, outside: Path, where: str) -> None:
    """While it is swapped for one to the outside, there or here, others work in it."""
    for name in ("swapped", "swapped/directory"):
        (place.image / name).mkdir()
    (place.image / "link").symlink_to(outside)
    place.put("swapped/file", b"inside")
    place.shell("stat swapped/file")
    end = time.monotonic() + 2

    def swap() -> set[str]:
        at = place.image if where == "layer" else place.path
        by_whom = Caller(0, 0) if where == "layer" else place.as_root
        found: set[str] = by_whom(until, end, lambda: renameat2(at / "swapped", at / "link", RENAME_EXCHANGE))
        return found

    def work() -> set[str]:
        path = place.path / "swapped"
        found: set[str] = place.as_root(until, end, *(partial(call, path) for call in TRIED.values()))
        return found

    _, found, _ = in_children([swap, work, work])
    assert found and not any("outside" in one for one in found)
    unchanged(outside)
    assert place.shell("echo alive") == "alive\n"
