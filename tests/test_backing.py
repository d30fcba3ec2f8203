"""What is passed on to which real file, for how long, and when it is not; the kernel is played."""

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from harness.calls import refuses
from harness.memory import MemoryTree, Node
from shiftfs.backing import WORTH, Backing, Backings
from shiftfs.channel import Buffers, Channel
from shiftfs.inodes import Inode
from shiftfs.sys import backing, privileges

READ, WRITE = os.O_RDONLY, os.O_RDWR


class Kernel:
    """Ids and what they stand for; `failing` with these errnos, one after the other."""

    def __init__(self) -> None:
        self.files: dict[int, int] = {}
        self.given = 0
        self.failing: list[int] = []

    def register(self, fd: int) -> int:
        if self.failing:
            number = self.failing.pop(0)
            raise OSError(number, os.strerror(number))
        self.given += 1
        self.files[self.given] = os.fstat(fd).st_ino
        return self.given

    def unregister(self, number: int) -> None:
        del self.files[number]


class World:
    def __init__(self, worth: int = 0, disregard: Callable[[int, int, int], bool] = lambda *about: True) -> None:
        self.tree = MemoryTree()
        self.kernel = Kernel()
        self.written: Counter[Inode] = Counter()
        self.backings = Backings(
            self.tree, self.written, self.kernel.register, self.kernel.unregister, disregard, worth
        )  # fmt: skip
        self.nodes: dict[Inode, Node] = {}

    def new(self, content: bytes = b"", mode: int = 0o644) -> Inode:
        node = self.tree.add(self.tree.root, b"%d" % len(self.nodes), stat.S_IFREG | mode, content)
        os.fchmod(node.content.fd, mode)
        inode = Inode(len(self.nodes) + 2, node.key, node)
        self.nodes[inode] = node
        return inode

    def open(self, inode: Inode, flags: int = READ) -> Backing | None:
        return self.backings.open(inode, flags, flags != READ)

    def close(self, inode: Inode, opened: Backing | None, flags: int = READ) -> None:
        self.backings.close(inode, opened, flags != READ)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.tree.close()


def test_one_id_as_long_as_somebody_has_it_open(world: World) -> None:
    inode, other = world.new(), world.new()
    first, second = world.open(inode), world.open(inode, WRITE)
    assert first is not None
    assert first is second
    assert world.kernel.files == {first.number: inode.key[1]}
    assert len(world.backings) == 1
    another = world.open(other)
    assert another is not None and another.number != first.number
    assert (world.backings.opened, len(world.backings)) == (3, 2)
    world.close(inode, first)
    world.backings.tidy(time.monotonic() + 10)
    assert len(world.kernel.files) == 2
    world.close(inode, second, WRITE)
    assert len(world.backings) == 1


def test_an_id_outlives_the_last_release_for_a_moment(world: World) -> None:
    inode = world.new()
    first = world.open(inode)
    world.close(inode, first)
    assert world.backings.tidy(time.monotonic())
    assert world.open(inode) is first
    world.close(inode, first)
    assert not world.backings.tidy(time.monotonic() + 10)
    assert not world.kernel.files
    world.open(inode)
    assert world.kernel.given == 2


@pytest.mark.parametrize("how", ["unlinked", "forgotten"])
def test_what_has_gone_is_let_go_of_at_once(world: World, how: str) -> None:
    inode = world.new()
    opened = world.open(inode)
    inode.unlinked = how == "unlinked"
    world.close(inode, opened)
    if how == "forgotten":
        world.backings.forgotten(inode)
    assert not world.kernel.files


def test_no_more_than_a_thousand_wait(world: World) -> None:
    for _ in range(1100):
        inode = world.new()
        world.close(inode, world.open(inode))
    assert len(world.kernel.files) == 1024


def test_who_writes_is_counted(world: World) -> None:
    inode = world.new()
    opened = [world.open(inode, flags) for flags in (READ, WRITE, os.O_WRONLY)]
    assert world.written == {inode: 2}
    world.close(inode, opened[1], WRITE)
    assert inode in world.written
    world.close(inode, opened[2], os.O_WRONLY)
    assert inode not in world.written


def test_what_is_in_the_page_cache_stays_there_until_the_last_release(world: World) -> None:
    inode = world.new(mode=0o4755)
    first = world.open(inode, WRITE)
    assert first is None
    os.fchmod(world.nodes[inode].content.fd, 0o755)
    assert world.open(inode, WRITE) is None
    world.close(inode, None, WRITE)
    assert world.open(inode) is None
    world.close(inode, None)
    world.close(inode, None, WRITE)
    assert world.open(inode) is not None
    assert not world.written[inode]


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o2644])
def test_what_has_a_set_id_bit_by_then_is_passed_on_no_more(world: World, mode: int) -> None:
    inode = world.new()
    first = world.open(inode, WRITE)
    assert first is not None
    os.fchmod(world.nodes[inode].content.fd, mode)
    assert world.open(inode, WRITE) is first, "two ways at once the kernel does not let it have"
    world.close(inode, first, WRITE)
    world.close(inode, first, WRITE)
    assert world.open(inode, WRITE) is None
    assert not world.kernel.files


@pytest.mark.parametrize(
    ("size", "flags", "is_passed"), [(WORTH - 1, READ, False), (WORTH, READ, True), (0, WRITE, True)]
)
def test_small_files_are_passed_on_for_writers_alone(size: int, flags: int, is_passed: bool) -> None:
    world = World(WORTH)
    inode = world.new(bytes(size))
    assert (world.open(inode, flags) is not None) is is_passed
    world.tree.close()


@pytest.mark.parametrize("method", ["stays", "may_block", "is_made_up"])
def test_some_files_never(world: World, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(world.tree, method, lambda entry: method != "stays")
    assert world.open(world.new(), WRITE) is None
    assert not world.kernel.given


def test_where_others_could_not_be_told_from_it_nothing_is() -> None:
    asked = []

    def disregard(fd: int, mount: int, device: int) -> bool:
        asked.append(mount)
        return False

    world = World(disregard=disregard)
    assert world.open(world.new(), WRITE) is None
    assert world.open(world.new(), WRITE) is None
    assert len(asked) == 1, "a mount is asked for once"
    world.backings.watched_anew()
    world.open(world.new(), WRITE)
    assert len(asked) == 2
    world.tree.close()


def test_what_is_stacked_too_deep_is_not_tried_again(world: World) -> None:
    world.kernel.failing = [errno.ELOOP]
    assert world.open(world.new()) is None
    assert world.open(world.new()) is None
    assert world.kernel.given == 0
    assert (world.backings.refused, world.backings.refusal) == (1, os.strerror(errno.ELOOP))


def test_other_failures_are_of_one_file(world: World) -> None:
    world.kernel.failing = [errno.ENOMEM]
    assert world.open(world.new()) is None
    assert world.open(world.new()) is not None


def test_older_kernels_take_what_can_be_read(world: World) -> None:
    """Before Linux 6.12, O_PATH is EBADF."""
    world.kernel.failing = [errno.EBADF]
    opened = world.open(world.new(b"content"))
    assert opened is not None
    assert world.backings.refused == 0


def test_another_real_file_is_another_inode(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    inode, other = world.new(), world.new()
    first = world.open(inode)
    content = world.tree.content(world.nodes[other])
    monkeypatch.setattr(world.tree, "content", lambda entry: content)
    refuses(errno.ESTALE, world.open, inode)
    world.close(inode, first)
    again = world.open(inode)
    assert again is not None and again is not first
    assert world.kernel.files == {again.number: other.key[1]}


def test_the_agent_goes_with_the_users(world: World) -> None:
    inode = world.new()
    assert world.backings.open_for_agent(inode) is None
    first = world.open(inode)
    assert world.backings.open_for_agent(inode) is first
    world.close(inode, first)
    world.backings.tidy(time.monotonic() + 10)
    assert world.kernel.files, "the kernel has it for the agent"
    world.backings.close_for_agent(inode)
    world.backings.close_for_agent(inode)
    assert world.backings.open_for_agent(inode) is None, "nobody has it open"
    world.backings.tidy(time.monotonic() + 10)
    assert not world.kernel.files


def test_pages_from_before_are_not_to_be_kept() -> None:
    world = World(WORTH)
    inode = world.new()
    assert world.backings.may_keep_pages(inode)
    world.close(inode, world.open(inode, WRITE), WRITE)
    world.backings.tidy(time.monotonic() + 10)
    assert world.open(inode) is None
    assert [world.backings.may_keep_pages(inode) for _ in range(2)] == [False, True]
    world.tree.close()


def test_files_are_registered_without_the_right_to_leave_set_id_bits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rights: list[int] = []

    def note(connection: int, fd: int) -> int:
        rights.append(privileges.effective_capabilities())
        return 7

    monkeypatch.setattr(backing, "open_backing", note)
    before = privileges.effective_capabilities()
    channel = Channel(os.eventfd(0), Buffers(4096))
    assert channel.open_backing(0) == channel.open_backing(0) == 7
    channel.close()
    assert rights == [before & ~(1 << privileges.CAP_FSETID)] * 2
    assert privileges.effective_capabilities() == before
    channel.close_backing(7)  # the connection has gone, and its ids with it
