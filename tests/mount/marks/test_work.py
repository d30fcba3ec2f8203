"""What container root does with a root filesystem: unpack, install, hand over to other ids, run as them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Layers, open_directory, run
from harness.marks import Container, container, hidden_directory, marked, named

OWNERS = {"root": (0, 0), "daemon": (1, 1), "www": (33, 33), "last": (65534, 65534)}


@pytest.fixture(params=["shifted", "layered"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Container, Path]]:
    """A container with the mark mounted, and where what it makes is on the host."""
    with ExitStack() as stack:
        source = hidden_directory()
        if request.param == "layered":
            layers = Layers(source)
            mark = stack.enter_context(marked(*named(layers), source=source))
            real = layers.upper
        else:
            mark = stack.enter_context(marked(source=source))
            real = source
        user = stack.enter_context(container())
        user.mount(mark.path)
        yield user, real


def test_an_archive_is_unpacked_with_its_owners(place: tuple[Container, Path]) -> None:
    user, real = place
    tree = open_directory("archive-")
    for name, (uid, gid) in OWNERS.items():
        (tree / name).write_bytes(b"content")
        os.chown(tree / name, uid, gid)
    (tree / "suid").write_bytes(b"")
    (tree / "suid").chmod(0o4755)
    os.link(tree / "root", tree / "second")
    run(["tar", "-C", tree, "--numeric-owner", "-cf", tree / "all.tar", *OWNERS, "suid", "second"])
    user.shell(f"tar --numeric-owner -xpf {tree}/all.tar")
    for name, owner in OWNERS.items():
        found = (real / name).stat()
        assert (found.st_uid, found.st_gid) == owner
        assert user.shell(f"stat -c %u:%g {name}") == "{}:{}\n".format(*owner)
    assert (real / "suid").stat().st_mode & 0o7777 == 0o4755
    assert (real / "second").samefile(real / "root")


def test_a_package_is_installed(place: tuple[Container, Path]) -> None:
    user, real = place
    package = open_directory("package-")
    (package / "DEBIAN").mkdir()
    (package / "DEBIAN/control").write_text(
        "Package: tried\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: tried\n"
    )
    (package / "usr/share/tried").mkdir(parents=True)
    (package / "usr/share/tried/file").write_text("content")
    archive = open_directory("archive-") / "tried.deb"
    run(["dpkg-deb", "--root-owner-group", "-b", package, archive])
    user.shell("mkdir -p var/lib/dpkg/info var/lib/dpkg/updates; touch var/lib/dpkg/status")
    user.shell(f"dpkg --root={user.target} --force-not-root --log=/dev/null -i {archive}")
    installed = real / "usr/share/tried/file"
    assert (installed.read_text(), installed.stat().st_uid) == ("content", 0)
    assert "Status: install ok installed" in (real / "var/lib/dpkg/status").read_text()


def test_programs_run_as_other_ids(place: tuple[Container, Path]) -> None:
    """In the tree as their root, as su(1) does it."""
    user, real = place
    user.shell("mkdir -p bin etc home/one; cp /bin/busybox bin/; ln -s busybox bin/sh; chown 1000:1000 home/one")
    user.shell("echo root:x:0:0::/:/bin/sh > etc/passwd; echo one:x:1000:1000::/home/one:/bin/sh >> etc/passwd")
    script = "/bin/busybox touch /home/one/mine; /bin/busybox id -u"
    said = user.run("chroot", user.target, "/bin/busybox", "su", "one", "-c", script).stdout
    assert said == "1000\n"
    assert (real / "home/one/mine").stat().st_uid == 1000


def test_fifty_users_at_once(tmp_path: Path) -> None:
    """Each in his own namespaces, with ids of his own; what they do does not get in each other's way."""
    with ExitStack() as stack:
        mark = stack.enter_context(marked())
        users = [stack.enter_context(container((0, 100000 + 1000 * n, 1000))) for n in range(50)]
        for user in users:
            user.mount(mark.path)
        working = []
        for number, user in enumerate(users):
            script = (
                f"set -eu; cd {user.target}; mkdir u{number}; chown 7 u{number}; i=0; while [ $i -lt 20 ]; do"
                f" echo $i > u{number}/$i; mv u{number}/$i u{number}/f$i; i=$((i+1)); done; cat u{number}/* | wc -l"
            )
            working.append(subprocess.Popen(user.command(["sh", "-c", script]), stdout=subprocess.PIPE, text=True))
        try:
            assert [process.communicate(timeout=60)[0] for process in working] == ["20\n"] * len(users)
        finally:
            for process in working:
                process.kill()
                process.wait()
        assert {path.stat().st_uid for path in mark.source.iterdir()} == {7}
        assert len(list(mark.source.rglob("f*"))) == 1000
