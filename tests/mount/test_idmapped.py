"""Mounts of the mount whose owners the kernel shifts once more (mount_setattr(2)): as of a local filesystem."""

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Caller, mounted, open_directory, run
from harness.idmapped import idmapped
from harness.kinds import MAKERS, make_file, owner
from harness.layered import layered
from shiftfs.asking import CtlError, ask

FIRST = 300000
USER = Caller(FIRST + 7, FIRST + 8)
ROOT_THERE = Caller(FIRST, FIRST)
MAPS = ("uidmapping=100000:0:65536", "gidmapping=100000:0:65536")

_numbers = itertools.count()

KINDS = ["native", "source", "served", "shifted", "layered", "layered and shifted"]


class Place:
    """A directory, as it is and as an idmapped mount shows it."""

    def __init__(self, plain: Path, shown: Path, real: Path, below: int) -> None:
        """`real`: on the layer, where ids are those of `plain` and `below` more."""
        self.plain = plain
        self.shown = shown
        self.real = real
        self.below = below


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind = request.param
    with ExitStack() as stack:
        layer = open_directory("idmap-")
        stack.callback(run, ["rm", "-rf", layer])
        below = 100000 if "shifted" in kind else 0
        options = MAPS if below else ()
        os.chown(layer, below, below)
        if kind == "native":
            plain = layer
        elif "layered" in kind:
            for name in ("lower", "upper", "work"):
                (layer / name).mkdir()
                os.chown(layer / name, below, below)
            (layer / "lower/old").write_text("old")
            (layer / "lower/old").chmod(0o640)
            os.chown(layer / "lower/old", below + 7, below + 8)
            plain = stack.enter_context(layered([layer / "lower"], layer / "upper", layer / "work", *options)).path
            layer = layer / "upper"
        else:
            opening = "open=serve" if kind == "served" else "open=auto"
            plain = stack.enter_context(mounted(layer, None, opening, *options)).path
        plain.chmod(0o777)
        yield Place(plain, stack.enter_context(idmapped(plain, FIRST)), layer, below)


@pytest.fixture
def name() -> str:
    return f"{next(_numbers)}"


def is_owned(place: Place, name: str, uid: int, gid: int) -> None:
    """By these ids, shifted as each side shows them."""
    assert owner(place.plain / name) == (uid, gid)
    assert owner(place.shown / name) == (FIRST + uid, FIRST + gid)
    assert owner(place.real / name) == (place.below + uid, place.below + gid)


@pytest.mark.parametrize("kind", MAKERS)
def test_owners_are_shown_shifted(place: Place, name: str, kind: str) -> None:
    MAKERS[kind](place.plain / name)
    os.chown(place.plain / name, 5, 6, follow_symlinks=False)
    is_owned(place, name, 5, 6)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_a_user_makes_is_his(place: Place, name: str, kind: str) -> None:
    USER(_make, kind, str(place.shown / name))
    is_owned(place, name, 7, 8)


def _make(kind: str, path: str) -> None:
    MAKERS[kind](Path(path))


@pytest.mark.parametrize("kind", MAKERS)
def test_who_has_no_id_there_makes_nothing(place: Place, name: str, kind: str) -> None:
    with pytest.raises(OSError) as refused:
        MAKERS[kind](place.shown / name)
    assert refused.value.errno == errno.EOVERFLOW
    assert not (place.plain / name).exists()


def test_owners_are_given_shifted(place: Place, name: str) -> None:
    make_file(place.plain / name)
    os.chown(place.shown / name, FIRST + 1000, FIRST + 1001)
    is_owned(place, name, 1000, 1001)
    with pytest.raises(OSError) as refused:
        os.chown(place.shown / name, 1000, 1001)
    assert refused.value.errno == errno.EOVERFLOW
    is_owned(place, name, 1000, 1001)


def test_rights_are_the_shifted_owners(place: Place, name: str) -> None:
    make_file(place.plain / name, 0o600)
    os.chown(place.plain / name, 7, 8)
    USER(os.chmod, place.shown / name, 0o400)
    assert stat.S_IMODE((place.plain / name).stat().st_mode) == 0o400
    assert USER(_read, str(place.shown / name)) == b""
    with pytest.raises(PermissionError):
        Caller(7, 8)(_read, str(place.shown / name))
    with pytest.raises(PermissionError):
        USER(_read, str(place.plain / name))
    os.chown(place.plain / name, 5, 5)
    with pytest.raises(PermissionError):
        USER(os.chmod, place.shown / name, 0o777)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def test_acls_name_shifted_users(place: Place, name: str) -> None:
    make_file(place.plain / name, 0o600)
    run(["setfacl", "-m", f"u:{FIRST + 7}:r", place.shown / name])
    assert "user:7:r--" in run(["getfacl", "-n", "-p", place.plain / name]).stdout
    assert f"user:{FIRST + 7}:r--" in run(["getfacl", "-n", "-p", place.shown / name]).stdout
    assert USER(_read, str(place.shown / name)) == b""


def test_who_writes_takes_set_ids_away(place: Place, name: str) -> None:
    make_file(place.plain / name)
    (place.plain / name).chmod(0o6777)
    USER(_append, str(place.shown / name))
    assert stat.S_IMODE((place.plain / name).stat().st_mode) == 0o777
    assert _read(str(place.shown / name)) == b"x"


def _append(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def test_removal_and_renaming_in_a_sticky_directory(place: Place, name: str) -> None:
    (place.plain / name).mkdir()
    (place.plain / name).chmod(0o1777)
    for one, uid in (("mine", 7), ("anothers", 9)):
        make_file(place.plain / name / one)
        os.chown(place.plain / name / one, uid, uid)
    USER(os.rename, place.shown / name / "mine", place.shown / name / "moved")
    USER(os.unlink, place.shown / name / "moved")
    with pytest.raises(PermissionError):
        USER(os.unlink, place.shown / name / "anothers")


def test_the_group_of_a_set_gid_directory(place: Place, name: str) -> None:
    (place.plain / name).mkdir()
    os.chown(place.plain / name, 0, 55)
    (place.plain / name).chmod(0o2777)
    USER(make_file, place.shown / name / "file")
    USER(os.mkdir, place.shown / name / "sub")
    is_owned(place, f"{name}/file", 7, 55)
    is_owned(place, f"{name}/sub", 7, 55)
    assert (place.plain / name / "sub").stat().st_mode & stat.S_ISGID


def test_extended_attributes_of_the_host_are_not_listed_to_users(place: Place, name: str) -> None:
    make_file(place.plain / name)
    os.setxattr(place.plain / name, "trusted.secret", b"x")
    os.setxattr(place.plain / name, "user.open", b"x")
    for path in (place.plain / name, place.shown / name):
        assert "trusted.secret" in os.listxattr(path)
        for caller in (USER, ROOT_THERE):
            assert caller(os.listxattr, path) == ["user.open"]


@pytest.mark.parametrize("place", ["layered", "layered and shifted"], indirect=True)
def test_copy_up_keeps_the_owner(place: Place) -> None:
    assert owner(place.shown / "old") == (FIRST + 7, FIRST + 8)
    USER(_append, str(place.shown / "old"))
    is_owned(place, "old", 7, 8)
    assert _read(str(place.real / "old")) == b"oldx"


@pytest.mark.parametrize("place", KINDS[1:], indirect=True)
def test_reports_are_for_root_and_whoever_mounted(place: Place) -> None:
    assert "pid" in ask(str(place.plain), "status")
    with pytest.raises(CtlError, match="only root"):
        Caller(1000, 1000)(ask, str(place.plain), "status")
