"""Fixtures of the tests on real mounts. Owns the layers and mounts that the tests of one module share."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import OVERLAYS, Layers, Merged, Mount, mounted, new_merged, open_directory, run
from harness.lockable import KINDS as GROUNDS
from harness.lockable import Ground, ground
from harness.places import KINDS, Place, new_place


@pytest.fixture(scope="module")
def source(area: Path) -> Iterator[Path]:
    """A layer for the tests of one module."""
    path = open_directory("layer-")
    yield path
    run(["rm", "-rf", path])  # which, unlike shutil.rmtree, gets along with paths beyond PATH_MAX


@pytest.fixture(scope="module", params=KINDS)
def each_kind(request: pytest.FixtureRequest, source: Path) -> Iterator[tuple[str, Mount | None]]:
    with ExitStack() as stack:
        options = KINDS[request.param]
        yield request.param, stack.enter_context(mounted(source, None, *options)) if options else None


@pytest.fixture
def place(each_kind: tuple[str, Mount | None], source: Path) -> Place:
    """A directory of its own for each test; each test runs on a plain directory and on each kind of mount."""
    kind, mount = each_kind
    return new_place(source, mount, kind)


@pytest.fixture(scope="module")
def one_mount(source: Path) -> Iterator[Mount]:
    with mounted(source) as mount:
        yield mount


@pytest.fixture
def shown(one_mount: Mount, source: Path) -> Place:
    """A directory of its own for each test, on one mount with the default options."""
    return new_place(source, one_mount, "default")


@pytest.fixture(params=["kernel", "shiftfs"])
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> Layers:
    """Directories for an overlay of the kernel's, and for ours."""
    return Layers(tmp_path, kind=request.param)


@pytest.fixture
def our_layers(tmp_path: Path) -> Layers:
    """For what the kernel's overlay does otherwise, or not at all."""
    return Layers(tmp_path)


@pytest.fixture(
    scope="module", params=[("watch=auto",), ("watch=off", "timeout=0.1")], ids=["followed", "asked again"]
)
def seen(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Options for what changes in a layer: the mount is told, or looks again soon."""
    options: tuple[str, ...] = request.param
    return options


@pytest.fixture
def seen_layers(seen: tuple[str, ...], tmp_path: Path) -> Layers:
    """As `our_layers`, with these options."""
    layers = Layers(tmp_path)
    layers.options = seen
    return layers


@pytest.fixture(scope="module", params=GROUNDS)
def each_ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Where files are locked."""
    with ground(request.param) as found:
        yield found


@pytest.fixture(scope="module", params=[name for name in GROUNDS if name != "native"])
def mounted_ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with ground(request.param) as found:
        yield found


@pytest.fixture(scope="module", params=OVERLAYS)
def each_overlay(request: pytest.FixtureRequest, area: Path) -> Iterator[tuple[Layers, Mount, str]]:
    yield from _overlay(request.param)


@pytest.fixture
def merged(each_overlay: tuple[Layers, Mount, str]) -> Merged:
    """A directory of its own for each test, on the kernel's overlay, and on ours without and with a map. The upper
    and three lower layers."""
    return new_merged(*each_overlay)


@pytest.fixture(scope="module", params=[kind for kind in OVERLAYS if kind != "kernel"])
def our_overlay(request: pytest.FixtureRequest, area: Path) -> Iterator[tuple[Layers, Mount, str]]:
    yield from _overlay(request.param)


@pytest.fixture
def ours(our_overlay: tuple[Layers, Mount, str]) -> Merged:
    """As `merged`, for what the kernel's overlay does otherwise, or not at all."""
    return new_merged(*our_overlay)


def _overlay(kind: str) -> Iterator[tuple[Layers, Mount, str]]:
    base = open_directory("layers-")
    layers = Layers(base, 3, kind)
    with layers.mount("allow_dev" if kind != "kernel" else "dev") as mount:
        yield layers, mount, kind
    run(["rm", "-rf", base])
