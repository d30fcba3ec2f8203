"""Layers that somebody else wrote, and means ill by: an errno for that name alone, and nothing outside is touched."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import CommandFailed, Layers, Merged, make_whiteout, read_tree, write_tree
from harness.calls import drop_dentries
from harness.layered import Tree
from harness.outside import REFUSED, attempt, new_outside, untouched


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return new_outside(tmp_path)


# --- redirects ---

# In a directory PLACE of its layer.
REDIRECTS = {
    "up": b"..",
    "here": b".",
    "up and out": b"../../outside",
    "absolute and up": b"/../outside",
    "through": b"/PLACE/good/../../../outside",
    "to a symlink": b"link",
    "absolute to a symlink": b"/PLACE/link",
    "through a symlink": b"/PLACE/link/sub",
    "to a file": b"/PLACE/file",
    "through a file": b"/PLACE/file/x",
    "the root": b"/",
    "empty": b"",
    "slashes": b"//PLACE/good",
    "slashes within": b"/PLACE//good",
    "slash at the end": b"/PLACE/good/",
    "two names": b"good/sub",
    "a zero": b"/PLACE/good\0/sub",
    "too long a name": b"n" * 300,
    "a long path": b"/n" * 700,
    "nowhere": b"/no/such",
}


@pytest.mark.parametrize("layer", ["lower", "upper"])
@pytest.mark.parametrize("redirect", REDIRECTS.values(), ids=REDIRECTS)
def test_no_redirect_leads_out_of_its_layer(merged: Merged, outside: Path, redirect: bytes, layer: str) -> None:
    tree: Tree = {"bad": {"own": b""}}
    below: Tree = {"link": outside, "file": b"", "good": {"sub": {"fine": b""}}, "witness": {"fine": b""}}
    path = merged.write(tree, below) if layer == "lower" else merged.write({}, below, upper=tree)
    bad = (merged.lower if layer == "lower" else merged.upper) / "bad"
    os.setxattr(bad, "trusted.overlay.redirect", redirect.replace(b"PLACE", path.name.encode()))
    with untouched(outside):
        shown = attempt(lambda: os.listdir(path / "bad"))
        assert isinstance(shown, int) or set(shown) <= {"own", "sub"}  # type: ignore[call-overload]
        attempt(lambda: (path / "bad/secret").read_bytes())
        attempt(lambda: (path / "bad/new").touch())
        attempt(lambda: (path / "bad").rename(path / "worse"))
        assert read_tree(path / "witness") == {"fine": b""}
        assert {"file", "link", "good", "witness"} < set(os.listdir(path))


def test_redirects_in_a_circle_end(layers: Layers) -> None:
    """Each leads further down, if only because there is no way up."""
    for number in range(1, 40):
        layers.add_lower({"a": {f"a{number}": b""}, "b": {f"b{number}": b""}})
    write_tree(layers.lower, {"a": {}, "b": {}, "good": b"good"})
    for lower in layers.lowers:
        os.setxattr(lower / "a", "trusted.overlay.redirect", b"/b")
        os.setxattr(lower / "b", "trusted.overlay.redirect", b"/a")
    with layers.mount() as mount:
        expected = {f"{'ba'[number % 2 == 0]}{number}" for number in range(1, 40)}
        assert set(os.listdir(mount.path / "a")) == expected
        assert (mount.path / "good").read_bytes() == b"good"


# --- other marks ---

WRONG_WHITEOUTS: dict[str, Callable[[Path], object]] = {
    "block device": lambda path: os.mknod(path, stat.S_IFBLK, os.makedev(0, 0)),
    "other device": lambda path: os.mknod(path, stat.S_IFCHR, os.makedev(0, 1)),
    "file with content": lambda path: marked(path, lambda path: path.write_bytes(b"content")),
    "directory": lambda path: marked(path, os.mkdir),
    "fifo": lambda path: marked(path, os.mkfifo),
}


def marked(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    os.setxattr(path, "trusted.overlay.whiteout", b"y")
    os.setxattr(path.parent, "trusted.overlay.opaque", b"x")


@pytest.mark.parametrize("make", WRONG_WHITEOUTS.values(), ids=WRONG_WHITEOUTS)
def test_what_is_no_whiteout_is_shown_as_it_is(merged: Merged, make: Callable[[Path], object]) -> None:
    path = merged.write({"dir": {"x": make}}, {"dir": {"x": b"below", "good": b"good"}})
    assert (path / "dir/x").lstat().st_mode == (merged.lower / "dir/x").lstat().st_mode
    assert sorted(os.listdir(path / "dir")) == ["good", "x"]
    assert (path / "dir/good").read_bytes() == b"good"
    (path / "dir/x").rename(path / "dir/y")
    assert sorted(os.listdir(path / "dir")) == ["good", "y"]


@pytest.mark.parametrize("value", [b"", b"n", b"yes", b"\0", b"y" * 3000])
def test_an_opaque_mark_that_is_none_hides_nothing(merged: Merged, value: bytes) -> None:
    path = merged.write({"dir": {"0": b""}}, {"dir": {"1": b""}})
    os.setxattr(merged.lower / "dir", "trusted.overlay.opaque", value)
    assert sorted(os.listdir(path / "dir")) == ["0", "1"]


METACOPIES: dict[str, tuple[bytes, bytes | None]] = {
    "no data": (b"", None),
    "damaged": (b"\1\2\3", None),
    "damaged digest": (b"\0\40\0\1" + b"x" * 32, None),
    "too long": (b"\0" * 1000, None),
    "redirect out": (b"", b"/../outside/secret"),
    "redirect to a symlink": (b"", b"/link"),
    "redirect through a symlink": (b"", b"/linked/secret"),
    "redirect to a directory": (b"", b"/dir"),
    "redirect to a fifo": (b"", b"/fifo"),
}


def test_metadata_without_data_is_an_error_of_that_file(layers: Layers, outside: Path) -> None:
    layers.add_lower({"link": outside / "secret", "linked": outside, "dir": {}, "fifo": os.mkfifo})
    write_tree(layers.lower, {**dict.fromkeys(METACOPIES, b""), "good": b"good"})
    for name, (metacopy, redirect) in METACOPIES.items():
        os.truncate(layers.lower / name, 6)
        os.setxattr(layers.lower / name, "trusted.overlay.metacopy", metacopy)
        if redirect is not None:
            os.setxattr(layers.lower / name, "trusted.overlay.redirect", redirect)
    with layers.mount("metacopy=on") as mount, untouched(outside):
        for name in METACOPIES:
            assert attempt((mount.path / name).read_bytes) in REFUSED, name
            attempt(lambda name=name: (mount.path / name).open("r+b").write(b"x"))  # type: ignore[misc]
            attempt(lambda name=name: (mount.path / name).chmod(0o666))  # type: ignore[misc]
        assert (mount.path / "good").read_bytes() == b"good"
        assert "good" in os.listdir(mount.path)


def handle(
    uuid: bytes = bytes(16), kind: int = 1, rest: bytes = b"\2\0\0\0\0\0\0\0", length: int | None = None
) -> bytes:
    size = 21 + len(rest) if length is None else length
    return bytes([0, 0xFB, size & 0xFF, 0, kind]) + uuid + rest


ORIGINS = {
    "short": b"\0",
    "no handle": b"garbage that is no handle at all",
    "foreign": handle(b"u" * 16),
    "of no filesystem": handle(),
    "of no kind": handle(kind=200),
    "length": handle(length=250),
    "long": handle(rest=b"x" * 120),
    "another version": b"\1" + handle()[1:],
    "big endian": handle()[:3] + b"\1" + handle()[4:],
}


@pytest.mark.parametrize("origin", ORIGINS.values(), ids=ORIGINS)
def test_a_damaged_origin_harms_nobody_else(merged: Merged, origin: bytes) -> None:
    path = merged.write(
        {"bad": b"lower", "good": b"good", "dir": {"in": b""}}, upper={"bad": b"upper", "dir": {"own": b""}}
    )
    for name in ("bad", "dir"):
        os.setxattr(merged.upper / name, "trusted.overlay.origin", origin)
    shown = attempt((path / "bad").read_bytes)
    assert shown == b"upper" or (merged.kind == "kernel" and isinstance(shown, int))
    attempt(lambda: (path / "bad").write_bytes(b"new"))
    attempt(lambda: os.listdir(path / "dir"))
    assert (path / "good").read_bytes() == b"good"


def test_two_files_of_one_origin_are_two(our_layers: Layers) -> None:
    """As `cp -a` of an upper leaves them. To the kernel's overlay one of them is stale."""
    write_tree(our_layers.lower, {"file": b"lower"})
    with our_layers.mount() as mount:
        (mount.path / "file").write_bytes(b"one")
    write_tree(our_layers.upper, {"copy": b"another"})
    origin = os.getxattr(our_layers.upper / "file", "trusted.overlay.origin")
    os.setxattr(our_layers.upper / "copy", "trusted.overlay.origin", origin)
    with our_layers.mount() as mount:
        for order in (("file", "copy"), ("copy", "file")):
            assert {(mount.path / name).read_bytes() for name in order} == {b"one", b"another"}
            drop_dentries()
        assert not (mount.path / "file").samefile(mount.path / "copy")
        (mount.path / "copy").write_bytes(b"changed")
        assert (mount.path / "file").read_bytes() == b"one"


def test_two_directories_of_one_origin_are_two(our_layers: Layers) -> None:
    """What is beneath them is one. To the kernel's overlay one of them is stale."""
    write_tree(our_layers.lower, {"dir": {"in": b"lower"}})
    write_tree(our_layers.upper, {"other": {"own": b""}})
    os.setxattr(our_layers.upper / "other", "trusted.overlay.redirect", b"dir")
    with our_layers.mount() as mount:
        assert read_tree(mount.path) == {"dir": {"in": b"lower"}, "other": {"in": b"lower", "own": b""}}
        assert not (mount.path / "dir").samefile(mount.path / "other")
        (mount.path / "other/in").write_bytes(b"changed")
        (mount.path / "dir/new").touch()
        drop_dentries()
        assert read_tree(mount.path) == {"dir": {"in": b"lower", "new": b""}, "other": {"in": b"changed", "own": b""}}


NLINKS = [b"", b"garbage", b"U", b"U+", b"U-5", b"L-9", b"U+99999999999999999999", b"x" * 200]


def test_a_damaged_link_count_harms_nobody_else(layers: Layers) -> None:
    for number in range(len(NLINKS)):
        write_tree(layers.lower, {f"a{number}": b"one"})
        os.link(layers.lower / f"a{number}", layers.lower / f"b{number}")
    write_tree(layers.lower, {"good": b"good"})
    with layers.mount() as mount:
        for number in range(len(NLINKS)):
            (mount.path / f"a{number}").chmod(0o600)
    names = {path.name for path in layers.lower.iterdir()}
    for number, nlink in enumerate(NLINKS):
        os.setxattr(layers.upper / f"a{number}", "trusted.overlay.nlink", nlink)
    with layers.mount() as mount:
        assert {entry.name for entry in os.scandir(mount.path) if entry.stat().st_nlink < 100} == names
        for number in range(len(NLINKS)):
            assert 1 <= (mount.path / f"a{number}").stat().st_nlink < 100
            attempt((mount.path / f"b{number}").unlink)
            attempt((mount.path / f"a{number}").unlink)
        assert (mount.path / "good").read_bytes() == b"good"


INDEXED: dict[str, Callable[[Path], object]] = {
    "00": os.mkdir,
    "garbage": make_whiteout,
    "00fb" + "00" * 40: os.mkfifo,
    "f" * 255: lambda path: path.symlink_to("/"),
}


@pytest.mark.parametrize("name", INDEXED)
def test_a_damaged_index_is_refused_or_left_alone(our_layers: Layers, name: str) -> None:
    write_tree(our_layers.lower, {"a": b"one"})
    os.link(our_layers.lower / "a", our_layers.lower / "b")
    with our_layers.mount() as mount:
        (mount.path / "a").write_bytes(b"new")
    INDEXED[name](our_layers.work / "index" / name)
    try:
        with our_layers.mount() as mount:
            assert (mount.path / "b").read_bytes() == b"new"
    except CommandFailed as failure:
        (said,) = str(failure).partition("stderr: ")[2].splitlines()
        assert name in said or "index" in said
