"""Acting as the caller: whose the files are, and that nothing of it stays."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Caller
from harness.device import LIMIT
from shiftfs.shift.credentials import Credentials
from shiftfs.shift.idmap import IDENTITY, UNMAPPED, IdMap, Range
from shiftfs.sys import privileges

pytestmark = pytest.mark.root

MAP = IdMap([Range(0, 100000, 65536)])


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Belongs to the process, all else of this to a thread."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def on_a_thread(work: Callable[[], None]) -> None:
    """Ids and secure bits that are changed go with the thread."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def filesystem_ids() -> tuple[int, int]:
    """Of this thread (proc(5), /proc/PID/status: real, effective, saved, filesystem)."""
    found = dict(line.split(":", 1) for line in Path("/proc/thread-self/status").read_text().splitlines())
    return int(found["Uid"].split()[3]), int(found["Gid"].split()[3])


@pytest.mark.parametrize(
    ("idmap", "uid", "gid", "real"),
    [(IDENTITY, 1000, 1001, (1000, 1001)), (MAP, 100000, 100007, (0, 7)), (MAP, 101000, 165535, (1000, 65535))],
)
@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_what_is_created_is_the_callers(
    tmp_path: Path, idmap: IdMap, uid: int, gid: int, real: tuple[int, int], umask: int
) -> None:
    def work() -> None:
        credentials = Credentials(idmap, idmap)
        for name in ("once", "again"):
            with credentials.acting_as(uid, gid, umask):
                assert filesystem_ids() == real
                os.mkdir(tmp_path / name, 0o777)
                os.mknod(tmp_path / name / "fifo", stat.S_IFIFO | 0o666)
            for path in (tmp_path / name, tmp_path / name / "fifo"):
                found = path.lstat()
                assert (found.st_uid, found.st_gid) == real
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o777 & ~umask
            assert filesystem_ids() == (0, 0)
        os.mkdir(tmp_path / "ours")
        assert (tmp_path / "ours").stat().st_uid == 0

    on_a_thread(work)


@pytest.mark.parametrize(
    ("uid", "gid"), [(0, 100000), (100000, 0), (165536, 100000), (100000, UNMAPPED), (UNMAPPED, 100000)]
)
def test_an_unmapped_id_is_refused_before_anything_is_done(uid: int, gid: int) -> None:
    def work() -> None:
        credentials = Credentials(MAP, MAP)
        with pytest.raises(OSError) as caught:
            credentials.acting_as(uid, gid, 0o077)
        assert caught.value.errno == errno.EOVERFLOW
        assert filesystem_ids() == (0, 0)

    on_a_thread(work)


ABOVE = IdMap([Range(0, 1000, 65536)])
BESIDE = IdMap([Range(1, 1000, 65536)])
SWAPPED = IdMap([Range(1, 0, 1), Range(0, 1, 1)])


@pytest.mark.parametrize("maps", [(ABOVE, ABOVE), (ABOVE, IDENTITY), (IDENTITY, ABOVE)], ids=["both", "user", "group"])
def test_who_has_no_id_on_an_overlay_of_its_own_creates_as_what_it_is(maps: tuple[IdMap, IdMap]) -> None:
    def work() -> None:
        with Credentials(*maps, acts_for_itself=True).acting_as(0, 0, 0o022):
            assert filesystem_ids() == (0, 0)

    on_a_thread(work)


@pytest.mark.parametrize(
    ("maps", "ids"),
    [
        ((ABOVE, ABOVE), (0, 5)),  # in another group
        ((ABOVE, ABOVE), (5, 0)),
        ((ABOVE, ABOVE), (5, 5)),
        ((BESIDE, BESIDE), (0, 0)),  # what it would own nobody could own on the mount
        ((SWAPPED, ABOVE), (0, 0)),  # its user's id is another's on the mount
    ],
)
def test_nobody_else_without_an_id_creates(maps: tuple[IdMap, IdMap], ids: tuple[int, int]) -> None:
    def work() -> None:
        with pytest.raises(OSError) as caught:
            Credentials(*maps, acts_for_itself=True).acting_as(*ids, 0o022)
        assert caught.value.errno == errno.EOVERFLOW

    on_a_thread(work)


def test_restored_after_an_error(tmp_path: Path) -> None:
    def work() -> None:
        credentials = Credentials(IDENTITY, IDENTITY)
        with pytest.raises(FileNotFoundError), credentials.acting_as(1000, 1000, 0o022):
            os.mkdir(tmp_path / "absent" / "new")
        assert filesystem_ids() == (0, 0)

    on_a_thread(work)


@pytest.mark.parametrize("umask", [0o1022, 2**31, 2**32 - 1])
def test_a_senseless_umask_is_cut_and_leaves_nothing_behind(tmp_path: Path, umask: int) -> None:
    def work() -> None:
        credentials = Credentials(IDENTITY, IDENTITY)
        with credentials.acting_as(1000, 1000, umask):
            os.mkdir(tmp_path / "new", 0o777)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~umask
        assert filesystem_ids() == (0, 0)

    on_a_thread(work)


def test_no_right_of_ours_is_lost_meanwhile(tmp_path: Path) -> None:
    """A caller whom the kernel on the mount has let pass may have no rights on the layer."""

    def work() -> None:
        credentials = Credentials(IDENTITY, IDENTITY)
        before = privileges.effective_capabilities()
        tmp_path.chmod(0o700)
        with credentials.acting_as(1000, 1000, 0o022):
            assert privileges.effective_capabilities() == before
            os.mkdir(tmp_path / "new")

    on_a_thread(work)


@pytest.mark.parametrize(
    ("idmap", "ids", "real"),
    [(IDENTITY, (1000, 1001), (1000, 1001)), (IDENTITY, (0, 0), (0, 0)), (MAP, (100000, 100000), (65534, 65534))],
)
def test_without_power(tmp_path: Path, idmap: IdMap, ids: tuple[int, int], real: tuple[int, int]) -> None:
    """As the caller, or as nobody where container root's real id would be root's; and all comes back."""
    (tmp_path / "secret").touch(0o000)

    def work() -> None:
        credentials = Credentials(idmap, idmap)
        before = privileges.effective_capabilities()
        assert before
        for fails in (False, True):
            try:
                with credentials.powerless(*ids):
                    assert filesystem_ids() == real
                    assert privileges.effective_capabilities() == 0
                    with pytest.raises(PermissionError):
                        (tmp_path / "secret").read_bytes()
                    if fails:
                        raise FileNotFoundError
            except FileNotFoundError:
                assert fails
            assert filesystem_ids() == (0, 0)
            assert privileges.effective_capabilities() == before
            assert (tmp_path / "secret").read_bytes() == b""

    on_a_thread(work)


@pytest.mark.parametrize(
    ("idmap", "uid", "number"), [(IDENTITY, 1000, None), (IDENTITY, 1001, errno.EACCES), (MAP, 100000, None)]
)
def test_without_power_from_the_start(idmap: IdMap, uid: int, number: int | None) -> None:
    def work() -> tuple[int | None, tuple[int, int]]:
        try:
            with Credentials(idmap, idmap).powerless(uid, 1000):
                return None, filesystem_ids()
        except OSError as error:
            return error.errno, filesystem_ids()

    assert Caller(1000, 1000)(work) == (number, (1000, 1000))


def test_other_threads_are_not_concerned(tmp_path: Path) -> None:
    acting, looked = threading.Event(), threading.Event()

    def work() -> None:
        with Credentials(IDENTITY, IDENTITY).acting_as(1000, 1000, 0o022):
            acting.set()
            assert looked.wait(LIMIT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert acting.wait(LIMIT)
        assert filesystem_ids() == (0, 0)
    finally:
        looked.set()
        thread.join(LIMIT)


@pytest.mark.parametrize(
    ("uid", "gid", "number"), [(1000, 1000, None), (1001, 1000, errno.EPERM), (1000, 5, errno.EPERM)]
)
def test_without_the_right_one_acts_as_oneself_alone(uid: int, gid: int, number: int | None) -> None:
    def work() -> tuple[int | None, tuple[int, int]]:
        credentials = Credentials(IDENTITY, IDENTITY)
        try:
            with credentials.acting_as(uid, gid, 0o022):
                return None, filesystem_ids()
        except OSError as error:
            return error.errno, filesystem_ids()

    assert Caller(1000, 1000)(work) == (number, (1000, 1000))
