"""What cannot be layered: one line on standard error that says what, why and what to do; nothing is mounted, and
nothing in the directories is touched. And what can, however its paths are written.
"""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness import (
    SHIFTFS,
    Completed,
    Layers,
    in_userns,
    layered,
    mount_table,
    mounted,
    run,
    shiftfs,
    shiftfsctl,
    wait_until,
)
from harness.commands import user_prefix
from harness.layered import read_tree

DAEMON = 1


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with what two overlays are made of, and things that are none of it."""
    Layers(tmp_path, lowers=2)
    for name in ("mnt", "secret", "lower0/deep/down", "upper/deep", "work/deep", "fresh"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret").chmod(0o700)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("lower0")
    (tmp_path / "to-work").symlink_to("upper/deep")
    for name in ("mnt", "upper", "upper/deep", "work", "lower0/deep/down"):
        os.chown(tmp_path / name, DAEMON, DAEMON)
    return tmp_path


def refused(said: Completed, here: Path, *patterns: str) -> None:
    assert said.returncode in (1, 2)
    assert said.stdout == ""
    assert re.fullmatch(r"shiftfs: [^\n]+\n", said.stderr), said.stderr
    for pattern in patterns:
        assert re.search(pattern, said.stderr), f"{pattern!r} is not in {said.stderr}"
    assert not [entry for entry in mount_table() if entry.path.startswith(str(here))]
    assert run(["pgrep", "-f", str(here)], check=False).stdout == ""


class Bad(NamedTuple):
    """The text of -o, and what the line must have."""

    options: str
    patterns: list[str]
    mountpoint: str = "mnt"
    user: bool = False


PAIR = "upperdir=upper,workdir=work"
BAD = {
    "an upper alone": Bad("lowerdir=lower0,upperdir=upper", ["upperdir needs workdir", "add workdir=DIRECTORY"]),
    "work alone": Bad("lowerdir=lower0,workdir=work", ["workdir needs upperdir", "add upperdir=DIRECTORY"]),
    "an upper without a lower": Bad(PAIR, ["upperdir needs layers", "add lowerdir=TOP:...:BOTTOM"]),
    "an empty lower": Bad("lowerdir=lower0:", ["'lowerdir=lower0:' cannot be", "none of them empty"]),
    "too many": Bad(f"lowerdir={':'.join(['lower0'] * 501)}", ["lowerdir names 501 directories", "give 500 at most"]),
    "a redirect_dir that is none": Bad("lowerdir=lower0,redirect_dir=yes", ["redirect_dir=yes", "auto, on, off, "]),
    "metacopy without redirects": Bad(
        f"lowerdir=lower0,{PAIR},metacopy=on,redirect_dir=off", ["metacopy=on and redirect_dir=off", "keep one"]
    ),
    "a missing lower": Bad("lowerdir=lower0:absent", ["lowerdir absent: No such file", "give an existing directory"]),
    "a missing upper": Bad("lowerdir=lower0,upperdir=absent,workdir=work", ["upperdir absent: No such file"]),
    "missing work": Bad("lowerdir=lower0,upperdir=upper,workdir=absent", ["workdir absent: No such file"]),
    "a lower that is a file": Bad("lowerdir=file", ["lowerdir file: not a directory", "give an existing directory"]),
    "a lower that is a loop": Bad("lowerdir=loop", ["lowerdir loop: .*symbolic links"]),
    "a lower with a colon that was meant": Bad("lowerdir=a:b", ["lowerdir a: No such file"]),
    "a lower that a user may not read": Bad("lowerdir=secret", ["lowerdir secret: Permission denied"], user=True),
    "a mountpoint that is missing": Bad("lowerdir=lower0", ["mountpoint absent: No such file"], "absent"),
    "a lower given twice": Bad("lowerdir=lower0:link", ["lowerdir link: is the same directory as lowerdir lower0"]),
    "a lower inside a lower": Bad("lowerdir=lower0:lower0/deep", ["lowerdir lower0/deep: lies inside lowerdir lower0"]),
    "an upper inside a lower": Bad(
        "lowerdir=lower0,upperdir=lower0/deep,workdir=work", ["upperdir lower0/deep: lies inside lowerdir lower0"]
    ),
    "a lower inside the upper": Bad(
        f"lowerdir=upper/deep,{PAIR}", ["lowerdir upper/deep: lies inside upperdir upper", "none contains another"]
    ),
    "work inside the upper": Bad(
        "lowerdir=lower0,upperdir=upper,workdir=to-work", ["workdir to-work: lies inside upperdir upper"]
    ),
    "an upper inside work": Bad(
        "lowerdir=lower0,upperdir=work/deep,workdir=work", ["upperdir work/deep: lies inside workdir work"]
    ),
    "work that is the upper": Bad(
        "lowerdir=lower0,upperdir=upper,workdir=upper", ["workdir upper: is the same directory as upperdir upper"]
    ),
    "work on another filesystem": Bad(
        "lowerdir=lower0,upperdir=upper,workdir=/dev/shm", ["workdir /dev/shm: lies on another filesystem or mount"]
    ),
    "a mountpoint inside work": Bad(
        f"lowerdir=lower0,{PAIR}", ["mountpoint work/deep: lies inside the workdir, which is emptied"], "work/deep"
    ),
    "a mountpoint inside a user's layer": Bad(
        "lowerdir=lower1:lower0",
        ["mountpoint lower0/deep/down: lies inside the layer .*/lower0,", "mount over .*/lower0 itself"],
        "lower0/deep/down",
        user=True,
    ),
    "an upper of another's": Bad(
        "lowerdir=lower0,upperdir=fresh,workdir=work",
        ["upperdir fresh: Permission denied; give a directory that you may write to"],
        user=True,
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("foreground", [False, True], ids=["daemon", "foreground"])
def test_bad_layers(here: Path, name: str, foreground: bool) -> None:
    bad = BAD[name]
    before = read_tree(here / "work"), read_tree(here / "upper"), read_tree(here / "lower0")
    prefix = user_prefix(DAEMON) if bad.user else []
    command = [*prefix, *SHIFTFS, *(["-f"] if foreground else []), "-o", bad.options, bad.mountpoint]
    refused(run(command, check=False, cwd=here), here, *bad.patterns)
    assert (read_tree(here / "work"), read_tree(here / "upper"), read_tree(here / "lower0")) == before


def test_an_upper_on_a_read_only_filesystem(here: Path) -> None:
    bound = here / "fresh"
    run(["mount", "--bind", here, bound])
    try:
        run(["mount", "-o", "remount,bind,ro", bound])
        options = f"lowerdir={here}/lower0,upperdir={bound}/upper,workdir={bound}/work"
        said = shiftfs("-o", options, here / "mnt", check=False)
    finally:
        run(["umount", bound])
    refused(said, here, f"upperdir {bound}/upper: lies on a read-only filesystem", "leave out upperdir and workdir")


@pytest.mark.parametrize("name", ["work", "index"])
def test_work_that_is_foreign(here: Path, name: str) -> None:
    (here / "work" / name).symlink_to(here / "fresh")
    said = shiftfs("-o", f"lowerdir=lower0,{PAIR}", "mnt", check=False, cwd=here)
    refused(said, here, f"workdir work: {name} in it is no directory", f"move {name} away")
    assert list((here / "fresh").iterdir()) == []


def test_a_volatile_mount_is_refused_at_the_next_mount_until_its_mark_is_deleted(here: Path) -> None:
    made = Layers(here / "fresh")
    with made.mount("volatile") as mount:
        assert mount.status()["options"]["volatile"] is True
    options = f"lowerdir={made.lower},upperdir={made.upper},workdir={made.work}"
    for text in (options, f"{options},volatile"):
        refused(shiftfs("-o", text, here / "mnt", check=False), here, "by a volatile mount", "delete work/incompat")
    (made.work / "work/incompat/volatile/dirty").unlink()
    (made.work / "work/incompat/volatile").rmdir()
    with made.mount():
        pass


# --- what is in use ---


def beside(layers: Layers, **other: Path) -> str:
    named = {"lowerdir": layers.lower, "upperdir": layers.upper, "workdir": layers.work, **other}
    return ",".join(f"{name}={path}" for name, path in named.items())


@pytest.mark.parametrize("role", ["upperdir", "workdir"])
def test_what_a_live_mount_uses_is_refused_and_the_mount_named(tmp_path: Path, role: str) -> None:
    layers = Layers(tmp_path)
    for name in ("free", "mnt"):
        (tmp_path / name).mkdir()
    options = beside(layers, **{"workdir" if role == "upperdir" else "upperdir": tmp_path / "free"})
    with layers.mount() as mount:
        said = shiftfs("-o", options, tmp_path / "mnt", check=False)
        assert said.returncode == 1
        used = layers.upper if role == "upperdir" else layers.work
        assert said.stderr == (
            f"shiftfs: {role} {used}: in use by the mount at {mount.path} (process {mount.pid}); unmount that, or"
            " give another directory\n"
        )
    assert not [entry for entry in mount_table() if entry.path == str(tmp_path / "mnt")]


def test_a_mount_that_was_moved_is_named_where_it_is(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    for name in ("elsewhere", "mnt"):
        (tmp_path / name).mkdir()
    with layers.mount() as mount:
        run(["mount", "--bind", mount.path, tmp_path / "elsewhere"])
        run(["umount", mount.path])
        try:
            said = shiftfs("-o", beside(layers), tmp_path / "mnt", check=False)
        finally:
            run(["umount", tmp_path / "elsewhere"])
    assert f"in use by the mount at {tmp_path}/elsewhere (process {mount.pid})" in said.stderr


def test_what_the_kernels_overlay_uses_is_refused_and_the_mount_named(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    (tmp_path / "mnt").mkdir()
    with layers.mount(kind="kernel") as mount:
        said = shiftfs("-o", beside(layers), tmp_path / "mnt", check=False)
    assert said.returncode == 1
    assert f"upperdir {layers.upper}: in use by the kernel's overlay mounted at {mount.path};" in said.stderr


def test_a_lower_may_be_in_several_mounts(tmp_path: Path) -> None:
    layers, other = Layers(tmp_path), tmp_path / "other"
    (layers.lower / "file").write_text("lower")
    other.mkdir()
    beyond = Layers(other)
    with layers.mount() as first, layered([layers.lower], beyond.upper, beyond.work) as second:
        (first.path / "file").write_text("first")
        assert (second.path / "file").read_text() == "lower"


def test_remounts_may_follow_at_once(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    for round_ in range(5):
        shiftfs("-o", beside(layers), mountpoint)
        (mountpoint / f"file{round_}").touch()
        run(["umount", mountpoint])
    assert sorted(os.listdir(layers.upper)) == [f"file{round_}" for round_ in range(5)]
    wait_until(lambda: not run(["pgrep", "-f", str(tmp_path)], check=False).stdout, "end of the last daemon")


def test_a_killed_mount_holds_nothing(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    with layers.mount() as mount:
        os.kill(mount.pid, signal.SIGKILL)
        with layers.mount() as another:
            (another.path / "new").touch()
    assert (layers.upper / "new").exists()


# --- what can be layered ---


def test_paths_may_have_any_character(tmp_path: Path) -> None:
    odd = tmp_path / 'a:b,c\\d"e f'
    odd.mkdir()
    layers = Layers(odd)
    (layers.lower / "file").write_text("lower")
    text = str(odd)
    for character in ("\\", ",", '"'):
        text = text.replace(character, f"\\{character}")
    colons = text.replace(":", "\\:")
    options = [f"lowerdir={colons}/lower0", f"upperdir={text}/upper", f"workdir={colons}/work"]
    with mounted(Path("x"), None, *options) as mount:
        assert (mount.path / "file").read_text() == "lower"
        assert [layer["path"] for layer in mount.status()["layers"]] == [str(layers.upper), str(layers.lower)]


@pytest.mark.parametrize(
    ("operands", "shown", "source"),
    [([], "shiftfs", None), (["overlay"], "overlay", "overlay"), (["-o", "fsname=n"], "n", None)],
)
def test_a_source_is_but_a_name(
    tmp_path: Path, operands: list[str], shown: str, source: str | None
) -> None:
    layers = Layers(tmp_path)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    shiftfs("-o", f"lowerdir={layers.lower}", *operands, mountpoint)
    try:
        (entry,) = (entry for entry in mount_table() if entry.path == str(mountpoint))
        assert entry.source == shown
        status: dict[str, Any] = _status(mountpoint)
        assert (status["source"], status["options"]["fsname"]) == (source, shown)
        assert status["options"]["read_only"] is True
        assert [layer["path"] for layer in status["layers"]] == [str(layers.lower)]
        with pytest.raises(OSError, match="Read-only"):
            (mountpoint / "new").touch()
    finally:
        run(["umount", mountpoint])
    wait_until(lambda: not run(["pgrep", "-f", str(tmp_path)], check=False).stdout, "end of the daemon")


def _status(mountpoint: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(shiftfsctl("status", mountpoint, "--json").stdout)
    return answer


def test_the_order_in_which_mount_gives_its_words(tmp_path: Path) -> None:
    """`mount -t fuse.shiftfs NAME MNT -o ...` runs `shiftfs NAME MNT -o rw,...,dev,suid`."""
    layers = Layers(tmp_path)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    shiftfs("shiftfs", mountpoint, "-o", f"rw,{beside(layers)},dev,suid")
    (mountpoint / "new").touch()
    run(["umount", mountpoint])
    assert (layers.upper / "new").exists()
    wait_until(lambda: not run(["pgrep", "-f", str(tmp_path)], check=False).stdout, "end of the daemon")


def test_leftovers_are_told_of_at_d(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    (layers.work / "work/#1").mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    script = f"timeout 1 {' '.join(map(str, SHIFTFS))} -d -o {beside(layers)} {tmp_path}/mnt"
    said = run(["sh", "-c", f"{script}; true"])
    assert f"shiftfs: workdir {layers.work}: removed 1 leftovers of an earlier mount\n" in said.stderr


def test_root_of_a_user_namespace_is_refused_in_the_same_words(here: Path) -> None:
    said = in_userns([*SHIFTFS, "-o", f"lowerdir=absent,{PAIR}", "mnt"], cwd=here, check=False)
    refused(said, here, "lowerdir absent: No such file")
