"""Directories of an overlay that are found natively: as in plain Python, and followed as there."""

import errno
import gc
import os
import stat
from pathlib import Path

import pytest

from harness import Layers
from harness.device import Answer, Served
from harness.overlaid import Overlay
from harness.twins import MAPS, all_names, asked, following, in_plain_python, running
from overlay.entry import Entry, Found
from overlay.tree import OverlayTree
from shiftfs import descriptors, lane
from shiftfs.descriptors import Descriptors, path_of
from shiftfs.ops import LAYERED_HANDLERS, namespace
from shiftfs.ops.context import Context, Payload
from shiftfs.shift.idmap import IDENTITY
from shiftfs.tree import Attributes, Descriptor, RealKey
from shiftfs.wire import requests
from shiftfs.wire.abi import ROOT_ID, Opcode
from shiftfs.wire.requests import Header


def layers_of_directories(at: Path) -> Layers:
    """Directories that one layer has, or several; hidden, opaque, from elsewhere, and not what they are below."""
    made = Layers(at, lowers=3)
    places = {"upper": made.upper, **{f"lower{number}": path for number, path in enumerate(made.lowers)}}
    for name, path in places.items():
        for directory in (f"{name}-alone", "everywhere", f"{name}-opaque", f"{name}-by-name", f"{name}-hidden"):
            (path / "d" / directory / "sub").mkdir(parents=True)
        os.setxattr(path / "d" / f"{name}-opaque", "trusted.overlay.opaque", b"y")
        os.setxattr(path / "d" / f"{name}-alone", "user.something", b"else")
        (path / "d" / f"{name}-by-name" / ".wh..wh..opq").touch()
    (made.lowers[0] / "d" / ".wh.lower1-hidden").touch()
    (made.upper / "d" / "lower2-alone").touch()
    os.mknod(made.upper / "d" / "lower0-hidden", stat.S_IFCHR, 0)
    (made.lowers[1] / "d" / "lower0-alone").touch()
    (made.upper / "d" / "moved").mkdir()
    os.setxattr(made.upper / "d" / "moved", "trusted.overlay.redirect", b"/d/lower1-alone")
    return made


def known_directories(served: Served) -> dict[bytes, object]:
    """What is known of those beneath `d`, and how they are followed."""
    ctx, tree = served.session.context, served.session.context.tree
    assert isinstance(tree, OverlayTree)
    children = ctx.inodes.get(served.device.look(b"d")).children or {}
    found: dict[bytes, object] = {}
    for name, inode in children.items():
        if inode.is_directory and inode.watch is not None:
            entry = inode.entry
            of = tree._identities.by_part
            parts = [
                (one.layer, told(one.key), one.name, one.is_marked, one.is_impure, of.get(one.key) is entry)
                for one in entry.reals
            ]
            watch = inode.watch
            watched = (watch.tokens, [told(key) for key in watch.keys], watch.steady)
            found[name] = (told(inode.key), inode.nlookup, parts, watched)
    return found


def told(key: RealKey) -> RealKey:
    """Without the mount's number, which is another each time that layers are opened."""
    return (*key[:3], key[3] & 0xF)


@pytest.mark.parametrize("ghost", ["keep", "drop"])
@pytest.mark.parametrize("ids", MAPS)
def test_directories_of_an_overlay(tmp_path: Path, ids: str, ghost: str) -> None:
    made = layers_of_directories(tmp_path)
    names = all_names(*(path / "d" for path in (made.upper, *made.lowers)))

    def answers() -> tuple[list[Answer], dict[bytes, object]]:
        overlay = Overlay(made, ghost=ghost)
        try:
            with following(overlay.tree, MAPS[ids]) as served:
                return [*asked(served.device, names), *asked(served.device, names)], known_directories(served)
        finally:
            overlay.close()
            gc.collect()  # the upper is in use until then

    with in_plain_python():
        expected = answers()
    assert answers() == expected
    assert {b"lower1-alone", b"upper-alone", b"everywhere"} <= expected[1].keys()


def test_most_directories_are_found_by_the_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Layers(tmp_path, lowers=2)
    for path in (made.upper, *made.lowers):
        for number in range(50):
            (path / "d" / f"{path.name}-{number}").mkdir(parents=True)
    overlay = Overlay(made)
    found: list[bytes] = []
    lookup = OverlayTree.lookup

    def counted(self: OverlayTree, directory: Entry, name: bytes) -> tuple[RealKey, Attributes, Found]:
        found.append(name)
        return lookup(self, directory, name)

    monkeypatch.setattr(OverlayTree, "lookup", counted)
    try:
        with running(overlay.tree, IDENTITY) as device:
            directory = device.look(b"d")
            for name in all_names(*(path / "d" for path in (made.upper, *made.lowers))):
                device.look(name, directory)
    finally:
        overlay.close()
        gc.collect()
    assert found == [b"d"], "a name in the root"


def test_names_in_the_root_are_found_by_the_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the one that leads from there to where the mount begins."""
    made = Layers(tmp_path)
    (made.lower / "directory").mkdir()
    (made.lower / "file").touch()
    overlay = Overlay(made)
    handled: list[bytes] = []
    lookup = namespace.lookup

    def counted(ctx: Context, header: Header, request: requests.Lookup) -> Payload:
        handled.append(request.name)
        return lookup(ctx, header, request)

    monkeypatch.setattr(namespace, "lookup", counted)
    monkeypatch.setitem(LAYERED_HANDLERS, Opcode.LOOKUP, counted)
    monkeypatch.setitem(lane._SERVED, Opcode.LOOKUP, counted)
    try:
        with following(overlay.tree, IDENTITY) as served:
            device, ctx = served.device, served.session.context
            known = {device.look(name) for name in (b"directory", b"file")}
            ctx.inner_root = b".shiftfs-root"
            root = device.look(b".shiftfs-root")
            assert handled == [b".shiftfs-root"]
            assert ctx.inodes.root.nodeid == root and root not in known
            assert {device.look(name, root) for name in (b"directory", b"file")} == known
            assert device.ask(Opcode.LOOKUP, b".shiftfs-root\0").errno in (0, errno.ENOENT)
            assert ctx.inodes.root.nodeid == root, "it leads there once"
    finally:
        overlay.close()
        gc.collect()


def test_directories_are_opened_by_the_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beneath the one above; where that is not open either, Python walks there."""
    made = Layers(tmp_path)
    (made.lower / "a" / "b" / "c" / "file").mkdir(parents=True)
    overlay = Overlay(made)
    walked: list[bytes] = []
    walk = Descriptors._walk

    def noted(self: Descriptors, entry: descriptors.Entry) -> Descriptor:
        walked.append(entry.name)
        return walk(self, entry)

    monkeypatch.setattr(Descriptors, "_walk", noted)
    try:
        with following(overlay.tree, IDENTITY) as served:
            device, ctx = served.device, served.session.context
            nodeids = [ROOT_ID]
            for name in (b"a", b"b", b"c", b"file"):
                nodeids.append(device.look(name, nodeids[-1]))
            assert walked == []
            held = [ctx.inodes.get(nodeid).entry.lowers[0] for nodeid in nodeids[1:4]]
            for one in held:
                assert os.path.samestat(os.fstat(one.path.fd), os.stat(os.fsencode(made.lower) + path_of(one)))
            for one in held[:2]:
                one.held.release(one)
            device.look(b"b", nodeids[1])  # a is opened natively, beneath the root
            assert walked == []
            for one in held:
                one.held.release(one)
            device.look(b"file", nodeids[3])
            assert walked == [b"c"]
            del held, one
    finally:
        overlay.close()
        gc.collect()
