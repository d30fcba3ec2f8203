"""The root filesystems that images are made of: made once, for whoever asks, and usable without a network."""

import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import debian, run
from harness.debian import MAKING_LIMIT, PACKAGES, PACKAGES_PLACE, busybox_tar, debian_tar

# chroot in namespaces that all it starts and mounts goes with, and without any network.
APART = ["unshare", "--mount", "--propagation=private", "--net", "--pid", "--fork", "--kill-child", "chroot"]


def unpacked(archive: Path, place: Path) -> Path:
    place.mkdir()
    run(["tar", "-C", place, "--numeric-owner", "-xpf", archive])
    return place


@pytest.mark.root
@pytest.mark.timeout(2 * MAKING_LIMIT)
def test_a_debian_installs_its_packages_without_a_network(tmp_path: Path) -> None:
    root = unpacked(debian_tar(), tmp_path / "root")
    assert (root / "etc/debian_version").exists()
    script = f"apt-get -qq update && apt-get -q --simulate install --no-install-recommends {' '.join(PACKAGES)}"
    said = run([*APART, root, "/bin/sh", "-ec", script]).stdout
    assert [name for name in PACKAGES if f"Inst {name} " not in said] == []
    assert {path.suffix for path in (root / PACKAGES_PLACE[1:]).iterdir()} == {".deb", ""}


@pytest.mark.root
def test_who_asks_for_a_debian_at_once_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(suite: str, path: Path) -> None:
        made.append(suite)
        path.touch()

    monkeypatch.setattr(debian, "CACHE", tmp_path)
    monkeypatch.setattr(debian, "_make_debian", make)
    with ThreadPoolExecutor(8) as pool:
        (path,) = {future.result() for future in [pool.submit(debian_tar) for _ in range(8)]}
    assert path.parent == tmp_path and len(made) == 1


@pytest.mark.root
def test_a_debian_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "CACHE", tmp_path)
    monkeypatch.setattr(debian, "_MAKE", 'mkdir "$1/etc"; mount -t tmpfs none "$1/etc"; exit 3')
    with pytest.raises(AssertionError, match="exit status 3"):
        debian_tar()
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.root
def test_busybox_alone(tmp_path: Path) -> None:
    archive = busybox_tar(tmp_path / "tar", {"srv/file": b"content"})
    root = unpacked(archive, tmp_path / "root")
    said = run([*APART, root, "/bin/sh", "-ec", "cat /srv/file; id -u ann; stat -c %a /bin/su /tmp"]).stdout
    assert said == "content1001\n4755\n1777\n"
    with tarfile.open(archive) as members:
        assert {member.uid for member in members} == {0}
