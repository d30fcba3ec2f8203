"""Which action runs when, and what becomes of it: on threads that do nothing, and for a kernel that nobody asks."""

import collections
import errno
import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from shiftfs.inodes import Inode, InodeTable
from shiftfs.reflect.action import FILE, Action, Subject, Verb
from shiftfs.reflect.answers import EARLY
from shiftfs.reflect.performing import _AHEAD, _ATTEMPTS, Performing, path_of
from shiftfs.wire import notices
from shiftfs.wire.abi import Opcode
from shiftfs.wire.requests import Header, Mknod, Rename, Rmdir, Unlink

ROOM = 100


class Thread:
    """Keeps its jobs until the test does them. `room`: how many its socket takes."""

    def __init__(self, tid: int) -> None:
        self.tid = self.fd = tid
        self.ended = False
        self.room = ROOM
        self.jobs: collections.deque[tuple[int, tuple[bytes, ...]]] = collections.deque()
        self.outcomes: list[tuple[int, int]] = []

    def send(self, job: int, verb: int, *paths: bytes, mode: int = 0) -> bool:
        if len(self.jobs) >= self.room:
            return False
        self.jobs.append((job, paths))
        return True

    def receive(self) -> list[tuple[int, int]]:
        outcomes, self.outcomes = self.outcomes, []
        return outcomes


class Agent:
    """Some threads, and the mount that they work for: which notices were written, and which are being written."""

    def __init__(self, threads: int) -> None:
        self.inodes = InodeTable((1, 1, 0, 4), None)
        self.told: list[bytes] = []
        self.writing: list[Callable[[], None]] = []
        self.threads = [Thread(100 + number) for number in range(threads)]
        self.performing = Performing(self, self._notify)  # type: ignore[arg-type]
        self.heard = dict(self.performing.employ(self.threads)) if threads else {}
        self.done: list[bytes] = []
        self.executed: collections.Counter[Inode] = collections.Counter()
        self.holds_notices = False

    serves_open = False
    backings = None

    def _notify(self, messages: list[bytes], done: Callable[[], None]) -> None:
        def write() -> None:
            self.told += messages
            done()

        self.writing.append(write)
        if not self.holds_notices:
            self.write()

    def write(self) -> None:
        """Let the notices be written that are held up."""
        writing, self.writing = self.writing, []
        for write in writing:
            write()

    def directory(self, name: bytes, parent: Inode | None = None) -> Inode:
        inode = self.inodes.add((1, len(self.inodes) + 1, 0, 4), None)
        inode.nlookup = 1
        self.inodes.tell(parent or self.inodes.root, name, inode)
        return inode

    def file(self, name: bytes) -> Inode:
        inode = self.inodes.add((1, len(self.inodes) + 1, 0, 8), None)
        inode.nlookup = 1
        self.inodes.tell(self.inodes.root, name, inode)
        return inode

    def close(self, file: Inode, deadline: float = 0.0) -> None:
        assert file.parent is not None
        action = Action(Verb.CLOSED, ((file.parent, file.name),))
        action.deadline = deadline
        self.performing.add(action)

    def add(self, *places: tuple[Inode, bytes], notice: bytes = b"") -> Action:
        action = Action(Verb.RENAME if len(places) == 2 else Verb.MKNOD, places)
        action.notices = [notice] if notice else []
        action.raced = [notices.inval_entry(parent.nodeid, b"raced " + name, 0) for parent, name in places]
        action.fallback = [notices.inval_entry(parent.nodeid, b"fallback " + name, 0) for parent, name in places]
        action.then = [notices.inval_inode(parent.nodeid, -1, 0) for parent, _ in places]
        self.performing.add(action)
        return action

    def do(self, thread: Thread, number: int = 0) -> bytes:
        """The thread's next job ends like this; its first path."""
        job, paths = thread.jobs.popleft()
        if len(paths) == 2:
            (old, name), (new, new_name) = self.performing._hands[thread.tid - 100].given[0][1].places
            self.asks(thread, Opcode.RENAME, old.nodeid, Rename(new.nodeid, 0, name, new_name))
        thread.outcomes.append((job, number))
        self.heard[thread.fd]()
        if number == 0:
            self.done.append(paths[-1])
        return paths[-1]

    def do_all(self) -> None:
        while busy := [thread for thread in self.threads if thread.jobs]:
            self.do(busy[-1])

    def asks(self, thread: Thread, opcode: Opcode, nodeid: int = 1, request: object = None) -> object:
        header = Header(0, int(opcode), 2, nodeid, 0, 0, thread.tid, 0)
        return self.performing.answer(header, request)

    @property
    def waiting(self) -> object:
        return self.performing.describe()["waiting"]

    def said(self) -> list[str]:
        """What the notices written so far say."""
        return [word for one in self.told for word in ("raced", "fallback", "first") if word.encode() in one]


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent(3)
    yield agent
    agent.do_all()
    assert agent.waiting == 0


def test_a_directory_s_actions_are_done_in_their_order(agent: Agent) -> None:
    names = [b"%d" % number for number in range(3 * _AHEAD)]
    for name in names:
        agent.add((agent.inodes.root, name))
    assert [len(thread.jobs) for thread in agent.threads] == [_AHEAD, 0, 0], "one thread, and not all at once"
    agent.do_all()
    assert agent.done == names


def test_a_directory_that_is_stuck_holds_up_no_other(agent: Agent) -> None:
    one, other = agent.directory(b"one"), agent.directory(b"other")
    for name in (b"1", b"2"):
        agent.add((one, name))
        agent.add((other, name))
    stuck, busy, _ = agent.threads
    assert [agent.do(busy), agent.do(busy)] == [b"other/1", b"other/2"]
    assert [paths for _, paths in stuck.jobs] == [(b"one/1",), (b"one/2",)]


def test_what_concerns_two_directories_waits_for_both_and_holds_up_both(agent: Agent) -> None:
    one, other = agent.directory(b"one"), agent.directory(b"other")
    agent.add((one, b"1"))
    agent.add((other, b"1"))
    agent.add((one, b"1"), (other, b"2"))
    agent.add((one, b"3"))
    agent.add((other, b"3"))
    first, second, _ = agent.threads
    assert [len(thread.jobs) for thread in agent.threads] == [1, 1, 0]
    agent.do(first)
    assert [len(thread.jobs) for thread in agent.threads] == [0, 4, 0], "all wait for the second thread, and go to it"
    agent.do(second)
    agent.do_all()
    assert agent.done[:3] == [b"one/1", b"other/1", b"other/2"]
    assert sorted(agent.done[3:]) == [b"one/3", b"other/3"]


def test_as_many_directories_as_one_likes_share_few_threads(agent: Agent) -> None:
    directories = [agent.directory(b"%d" % number) for number in range(40)]
    for name in (b"a", b"b"):
        for directory in directories:
            agent.add((directory, name))
    for one, other in itertools.pairwise(directories):
        agent.add((one, b"b"), (other, b"c"))
    agent.do_all()
    assert len(agent.done) == 3 * len(directories) - 1


def test_notices_that_come_before_are_written_before(agent: Agent) -> None:
    agent.holds_notices = True
    agent.add((agent.inodes.root, b"1"), notice=notices.inval_entry(1, b"first"))
    agent.add((agent.inodes.root, b"2"))
    assert not any(thread.jobs for thread in agent.threads)
    agent.holds_notices = False
    agent.write()
    assert agent.said() == ["first"]
    agent.do_all()
    assert agent.done == [b"1", b"2"]


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOENT, errno.ESTALE])
def test_who_was_slower_than_a_user_tries_again_and_keeps_its_turn(agent: Agent, number: int) -> None:
    thread = agent.threads[0]
    for name in (b"1", b"2", b"3"):
        agent.add((agent.inodes.root, name))
    agent.holds_notices = True
    assert agent.do(thread, number) == b"1"
    with pytest.raises(OSError) as refused:  # the agent is at the second meanwhile
        agent.asks(thread, Opcode.MKNOD)
    assert refused.value.errno == EARLY
    agent.do(thread, EARLY)
    agent.do(thread, errno.EEXIST)  # it need not come to ask
    assert not any(thread.jobs for thread in agent.threads), "the kernel is not told yet"
    agent.holds_notices = False
    agent.write()
    agent.do_all()
    assert agent.done == [b"1", b"2", b"3"]
    assert agent.said() == ["raced"]
    assert agent.performing.describe()["repeated"] == 1


ELSEWHERE = {
    "made": (Opcode.MKNOD, Mknod(0, 0, 0, b"1"), Verb.MKNOD),
    "removed": (Opcode.UNLINK, Unlink(b"1"), Verb.UNLINK),
    "removed directory": (Opcode.RMDIR, Rmdir(b"1"), Verb.RMDIR),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_what_comes_in_another_directory_is_refused(agent: Agent, what: str) -> None:
    """The path that was the directory's may be another's by now; what the kernel has there stays."""
    opcode, request, verb = ELSEWHERE[what]
    meant, other = agent.directory(b"meant"), agent.directory(b"other")
    agent.performing.add(Action(verb, ((meant, b"1"),), Subject(agent.inodes.new_nodeid(), FILE)))
    with pytest.raises(OSError) as refused:
        agent.asks(agent.threads[0], opcode, other.nodeid, request)
    assert refused.value.errno == errno.ESTALE
    agent.do(agent.threads[0], errno.ESTALE)
    assert agent.performing.describe()["repeated"] == 1


@pytest.mark.parametrize("half", ["old", "new"])
def test_what_is_renamed_elsewhere_is_refused(agent: Agent, half: str) -> None:
    meant, other = agent.directory(b"meant"), agent.directory(b"other")
    agent.add((meant, b"1"), (meant, b"2"))
    old, new = (other, meant) if half == "old" else (meant, other)
    with pytest.raises(OSError) as refused:
        agent.asks(agent.threads[0], Opcode.RENAME, old.nodeid, Rename(new.nodeid, 0, b"1", b"2"))
    assert refused.value.errno == errno.ESTALE


def test_what_was_early_does_not_hold_back_what_it_waits_for(agent: Agent) -> None:
    thread = agent.threads[0]
    for name in (b"1", b"2", b"3"):
        agent.add((agent.inodes.root, name))
    agent.do(thread, errno.EEXIST)  # and is given again at once, behind the others
    agent.do(thread, EARLY)
    agent.do(thread, EARLY)
    agent.do_all()
    assert agent.done == [b"1", b"2", b"3"]


def test_it_is_not_tried_for_ever(agent: Agent) -> None:
    agent.add((agent.inodes.root, b"1"))
    for _ in range(_ATTEMPTS + 1):
        agent.do(agent.threads[0], errno.EEXIST)
    assert agent.said() == ["raced"] * _ATTEMPTS + ["fallback"]


def test_nobody_tries_again_in_a_directory_that_is_gone(agent: Agent) -> None:
    gone = agent.directory(b"gone")
    agent.add((gone, b"1"))
    agent.inodes.bury(gone)
    agent.do(agent.threads[0], errno.ENOENT)
    assert agent.said() == ["fallback"]


def test_what_fails_is_told_to_the_kernel_alone(agent: Agent) -> None:
    agent.add((agent.inodes.root, b"1"))
    agent.do(agent.threads[0], errno.EROFS)
    assert agent.said() == ["fallback"]
    assert agent.performing.describe()["unreflected"] == 1


def test_what_is_mounted_on_is_not_detached(agent: Agent) -> None:
    agent.add((agent.inodes.root, b"1"))
    agent.do(agent.threads[0], errno.EBUSY)
    assert agent.told[0] == notices.inval_entry(1, b"fallback 1", notices.EXPIRE_ONLY)
    assert agent.told[1:] == [notices.inval_inode(1, -1, 0)]


def test_a_file_that_is_being_run_is_nobody_s_to_close(agent: Agent) -> None:
    agent.add((agent.inodes.root, b"1"))
    agent.do(agent.threads[0], errno.ETXTBSY)
    assert agent.said() == []
    assert agent.told == [notices.inval_inode(1, -1, 0)]


def test_who_runs_a_file_waits_until_it_is_closed(agent: Agent) -> None:
    file = agent.file(b"file")
    assert agent.performing.closing(file) is None
    agent.close(file)
    agent.close(file)
    gone: list[str] = []
    gate = agent.performing.closing(file)
    assert gate is not None
    gate.wait(lambda: gone.append("first"))
    agent.do(agent.threads[0])
    assert gone == ["first"]
    assert agent.performing.closing(file) is not None, "there is the second"
    agent.do(agent.threads[0], errno.EIO)
    assert agent.performing.closing(file) is None


def test_a_file_that_is_run_already_is_not_opened(agent: Agent) -> None:
    file = agent.file(b"file")
    agent.executed[file] += 1
    agent.close(file)
    assert not any(thread.jobs for thread in agent.threads)
    assert agent.waiting == 0
    assert [one for one, _ in agent.performing.take_leased()] == [file], "but later"


def test_a_leased_file_is_to_be_closed_later(agent: Agent) -> None:
    """Until a minute after the first try."""
    file = agent.file(b"file")
    agent.close(file)
    agent.do(agent.threads[0], errno.EAGAIN)
    ((leased, deadline),) = agent.performing.take_leased()
    assert leased is file and deadline > time.monotonic()
    assert agent.performing.take_leased() == []
    agent.close(file, deadline)
    agent.do(agent.threads[0], errno.EAGAIN)
    assert agent.performing.take_leased() == [(file, deadline)]
    agent.close(file, time.monotonic() - 1)
    agent.do(agent.threads[0], errno.EAGAIN)
    assert agent.performing.take_leased() == []


def test_a_full_socket_is_tried_again(agent: Agent) -> None:
    for thread in agent.threads:
        thread.room = 2
    names = [b"%d" % number for number in range(9)]
    for name in names:
        agent.add((agent.inodes.root, name))
    assert [len(thread.jobs) for thread in agent.threads] == [2, 0, 0]
    agent.do_all()
    assert agent.done == names


def test_names_that_nothing_leads_to_are_told_to_the_kernel_alone(agent: Agent) -> None:
    nowhere = agent.inodes.add((1, 99, 0, 4), None)
    agent.add((nowhere, b"1"))
    assert agent.said() == ["fallback"]


def test_without_an_agent_the_kernel_is_told() -> None:
    agent = Agent(0)
    agent.add((agent.inodes.root, b"1"), notice=notices.inval_entry(1, b"first"))
    assert agent.said() == ["first", "fallback"]
    assert agent.waiting == 0


def test_what_the_agent_leaves_behind_is_told_to_the_kernel(agent: Agent) -> None:
    one, other = agent.directory(b"one"), agent.directory(b"other")
    for number in range(2 * _AHEAD):
        agent.add((one, b"%d" % number))
    agent.add((one, b"x"), (other, b"y"))
    agent.holds_notices = True
    agent.add((other, b"late"), notice=notices.inval_entry(1, b"first"))
    agent.holds_notices = False
    agent.performing.dismiss()
    agent.write()
    assert agent.said().count("fallback") == 2 * _AHEAD + 2 + 1
    assert agent.waiting == 0
    for thread in agent.threads:
        thread.jobs.clear()


def test_notices_that_are_not_written_yet_count_as_waiting(agent: Agent) -> None:
    agent.holds_notices = True
    agent.add((agent.inodes.root, b"1"))
    agent.do(agent.threads[0], errno.EROFS)
    counts = [agent.waiting]
    agent.write()
    counts.append(agent.waiting)
    assert counts == [1, 0]
    agent.holds_notices = False


def test_the_way_to_a_place() -> None:
    agent = Agent(0)
    one = agent.directory(b"one")
    two = agent.directory(b"two", one)
    root = agent.inodes.root
    assert path_of((two, b"x"), root) == b"one/two/x"
    assert path_of((one, b""), root) == b"one"
    assert path_of((root, b""), root) == b""
    agent.inodes.tell(two, b"one", one)  # moved below what was in it, which nobody has heard of yet
    assert path_of((one, b"x"), root) is None
    agent.inodes.tell(root, b"two", two)
    assert path_of((one, b"x"), root) == b"two/one/x"
