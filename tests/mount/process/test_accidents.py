"""What befalls the process itself: exceptions, signals that come early, streams that go away, mounts that are moved.

The command is the real one, but for one function that a few words of Python have broken. Whatever happens, no mount
stays that nobody serves.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import (
    Completed,
    environment,
    mount_table,
    mounted,
    newest_mount,
    run,
    shiftfs,
    shiftfsctl,
    unmount,
    wait_until,
)
from harness.commands import SHIFTFS
from harness.shifted import start_time

LIMIT = 20.0


def broken(how: str) -> list[str]:
    """The command after these words of Python."""
    words = "import errno, os, signal, sys, time\nfrom shiftfs import __main__, cli, daemon, mount, opening\n"
    return [sys.executable, "-P", "-c", f"{words}{how}\nsys.exit(__main__.main(sys.argv[1:]))"]


def places(source: Path) -> list[str]:
    return [entry.path for entry in mount_table() if entry.source == str(source)]


def nothing_is_left(source: Path) -> None:
    wait_until(lambda: not run(["pgrep", "-f", str(source)], check=False).stdout, "the process's end")
    assert places(source) == []


def failed(said: Completed, source: Path, pattern: str) -> None:
    assert said.returncode == 1 and said.stdout == ""
    assert re.fullmatch(r"shiftfs: [^\n]+\n", said.stderr) and re.search(pattern, said.stderr), said.stderr
    nothing_is_left(source)


# --- exceptions ---

RAISE = """
def broken(*args, **options):
    raise RuntimeError("something\\nbroke")
"""
BREAKS = {
    "find": "mount.find = broken",
    "session": "cli.Session = broken",
    "handlers": "cli.Interpreter = broken",
    "loop": "cli.Loop.run = broken",
    "ready": "cli.partial = broken",
}


@pytest.mark.parametrize("word", ["-f", "-oro"])
@pytest.mark.parametrize("what", BREAKS)
def test_an_unexpected_exception_is_one_line(source: Path, place: Path, what: str, word: str) -> None:
    said = run([*broken(RAISE + BREAKS[what]), word, source, place], check=False, limit=LIMIT)
    failed(said, source, r"RuntimeError \(something broke\)")


def test_d_tells_where_it_happened(source: Path, place: Path) -> None:
    said = run([*broken(f"{RAISE}cli.Session = broken"), "-d", source, place], check=False)
    assert said.returncode == 1 and "Traceback" in said.stderr and "in broken" in said.stderr
    nothing_is_left(source)


def test_the_log_gets_what_ends_a_mount_in_the_background(source: Path, place: Path, tmp_path: Path) -> None:
    script = """
        set -e
        mkdir dev; mount -t tmpfs none dev; mknod dev/fuse c 10 229; mknod dev/null c 1 3; ln -s "$PWD/log" dev/log
        mount --move dev /dev
        "$@"
        touch marker; stat mountpoint/file >/dev/null || true
        tries=0; while grep -q " $PWD/mountpoint " /proc/self/mountinfo && [ $tries -lt 500 ]; do
            tries=$((tries + 1)); sleep 0.02; stat mountpoint/absent >/dev/null 2>&1 || true; done
        ! grep " $PWD/mountpoint " /proc/self/mountinfo
    """
    how = f"""
def tick(loop, now):
    if os.path.exists({str(tmp_path / "marker")!r}):
        raise RuntimeError("something broke")
    return False
cli.Loop._tick = tick
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        log.settimeout(LIMIT)
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *broken(how), "source", "mountpoint"]
        assert run(command, cwd=tmp_path).stderr == ""
        said = [log.recv(65536).decode()]
        while not said[-1].endswith("RuntimeError: something broke"):
            said.append(log.recv(65536).decode())
    assert re.search(r"shiftfs\[\d+\]: unexpected RuntimeError \(something broke\)", said[0])
    assert any("in tick" in line for line in said)


def test_what_is_about_no_request_is_told_and_survived(source: Path, place: Path, tmp_path: Path) -> None:
    """As long as it does not go on and on (tests/test_faults.py)."""
    marker = tmp_path / "marker"
    how = f"""
def tidy(tree, now):
    if os.path.exists({str(marker)!r}):
        os.unlink({str(marker)!r})
        raise RuntimeError("something broke")
    return False
opening.SourceTree.tidy = tidy
"""
    with subprocess.Popen([*broken(how), "-f", source, place], stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: os.path.ismount(place), "the mount")
        for number in range(2):
            marker.touch()
            (place / f"stirs{number}").touch()
            wait_until(lambda: not marker.exists(), "something to break")
            (place / f"goes on{number}").touch()
        assert json.loads(shiftfsctl("stats", "--json", place).stdout)["faults"] == 2
        unmount(newest_mount(place))
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(LIMIT) == 0
    assert said.count("shiftfs: something went wrong that nobody expected; the mount goes on:\n") == 2
    assert said.count("in tidy") == 2


# --- signals that come early ---


@pytest.mark.parametrize("word", ["-f", "-oro"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_it_serves(source: Path, place: Path, number: signal.Signals, word: str) -> None:
    how = f"""
real = cli.Session
def session(*args, **options):
    os.kill(os.getpid(), {int(number)})
    return real(*args, **options)
cli.Session = session
"""
    said = run([*broken(how), word, source, place], check=False)
    assert said.returncode == (0 if word == "-f" else 1)
    assert said.stderr == ("" if word == "-f" else "shiftfs: the daemon ended before the mount was served\n")
    nothing_is_left(source)


IMPORTS = """
import signal, sys, runpy
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "shiftfs.layer":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv[0] = "shiftfs"
runpy.run_module("shiftfs", run_name="__main__")
"""
CHECKS = "mount.check = lambda options: signal.raise_signal(signal.SIGINT)"
WAITS = "daemon._wait = lambda pipe: signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize("how", ["imports", "checks", "waits"])
def test_an_interrupt_before_the_mount_is_quiet(source: Path, place: Path, how: str) -> None:
    command = {"imports": [sys.executable, "-P", "-c", IMPORTS], "checks": broken(CHECKS), "waits": broken(WAITS)}[how]
    said = run([*command, source, place], check=False)
    assert (said.returncode, said.stdout, said.stderr) == (130, "", "")
    nothing_is_left(source)


# --- streams that go away ---


def test_a_log_that_nobody_reads_any_more(source: Path, place: Path) -> None:
    process = subprocess.Popen([*SHIFTFS, "-d", source, place], stderr=subprocess.PIPE, env=environment())
    assert process.stderr is not None
    try:
        wait_until(lambda: places(source), "a mount", LIMIT)
        assert os.listdir(place) == ["file"]  # which waits until it is served
        process.stderr.close()
        process.send_signal(signal.SIGUSR1)
        assert (place / "file").read_text() == "content"
        assert not (place / "absent").exists()
        unmount(newest_mount(place))
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait(LIMIT)


# --- mounts that are moved ---


def test_it_is_unmounted_wherever_it_is(source: Path, tmp_path: Path) -> None:
    """Moved and bound; what else is at its old path, or over it, and other mounts of the same source stay."""
    around = tmp_path / "around"
    for name in ("place", "moved", "bound"):
        (around / name).mkdir(parents=True)
    run(["mount", "--bind", around, around])
    try:
        run(["mount", "--make-private", around])  # or what is in it cannot be moved (mount(8))
        shiftfs(source, around / "place")
        pid = int(shiftfsctl("status", around / "place").stdout.split("pid: ")[1].split()[0])
        with mounted(source) as other:
            run(["mount", "--move", around / "place", around / "moved"])
            run(["mount", "--bind", around / "moved", around / "bound"])
            for name in ("place", "bound"):
                run(["mount", "-t", "tmpfs", "none", around / name])
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not start_time(pid), "the daemon's end")
            assert sorted(places(source)) == sorted([str(around / "bound"), str(other.path)])
            assert (other.path / "file").read_text() == "content"
            kinds = {entry.path: entry.kind for entry in mount_table() if entry.path.startswith(str(around))}
            assert kinds == {str(around): kinds[str(around)], **{str(around / n): "tmpfs" for n in ("place", "bound")}}
    finally:
        run(["umount", "--lazy", around])


# --- a kernel without MOVE_MOUNT_BENEATH ---

BEFORE_6_5 = """
real = mount.mounts.attach
def attach(clone, path, *, beneath):
    if beneath:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    {}
mount.mounts.attach = attach
"""


def test_the_mount_is_made_anew(source: Path, place: Path) -> None:
    run([*broken(BEFORE_6_5.format("real(clone, path, beneath=False)")), source, place])
    entry = newest_mount(place)
    assert entry.root == "/.shiftfs-root"
    assert (place / "file").read_text() == "content"
    pid = int(shiftfsctl("status", place).stdout.split("pid: ")[1].split()[0])
    unmount(entry)
    wait_until(lambda: not start_time(pid), "the daemon's end")


@pytest.mark.parametrize("word", ["-f", "-oro"])
def test_a_mount_that_cannot_be_made_anew_is_a_failure(source: Path, place: Path, word: str) -> None:
    how = BEFORE_6_5.format("raise OSError(errno.EACCES, os.strerror(errno.EACCES))")
    failed(run([*broken(how), word, source, place], check=False), source, "Permission denied; .* made anew")
