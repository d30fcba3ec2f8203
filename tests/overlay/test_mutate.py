"""Names that come and go in the upper: what is written for it, and what never shows half made."""

import errno
import os
import stat
from functools import partial
from pathlib import Path

import pytest

from harness import Layers, errno_of, run
from harness.layered import Tree
from harness.overlaid import Fill, Overlay, is_whiteout, mark, nothing_in_work, overlaid
from overlay.mutate import Mutation

pytestmark = pytest.mark.root
LOWER: Tree = {"f": b"lower", "l": Path("x"), "d": {"inside": b"lower"}, "empty": {}, "p": os.mkfifo}


@pytest.fixture
def layers(fill: Fill) -> Layers:
    return fill(LOWER)


# --- removal ---


@pytest.mark.parametrize("name", ["f", "l", "p"])
@pytest.mark.parametrize("is_up", [False, True])
def test_a_name_of_a_lower_layer_leaves_a_whiteout(layers: Layers, name: str, is_up: bool) -> None:
    path = name.encode()
    with overlaid(layers) as overlay:
        if is_up:
            overlay.up(path)
        assert overlay.unlink(path), "it was the last name"
        assert is_whiteout(layers.upper / name)
        assert not overlay.exists(path)
        assert path not in overlay.names()
        assert errno_of(lambda: overlay.unlink(path)) == errno.ENOENT
    assert nothing_in_work(layers)
    with overlaid(layers) as overlay:
        assert not overlay.exists(path)


def test_a_name_of_the_upper_alone_leaves_nothing(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.create(b"new")
        overlay.mkdir(b"newdir")
        assert overlay.unlink(b"new")
        overlay.rmdir(b"newdir")
        assert os.listdir(layers.upper) == []


@pytest.mark.parametrize("is_up", [False, True])
def test_a_directory_of_a_lower_layer_leaves_a_whiteout(layers: Layers, is_up: bool) -> None:
    with overlaid(layers) as overlay:
        if is_up:
            overlay.up(b"empty")
        overlay.rmdir(b"empty")
        assert is_whiteout(layers.upper / "empty")
        assert not overlay.exists(b"empty")
    assert nothing_in_work(layers)


def test_only_what_shows_as_empty_is_removed(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        assert errno_of(lambda: overlay.rmdir(b"d")) == errno.ENOTEMPTY
        overlay.unlink(b"d/inside")
        overlay.rmdir(b"d")
        assert is_whiteout(layers.upper / "d")
    assert nothing_in_work(layers)


def test_the_upper_is_cleared_of_a_directory_with_whiteouts(fill: Fill) -> None:
    layers = fill({}, upper={"d": {"left": None, ".wh.too": b""}})
    with overlaid(layers) as overlay:
        overlay.rmdir(b"d")
    assert os.listdir(layers.upper) == []
    assert nothing_in_work(layers)


def test_what_is_hidden_in_a_removed_directory_goes_with_it_however_deep(layers: Layers) -> None:
    hidden = layers.upper / "d/.wh.hidden"
    hidden.mkdir(parents=True)
    make_deep(hidden, 1500)
    with overlaid(layers) as overlay:
        overlay.unlink(b"d/inside")
        overlay.rmdir(b"d")
        assert is_whiteout(layers.upper / "d")
    assert nothing_in_work(layers)


def make_deep(path: Path, depth: int) -> None:
    """Deeper than any path can say, and than there may be descriptors."""
    here = os.open(path, os.O_PATH)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_PATH, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def test_many_whiteouts_are_left_to_a_worker(fill: Fill) -> None:
    names = [f"{number:0200}" for number in range(1000)]
    layers = fill({"d": dict.fromkeys(names, b"")}, upper={"d": dict.fromkeys(names)})
    with overlaid(layers) as overlay:
        overlay.rmdir(b"d")
        assert is_whiteout(layers.upper / "d")
        (chore,) = overlay.tree.chores()
        assert not nothing_in_work(layers)
        chore()
        assert overlay.tree.chores() == []
    assert nothing_in_work(layers)


def test_a_removed_name_stays_for_who_has_it_open(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        entry = overlay.up(b"f")
        overlay.unlink(b"f")
        assert os.pread(overlay.tree.data(entry, False).fd, 9, 0) == b"lower"
        assert (overlay.tree.attributes(entry).nlink, entry.removed) == (0, True)


@pytest.mark.parametrize("is_linked", [False, True])
def test_what_was_removed_natively_stays_as_well(layers: Layers, is_linked: bool) -> None:
    """It may have got another name in the last moment."""
    (layers.upper / "own").write_bytes(b"upper")
    with overlaid(layers) as overlay:
        entry, plain = overlay.at(b"own"), overlay.tree.plain()
        assert plain is not None and plain.names is not None
        if is_linked:
            os.link(layers.upper / "own", layers.upper / "other")
        fd = os.open(layers.upper / "own", os.O_PATH)
        (layers.upper / "own").unlink()
        assert plain.names.has_gone(entry, fd, not is_linked) is entry.removed is not is_linked
        assert overlay.tree.path(entry).fd == fd
        assert os.pread(overlay.tree.data(entry, False).fd, 9, 0) == b"upper"
        assert overlay.tree.attributes(entry).nlink == int(is_linked)
        overlay.tree.release(entry)
        assert overlay.tree.descriptors()["unlinked"] == 0


# --- creation ---


def test_what_is_made_where_something_was_removed_hides_it_still(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        for name in (b"f", b"l", b"d/inside"):
            overlay.unlink(name)
        overlay.rmdir(b"d")
        overlay.mkdir(b"d")
        overlay.mkdir(b"f")
        overlay.create(b"l", b"new")
        expected = {"d": {}, "f": {}, "l": b"new", "empty": {}}
        shown = overlay.contents()
        assert {name: shown[name] for name in expected} == expected
        assert [mark(layers.upper / name, "opaque") for name in ("d", "f", "l")] == [b"y", b"y", None]
    assert nothing_in_work(layers)
    with overlaid(layers) as overlay:
        assert overlay.contents(b"d") == {}


def test_a_new_directory_over_nothing_is_not_opaque(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.mkdir(b"new")
    assert mark(layers.upper / "new", "opaque") is None


@pytest.mark.parametrize("name", [b"f", b"d", b"up"])
def test_what_exists_in_any_layer_is_not_made(layers: Layers, name: bytes) -> None:
    with overlaid(layers) as overlay:
        tree, root = overlay.tree, overlay.tree.root
        overlay.create(b"up")
        entry = overlay.at(b"up")
        for call in (
            lambda: tree.mkdir(root, name, 0o755),
            lambda: tree.create(root, name, 0o644),
            lambda: tree.symlink(root, name, b"x"),
            lambda: tree.mknod(root, name, stat.S_IFIFO | 0o600, 0),
            lambda: tree.link(entry, root, name),
        ):
            assert errno_of(call) == errno.EEXIST
        assert overlay.names() == [b"d", b"empty", b"f", b"l", b"p", b"up"]


def test_whiteouts_cannot_be_made_by_users(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        tree, root = overlay.tree, overlay.tree.root
        assert errno_of(lambda: tree.mknod(root, b"new", stat.S_IFCHR, 0)) == errno.EPERM
        for name in (b".wh.f", b".wh..wh..opq"):
            assert errno_of(partial(tree.create, root, name, 0o644)) == errno.EINVAL
            assert errno_of(partial(tree.mkdir, root, name, 0o755)) == errno.EINVAL
        tree.mknod(root, b"null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        assert overlay.attributes(b"null").rdev == os.makedev(1, 3)


def test_nothing_is_made_in_a_removed_directory(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        entry = overlay.up(b"empty")
        overlay.rmdir(b"empty")
        assert errno_of(lambda: overlay.tree.mkdir(entry, b"new", 0o755)) == errno.ENOENT
        assert errno_of(lambda: overlay.tree.create(entry, b"new", 0o644)) == errno.ENOENT


@pytest.mark.parametrize("over_whiteout", [False, True])
def test_what_is_made_inherits_what_it_would_inherit(layers: Layers, over_whiteout: bool) -> None:
    os.chown(layers.upper, 0, 1234)
    layers.upper.chmod(0o2755)
    run(["setfacl", "-m", "default:user:1:rwx", layers.upper])
    with overlaid(layers) as overlay:
        if over_whiteout:
            overlay.unlink(b"f")
            overlay.rmdir(b"empty")
        file, directory = (b"f", b"empty") if over_whiteout else (b"file", b"directory")
        overlay.create(file)
        overlay.mkdir(directory)
    for name in (file, directory):
        path = layers.upper / os.fsdecode(name)
        assert path.stat().st_gid == 1234
        assert "system.posix_acl_access" in os.listxattr(path)
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_ISGID
    assert "system.posix_acl_default" in os.listxattr(path)


# --- links ---


def test_a_link_to_what_came_up_says_so_in_its_directory(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.mkdir(b"new")
        overlay.link(b"f", b"new/f")
        assert overlay.at(b"f") is overlay.at(b"new/f")
        assert overlay.attributes(b"new/f").nlink == 2
        assert mark(layers.upper / "new", "impure") == b"y"


def test_a_link_takes_the_place_of_a_whiteout(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        overlay.unlink(b"l")
        overlay.link(b"f", b"l")
        assert overlay.read(b"l") == b"lower"
    assert nothing_in_work(layers)


def test_an_unnamed_file_gets_a_name(layers: Layers) -> None:
    with overlaid(layers) as overlay:
        _, _, entry = overlay.tree.tmpfile(overlay.tree.root, 0o640)
        overlay.tree.link(entry, overlay.tree.root, b"named")
        assert not entry.removed
        assert overlay.tree.attributes(entry).nlink == 1
        assert overlay.tree.descriptors()["unlinked"] == 0
    assert stat.S_IMODE((layers.upper / "named").stat().st_mode) == 0o640


@pytest.fixture
def linked(fill: Fill) -> Layers:
    layers = fill({"a": b"content"})
    for name in ("b", "c"):
        os.link(layers.lower / "a", layers.lower / name)
    return layers


def index(layers: Layers) -> list[str]:
    return os.listdir(layers.work / "index")


def counts(overlay: Overlay, *names: bytes) -> list[int]:
    return [overlay.attributes(name).nlink for name in names]


def test_names_of_a_lower_file_are_counted_down_to_the_last(linked: Layers) -> None:
    with overlaid(linked) as overlay:
        assert counts(overlay, b"a", b"b", b"c") == [3, 3, 3]
        assert not overlay.unlink(b"a")
        assert counts(overlay, b"b", b"c") == [2, 2]
        assert len(index(linked)) == 1
    with overlaid(linked) as overlay:
        assert counts(overlay, b"b", b"c") == [2, 2]
        assert not overlay.unlink(b"b")
        assert counts(overlay, b"c") == [1]
        assert overlay.unlink(b"c")
        assert index(linked) == []
        assert overlay.names() == []


def test_names_are_counted_up_too(linked: Layers) -> None:
    with overlaid(linked) as overlay:
        overlay.link(b"a", b"d")
        assert counts(overlay, b"a", b"b", b"c", b"d") == [4, 4, 4, 4]
    with overlaid(linked) as overlay:
        assert counts(overlay, b"d", b"a") == [4, 4]
        assert [overlay.unlink(name) for name in (b"d", b"c", b"b", b"a")] == [False, False, False, True]


def test_what_was_left_in_the_index_without_a_name_goes_at_the_next_mount(
    linked: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with overlaid(linked) as overlay:
        overlay.write(b"a", b"C")
        with monkeypatch.context() as patched:
            patched.setattr(Mutation, "_drop_index", lambda self, entry: None)  # killed right before
            for name in overlay.names():
                overlay.unlink(name)
    assert len(index(linked)) == 1
    with overlaid(linked) as overlay:
        assert (overlay.names(), index(linked)) == ([], [])


@pytest.mark.parametrize("offset", [b"U-1", b"U+0", b"L-3", b"L-1", b"L+0", b"", b"U-", b"damaged"])
def test_only_what_has_no_name_by_its_own_count_goes(linked: Layers, offset: bytes) -> None:
    with overlaid(linked) as overlay:
        overlay.up(b"a")
    (linked.upper / "a").unlink()
    (name,) = index(linked)
    os.setxattr(linked.work / "index" / name, "trusted.overlay.nlink", offset)
    with overlaid(linked):
        assert index(linked) == ([] if offset in (b"U-1", b"L-3") else [name])


def test_an_inode_with_names_outlives_a_kill_on_the_way_to_one_name_less(
    linked: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with overlaid(linked) as overlay:
        overlay.write(b"a", b"C")
        overlay.unlink(b"a")
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(os, "link", killed)
            overlay.unlink(b"b")
    with overlaid(linked) as overlay:
        assert [overlay.read(name) for name in (b"b", b"c")] == [b"Content", b"Content"]
