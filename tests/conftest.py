"""What every test is held to: it ends, and leaves no mount, process, loop device or descriptor behind.

Owns the run's area, the one temporary directory beneath which everything is made; `tempfile` works there too.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import open_directory
from harness.leftovers import belongings, left_behind, remove_all
from harness.watchdog import Watchdog

# Seconds after the limit of pytest-timeout, which ends whatever still heeds a signal.
WATCHDOG_DELAY = 10.0

FUSE = Path("/dev/fuse")
FUSE_MODE = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root; so does, without the mark, all in tests/mount")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Every user may open /dev/fuse during the run, as on an ordinary machine; among several processes that share the
    tests, it is the first that sees to it."""
    if os.geteuid() == 0 and not hasattr(session.config, "workerinput"):
        session.config.stash[FUSE_MODE] = FUSE.stat().st_mode & 0o7777
        FUSE.chmod(0o666)


def pytest_sessionfinish(session: pytest.Session) -> None:
    mode = session.config.stash.get(FUSE_MODE, None)
    if mode is not None:
        FUSE.chmod(mode)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    real_mounts = Path(__file__).parent / "mount"
    for item in items:
        if item.get_closest_marker("root") or real_mounts in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session", autouse=True)
def area() -> Iterator[Path]:
    """The run's own directory. At the end all that is still there is aborted, unmounted, killed and
    removed."""
    path = open_directory("shiftfs-test-")
    before, tempfile.tempdir = tempfile.tempdir, str(path)
    try:
        yield path
    finally:
        tempfile.tempdir = before
        found = remove_all(path)
        shutil.rmtree(path)
    assert not found, f"left behind by the run, and removed: {found}"


@pytest.fixture(scope="session")
def watchdog(area: Path) -> Iterator[Watchdog]:
    process = Watchdog(area)
    try:
        yield process
    finally:
        process.end()


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """A session served in this process takes its callers' umasks; what other tests make must not be born with them."""
    os.umask(0o022)
    yield
    os.umask(0o022)


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing(area: Path, watchdog: Watchdog) -> Iterator[None]:
    """For what the fixtures of a module hold from one test to the next."""
    before = belongings(area)
    yield
    _expect_nothing(left_behind(before, area))


@pytest.fixture(autouse=True)
def test_leaves_nothing(area: Path, watchdog: Watchdog, request: pytest.FixtureRequest) -> Iterator[None]:
    before = belongings(area)
    watchdog.alarm(_limit(request) + WATCHDOG_DELAY)
    yield
    found = left_behind(before, area)
    watchdog.alarm(0)
    _expect_nothing(found)


def _limit(request: pytest.FixtureRequest) -> float:
    marker = request.node.get_closest_marker("timeout")
    return float(marker.args[0] if marker and marker.args else request.config.getini("timeout"))


def _expect_nothing(found: list[str]) -> None:
    if found:
        pytest.fail("left behind:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture
def tmp_path(area: Path) -> Iterator[Path]:
    """pytest's own, but one that every user may enter, in the run's area, and removed after the test."""
    path = open_directory("tmp-")
    yield path
    shutil.rmtree(path)
