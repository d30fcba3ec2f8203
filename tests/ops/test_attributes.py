"""What a setattr comes to, before anything is done."""

import errno
import os
import stat
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.memory import MemoryTree
from shiftfs.ops import attributes
from shiftfs.ops.context import Context, without_set_ids
from shiftfs.shift.idmap import IdMap, Range
from shiftfs.sys.files import UTIME_NOW
from shiftfs.tree import Attributes, Change
from shiftfs.wire.abi import Fattr, Opcode
from shiftfs.wire.requests import Header, Setattr

KEPT = 0xFFFFFFFF
NOTHING = Change(None, None, None, None, None)


@pytest.fixture
def ctx() -> Any:
    """As much of a context as is asked here: ids 0 to 9 are shown as 100 to 109."""
    idmap = IdMap([Range(0, 100, 10)])
    made = SimpleNamespace(uids=idmap, gids=idmap, inside=None, credentials=SimpleNamespace(squashes=False))
    made.ids_inside = lambda a: Context.ids_inside(made, a)  # type: ignore[arg-type]
    made.caller = lambda header: (header.uid, header.gid)
    made.refuse_unmapped_owner = lambda a: Context.refuse_unmapped_owner(made, a)  # type: ignore[arg-type]
    return made


@pytest.fixture
def before() -> Iterator[Attributes]:
    """Of a file with both set-id bits."""
    tree = MemoryTree()
    yield tree.attributes(tree.add(tree.root, b"file", 0o106755))
    tree.close()


def setting(valid: int, **values: int) -> Setattr:
    return Setattr(*[0] * len(Setattr._fields))._replace(valid=valid, **values)


def change(ctx: Any, request: Setattr, before: Attributes, uid: int = 0) -> Change | None:
    return attributes._change(ctx, Header(128, Opcode.SETATTR, 2, 3, uid, uid, 1, 0), request, before)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (setting(0), NOTHING._replace(uid=KEPT, gid=KEPT)),  # as chown(-1, -1), which moves the change time
        (setting(Fattr.SIZE | Fattr.FH | Fattr.LOCKOWNER | Fattr.CTIME, size=9), None),
        (setting(Fattr.MODE, mode=stat.S_IFREG | 0o4711), NOTHING._replace(mode=stat.S_IFREG | 0o4711)),
        (setting(Fattr.UID, uid=103, gid=555), NOTHING._replace(uid=3)),
        (setting(Fattr.GID, uid=555, gid=109), NOTHING._replace(gid=9)),
        (setting(Fattr.UID | Fattr.GID, uid=100, gid=100), NOTHING._replace(uid=0, gid=0)),
        (setting(Fattr.ATIME, atime=-5, atimensec=7), NOTHING._replace(atime=(-5, 7))),
        (setting(Fattr.MTIME, mtime=5, mtimensec=7), NOTHING._replace(mtime=(5, 7))),
        (
            setting(Fattr.ATIME | Fattr.ATIME_NOW | Fattr.MTIME | Fattr.MTIME_NOW, atime=5, mtime=6),
            NOTHING._replace(atime=(0, UTIME_NOW), mtime=(0, UTIME_NOW)),
        ),
        (setting(Fattr.MTIME_NOW | Fattr.ATIME), NOTHING._replace(atime=(0, 0), mtime=(0, UTIME_NOW))),
        (setting(Fattr.SIZE | Fattr.KILL_SUIDGID), NOTHING._replace(mode=0o100755)),
        (setting(Fattr.MODE | Fattr.KILL_SUIDGID, mode=0o4755), NOTHING._replace(mode=0o4755)),
    ],
)
def test_change(ctx: Any, before: Attributes, request_: Setattr, expected: Change | None) -> None:
    assert change(ctx, request_, before) == expected


@pytest.mark.parametrize(
    "request_",
    [
        setting(Fattr.UID, uid=99),
        setting(Fattr.GID, gid=110),
        setting(Fattr.UID | Fattr.GID, uid=100, gid=0),
        setting(Fattr.UID, uid=0xFFFFFFFF),
    ],
)
def test_owners_without_a_mapping(ctx: Any, before: Attributes, request_: Setattr) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EOVERFLOW)):
        change(ctx, request_, before)


@pytest.mark.parametrize("owner", [(10, 0), (0, 10), (0xFFFFFFFE, 0)])
def test_nobody_changes_owner_or_mode_of_what_an_unmapped_id_owns(
    ctx: Any, before: Attributes, owner: tuple[int, int]
) -> None:
    theirs = before._replace(uid=owner[0], gid=owner[1])
    assert change(ctx, setting(0), theirs) is None
    for valid in (Fattr.MODE, Fattr.UID, Fattr.GID):
        with pytest.raises(PermissionError):
            change(ctx, setting(valid, uid=100, gid=100), theirs)
    assert change(ctx, setting(Fattr.MTIME_NOW), theirs) == NOTHING._replace(mtime=(0, UTIME_NOW))
    truncating = setting(Fattr.SIZE | Fattr.KILL_SUIDGID)
    assert change(ctx, truncating, theirs) is not None, "by whoever may write"


@pytest.mark.parametrize(
    ("mode", "after"),
    [
        (0o100755, None),
        (0o104755, 0o100755),
        (0o104644, 0o100644),
        (0o102755, 0o100755),
        (0o102745, None),  # not executable for the group: it is mandatory locking's, not a set-gid
        (0o106745, 0o102745),
        (0o106711, 0o100711),
    ],
)
def test_without_set_ids(mode: int, after: int | None) -> None:
    assert without_set_ids(mode) == after


@pytest.mark.parametrize(
    ("mode", "uid", "done"),
    [
        (0o106755, 0, NOTHING._replace(uid=KEPT, gid=KEPT)),
        (0o106755, 100, NOTHING._replace(uid=KEPT, gid=KEPT)),
        (0o106755, 101, None),
        (0o100755, 101, None),
        (0o046755, 101, None),
    ],
)
def test_chown_of_nothing_takes_set_id_bits_from_ones_own_alone(
    ctx: Any, before: Attributes, mode: int, uid: int, done: Change | None
) -> None:
    file = before._replace(mode=mode)
    assert change(ctx, setting(0), file, uid) == done
