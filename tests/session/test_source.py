"""A source tree on a real directory: each method, and an attacker who changes the directory beneath it."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import run
from shiftfs.descriptors import Entry
from shiftfs.layer import Layer
from shiftfs.source import SourceTree
from shiftfs.sys import files
from shiftfs.tree import Change, Listed

KEEP = Change(None, None, None, None, None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "d").mkdir(parents=True)
    (path / "d" / "file").write_text("inside")
    (path / "d" / "link").symlink_to("target")
    (path / "d" / "sub").mkdir()
    return path


@pytest.fixture(params=["handles", "names"])
def tree(source: Path, request: pytest.FixtureRequest) -> Iterator[SourceTree]:
    layer = Layer(os.fsencode(source))
    if request.param == "handles" and not layer.opens_by_handle:
        vars(layer).clear()
        pytest.skip("needs CAP_DAC_READ_SEARCH and a filesystem with file handles")
    layer.opens_by_handle = request.param == "handles"
    made = SourceTree(layer, 64)
    yield made
    for held in (made._held, made, layer):
        vars(held).clear()  # pytest holds them longer than they may hold descriptors


def find(tree: SourceTree, path: bytes) -> Entry:
    """The entry at a path; nothing is held of it nor of what leads to it."""
    entry = tree.root
    for name in path.split(b"/"):
        entry = tree.entry(entry, name, tree.lookup(entry, name)[0])
    above: Entry | None = entry
    while above is not None and above.parent is not None:
        tree.release(above)
        above = above.parent
    return entry


def fails(call: Callable[[], object]) -> int | None:
    """The errno, or None if it does not fail."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


# What each method does


def test_lookup_and_attributes(tree: SourceTree, source: Path) -> None:
    for path in (b"d", b"d/file", b"d/link"):
        entry = find(tree, path)
        real = os.lstat(os.path.join(os.fsencode(source), path))
        assert entry.parent is not None
        found = [tree.lookup(entry.parent, entry.name)[1], tree.attributes(entry)]
        tree.path(entry)
        found.append(tree.attributes(entry))
        for a in found:
            assert (tree.numbers(a), a.mode, a.nlink, a.size, a.uid) == (
                real.st_ino, real.st_mode, real.st_nlink, real.st_size, real.st_uid
            )  # fmt: skip
            assert a.mtime * 10**9 + a.mtimensec == real.st_mtime_ns
    assert tree.root_attributes()[1].ino == source.stat().st_ino
    assert fails(lambda: tree.lookup(tree.root, b"absent")) == errno.ENOENT
    assert fails(lambda: tree.lookup(tree.root, b"n" * 256)) == errno.ENAMETOOLONG
    assert fails(lambda: tree.lookup(find(tree, b"d/file"), b"x")) == errno.ENOTDIR


def test_times_before_1970_and_device_numbers(tree: SourceTree, source: Path) -> None:
    os.utime(source / "d", ns=(-5 * 10**9 + 7, -(10**9)))
    a = tree.attributes(find(tree, b"d"))
    assert (a.atime, a.atimensec, a.mtime) == (-5, 7, -1)


def test_listing(tree: SourceTree, source: Path) -> None:
    entry = find(tree, b"d")
    expected = [
        Listed(os.fsencode(item.name), item.inode(), item.stat(follow_symlinks=False).st_mode >> 12)
        for item in os.scandir(source / "d")
    ]
    assert sorted(tree.listing(tree.held(entry))) == sorted(expected)
    assert tree.parent_number(entry) == tree.parent_number(tree.root) == source.stat().st_ino


def test_creation(tree: SourceTree, source: Path) -> None:
    d = find(tree, b"d")
    previous = os.umask(0)
    try:
        tree.mkdir(d, b"dir", 0o2750)
        tree.mknod(d, b"fifo", stat.S_IFIFO | 0o640, 0)
        tree.symlink(d, b"sym", b"\xff/anywhere")
        created = tree.create(d, b"new", 0o604)
    finally:
        os.umask(previous)
    assert (source / "d" / "dir").stat().st_mode & 0o777 == 0o750
    assert (source / "d" / "fifo").stat().st_mode == stat.S_IFIFO | 0o640
    assert os.readlink(os.fsencode(source / "d" / "sym")) == b"\xff/anywhere"
    assert created.writable and os.pwrite(created.fd, b"x", 0) == 1
    assert (source / "d" / "new").stat().st_mode == stat.S_IFREG | 0o604
    assert fails(lambda: tree.create(d, b"new", 0o600)) == errno.EEXIST
    assert fails(lambda: tree.create(d, b"link", 0o600)) == errno.EEXIST, "a symlink is never followed"


def test_link_to_a_file_a_symlink_and_an_unnamed_file(tree: SourceTree, source: Path) -> None:
    d = find(tree, b"d")
    for name in (b"file", b"link"):
        tree.link(find(tree, b"d/" + name), d, b"to-" + name)
        assert os.lstat(source / "d" / f"to-{name.decode()}").st_nlink == 2
    key, attributes, unnamed = tree.tmpfile(d, 0o600)
    assert (attributes.nlink, tree.descriptors()["unlinked"]) == (0, 1)
    tree.link(unnamed, d, b"named")
    assert tree.lookup(d, b"named")[0] == key
    tree.found_at(unnamed, d, b"named")
    assert tree.descriptors()["unlinked"] == 0
    tree.release(unnamed)
    assert os.fstat(tree.path(unnamed).fd).st_nlink == 1


@pytest.mark.parametrize("opened", [False, True])
def test_unlink_keeps_the_inode_until_released(tree: SourceTree, source: Path, opened: bool) -> None:
    file, d = find(tree, b"d/file"), find(tree, b"d")
    assert file.parent is not None
    if opened:
        tree.data(file, False)
    assert tree.unlink(file.parent, b"file", file)
    (source / "d" / "file").write_text("another")
    assert os.pread(tree.data(file, False).fd, 10, 0) == b"inside"
    assert tree.attributes(file).nlink == 0
    tree.release(file)
    assert tree.descriptors()["unlinked"] == 0
    assert tree.unlink(d, b"file", None) is False, "unknown: nothing to keep"
    assert fails(lambda: tree.unlink(d, b"file", None)) == errno.ENOENT


def test_an_unlink_that_fails_leaves_nothing_pinned(tree: SourceTree) -> None:
    sub = find(tree, b"d/sub")
    d = sub.parent
    assert d is not None
    assert fails(lambda: tree.unlink(d, b"sub", sub)) in {errno.EISDIR, errno.EPERM}
    assert tree.descriptors()["unlinked"] == 0


def test_removing_one_of_two_names_pins_nothing_for_good(tree: SourceTree, source: Path) -> None:
    d = find(tree, b"d")
    entries = []
    for number in range(100):
        name = b"f%d" % number
        (source / "d" / name.decode()).touch()
        os.link(source / "d" / name.decode(), source / "d" / f"other-{number}")
        entries.append(tree.entry(d, name, tree.lookup(d, name)[0]))
        assert not tree.unlink(d, name, entries[-1])
    count = tree.descriptors()
    assert count["unlinked"] <= count["bound"] // 2 + 1
    for entry in entries:
        assert tree.attributes(entry).nlink == 1


def test_rmdir(tree: SourceTree, source: Path) -> None:
    sub = find(tree, b"d/sub")
    assert sub.parent is not None
    tree.rmdir(sub.parent, b"sub", sub)
    assert tree.attributes(sub).nlink == 0
    assert fails(lambda: tree.listing(tree.held(sub))) == errno.ENOENT  # as getdents(2) has it
    assert fails(lambda: tree.mkdir(sub, b"new", 0o755)) == errno.ENOENT


@pytest.mark.parametrize("flags", [0, files.RENAME_NOREPLACE, files.RENAME_EXCHANGE])
def test_rename(tree: SourceTree, source: Path, flags: int) -> None:
    (source / "other").write_text("other")
    file, other = find(tree, b"d/file"), find(tree, b"other")
    assert file.parent is not None

    def rename() -> bool:
        assert file.parent is not None
        return tree.rename(file.parent, b"file", tree.root, b"other", flags, file, other)

    if flags == files.RENAME_NOREPLACE:
        assert fails(rename) == errno.EEXIST
        assert tree.descriptors()["unlinked"] == 0
        return
    assert rename() is (flags == 0)
    for entry, links in ((file, 1), (other, 0 if flags == 0 else 1)):
        assert tree.attributes(entry).nlink == links
        assert os.fstat(tree.data(entry, False).fd).st_ino == entry.key[1]
    assert (file.parent, file.name) == (tree.root, b"other")


@pytest.mark.root
def test_change(tree: SourceTree, source: Path) -> None:
    file, link = find(tree, b"d/file"), find(tree, b"d/link")
    tree.change(file, Change(0o4755, 1000, 1001, (1, 2), (-3, 4)))
    found = (source / "d" / "file").stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o4755, 1000, 1001), "owner first, then mode"
    assert (found.st_atime_ns, found.st_mtime_ns) == (10**9 + 2, -3 * 10**9 + 4)
    tree.change(file, KEEP._replace(gid=7))
    tree.change(file, KEEP._replace(mtime=(0, files.UTIME_OMIT), atime=(9, 0)))
    found = (source / "d" / "file").stat()
    assert (found.st_uid, found.st_gid, found.st_atime, found.st_mtime_ns) == (1000, 7, 9, -3 * 10**9 + 4)
    (source / "target").touch()
    (source / "d" / "link").unlink()
    (source / "d" / "link").symlink_to("../target")
    link = find(tree, b"d/link")
    tree.change(link, KEEP._replace(uid=5, mtime=(6, 0)))
    found = os.lstat(source / "d" / "link")
    assert (found.st_uid, found.st_mtime) == (5, 6)
    assert (source / "target").stat().st_uid == 0, "a symlink's are the symlink's"


@pytest.mark.root
def test_xattrs(tree: SourceTree, source: Path) -> None:
    (source / "d" / "target").touch()
    for path in (b"d/file", b"d/link", b"d/sub"):
        entry = find(tree, path)
        tree.setxattr(entry, b"trusted.\xff", b"v\0", os.XATTR_CREATE)
        assert fails(lambda entry=entry: tree.setxattr(entry, b"trusted.\xff", b"", os.XATTR_CREATE)) == errno.EEXIST  # type: ignore[misc]
        assert tree.getxattr(entry, b"trusted.\xff") == b"v\0"
        assert b"trusted.\xff" in tree.listxattr(entry)
        tree.removexattr(entry, b"trusted.\xff")
        assert fails(lambda entry=entry: tree.getxattr(entry, b"trusted.\xff")) == errno.ENODATA  # type: ignore[misc]
    assert os.listxattr(source / "d" / "target") == []


def test_the_rest(tree: SourceTree, source: Path) -> None:
    link, file = find(tree, b"d/link"), find(tree, b"d/file")
    assert tree.readlink(link) == b"target"
    assert tree.space(file).namelen == os.statvfs(source).f_namemax
    tree.sync()
    assert not tree.is_pseudo(tree.path(file).fd)
    assert not tree.tidy(0)
    opened = tree.open_waiting(tree.path(file), os.O_RDWR)
    tree.keep_data(file, opened)
    assert tree.data(file, True) is opened
    assert tree.describe()[0]["path"] == str(source)


def test_a_descriptor_of_an_unknown_filesystem_is_enough_to_look_by(tree: SourceTree) -> None:
    fd = os.open("/proc/version", os.O_PATH)
    try:
        key, attributes = tree._layer.look(fd, b"")
        assert key[3] == stat.S_IFREG >> 12 and attributes.ino == os.fstat(fd).st_ino
        assert tree.is_pseudo(fd)
    finally:
        os.close(fd)


@pytest.mark.root
def test_filesystems_mounted_inside_have_numbers_of_their_own(source: Path) -> None:
    inside = source / "d" / "sub"
    run(["mount", "-t", "tmpfs", "tmpfs", inside])
    try:
        (inside / "file").touch()
        tree = SourceTree(Layer(os.fsencode(source)), 64)
    finally:
        run(["umount", inside])
    sub, file = find(tree, b"d/sub"), find(tree, b"d/sub/file")
    [listed] = tree.listing(tree.held(sub))
    attributes = tree.attributes(file)
    assert listed.number == tree.numbers(attributes) != attributes.ino
    assert tree.parent_number(file) == tree.numbers(tree.attributes(sub))
    assert tree.numbers(tree.attributes(find(tree, b"d"))) == (source / "d").stat().st_ino


# Somebody changes the source while we serve it

MODIFYING: dict[str, Callable[[SourceTree, Entry, Entry], Any]] = {
    "lookup": lambda tree, d, file: tree.lookup(d, b"file"),
    "listing": lambda tree, d, file: tree.listing(tree.held(d)),
    "mknod": lambda tree, d, file: tree.mknod(d, b"new", 0o100644, 0),
    "mkdir": lambda tree, d, file: tree.mkdir(d, b"new", 0o755),
    "symlink": lambda tree, d, file: tree.symlink(d, b"new", b"x"),
    "link": lambda tree, d, file: tree.link(file, d, b"new"),
    "create": lambda tree, d, file: tree.create(d, b"new", 0o644),
    "tmpfile": lambda tree, d, file: tree.tmpfile(d, 0o600),
    "unlink": lambda tree, d, file: tree.unlink(d, b"file", file),
    "rmdir": lambda tree, d, file: tree.rmdir(d, b"sub", None),
    "rename": lambda tree, d, file: tree.rename(d, b"file", d, b"new", 0, file, None),
    "rename from": lambda tree, d, file: tree.rename(d, b"file", tree.root, b"new", 0, file, None),
    "rename to": lambda tree, d, file: tree.rename(tree.root, b"mine", d, b"file", 0, None, file),
    "attributes": lambda tree, d, file: tree.attributes(file),
    "change": lambda tree, d, file: tree.change(file, KEEP._replace(mode=0o777, mtime=(1, 1))),
    "read": lambda tree, d, file: os.read(tree.data(file, False).fd, 100),
    "write": lambda tree, d, file: os.write(tree.data(file, True).fd, b"overwritten"),
    "getxattr": lambda tree, d, file: tree.getxattr(file, b"user.secret"),
    "setxattr": lambda tree, d, file: tree.setxattr(file, b"user.new", b"", 0),
    "removexattr": lambda tree, d, file: tree.removexattr(file, b"user.secret"),
    "readlink": lambda tree, d, file: tree.readlink(file),
}  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path, source: Path) -> Path:
    """What must be neither read nor changed; of the very names that are known."""
    path = tmp_path / "outside"
    (path / "sub").mkdir(parents=True)
    (path / "file").write_text("secret")
    os.setxattr(path / "file", "user.secret", b"secret")
    (source / "mine").touch()
    return path


def state(path: Path) -> list[object]:
    """All there is to see of a directory."""
    found: list[object] = []
    for item in sorted([path, *path.iterdir()]):
        s = item.lstat()
        names = os.listxattr(item, follow_symlinks=False)
        found.append((item.name, s.st_mode, s.st_nlink, s.st_uid, s.st_size, s.st_mtime_ns, s.st_ctime_ns, names))
    return found


@pytest.mark.parametrize("method", MODIFYING)
@pytest.mark.parametrize("swapped", ["parent", "parent gone", "leaf", "leaf gone"])
def test_a_symlink_in_place_of_what_was_looked_up_leads_nowhere(
    tree: SourceTree, source: Path, outside: Path, method: str, swapped: str
) -> None:
    (source / "e").mkdir()
    file = find(tree, b"d/file")
    d = file.parent
    assert d is not None
    victim, target = (source / "d", outside) if "parent" in swapped else (source / "d" / "file", outside / "file")
    if "gone" in swapped:
        run(["rm", "-r", victim])
    else:
        victim.rename(source / "e" / "kept")
    victim.symlink_to(target)
    before, inside = state(outside), (source / "d").lstat().st_ino
    try:
        result = MODIFYING[method](tree, d, file)
    except OSError as error:
        assert error.errno in (errno.ESTALE, errno.ENOENT, errno.ENODATA, errno.EINVAL, errno.ENOTEMPTY)
    else:
        assert "secret" not in repr(result)
        assert (outside / "file").stat().st_ino not in _numbers(result)
    assert state(outside) == before
    assert (source / "d").lstat().st_ino == inside, "the symlink itself is not ours either"


def _numbers(result: object) -> set[object]:
    if isinstance(result, tuple | list):
        return {number for item in result for number in _numbers(item)}
    return {result} if isinstance(result, int) else set()


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR, stat.S_IFREG, stat.S_IFCHR])
@pytest.mark.parametrize("writable", [False, True])
def test_something_else_in_place_of_a_file_is_never_opened(
    tree: SourceTree, source: Path, kind: int, writable: bool
) -> None:
    """A fifo would stop the loop, a device could do anything."""
    if kind == stat.S_IFCHR and os.geteuid() != 0:
        pytest.skip("needs root")
    file = find(tree, b"d/file")
    (source / "d" / "file").unlink()
    if kind == stat.S_IFDIR:
        (source / "d" / "file").mkdir()
    else:
        os.mknod(source / "d" / "file", kind | 0o666, os.makedev(1, 5))
    assert fails(lambda: tree.data(file, writable)) == errno.ESTALE
    assert fails(lambda: tree.attributes(file)) == errno.ESTALE


def test_a_known_directory_is_the_same_one_whatever_its_name(tree: SourceTree, source: Path, outside: Path) -> None:
    """While its descriptor is held: what we do in it is done in it."""
    d = find(tree, b"d")
    tree.path(d)
    (source / "d").rename(source / "moved")
    (source / "d").symlink_to(outside)
    tree.mkdir(d, b"new", 0o755)
    assert (source / "moved" / "new").is_dir()


def test_directories_that_change_places_make_no_circle(tree: SourceTree, source: Path) -> None:
    """`a/b` becomes `b/a`, and is looked up through a descriptor of `b` that is still open."""
    (source / "a" / "b").mkdir(parents=True)
    b = find(tree, b"a/b")
    a = b.parent
    assert a is not None
    tree.path(b)
    (source / "a" / "b").rename(source / "b")
    (source / "a").rename(source / "b" / "a")
    key, *_ = tree.lookup(b, b"a")
    assert key == a.key
    tree.found_at(a, b, b"a")
    for entry in (a, b):
        tree.release(entry)
    for entry in (a, b):
        assert fails(lambda entry=entry: tree.path(entry)) in (None, errno.ESTALE)  # type: ignore[misc]
        tree.release(a)
        tree.release(b)
    tree.found_at(b, tree.root, b"b")  # once it has been looked up, all is well
    tree.found_at(a, b, b"a")
    for entry in (a, b):
        assert os.fstat(tree.path(entry).fd).st_ino == entry.key[1]
