"""What has to be up for a request, and its handler, look at the same names: those are looked up once."""

from pathlib import Path

import pytest

from harness import Layers
from harness.overlaid import Overlay
from harness.twins import following, in_plain_python
from overlay.tree import OverlayTree
from shiftfs.shift.idmap import IDENTITY
from shiftfs.wire import abi
from shiftfs.wire.abi import Opcode

REQUESTS = {
    "unlink": (Opcode.UNLINK, b"file\0", [b"file"]),
    "rmdir": (Opcode.RMDIR, b"empty\0", [b"empty"]),
    "rename": (Opcode.RENAME, abi.RENAME_IN.pack(abi.ROOT_ID) + b"file\0other\0", [b"file", b"other"]),
    "copied": (Opcode.RENAME, abi.RENAME_IN.pack(abi.ROOT_ID) + b"low\0other\0", [b"low", b"other"] * 2),
}
"""Opcode, body, and the names that are looked up: before a copy-up and after it, if there is one."""


@pytest.mark.parametrize("what", REQUESTS)
def test_a_name_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    made = Layers(tmp_path, lowers=1)
    (made.upper / "file").touch()
    (made.upper / "other").touch()
    (made.upper / "empty").mkdir()
    (made.lowers[0] / "low").touch()
    opcode, body, names = REQUESTS[what]
    looked_up: list[bytes] = []
    lookup = OverlayTree.lookup

    def noting(tree: OverlayTree, directory: object, name: bytes) -> object:
        looked_up.append(name)
        return lookup(tree, directory, name)  # type: ignore[arg-type]

    overlay = Overlay(made)
    try:
        with in_plain_python(), following(overlay.tree, IDENTITY) as served:
            for name in set(names):
                served.device.look(name)
            monkeypatch.setattr(OverlayTree, "lookup", noting)
            assert served.device.ask(opcode, body).errno == 0
            assert served.session.context.just_found == {}
    finally:
        overlay.close()
    assert looked_up == names
