"""The storage of containers changes hands: what fuse-overlayfs has made is used by the program, and vice versa.

A user does no more than name the other program in storage.conf, while no container runs.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import wait_until
from harness.podman import Engine

CHANGES = """
echo one >/srv/one; rm /srv/gone; chown 5:6 /srv/kept; rm -r /home; mkdir /home; touch /home/anew
mkdir -p /srv/d/e /srv/full/below; touch /srv/d/file /srv/full/below/file; mkfifo /srv/fifo; ln -s one /srv/link
ln /srv/one /srv/hard; chmod 2711 /srv/d; chown 7:8 /srv/d
"""
DOCKERFILE = """
FROM changed
RUN rm -r /srv/d/e /srv/fifo && echo two >/srv/two && chmod 4755 /srv/one
RUN rm -r /srv/full && mkdir /srv/full && touch /srv/full/anew && mv /var /var2
"""
# Nothing is made where /srv/d was: fuse-overlayfs 1.10 would show there again what its lower layers have.
LIVE = "rm /srv/two; echo live >/srv/live; mv /srv/d /srv/moved; touch /home/more; chown 9:9 /srv/kept"
LATER = "rm /srv/live; echo later >/srv/later; mv /srv/moved /srv/again; echo more >>/srv/kept; rm -r /var2"
LIST = 'find / -xdev -path /etc -prune -o -exec stat -c "%n %u:%g %a %F" {} +; cat /srv/one /srv/kept'


class Seen(NamedTuple):
    """All that is to be the same with either program."""

    changes: list[str]
    image: list[str]
    container: list[str]


def seen(podman: Engine) -> Seen:
    podman.podman("commit", "--quiet", "live", "committed")
    return Seen(
        sorted(podman.podman("diff", "live").splitlines()),
        sorted(podman.shell("built", LIST).splitlines()),
        sorted(podman.shell("committed", LIST).splitlines()),
    )


def work(podman: Engine, script: str) -> None:
    """In the container that stays."""
    podman.podman("start", "live")
    podman.podman("exec", "live", "sh", "-ec", script)
    podman.podman("stop", "--time=0", "live")
    wait_until(podman.is_idle, "its mount goes")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("first", ["fuse-overlayfs", "shiftfs"])
def test_storage_changes_hands_and_comes_back(podman: Engine, first: str) -> None:
    programs: list[str | Path] = [str(shutil.which("fuse-overlayfs")), podman.program]
    if first == "shiftfs":
        programs.reverse()
    podman.use(programs[0])
    podman.podman("run", "--name=changing", "box", "sh", "-ec", CHANGES)
    podman.podman("commit", "--quiet", "changing", "changed")
    (podman.home / "Dockerfile").write_text(DOCKERFILE)
    podman.podman("build", "--quiet", "--tag=built", "--file", podman.home / "Dockerfile", podman.home / ".config")
    podman.podman("create", "--name=live", "built", "sleep", "600")
    work(podman, LIVE)
    before = seen(podman)
    assert "A /srv/moved/file" in before.changes and "D /srv/two" in before.changes

    podman.use(programs[1])
    assert seen(podman) == before
    work(podman, LATER)
    after = seen(podman)
    assert {"A /srv/again/file", "D /srv/d", "A /srv/later", "D /var2"} <= set(after.changes)

    podman.use(programs[0])
    assert seen(podman) == after
    podman.use(podman.program)


def test_what_is_built_with_one_runs_with_the_other(podman: Engine) -> None:
    """Whiteouts and opaque directories, and that they are the image's, not the container's."""
    for program in (shutil.which("fuse-overlayfs"), podman.program):
        podman.use(str(program))
        said = podman.shell("built", "ls /srv /srv/full /home; ls -d /var /var2 2>&1 || true")
        assert said.split("\n") == [
            *(
                "/home:",
                "anew",
                "",
                "/srv:",
                "d",
                "full",
                "hard",
                "kept",
                "link",
                "one",
                "two",
                "",
                "/srv/full:",
                "anew",
            ),
            *("ls: /var: No such file or directory", "/var2"),
        ]


def test_a_reset_leaves_nothing_mounted(podman: Engine) -> None:
    """With a container that runs, and one that has never been started."""
    podman.podman("run", "--detach", "--name=one", "--stop-timeout=0", "box", "sleep", "600")
    podman.podman("create", "--name=two", "box", "true")
    assert len(podman.mounting()) == 1
    podman.podman("system", "reset", "--force")
    wait_until(podman.is_idle, "nothing is mounted")
    assert podman.podman("images", "--quiet") == podman.podman("ps", "--all", "--quiet") == ""
