"""A rootless podman whose containers lie on mounts of the program, for the tests of one module, and its first image."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import wait_until
from harness.debian import busybox_tar
from harness.podman import Engine, absent, engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = absent()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


@pytest.fixture(scope="module")
def podman(area: Path) -> Iterator[Engine]:
    """With `box`, an image of busybox in which there are /srv/kept and /srv/gone."""
    with engine() as made:
        archive = busybox_tar(made.base / "box.tar", {"srv/kept": b"kept", "srv/gone": b"gone"})
        made.podman("import", "--quiet", archive, "box")
        yield made


@pytest.fixture(autouse=True)
def nothing_stays_mounted(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test with a podman leaves a container, a mount, or a process that serves one."""
    user: Engine | None = request.getfixturevalue("podman") if "podman" in request.fixturenames else None
    yield
    if user is not None:
        user.podman("rm", "--force", "--time=0", "--all")
        wait_until(user.is_idle, "the mounts and their processes have gone with the containers")
