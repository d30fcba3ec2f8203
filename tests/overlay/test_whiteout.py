"""What hides names of the layers below, and where a redirect leads: how each is recognised."""

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import errno_of
from overlay import whiteout, xattrs
from shiftfs.layer import Layer
from shiftfs.tree import Attributes, Descriptor

NAMES = st.text("abc.\xe9 \n", min_size=1, max_size=9).map(str.encode).filter(lambda name: name.strip(b"."))


@pytest.fixture
def found(tmp_path: Path) -> Path:
    return tmp_path / "name"


def look(path: Path) -> Attributes:
    layer = Layer(os.fsencode(path.parent))
    return layer.look(layer.root.fd, os.fsencode(path.name))[1]


@pytest.mark.root
@pytest.mark.parametrize(
    "kind, device, is_whiteout",
    [
        (stat.S_IFCHR, (0, 0), True),
        (stat.S_IFCHR | 0o644, (0, 0), True),
        (stat.S_IFCHR, (0, 1), False),
        (stat.S_IFCHR, (1, 3), False),
        (stat.S_IFCHR, (0, 256), False),
        (stat.S_IFBLK, (0, 0), False),
        (stat.S_IFIFO, (0, 0), False),
        (stat.S_IFREG, (0, 0), False),
    ],
)
def test_only_a_character_device_without_a_number_is_a_whiteout(
    found: Path, kind: int, device: tuple[int, int], is_whiteout: bool
) -> None:
    os.mknod(found, kind, os.makedev(*device))
    assert whiteout.is_device(look(found)) == is_whiteout


def test_only_empty_regular_files_are_worth_a_look_for_the_attribute(found: Path) -> None:
    found.touch()
    assert whiteout.may_be_by_xattr(look(found))
    found.write_bytes(b"x")
    assert not whiteout.may_be_by_xattr(look(found))
    found.unlink()
    os.mkfifo(found)
    assert not whiteout.may_be_by_xattr(look(found))


@pytest.mark.parametrize("name", [b".wh.", b".wh.name", b".wh..wh..opq", b".wh..wh..plnk"])
def test_names_that_stand_for_whiteouts_cannot_be_made(name: bytes) -> None:
    assert errno_of(lambda: whiteout.check_name(name)) == errno.EINVAL


@pytest.mark.parametrize("name", [b".wh", b"wh.name", b".WH.name", b".w"])
def test_names_that_only_look_similar_can(name: bytes) -> None:
    whiteout.check_name(name)


# --- opaque directories ---


def is_opaque(path: Path, private: xattrs.Private) -> bool:
    above = Descriptor(os.open(path.parent, os.O_PATH), os.close)
    return whiteout.is_opaque(above.fd, os.fsencode(path.name), private)


def test_a_directory_is_opaque_by_attribute_or_by_name(found: Path) -> None:
    found.mkdir()
    assert not is_opaque(found, {})
    assert not is_opaque(found, {xattrs.OPAQUE: b"x"})
    assert not is_opaque(found, {xattrs.OPAQUE: b""})
    assert is_opaque(found, {xattrs.OPAQUE: b"y"})
    (found / ".wh..wh..opq").touch()
    assert is_opaque(found, {})


def test_a_mark_beyond_a_symlink_is_none(found: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/.wh..wh..opq").touch()
    found.symlink_to("elsewhere")
    assert not is_opaque(found, {})


# --- redirects ---


@given(NAMES)
def test_a_relative_redirect_is_a_name_beside(name: bytes) -> None:
    assert whiteout.redirect_of({xattrs.REDIRECT: name}) == [name]


@given(st.lists(NAMES, min_size=1, max_size=5), st.sampled_from([b"/", b"//"]), st.sampled_from([b"", b"/"]))
def test_an_absolute_one_is_a_path_from_the_root(path: list[bytes], separator: bytes, end: bytes) -> None:
    assert whiteout.redirect_of({xattrs.REDIRECT: b"/" + separator.join(path) + end}) == [b"", *path]


def test_most_have_none() -> None:
    assert whiteout.redirect_of({xattrs.OPAQUE: b"y"}) is None


@pytest.mark.parametrize(
    "value",
    [b"", b"/", b"//", b".", b"..", b"/.", b"/..", b"/a/../b", b"/a/./b", b"a/b", b"a/", b"../a", b"a\0", b"/a\0b",
     b"n" * 256, b"/a/" + b"n" * 256],
)  # fmt: skip
def test_what_leads_nowhere_in_a_layer_is_damaged(value: bytes) -> None:
    assert errno_of(lambda: whiteout.redirect_of({xattrs.REDIRECT: value})) == errno.EINVAL
