"""What users of podman do every day, as an unprivileged user, on mounts of the program."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import CommandFailed, wait_until
from harness.podman import Engine

LIST = 'stat -c "%n %u:%g %a %h %F"'

CHANGES = """
echo new >/srv/new; chown 33:34 /srv/new; chmod 4750 /srv/new; chown 1001:1001 /srv/kept; rm /srv/gone
mkdir -p /srv/d/e; chmod 2711 /srv/d; mkfifo /srv/fifo; ln /srv/kept /srv/linked; ln -s kept /srv/symlink
rm -r /home; mkdir /home; touch /home/anew; mv /var /var2; chmod 700 /tmp
"""
CHANGED = """
/srv/d 0:0 2711 3 directory
/srv/d/e 0:0 755 2 directory
/srv/fifo 0:0 644 1 fifo
/srv/kept 1001:1001 644 2 regular file
/srv/linked 1001:1001 644 2 regular file
/srv/new 33:34 4750 1 regular file
/srv/symlink 0:0 777 1 symbolic link
/home/anew 0:0 644 1 regular empty file
/tmp 0:0 700 1 directory
"""


def test_containers_lie_on_mounts_of_the_program(podman: Engine) -> None:
    source, place, kind = podman.shell("box", "head -n1 /proc/mounts").split()[:3]
    assert (source, place, kind) == ("shiftfs", "/", "fuse.shiftfs")


@pytest.fixture(scope="module")
def changed(podman: Engine) -> str:
    """An image that was committed from a container with changes."""
    podman.podman("run", "--name=changing", "box", "sh", "-ec", CHANGES)
    podman.podman("commit", "--quiet", "changing", "changed")
    return "changed"


def test_changes_are_what_diff_says(podman: Engine, changed: str) -> None:
    podman.podman("run", "--name=differs", "box", "sh", "-ec", CHANGES)
    said = set(podman.podman("diff", "differs").splitlines())
    assert said - {"C /etc"} == {
        *("C /srv", "C /srv/kept", "D /srv/gone", "C /home", "A /home/anew", "C /tmp", "D /var", "A /var2"),
        *(f"A /srv/{name}" for name in ("d", "d/e", "fifo", "linked", "new", "symlink")),
    }


def test_a_commit_has_the_changes(podman: Engine, changed: str) -> None:
    said = podman.shell(changed, f"{LIST} /srv/* /srv/d/* /home/* /tmp; ls -d /var* /srv/gone || true")
    assert sorted([*CHANGED.split("\n")[1:-1], "/var2"]) == sorted(said.splitlines())
    assert podman.shell(changed, "cat /srv/kept /srv/linked /srv/new") == "keptkeptnew"


DOCKERFILE = """
FROM box
RUN mkdir /opt && echo ran >/opt/ran && chown 5:6 /opt/ran && rm /srv/gone
COPY --chown=7:8 file /opt/file
RUN mv /opt/ran /opt/again && chmod 600 /opt/file && rm -rf /home && mkdir /home && touch /home/anew
USER ann
WORKDIR /opt
CMD ["sh", "-c", "id -u; pwd; stat -c '%n %u:%g %a' /opt/* /srv/* /home/*"]
"""


@pytest.mark.parametrize("program", [["podman", "build"], ["buildah", "bud"]], ids=["podman", "buildah"])
def test_an_image_is_built(podman: Engine, program: list[str]) -> None:
    context = podman.home / program[0]
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "file").write_text("copied")
    podman.run([*program, "--quiet", "--tag=built", context])
    said = podman.podman("run", "--rm", "built").splitlines()
    expected = ["/opt/again 5:6 644", "/opt/file 7:8 600", "/srv/kept 0:0 644", "/home/anew 0:0 644"]
    assert said == ["1001", "/opt", *expected]
    podman.podman("rmi", "--force", "built")


# Options, the lines of /proc/self/uid_map, and the id that the container's process has.
MAPS = {
    "maps": (("--uidmap=0:1000:5000", "--gidmap=0:2000:5000"), "0 1000 5000", 0),
    "auto": (("--userns=auto",), "0 1 1024", 0),
    "the user's own id": (("--userns=keep-id", "--user=0"), "0 1 64321", 0),
}


@pytest.mark.parametrize("name", MAPS)
def test_ids_are_mapped(podman: Engine, name: str) -> None:
    options, first, own = MAPS[name]
    script = (
        f"head -n1 /proc/self/uid_map; {LIST} / /srv/* /bin/su; touch /srv/new; chown 4:5 /srv/new; {LIST} /srv/new"
    )
    uid_map, *files = podman.shell("box", script, *options).splitlines()
    assert uid_map.split() == first.split()
    assert [line.split()[1] for line in files] == [f"{own}:{own}"] * 4 + ["4:5"]
    assert files[-2].split()[:3] == ["/bin/su", "0:0", "4755"]


def test_the_user_keeps_its_id(podman: Engine) -> None:
    said = podman.shell(
        "box", f"id -u; touch /tmp/own; {LIST} /tmp/own; touch /srv/not 2>&1 || true", "--userns=keep-id"
    )
    own, file, refused = said.splitlines()
    assert (own, file) == ("64321", "/tmp/own 64321:64321 644 1 regular empty file")
    assert refused.endswith("Permission denied")


def test_ids_of_containers_are_apart(podman: Engine) -> None:
    """Each of them writes its own root's files, all on layers that they share."""
    names = ["one", "two", "three"]
    for name in names:
        podman.podman(
            "run", "--detach", f"--name={name}", "--userns=auto", "box", "sh", "-c", "echo >/srv/of; sleep 600"
        )
    maps = {podman.podman("exec", name, "head", "-n1", "/proc/self/uid_map").split()[1] for name in names}
    assert len(maps) == len(names)
    for name in names:
        wait_until(lambda name=name: "of" in podman.podman("exec", name, "ls", "/srv"), "a file")  # type: ignore[misc]
        assert podman.podman("exec", name, "stat", "-c", "%u:%g", "/srv/of", "/srv/kept") == "0:0\n0:0"


def test_a_read_only_container(podman: Engine) -> None:
    said = podman.shell("box", "touch /tmp/new; cat /srv/kept; echo; touch /srv/new 2>&1 || true", "--read-only")
    kept, refused = said.splitlines()
    assert kept == "kept" and refused.endswith("Read-only file system")


@pytest.fixture
def volume(podman: Engine) -> Iterator[Path]:
    path = podman.home / "volume"
    podman.run(["sh", "-ec", "mkdir volume; echo own >volume/file; ln -s file volume/link; chmod 640 volume/file"])
    yield path
    podman.podman("unshare", "rm", "-r", path)


def test_a_volume_whose_changes_are_dropped(podman: Engine, volume: Path) -> None:
    script = "cat /mnt/file; echo x >/mnt/file; rm /mnt/link; mkdir /mnt/new; chown 3:4 /mnt/file; stat -c %u:%g /mnt/*"
    assert podman.shell("box", script, f"--volume={volume}:/mnt:O") == "own\n3:4\n0:0"
    assert (volume / "file").read_text() == "own\n"
    assert sorted(os.listdir(volume)) == ["file", "link"]


def test_an_image_as_a_volume(podman: Engine, changed: str) -> None:
    script = "cat /image/srv/new; rm /image/srv/new; touch /image/srv/more; ls /image/srv"
    said = podman.shell("box", script, f"--mount=type=image,src={changed},dst=/image,rw=true")
    assert said.split() == ["new", "d", "fifo", "kept", "linked", "more", "symlink"]
    assert podman.shell(changed, "cat /srv/new") == "new"


def test_an_image_is_saved_and_loaded(podman: Engine, changed: str) -> None:
    archive = podman.home / "saved.tar"
    podman.podman("tag", changed, "saved")
    podman.podman("save", "--quiet", f"--output={archive}", "saved")
    podman.podman("rmi", "saved")
    podman.podman("load", "--quiet", f"--input={archive}")
    assert set(CHANGED.split("\n")[1:8]) <= set(podman.shell("saved", f"{LIST} /srv/* /srv/d/*").splitlines())
    podman.podman("rmi", "saved")
    archive.unlink()


def test_twenty_containers_at_once_from_one_image(podman: Engine) -> None:
    script = """
    for i in $(seq 20); do
        podman run --detach --name=many$i box sh -c "echo $i >/srv/own; sleep 600" >/dev/null &
    done
    wait
    for i in $(seq 20); do podman exec many$i sh -c 'until [ -s /srv/own ]; do :; done; cat /srv/own'; done
    """
    assert podman.run(["sh", "-ec", script], limit=100).stdout.split() == [str(number) for number in range(1, 21)]
    assert len(podman.mounts()) == len(podman.mounting()) == 20


def test_a_container_that_is_killed_starts_again(podman: Engine) -> None:
    podman.podman("run", "--detach", "--name=killed", "box", "sh", "-c", "echo >>/srv/starts; exec sleep 600")
    wait_until(lambda: podman.podman("exec", "killed", "cat", "/srv/starts", check=False) == "", "a file")
    podman.run(["kill", "-9", podman.podman("inspect", "--format={{.State.Pid}}", "killed")])
    assert podman.podman("wait", "killed") == "137"
    wait_until(podman.is_idle, "its mount goes")
    podman.podman("start", "killed")
    said = "podman exec killed sh -c 'until [ $(wc -l </srv/starts) = 2 ]; do :; done; ls /srv'"
    assert podman.run(["sh", "-c", said]).stdout.split() == ["gone", "kept", "starts"]


def test_a_container_whose_mount_is_killed_can_be_removed(podman: Engine) -> None:
    podman.podman("run", "--detach", "--name=orphan", "box", "sleep", "600")
    (serving,) = podman.mounting()
    podman.run(["kill", f"-{signal.SIGKILL.value}", str(serving)])
    with pytest.raises(CommandFailed):
        podman.podman("exec", "orphan", "ls", "/srv")
    podman.podman("rm", "--force", "--time=0", "orphan")
    assert podman.shell("box", "ls /srv").split() == ["gone", "kept"]


def test_files_are_copied_in_and_out(podman: Engine) -> None:
    (podman.home / "in").write_text("in")
    podman.podman("create", "--name=copied", "box", "true")
    podman.podman("cp", podman.home / "in", "copied:/srv/in")
    podman.podman("cp", "copied:/srv/in", podman.home / "out")
    assert (podman.home / "out").read_text() == "in"
    assert podman.podman("diff", "copied").splitlines() == ["C /srv", "A /srv/in"]
    assert "srv/in" in podman.run(["sh", "-c", "podman export copied | tar -t"]).stdout.split()


def test_a_container_is_mounted_and_changed_from_outside(podman: Engine) -> None:
    podman.podman("create", "--name=outside", "box", "true")
    script = "at=$(podman mount outside); touch $at/srv/new; stat -f -c %T $at; ls $at/srv; podman umount outside"
    assert podman.podman("unshare", "sh", "-ec", script).split() == ["fuseblk", "gone", "kept", "new", "outside"]
