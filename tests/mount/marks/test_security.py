"""What root has marked stays root's: who may mark what, what the mark settles, and what container root may change."""

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import SHIFTFS, Argument, Caller, Layers, UserNamespace, as_user, errno_of, open_directory, run
from harness.calls import FS_APPEND, FS_IMMUTABLE, FS_NOATIME, RENAME_EXCHANGE, get_flags, renameat2, set_flags
from harness.inside import Place
from harness.marks import USER, container, hidden_directory, marked, named

NAME = "security.capability"
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
UNKNOWN = 70000
"""An id on disk that no container here has."""


# --- who may mark, and what ---


def refused(*words: Any, reason: str, before: list[str] | None = None) -> None:
    """The command says why, and mounts nothing."""
    mounts = mounts_at(words[-1])
    answer = run([*(before or []), *SHIFTFS, *words], check=False)
    assert answer.returncode in (1, 2)
    assert reason in answer.stderr
    assert mounts_at(words[-1]) == mounts


def mounts_at(path: Any) -> list[str]:
    """Lines of /proc/self/mountinfo, in which other tests' mounts come and go."""
    with open("/proc/self/mountinfo") as lines:
        return [line for line in lines if line.split()[4] == str(path)]


def test_nobody_but_root_of_the_host_marks(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    words: list[Argument] = ["-o", "mark,allow_exposed", tmp_path, target]
    assert "mark needs root" in as_user(USER, [*SHIFTFS, *words], check=False).stderr
    weak: list[str] = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--"]
    refused(*words, reason="CAP_SYS_ADMIN in the initial user namespace", before=weak)
    for ranges in ([], [(0, 0, 4294967294)]):
        with container(*ranges, owner=USER) as user:
            answer = user.run(*SHIFTFS, *words, check=False)
            assert answer.returncode == 1 and "own rights" not in answer.stderr
            assert "CAP_SYS_ADMIN in the initial user namespace" in answer.stderr
    assert os.listdir(target) == []


def test_what_others_can_come_to_is_marked_on_request_alone(exposed: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    refused("-o", "mark", exposed, target, reason="beneath a directory that only root may search")
    # Its own mode is part of what is marked: container root changes it.
    exposed.chmod(0o700)
    refused("-o", "mark", exposed, target, reason=f"{exposed}: set-id files that others make there")
    (exposed / "link").symlink_to(exposed.parent)
    refused("-o", "mark", exposed / "link", target, reason="beneath a directory that only root may search")
    with marked("allow_exposed", source=exposed), marked("ro", source=exposed):
        pass


def test_an_exposed_upper_is_marked_on_request_alone(exposed: Path, tmp_path: Path) -> None:
    """Lower layers may be anywhere: nobody makes files there."""
    target = tmp_path / "target"
    target.mkdir()
    layers = Layers(exposed)
    refused("-o", ",".join(["mark", *named(layers)]), target, reason=f"{layers.upper}: set-id files that others make")
    with marked("allow_exposed", *named(layers)):
        pass
    hidden = Layers(hidden_directory())
    hidden.lowers = layers.lowers
    with marked(*named(hidden)), marked(f"lowerdir={layers.lower}:{hidden.upper}"):
        pass


@pytest.fixture
def exposed() -> Path:
    path = open_directory("exposed-") / "tree"
    path.mkdir()
    return path


def test_a_mark_is_not_marked(tmp_path: Path) -> None:
    with marked() as mark:
        refused("-o", "mark,allow_exposed", mark.path, tmp_path, reason="is a mark already")


# --- what the mark has settled ---


OTHERS = (
    "uidmapping=0:0:10", "gidmapping=0:0:10", "uidmapping=0:5:65536", "open=serve", "timeout=3", "watch=off",
    "locks=layers", "max_write=131072", "allow_exposed", "mark_users=5",
)  # fmt: skip


def test_whoever_mounts_says_nothing_of_how_it_is_shown() -> None:
    with marked() as mark, container() as user:
        for option in OTHERS:
            answer = user.mount(mark.path, option, check=False)
            assert answer.returncode in (1, 2), option
            assert "the mark has settled that" in answer.stderr or "is for marks" in answer.stderr, option
        assert "shiftfs" not in user.run("findmnt", "-n", user.target, check=False).stdout


def test_ids_are_those_of_the_marks_own_map() -> None:
    """Real ids from 5000 on are container root's and its users'."""
    source = hidden_directory()
    for name, owner in (("root", 5000), ("user", 6000), ("host", 0), ("last", 5999), ("none", 15000)):
        (source / name).write_bytes(b"content")
        (source / name).chmod(0o600)
        os.chown(source / name, owner, owner)
    os.chown(source, 5000, 5000)
    with marked("uidmapping=5000:0:10000", "gidmapping=5000:0:10000", source=source) as mark, container() as user:
        user.mount(mark.path)
        listed = user.shell("stat -c %u:%g root user host last none").split()
        assert listed == ["0:0", "1000:1000", "65534:65534", "999:999", "65534:65534"]
        user.shell("touch new; mkdir directory; chown 1000:5 new; ! cat host; ! cat none")
        user.shell("! chown 10000 new; ! chown 0:0 host; ! chown 0:0 none; ! rm -f host; ! setfacl -m u:10000:r new")
        user.shell("setfacl -m u:7:r new")
        status = (source / "new").stat()
        assert (status.st_uid, status.st_gid, (source / "directory").stat().st_uid) == (6000, 5005, 5000)
        assert "user:5007:r--" in run(["getfacl", "-pn", source / "new"]).stdout
        assert [(source / name).stat().st_uid for name in ("host", "none")] == [0, 15000]


# --- read-only ---

CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda path: os.open(path / "new", os.O_CREAT | os.O_WRONLY),
    "write": lambda path: (path / "file").write_bytes(b"another"),
    "append": lambda path: (path / "file").open("ab", buffering=0).write(b"more"),
    "open to cut off": lambda path: os.open(path / "file", os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda path: os.truncate(path / "file", 0),
    "tmpfile": lambda path: os.open(path, os.O_TMPFILE | os.O_RDWR),
    "mkdir": lambda path: os.mkdir(path / "new"),
    "mknod": lambda path: os.mkfifo(path / "new"),
    "symlink": lambda path: os.symlink("target", path / "new"),
    "link": lambda path: os.link(path / "file", path / "new"),
    "unlink": lambda path: os.unlink(path / "file"),
    "rmdir": lambda path: os.rmdir(path / "directory"),
    "rename": lambda path: os.rename(path / "file", path / "new"),
    "exchange": lambda path: renameat2(path / "file", path / "directory", RENAME_EXCHANGE),
    "chmod": lambda path: os.chmod(path / "file", 0o777),
    "chown": lambda path: os.chown(path / "file", 5, 5),
    "utime": lambda path: os.utime(path / "file", (1, 1)),
    "setxattr": lambda path: os.setxattr(path / "file", "user.name", b"value"),
    "removexattr": lambda path: os.removexattr(path / "file", "user.present"),
    "flags": lambda path: set_flags(path / "file", FS_NOATIME),
}


@pytest.mark.parametrize("whose", ["the mark's", "the user's"])
def test_what_is_read_only_stays_so_whatever_the_flags_of_the_mount(whose: str) -> None:
    source = hidden_directory()
    (source / "directory").mkdir()
    (source / "file").write_bytes(b"content")
    os.setxattr(source / "file", "user.present", b"value")
    before = (source / "file").stat()
    with marked(*(["ro"] if whose == "the mark's" else []), source=source) as mark, container() as user:
        user.mount(mark.path, *(["ro"] if whose == "the user's" else []))
        path, caller = Path(f"/proc/{user.pid}/root{user.target}"), Caller(0, 0, namespace=UserNamespace(user.pid))
        for change, call in CHANGES.items():
            assert (change, errno_of(lambda call=call: caller(call, path))) == (change, errno.EROFS)  # type: ignore[misc]
        user.run("mount", "-i", "-o", "remount,rw", user.target)
        assert "rw" in user.run("findmnt", "-nro", "OPTIONS", user.target).stdout.split(",")
        for change, call in CHANGES.items():
            assert (change, errno_of(lambda call=call: caller(call, path))) == (change, errno.EROFS)  # type: ignore[misc]
        assert user.shell("cat file; ls") == "contentdirectory\nfile\n"
    after = (source / "file").stat()
    assert before[:7] == after[:7] and after.st_ctime_ns == before.st_ctime_ns


# --- attributes that others go by ---


@pytest.mark.parametrize(
    "name",
    [
        "trusted.name", "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy",
        "trusted.overlay.overlay.opaque", "security.selinux", "security.apparmor", "security.shiftfs",
    ],
)  # fmt: skip
def test_attributes_of_the_hosts_are_neither_set_nor_seen_nor_removed(place: Place, name: str) -> None:
    shown, other = place.put("file"), place.put("other")
    for path in (other, place.path):
        assert place.ends(os.setxattr, path, name, b"y") in (errno.EPERM, errno.EOPNOTSUPP)
    assert name not in os.listxattr(place.stored("other"))
    os.setxattr(place.image / "file", name, b"y")
    assert place.as_root(os.listxattr, shown) == []
    assert place.ends(os.getxattr, shown, name) in (errno.ENODATA, errno.EPERM)
    assert place.ends(os.removexattr, shown, name) in (errno.ENODATA, errno.EPERM)
    assert os.getxattr(place.stored("file"), name) == b"y"


@pytest.mark.parametrize("prefix", ["user.overlay.", "user.overlay.overlay."])
def test_what_looks_like_an_overlays_hides_nothing_and_leads_nowhere(place: Place, prefix: str) -> None:
    place.shell("mkdir directory; echo content > file; mkdir secret; echo secret > secret/file")
    attributes = {"opaque": b"y", "redirect": b"/secret", "metacopy": b"", "whiteout": b"y", "origin": b"\0\xfb\x1d"}
    for name, value in attributes.items():
        for path in ("directory", "file"):
            place.as_root(os.setxattr, place.path / path, prefix + name, value)
    shown = [prefix + name for name in sorted(attributes)]
    assert sorted(place.as_root(os.listxattr, place.path / "directory")) == shown
    with container() as other:
        other.mount(place.mark.path)
        assert place.shell("cat file; ls directory; ls", other) == "content\ndirectory\nfile\nsecret\n"


# --- files of those who are not inside ---

TAKINGS: dict[str, Callable[[Path], object]] = {
    "chown of the user": lambda path: os.chown(path, 0, -1),
    "chown of the group": lambda path: os.chown(path, -1, 0),
    "chown of both": lambda path: os.chown(path, 0, 0),
    "chmod": lambda path: os.chmod(path, 0o6777),
    "write": lambda path: os.open(path, os.O_WRONLY),
    "read": lambda path: os.open(path, os.O_RDONLY),
    "truncate": lambda path: os.truncate(path, 0),
    "times": lambda path: os.utime(path, (1, 1)),
    "link": lambda path: os.link(path, path.with_name("other")),
    "rename": lambda path: os.rename(path, path.with_name("other")),
    "unlink": os.unlink,
    "setcap": lambda path: os.setxattr(path, NAME, CAPABILITY),
    "attribute": lambda path: os.setxattr(path, "user.name", b"y"),
    "ACL": lambda path: os.setxattr(path, "system.posix_acl_access", acl(5)),
    "flags": lambda path: set_flags(path, FS_NOATIME),
}


def acl(uid: int) -> bytes:
    """Lets a user do all."""
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 7, uid), (4, 4, nobody), (16, 7, nobody), (32, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize("how", TAKINGS)
def test_nobody_inside_has_rights_over_what_somebody_else_owns(place: Place, how: str) -> None:
    """Nor is it copied up."""
    shown = place.put("file", mode=0o6710)
    os.chown(place.image / "file", UNKNOWN, UNKNOWN)
    (place.image / "file").chmod(0o6710)
    before = place.stored("file").stat()
    code = place.ends(TAKINGS[how], shown)
    assert code in (errno.EPERM, errno.EACCES, errno.EOVERFLOW)
    assert place.image.joinpath("file").stat()[:7] == before[:7]
    assert os.listxattr(place.image / "file") == []
    assert not place.has_layers or not place.disk.exists() or os.listdir(place.disk) == []


def test_nor_has_root_of_a_namespace_of_few_ids(place: Place) -> None:
    """It has root's and the one above, and no more."""
    place.put("file", mode=0o600)
    os.chown(place.image / "file", 5, 5)
    with container((0, 200000, 2)) as few:
        few.mount(place.mark.path)
        assert place.shell("stat -c %u:%g file", few) == "65534:65534\n"
        path, caller = place.seen_by(few) / "file", Caller(0, 0, namespace=UserNamespace(few.pid))
        for how in set(TAKINGS) - {"ACL"}:  # which would name an id that it does not have
            code = errno_of(lambda call=TAKINGS[how]: caller(call, path))  # type: ignore[misc]
            assert (how, code) in [(how, errno.EPERM), (how, errno.EACCES), (how, errno.EOVERFLOW)]
        place.shell("touch own; chown 1:1 own; ! chown 2 own", few)
    assert place.stored("own").stat().st_uid == 1
    assert (place.stored("file").stat().st_uid, place.stored("file").read_bytes()) == (5, b"content")


# --- ACLs ---


def test_acls_and_set_group_ids_are_inherited_as_on_a_disk(place: Place) -> None:
    place.shell("mkdir shared; chown 0:50 shared; chmod 2775 shared; setfacl -m u:1000:rwx,d:u:5:rwx,d:g:6:r shared")
    place.shell("echo content > shared/file; mkdir shared/directory; cp /usr/bin/id shared/id", uid=1000)
    place.shell("chmod 2755 shared/id", uid=1000)  # not in its group
    for name in ("file", "directory", "id"):
        status = place.stored(f"shared/{name}").stat()
        assert (status.st_uid, status.st_gid) == (1000, 50)
        assert bool(status.st_mode & stat.S_ISGID) == (name == "directory")
        shown = run(["getfacl", "-pnc", place.stored(f"shared/{name}")]).stdout
        assert "user:5:rwx" in shown and "group:6:r--" in shown
    place.shell("echo more >> shared/file; ! rm shared/file", uid=5)
    place.shell("cat shared/file; ! echo more >> shared/file", uid=6)
    place.shell("! echo more >> shared/file", uid=7)


def test_an_acl_of_somebody_who_is_not_inside_gives_nobody_a_right(place: Place) -> None:
    shown = place.put("file", mode=0o600)
    os.setxattr(place.image / "file", "system.posix_acl_access", acl(UNKNOWN))
    assert place.shell("cat file") == "content"
    for uid in (65534, 1000, 5):
        place.shell("! cat file", uid=uid)
    # What is stored is never another's.
    for uid in (UNKNOWN, 65536, 0xFFFFFFFE):
        code = place.ends(os.setxattr, shown, "system.posix_acl_access", acl(uid))
        assert code in (errno.EINVAL, errno.EOVERFLOW)
    assert acl(UNKNOWN) == os.getxattr(place.stored("file"), "system.posix_acl_access")


# --- flags ---


@pytest.mark.parametrize("flag", [FS_IMMUTABLE, FS_APPEND])
def test_nobody_inside_makes_a_file_immutable_or_changes_one_that_is(place: Place, flag: int) -> None:
    shown = place.put("file")
    assert place.ends(set_flags, shown, flag) == errno.EPERM
    assert not get_flags(place.stored("file")) & flag
    set_flags(place.image / "file", flag)
    try:
        assert place.ends(set_flags, shown, 0) == errno.EPERM
        if not place.has_layers:
            assert place.ends(os.unlink, shown) == errno.EPERM
            assert place.ends(os.truncate, shown, 0) == errno.EPERM
        assert get_flags(place.image / "file") & flag
    finally:
        set_flags(place.image / "file", 0)
