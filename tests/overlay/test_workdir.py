"""The work directory: what is made, cleared, heeded and found out in it."""

import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Layers, as_user, run
from overlay.directory import LayerError
from overlay.workdir import WorkDirectory
from shiftfs.tree import Descriptor

DAEMON = 1


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def opened(layers: Layers, said: list[str] | None = None, **options: bool) -> WorkDirectory:
    held = Descriptor(os.open(layers.work, os.O_RDONLY), os.close)
    log = (said if said is not None else []).append
    return WorkDirectory.open(held, f"workdir {layers.work}", log=log, **options)


def refusal(layers: Layers) -> str:
    try:
        opened(layers)
    except LayerError as error:  # pytest.raises would keep what the frames hold
        text = str(error)
    else:
        pytest.fail("was not refused")
    assert len(text.splitlines()) == 1
    return text


@contextmanager
def ramfs(layers: Layers) -> Iterator[Layers]:
    """The same on a filesystem that takes no xattrs."""
    base = layers.base / "ramfs"
    base.mkdir()
    run(["mount", "-t", "ramfs", "none", base])
    try:
        yield Layers(base)
    finally:
        run(["umount", base])


# --- what is made ---


def test_two_directories_are_made_that_are_nobody_elses(layers: Layers) -> None:
    os.umask(0)
    layers.work.chmod(0o2777)
    work = opened(layers)
    assert sorted(os.listdir(layers.work)) == ["index", "work"]
    for name in ("index", "work"):
        assert stat.S_IMODE((layers.work / name).stat().st_mode) == 0o700
    assert os.fstat(work.work.fd).st_ino == (layers.work / "work").stat().st_ino
    assert work.index is not None
    assert os.fstat(work.index.fd).st_ino == (layers.work / "index").stat().st_ino


def test_what_is_made_in_them_inherits_no_acl(layers: Layers) -> None:
    run(["setfacl", "-m", "default:user:daemon:rwx,user:daemon:rwx", layers.work])
    work = opened(layers)
    os.mkdir(b"new", dir_fd=work.work.fd)
    for path in ("work", "work/new", "index"):
        assert not [name for name in os.listxattr(layers.work / path) if "acl" in name]


def test_they_are_taken_up_again(layers: Layers) -> None:
    opened(layers)
    before = [(layers.work / name).stat().st_ino for name in ("index", "work")]
    (layers.work / "index/00fb").touch()
    (layers.work / "work").chmod(0o000)  # as the kernel makes it
    opened(layers)
    assert [(layers.work / name).stat().st_ino for name in ("index", "work")] == before
    assert os.listdir(layers.work / "index") == ["00fb"]


def test_what_else_is_in_it_stays(layers: Layers) -> None:
    (layers.work / "other").mkdir()
    (layers.work / "other/file").write_text("kept")
    opened(layers)
    assert (layers.work / "other/file").read_text() == "kept"


def test_temporary_names_are_the_kernels_and_each_is_new(layers: Layers) -> None:
    work = opened(layers)
    names = [work.temporary() for _ in range(17)]
    assert names[:2] == [b"#0", b"#1"]
    assert names[16] == b"#10"


# --- leftovers ---


def whiteouts(layers: Layers, made: WorkDirectory, *names: bytes) -> list[os.stat_result]:
    for name in names:
        made.make_whiteout(name)
    found = [os.lstat(layers.work / "work" / os.fsdecode(name)) for name in names]
    assert all(stat.S_ISCHR(one.st_mode) and one.st_rdev == 0 for one in found)
    return found


def test_whiteouts_are_links_of_one(layers: Layers) -> None:
    made = opened(layers)
    one, two = whiteouts(layers, made, b"one", b"two")
    assert one.st_ino == two.st_ino and two.st_nlink == 3
    said: list[str] = []
    for name in ("one", "two"):
        os.unlink(layers.work / "work" / name)
    opened(layers, said)
    assert os.listdir(layers.work / "work") == [] and said == [], "it is none of an earlier mount's leftovers"


def test_another_is_made_where_it_cannot_be_linked_to(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    made = opened(layers)

    def full(*names: bytes, **options: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    (one,) = whiteouts(layers, made, b"one")
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", full)
        two, three = whiteouts(layers, made, b"two", b"three")
    four, five = whiteouts(layers, made, b"four", b"five")
    assert len({one.st_ino for one in (one, two, three, four)}) == 4 and four.st_ino == five.st_ino


def test_leftovers_are_removed_and_counted(layers: Layers) -> None:
    said: list[str] = []
    opened(layers, said)
    left = layers.work / "work"
    for number in range(3):
        (left / f"#{number:x}").write_text("half a file")
    (left / "#3/deep/down").mkdir(parents=True)
    (left / "#3/deep/file").touch()
    opened(layers, said)
    assert os.listdir(left) == []
    assert said == [f"workdir {layers.work}: removed 6 leftovers of an earlier mount"]


def test_nothing_outside_is_reached(layers: Layers) -> None:
    outside = layers.base / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    opened(layers)
    left = layers.work / "work"
    (left / "to-directory").symlink_to(outside)
    (left / "to-file").symlink_to(outside / "file")
    (left / "inner").mkdir()
    (left / "inner/up").symlink_to("..")
    (left / "inner/out").symlink_to(outside)
    os.link(outside / "file", left / "inner/linked")
    opened(layers)
    assert os.listdir(left) == []
    assert (outside / "file").read_text() == "kept"
    assert (outside / "file").stat().st_nlink == 1


def test_leftovers_of_every_kind_are_removed(layers: Layers) -> None:
    opened(layers)
    left = layers.work / "work"
    os.mkfifo(left / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(left / "socket"))
    (left / "dangling").symlink_to("nowhere")
    (left / "incompat").touch()
    (left / "closed").mkdir()
    (left / "closed/inner").mkdir(mode=0o500)
    (left / "closed").chmod(0)
    opened(layers)
    assert os.listdir(left) == []


def test_no_depth_is_too_deep(layers: Layers) -> None:
    opened(layers)
    at = os.open(layers.work / "work", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir(b"d", dir_fd=at)
        os.close(os.open(b"f", os.O_CREAT, dir_fd=at))
        below = os.open(b"d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    opened(layers)
    assert os.listdir(layers.work / "work") == []


def test_names_like_those_that_clearing_makes_are_in_no_way(layers: Layers) -> None:
    opened(layers)
    left = layers.work / "work"
    (left / "a/b/c").mkdir(parents=True)
    (left / "a/e").mkdir()
    (left / "#cleared0/full").mkdir(parents=True)
    (left / "#cleared1").touch()
    (left / "#cleared2").mkdir()
    opened(layers)
    assert os.listdir(left) == []


@pytest.mark.parametrize("call", ["unlink", "rename", "rmdir"])
def test_clearing_may_be_cut_short_and_is_done_by_the_next(
    layers: Layers, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    class Killed(BaseException):
        pass

    opened(layers)
    left = layers.work / "work"
    for outer in range(3):
        (left / f"#{outer}/inner/deep").mkdir(parents=True)
        (left / f"#{outer}/inner/file").touch()
    done: Callable[..., None] = getattr(os, call)
    for after in range(3):
        calls = iter(range(after + 1))

        def cut_short(*args: object, **options: object) -> None:
            if next(calls) == after:  # noqa: B023
                raise Killed
            done(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, cut_short)
            with pytest.raises(Killed):
                opened(layers)
        assert os.listdir(left) != []
    opened(layers)
    assert os.listdir(left) == []


CLEAR = """
import os
from overlay.workdir import WorkDirectory
from shiftfs.tree import Descriptor
held = Descriptor(os.open("work", os.O_RDONLY), os.close)
WorkDirectory.open(held, "workdir work", log=print)
"""


@pytest.mark.root
def test_a_user_clears_what_their_own_modes_forbid(layers: Layers) -> None:
    left = layers.work / "work"
    (left / "closed/inner/deep").mkdir(parents=True)
    (left / "closed/inner/deep/file").touch()
    for path in (layers.base, layers.upper, layers.work, left, *left.rglob("*")):
        os.chown(path, DAEMON, DAEMON)
    for path in (left / "closed/inner", left / "closed", left):
        path.chmod(0)
    said = as_user(DAEMON, [sys.executable, "-c", CLEAR], cwd=layers.base)
    assert said.stdout == "workdir work: removed 3 leftovers of an earlier mount\n"
    assert os.listdir(left) == []


@pytest.mark.root
def test_what_is_not_a_users_to_clear_is_named(layers: Layers) -> None:
    for path in (layers.base, layers.upper, layers.work):
        os.chown(path, DAEMON, DAEMON)
    (layers.work / "work").mkdir()
    said = as_user(DAEMON, [sys.executable, "-c", CLEAR], cwd=layers.base, check=False)
    assert said.stderr.splitlines()[-1] == (
        "overlay.directory.LayerError: workdir work: work in it cannot be made ready (Operation not permitted);"
        " remove it by hand, or give another directory"
    )


# --- what is not ours ---


@pytest.mark.parametrize("name", ["work", "index"])
@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink", "pipe"])
def test_what_is_in_the_place_of_ours_is_refused_and_stays(layers: Layers, name: str, kind: str) -> None:
    (layers.base / "outside").mkdir()
    (layers.base / "outside/file").touch()
    path = layers.work / name
    make: dict[str, Callable[[], object]] = {
        "file": path.touch,
        "symlink": lambda: path.symlink_to(layers.base / "outside"),
        "dangling symlink": lambda: path.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(path),
    }
    make[kind]()
    before = path.lstat().st_ino
    assert refusal(layers) == (
        f"workdir {layers.work}: {name} in it is no directory on its filesystem, so it is none of ours; move {name}"
        " away, or give another directory"
    )
    assert path.lstat().st_ino == before
    assert os.listdir(layers.base / "outside") == ["file"]


@pytest.mark.root
def test_what_is_mounted_in_its_place_is_refused(layers: Layers) -> None:
    (layers.work / "work").mkdir()
    (layers.base / "outside/inner").mkdir(parents=True)
    run(["mount", "--bind", layers.base / "outside", layers.work / "work"])
    try:
        assert "no directory on its filesystem" in refusal(layers)
    finally:
        run(["umount", layers.work / "work"])
    assert os.listdir(layers.base / "outside") == ["inner"]


@pytest.mark.root
def test_what_is_mounted_among_leftovers_is_not_entered(layers: Layers) -> None:
    (layers.work / "work/left").mkdir(parents=True)
    (layers.base / "outside/inner").mkdir(parents=True)
    run(["mount", "--bind", layers.base / "outside", layers.work / "work/left"])
    try:
        assert "left in it cannot be made ready (Invalid cross-device link)" in refusal(layers)
    finally:
        run(["umount", layers.work / "work/left"])
    assert os.listdir(layers.base / "outside") == ["inner"]


# --- marks ---


def test_a_volatile_mount_leaves_a_mark_that_the_next_refuses(layers: Layers) -> None:
    assert opened(layers, volatile=True).volatile
    assert (layers.work / "work/incompat/volatile/dirty").is_file()
    (layers.work / "work/#5").touch()
    assert refusal(layers) == (
        f"workdir {layers.work}: was used by a volatile mount, so a crash may have damaged the upper directory; if it"
        " has not, delete work/incompat/volatile in it by hand, else start with a new upper directory"
    )
    with pytest.raises(LayerError, match="was used by a volatile mount"):
        opened(layers, volatile=True)
    assert (layers.work / "work/#5").exists(), "nothing is touched before that is decided"


def test_once_the_mark_is_deleted_the_directory_can_be_used(layers: Layers) -> None:
    opened(layers, volatile=True)
    (layers.work / "work/incompat/volatile/dirty").unlink()
    (layers.work / "work/incompat/volatile").rmdir()
    assert not opened(layers).volatile
    assert os.listdir(layers.work / "work") == []


def test_a_mark_that_nobody_knows_is_refused(layers: Layers) -> None:
    (layers.work / "work/incompat/future").mkdir(parents=True)
    assert "bears the mark work/incompat/future of a feature that is not known here" in refusal(layers)
    assert (layers.work / "work/incompat/future").exists()


@pytest.mark.root
def test_the_mark_is_the_kernels(layers: Layers) -> None:
    opened(layers, volatile=True)
    said = run(
        ["mount", "-t", "overlay", "none", layers.lower, "-o",
         f"lowerdir={layers.lower},upperdir={layers.upper},workdir={layers.work}"],
        check=False,
    )  # fmt: skip
    assert said.returncode != 0
    theirs = layers.base / "theirs"
    theirs.mkdir()
    of_kernel = Layers(theirs)
    with of_kernel.mount("volatile", kind="kernel"):
        pass
    assert "was used by a volatile mount" in refusal(of_kernel)


# --- what the filesystem can do ---


@pytest.mark.root
def test_root_has_all_of_it_and_nothing_is_left_of_the_trial(layers: Layers) -> None:
    work = opened(layers)
    assert (work.prefix, work.whiteouts, work.has_tmpfile) == (b"trusted.overlay.", "device", True)
    assert os.listdir(layers.work / "work") == os.listdir(layers.work / "index") == []
    assert os.listxattr(layers.work / "work") == []


def test_user_attributes_can_be_asked_for(layers: Layers) -> None:
    assert opened(layers, userxattr=True).prefix == b"user.overlay."


def test_whiteouts_are_attributes_where_devices_may_not_be_made(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mknod(*args: object, **options: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "mknod", mknod)
    assert opened(layers).whiteouts == "xattr"


@pytest.mark.root
def test_without_attributes_names_are_all_there_is(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with ramfs(layers) as there:
        work = opened(there, said)
        assert (work.prefix, work.whiteouts, work.index) == (b"", "device", None)
        assert os.listdir(there.work) == ["work"]
        assert os.listdir(there.work / "work") == []
        del work

        def mknod(*args: object, **options: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "mknod", mknod)
        assert opened(there).whiteouts == "name"
    (line,) = said
    assert "takes no extended attributes of ours" in line


def test_an_index_that_is_not_wanted_is_not_made(layers: Layers) -> None:
    assert opened(layers, index=False).index is None
    assert os.listdir(layers.work) == ["work"]


def test_an_unnamed_file_that_cannot_be_linked_is_of_no_use(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: object, **options: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", link)
    assert not opened(layers).has_tmpfile
    assert os.listdir(layers.work / "work") == []
