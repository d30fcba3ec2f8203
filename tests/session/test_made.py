"""What is made and is something else at once, or nothing, by somebody who works behind the mount."""

import errno
import stat
from collections.abc import Callable

import pytest

from harness.bodies import CALLS, ROOT
from harness.device import Served
from harness.memory import MemoryTree, Node
from shiftfs.wire.abi import Opcode

MAKING = {
    Opcode.MKNOD: "mknod",
    Opcode.MKDIR: "mkdir",
    Opcode.SYMLINK: "symlink",
    Opcode.LINK: "link",
    Opcode.CREATE: "create",
}


def replaced_at_once(memory: MemoryTree, method: str, by: int | None) -> None:
    """Whatever `method` makes in the root gives way to a file of another type, or to none."""
    make: Callable[..., object] = getattr(memory, method)

    def then(*args: object) -> object:
        made = make(*args)
        del memory.root.children[b"new"]
        if by is not None:
            memory.add(memory.root, b"new", by)
        return made

    setattr(memory, method, then)


@pytest.mark.parametrize("opcode", MAKING, ids=lambda opcode: opcode.name)
@pytest.mark.parametrize("by", [stat.S_IFSOCK | 0o600, None], ids=["another type", "nothing"])
def test_the_kernel_looks_anew(memory: MemoryTree, at_work: Served, opcode: Opcode, by: int | None) -> None:
    """It takes a reply of another type for an error, and keeps the inode for good (fs/fuse/dir.c, create_new_entry)."""
    replaced_at_once(memory, MAKING[opcode], by)
    known = len(at_work.session.context.inodes)
    assert at_work.device.ask(opcode, CALLS[opcode][1], ROOT).errno == errno.ESTALE
    assert len(at_work.session.context.inodes) == known
    assert at_work.log == []


def test_another_file_is_not_taken_for_the_one_made(memory: MemoryTree, at_work: Served) -> None:
    """The caller may have no right to it, and the kernel asks for none."""
    replaced_at_once(memory, "create", stat.S_IFREG | 0o600)
    assert at_work.device.ask(Opcode.CREATE, CALLS[Opcode.CREATE][1], ROOT).errno == errno.ESTALE
    found: Node = memory.root.children[b"new"]
    assert at_work.session.context.inodes.known(found.key) is None
    assert at_work.session.context.handles == {}
