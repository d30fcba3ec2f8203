"""A Debian in a rootless container on a mount of the program: packages are installed in it, and what they need holds.

No network is used: the image has the packages inside.
"""

import pytest

from harness.debian import MAKING_LIMIT, debian_tar
from harness.podman import Engine

pytestmark = pytest.mark.timeout(MAKING_LIMIT)

INSTALL = "apt-get -qq update && apt-get -qq install --yes --no-install-recommends"
SET_ID = "find / -xdev -perm /6000 -type f | sort | xargs stat -c '%n %u:%g %a'"


@pytest.fixture(scope="module")
def debian(podman: Engine) -> str:
    podman.podman("import", "--quiet", debian_tar(), "debian", limit=MAKING_LIMIT)
    return "debian"


@pytest.fixture(scope="module")
def installed(podman: Engine, debian: str) -> str:
    """An image with a package that has file capabilities."""
    script = f"{INSTALL} iputils-ping libcap2-bin"
    podman.podman("run", "--name=installing", debian, "sh", "-ec", script, limit=MAKING_LIMIT)
    podman.podman("commit", "--quiet", "installing", "installed", limit=MAKING_LIMIT)
    return "installed"


def test_packages_are_installed(podman: Engine, installed: str) -> None:
    """And all files of all packages are in the image as they are to be, by the sums that dpkg keeps."""
    assert podman.shell(installed, "dpkg --verify; dpkg-query -W -f '${Status}' iputils-ping") == "install ok installed"
    assert podman.shell(installed, "ping -V", "--cap-add=NET_RAW").startswith("ping from iputils")


def test_file_capabilities_are_in_the_image_and_in_the_commit(podman: Engine, installed: str) -> None:
    for options in ((), ("--userns=auto:size=65536",)):
        assert podman.shell(installed, "getcap /usr/bin/ping", *options) == "/usr/bin/ping cap_net_raw=ep"


def test_file_capabilities_give_power_in_the_container_alone(podman: Engine, installed: str) -> None:
    script = (
        "cp /bin/grep /tmp/own; setcap cap_chown+ep /tmp/own; "
        "setpriv --reuid=33 --regid=33 --clear-groups /tmp/own CapEff /proc/self/status"
    )
    assert podman.shell(installed, script).split() == ["CapEff:", "0000000000000001"]


def test_set_id_programs_are_so_and_work(podman: Engine, debian: str) -> None:
    said = podman.shell(
        debian, f"{SET_ID}; useradd bob; su -s /bin/sh bob -c 'chsh -s /bin/bash </dev/null; passwd -S'"
    )
    assert "/usr/bin/su 0:0 4755" in said and "/usr/bin/expiry 0:42 2755" in said
    assert said.splitlines()[-1].startswith("bob L ")


def test_users_of_a_container_with_ids_of_its_own(podman: Engine, debian: str) -> None:
    script = (
        "useradd --create-home bob; su -s /bin/sh bob -c 'umask 077; mkdir ~/own; touch ~/own/file'; "
        "stat -c '%n %U:%G %a' /home/bob/own /home/bob/own/file /etc/shadow; cat /proc/self/uid_map"
    )
    *files, ids = podman.shell(debian, script, "--userns=auto:size=65536").splitlines()
    assert files == ["/home/bob/own bob:bob 700", "/home/bob/own/file bob:bob 600", "/etc/shadow root:shadow 640"]
    assert ids.split()[0] == "0" and ids.split()[2] == "65536"
