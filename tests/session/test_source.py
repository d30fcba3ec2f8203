"""A source tree on a real directory: what each method does."""

import errno
import os
import stat
from pathlib import Path

import pytest

from harness import errno_of, run
from harness.entries import find
from shiftfs.layer import Layer
from shiftfs.source import SourceTree
from shiftfs.sys import files
from shiftfs.tree import Change, Listed, Shown

KEEP = Change(None, None, None, None, None)


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
    assert errno_of(lambda: tree.lookup(tree.root, b"absent")) == errno.ENOENT
    assert errno_of(lambda: tree.lookup(tree.root, b"n" * 256)) == errno.ENAMETOOLONG
    assert errno_of(lambda: tree.lookup(find(tree, b"d/file"), b"x")) == errno.ENOTDIR


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
    assert errno_of(lambda: tree.create(d, b"new", 0o600)) == errno.EEXIST
    assert errno_of(lambda: tree.create(d, b"link", 0o600)) == errno.EEXIST, "a symlink is never followed"


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
    assert errno_of(lambda: tree.unlink(d, b"file", None)) == errno.ENOENT


@pytest.mark.parametrize("is_linked", [False, True])
def test_what_was_removed_natively_is_kept_as_well(tree: SourceTree, source: Path, is_linked: bool) -> None:
    """It may have got another name in the last moment."""
    file, plain = find(tree, b"d/file"), tree.plain()
    assert plain is not None and plain.names is not None
    if is_linked:
        os.link(source / "d" / "file", source / "d" / "other")
    fd = os.open(source / "d" / "file", os.O_PATH)
    (source / "d" / "file").unlink()
    assert plain.names.has_gone(file, fd, not is_linked) is not is_linked
    assert tree.path(file).fd == fd
    assert os.pread(tree.data(file, False).fd, 10, 0) == b"inside"
    assert tree.attributes(file).nlink == int(is_linked)
    assert len(plain.names.pinned) == tree.descriptors()["unlinked"] <= int(not is_linked or file.handle is None)
    tree.release(file)
    assert tree.descriptors()["unlinked"] == 0


def test_an_unlink_that_fails_leaves_nothing_pinned(tree: SourceTree) -> None:
    sub = find(tree, b"d/sub")
    d = sub.parent
    assert d is not None
    assert errno_of(lambda: tree.unlink(d, b"sub", sub)) in {errno.EISDIR, errno.EPERM}
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
    assert errno_of(lambda: tree.listing(tree.held(sub))) == errno.ENOENT  # as getdents(2) has it
    assert errno_of(lambda: tree.mkdir(sub, b"new", 0o755)) == errno.ENOENT


@pytest.mark.parametrize("flags", [0, files.RENAME_NOREPLACE, files.RENAME_EXCHANGE])
def test_rename(tree: SourceTree, source: Path, flags: int) -> None:
    (source / "other").write_text("other")
    file, other = find(tree, b"d/file"), find(tree, b"other")
    assert file.parent is not None

    def rename() -> bool:
        assert file.parent is not None
        return tree.rename(file.parent, b"file", tree.root, b"other", flags, file, other)

    if flags == files.RENAME_NOREPLACE:
        assert errno_of(rename) == errno.EEXIST
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
        assert errno_of(lambda entry=entry: tree.setxattr(entry, b"trusted.\xff", b"", os.XATTR_CREATE)) == errno.EEXIST  # type: ignore[misc]
        assert tree.getxattr(entry, b"trusted.\xff") == b"v\0"
        assert b"trusted.\xff" in tree.listxattr(entry)
        tree.removexattr(entry, b"trusted.\xff")
        assert errno_of(lambda entry=entry: tree.getxattr(entry, b"trusted.\xff")) == errno.ENODATA  # type: ignore[misc]
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


def test_a_source_is_all_there_is(tree: SourceTree, source: Path) -> None:
    """What changes in it is what changes on the mount."""
    for path in (b"", b"d", b"d/file"):
        entry = find(tree, path) if path else tree.root
        (only,) = tree.contributors(entry)
        fd, name = only.place()
        real = os.stat(name, dir_fd=fd, follow_symlinks=False) if name else os.fstat(fd)
        assert (only.layer, only.key, only.device) == (0, entry.key, entry.key[0])
        assert real.st_ino == only.key[1] == os.lstat(os.path.join(os.fsencode(source), path)).st_ino
        assert tree.hidden(entry, 0, b"any") is tree.hidden(entry, 0, b"") is Shown.TOP
        assert not tree.covered(entry, 0, b"any")
        assert not tree.listing_changed(entry)
        assert not tree.lists_anew(entry)
    assert [tree.concerns(name) for name in (b"f", b".wh.f")] == [b"f", b".wh.f"]
    tree.refresh_root()


def test_directories_whose_times_tell_nothing_are_listed_anew() -> None:
    proc = SourceTree(Layer(b"/proc"), 64)
    assert proc.lists_anew(proc.root)
