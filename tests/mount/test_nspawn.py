"""Containers of systemd-nspawn on a mount, whose owners the kernel shifts for them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Mount, run
from harness.debian import busybox_tar
from harness.kinds import owner
from harness.layered import layered

FIRST = 400000


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Mount]:
    """An overlay whose lower is the root filesystem of busybox."""
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for one in (lower, upper, work):
        one.mkdir()
    run(["tar", "-C", lower, "-xpf", busybox_tar(tmp_path / "root.tar")])
    for name in ("usr", "dev", "proc", "sys", "run", "root"):  # by the first of which it knows a root filesystem
        (lower / name).mkdir(exist_ok=True)
    (lower / "etc/os-release").touch()
    with layered([lower], upper, work, "suid", "allow_dev") as mount:
        yield mount


def nspawn(root: Path, script: str) -> str:
    """What a script says as root of a container. Nothing of systemd runs here that would have to know of it."""
    container = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={root}"]
    users = [f"--private-users={FIRST}:65536", "--private-users-ownership=map"]
    own = ["unshare", "--mount", "--propagation=slave"]
    return run([*own, *container, *users, "/bin/sh", "-euc", script]).stdout


def test_owners_are_mapped_by_the_mount(root: Mount) -> None:
    assert nspawn(root.path, "cat /proc/self/uid_map").split() == ["0", str(FIRST), "65536"]
    said = nspawn(root.path, "echo text >/root/file; mkdir /root/dir; chown 5:6 /root/dir; stat -c '%u %g' /root/*")
    assert said.split() == ["5", "6", "0", "0"]
    for path in (root.path, root.source):
        assert owner(path / "root/dir") == (5, 6)
        assert owner(path / "root/file") == (0, 0)


def test_what_comes_up_keeps_its_owner(root: Mount) -> None:
    os.chown(root.path / "etc/os-release", 1001, 1001)
    assert not (root.source / "etc/passwd").exists()
    nspawn(root.path, "chmod 600 /etc/passwd; echo more >>/etc/os-release")
    assert owner(root.source / "etc/passwd") == (0, 0)
    assert owner(root.source / "etc/os-release") == (1001, 1001)
