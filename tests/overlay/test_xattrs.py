"""Which extended attributes are the overlay's own, how they are read, and where those of users are kept."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import errno_of, run
from overlay import xattrs
from shiftfs.tree import Descriptor

SUFFIXES = st.text("abc.overlay", max_size=20).map(str.encode)
PREFIXES = st.sampled_from([b"trusted.overlay.", b"user.overlay.", b"user.", b"trusted.", b"security.", b"system."])
USERS_OWN = st.builds(lambda prefix, suffix: prefix + suffix, PREFIXES, SUFFIXES)


@given(USERS_OWN)
def test_what_a_user_sets_is_shown_under_the_name_that_it_was_set_by(name: bytes) -> None:
    kept = xattrs.stored(name)
    assert xattrs.shown(kept) == name
    assert not xattrs.is_private(kept)


@given(USERS_OWN)
def test_names_of_a_layer_are_either_the_overlays_or_shown(name: bytes) -> None:
    assert (xattrs.shown(name) is None) == xattrs.is_private(name)


@given(st.lists(USERS_OWN, unique=True))
def test_no_two_names_are_kept_as_one(names: list[bytes]) -> None:
    assert len({xattrs.stored(name) for name in names}) == len(names)


@given(SUFFIXES, st.sampled_from([b"trusted.overlay.", b"user.overlay."]))
def test_no_user_can_write_a_mark(suffix: bytes, prefix: bytes) -> None:
    assert xattrs.stored(prefix + suffix) == prefix + b"overlay." + suffix


def test_marks_of_fuse_overlayfs_are_hidden_and_nobody_sets_them() -> None:
    name = b"user.fuseoverlayfs.opaque"
    assert xattrs.is_private(name)
    assert xattrs.shown(name) is None
    assert errno_of(lambda: xattrs.stored(name)) == errno.EPERM


def test_names_that_only_begin_like_a_prefix_are_users() -> None:
    for name in (b"user.overlays.x", b"trusted.overlay", b"user.fuseoverlayfs", b"security.capability"):
        assert xattrs.shown(name) == xattrs.stored(name) == name


# --- as they are read ---


def private(path: Path, name: str, believed: bool = True) -> xattrs.Private:
    above = Descriptor(os.open(path, os.O_PATH), os.close)
    return xattrs.private(above.fd, os.fsencode(name), believed)


@pytest.mark.root
@pytest.mark.parametrize("name", ["file", ""])
def test_the_first_prefix_that_has_one_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for number, prefix in enumerate(("user.fuseoverlayfs.", "user.overlay.", "trusted.overlay.")):
        os.setxattr(tmp_path / name, prefix + "opaque", b"%d" % number)
        assert private(tmp_path, name) == {b"opaque": b"%d" % number}


@pytest.mark.root
def test_each_may_have_its_own_prefix(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "user.fuseoverlayfs.opaque", b"y")
    os.setxattr(tmp_path, "user.overlay.redirect", b"there")
    os.setxattr(tmp_path, "trusted.overlay.metacopy", b"")
    assert private(tmp_path, "") == {b"opaque": b"y", b"redirect": b"there", b"metacopy": b""}


@pytest.mark.root
@pytest.mark.parametrize("name", ["file", ""])
def test_what_any_owner_can_set_only_hides_unless_it_is_believed(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    everything = ("opaque", "redirect", "metacopy", "origin", "shiftfs.origin", "nlink", "impure", "whiteout")
    for suffix in everything:
        for prefix in ("user.fuseoverlayfs.", "user.overlay."):
            os.setxattr(tmp_path / name, prefix + suffix, b"anybody")
    assert private(tmp_path, name).keys() == {suffix.encode() for suffix in everything}
    assert private(tmp_path, name, believed=False) == {b"opaque": b"anybody", b"whiteout": b"anybody"}
    for suffix in everything:
        os.setxattr(tmp_path / name, "trusted.overlay." + suffix, b"root")
    assert private(tmp_path, name, believed=False) == {suffix.encode(): b"root" for suffix in everything}


def test_others_are_not_looked_at(tmp_path: Path) -> None:
    for name in ("user.overlay.overlay.opaque", "user.overlay.opaque2", "user.overlay.unheard-of", "user.opaque"):
        os.setxattr(tmp_path, name, b"y")
    assert private(tmp_path, "") == {}


@pytest.mark.root
def test_a_symlink_has_its_own_and_not_those_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.setxattr(tmp_path / "file", "trusted.overlay.origin", b"the file's")
    assert private(tmp_path, "link") == {}
    os.setxattr(tmp_path / "link", "trusted.overlay.origin", b"the link's", follow_symlinks=False)
    assert private(tmp_path, "link") == {b"origin": b"the link's"}


@pytest.mark.root
def test_filesystems_without_any_have_none(tmp_path: Path) -> None:
    run(["mount", "-t", "ramfs", "none", tmp_path])
    try:
        (tmp_path / "file").touch()
        assert private(tmp_path, "file") == private(tmp_path, "") == {}
    finally:
        run(["umount", tmp_path])


def test_dropping_one_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    held = Descriptor(os.open(tmp_path, os.O_PATH), os.close)
    xattrs.put(held.fd, b"user.overlay.opaque", b"y")
    assert os.getxattr(tmp_path, "user.overlay.opaque") == b"y"
    for _ in range(2):
        xattrs.drop(held.fd, b"user.overlay.opaque")
    assert os.listxattr(tmp_path) == []
