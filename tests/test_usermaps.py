"""Maps of user namespaces and of users, as the system keeps them."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftfs import usermaps
from shiftfs.shift.idmap import IDENTITY, MapError, parse_triples


@pytest.fixture
def stranger() -> Iterator[int]:
    """The PID of a process in a user namespace of its own, whose only id is ours."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1)")
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"\n":
                pytest.skip("may not make user namespaces here")
            yield process.pid
        finally:
            process.kill()


def test_a_process_names_its_namespace(stranger: int) -> None:
    assert usermaps.resolve("userns", str(stranger)) == (
        parse_triples(f"0:{os.geteuid()}:1"),
        parse_triples(f"0:{os.getegid()}:1"),
    )


def test_a_file_names_the_namespace(stranger: int, tmp_path: Path) -> None:
    link = tmp_path / "ns"
    link.symlink_to(f"/proc/{stranger}/ns/user")
    assert usermaps.of_namespace(str(link)) == usermaps.of_namespace(str(stranger))


def test_in_our_own_namespace_ids_are_as_they_are() -> None:
    for name in (str(os.getpid()), "/proc/self/ns/user"):
        assert usermaps.of_namespace(name) == (IDENTITY, IDENTITY)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("userns", "4194305", "cannot read /proc/4194305/uid_map: No such file"),  # beyond the greatest PID
        ("userns", "9" * 5000, "File name too long"),
        ("userns", "/no/such", "cannot read /no/such: No such file"),
        ("userns", "/proc/self/ns/net", "no process"),
        ("subid", "no such user", "there is no such user"),
        ("subid", "4294967295", "there is no such user"),
        ("subid", "9" * 5000, "there is no such user"),
    ],
)
def test_what_has_no_maps_is_refused(option: str, value: str, said: str) -> None:
    with pytest.raises(MapError) as caught:
        usermaps.resolve(option, value)
    assert said in str(caught.value)


@pytest.fixture
def subids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The files that /etc/subuid and /etc/subgid are for the test."""
    real = usermaps._lines
    monkeypatch.setattr(usermaps, "_lines", lambda path: real(str(tmp_path / Path(path).name)))
    return tmp_path


@pytest.mark.parametrize("named", ["name", "number"])
def test_a_user_is_root_and_its_ranges_the_others(subids: Path, named: str) -> None:
    user = pwd.getpwnam("daemon")
    (subids / "subuid").write_bytes(b"\xff:1:1\ndaemon:100000:65536\n")
    (subids / "subgid").write_text(f"{user.pw_uid}:200000:65536\n")
    assert usermaps.resolve("subid", user.pw_name if named == "name" else str(user.pw_uid)) == (
        parse_triples(f"0:{user.pw_uid}:1:1:100000:65536"),
        parse_triples(f"0:{user.pw_gid}:1:1:200000:65536"),
    )


def test_a_user_without_ranges_is_told_which_file_lacks_them(subids: Path) -> None:
    (subids / "subuid").write_text("daemon:100000:65536\n")
    (subids / "subgid").write_text("")
    with pytest.raises(MapError, match=r"^/etc/subgid: no range is given to daemon"):
        usermaps.resolve("subid", "daemon")


def test_a_missing_file_is_named(subids: Path) -> None:
    with pytest.raises(MapError, match=r"subuid: No such file"):
        usermaps.resolve("subid", "daemon")
