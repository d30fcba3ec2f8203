"""A mark and somebody who has mounted it, for tests in this directory."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Layers, environment, wait_until
from harness.commands import SHIFTFSCTL
from harness.inside import Place
from harness.machine import CACHE, alone
from harness.marks import OTHER, Container, Marked, container, hidden_directory, marked, named
from shiftfs.mark import protocol


@pytest.fixture
def mark() -> Iterator[Marked]:
    with marked() as made:
        yield made


@pytest.fixture
def user(mark: Marked) -> Iterator[Container]:
    """Whose namespaces were made after the mark, which he sees."""
    with container() as made:
        yield made


@pytest.fixture
def other(mark: Marked) -> Iterator[Container]:
    """Another user, who has mounted already, and works; and may mount anew at any time."""
    with container((0, 300000, 65536), owner=OTHER) as made:
        made.mount(mark.path)
        yield made


@pytest.fixture(scope="module", params=["directory", "layers"])
def ground(request: pytest.FixtureRequest, area: Path) -> Iterator[tuple[Marked, Container, Path, Path]]:
    with ExitStack() as stack:
        if request.param == "directory":
            mark = stack.enter_context(marked())
            image = disk = mark.source
        else:
            layers = Layers(hidden_directory())
            mark = stack.enter_context(marked(*named(layers)))
            image, disk = layers.lower, layers.upper
        user = stack.enter_context(container())
        user.mount(mark.path)
        yield mark, user, image, disk


@pytest.fixture
def place(ground: tuple[Marked, Container, Path, Path]) -> Place:
    mark, user, image, disk = ground
    name = f"place{len(os.listdir(image))}"
    (image / name).mkdir()
    (image / name).chmod(0o755)
    return Place(mark, user, name, image / name, disk / name)


@pytest.fixture
def permanent_socket() -> Iterator[Path]:
    """Where clients look for the process that serves what is marked for good; nobody else's meanwhile."""
    with alone(CACHE / "permanent.lock"):
        socket = Path(protocol.path(protocol.PERMANENT))
        assert not socket.exists(), "somebody serves already"
        yield socket
        assert not socket.exists()


@pytest.fixture
def server(permanent_socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """That process."""
    process = subprocess.Popen([*SHIFTFSCTL, "serve"], cwd="/", env=environment())
    try:
        wait_until(permanent_socket.exists, "the server's socket", 10)
        yield process
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(20)
