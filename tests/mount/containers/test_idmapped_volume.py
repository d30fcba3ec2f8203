"""Volumes of root's containers whose owners podman has the kernel shift: idmapped mounts of a mount of the program."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import mounted, run
from harness.debian import busybox_tar
from harness.kinds import owner
from harness.layered import layered
from harness.podman import absent

pytestmark = pytest.mark.skipif(bool(absent()), reason=f"not installed: {', '.join(absent())}")

FIRST = 500000

# $1 is a directory for all that is made, $2 the image's archive, $3 the volume; what follows is run in the container.
PODMAN = f"""
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /mnt  # the path of a runroot may have 50 characters
export XDG_RUNTIME_DIR=/mnt TMPDIR=/mnt CONTAINERS_CONF=/mnt/containers.conf
cat >"$CONTAINERS_CONF" <<END
[containers]
cgroups = "disabled"
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
END
podman="podman --root $1/storage --runroot /mnt/run --storage-driver vfs"
$podman import --quiet "$2" box >/dev/null
maps="--uidmap 0:{FIRST}:65536 --gidmap 0:{FIRST}:65536"
$podman run --rm $maps --volume "$3:/data:idmap" box sh -ec "$4"
"""


@pytest.fixture(params=["source", "layered"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").write_text("content")
    os.chown(tmp_path / "lower/file", 5, 6)
    if request.param == "source":
        with mounted(tmp_path / "lower") as mount:
            yield mount.path
    else:
        with layered([tmp_path / "lower"], tmp_path / "upper", tmp_path / "work") as mount:
            yield mount.path


def test_a_volume_is_shifted_for_its_container(volume: Path, tmp_path: Path) -> None:
    script = "stat -c '%n %u:%g' /data/*; echo more >>/data/file; mkdir /data/new; chown 1:2 /data/new; cat /data/file"
    archive = busybox_tar(tmp_path / "box.tar")
    base = tmp_path / "podman"
    base.mkdir()
    apart = ["unshare", "--mount", "--propagation=slave"]
    try:
        said = run([*apart, "sh", "-euc", PODMAN, "sh", base, archive, volume, script]).stdout
    finally:
        run(["rm", "-rf", "--one-file-system", base])
    assert said.split() == ["/data/file", "5:6", "contentmore"]
    assert owner(volume / "file") == (5, 6)
    assert owner(volume / "new") == (1, 2)
