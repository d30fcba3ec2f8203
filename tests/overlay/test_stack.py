"""Which directories make a stack: how their paths are taken, what is refused and in which words."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Layers, as_user, in_userns, run
from overlay.stack import LayerError, Stack, open_stack

DAEMON = 1


def opened(lowers: list[Path | str], upper: Path | str | None = None, work: Path | str | None = None) -> Stack:
    return open_stack(
        [os.fsencode(path) for path in lowers],
        None if upper is None else os.fsencode(upper),
        None if work is None else os.fsencode(work),
        volatile=False,
        log=print,
    )


def refusal(*directories: list[Path | str] | Path | str) -> str:
    try:
        opened(*directories)  # type: ignore[arg-type]
    except LayerError as error:  # pytest.raises would keep what the frames hold
        text = str(error)
    else:
        pytest.fail("was not refused")
    assert len(text.splitlines()) == 1
    assert text.count("; ") == 1, "what and why; what to do"
    return text


def names_in(stack: Stack) -> list[list[str]]:
    return [sorted(os.listdir(layer.root.fd)) for layer in stack.layers]


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    made = Layers(tmp_path, lowers=2)
    for path in (*made.lowers, made.upper):
        (path / f"in-{path.name}").touch()
    return made


@contextmanager
def bound(source: Path, target: Path, *options: str) -> Iterator[Path]:
    """A bind mount, afterwards changed by `options`."""
    target.mkdir(exist_ok=True)
    run(["mount", "--bind", source, target])
    try:
        for option in options:
            run(["mount", "-o", f"remount,bind,{option}", target])
        yield target
    finally:
        run(["umount", target])


@contextmanager
def new_filesystem(target: Path, kind: str = "tmpfs") -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    run(["mount", "-t", kind, "none", target])
    try:
        yield target
    finally:
        run(["umount", target])


# --- what is opened ---


def test_the_upper_comes_first_then_the_lowers_from_top_to_bottom(layers: Layers) -> None:
    stack = opened([*layers.lowers], layers.upper, layers.work)
    assert names_in(stack) == [["in-upper"], ["in-lower0"], ["in-lower1"]]
    assert stack.work is not None
    assert [layer.path for layer in stack.layers] == [
        os.fsencode(path) for path in (layers.upper, layers.lowers[0], layers.lowers[1])
    ]


def test_without_an_upper_nothing_is_made(layers: Layers) -> None:
    stack = opened([*layers.lowers])
    assert names_in(stack) == [["in-lower0"], ["in-lower1"]]
    assert stack.work is None
    assert os.listdir(layers.work) == []


def test_the_kernel_resolves_a_path(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers/storage names its layers: `..` behind a symlink is not where the text says."""
    for name in ("A/diff", "A/diff1", "l", "l/diff1"):
        (layers.base / name).mkdir(parents=True)
    (layers.base / "A/diff1/right").touch()
    (layers.base / "l/ABC").symlink_to("../A/diff")
    monkeypatch.chdir(layers.base)
    stack = opened(["l/ABC/../diff1"])
    assert names_in(stack) == [["right"]]
    assert stack.layers[0].path == os.fsencode(layers.base / "A/diff1")


def test_500_lowers_can_be_stacked_and_no_more(layers: Layers) -> None:
    many: list[Path | str] = [layers.base / f"many{number}" for number in range(501)]
    for path in many:
        Path(path).mkdir()
    assert len(opened(many[:500]).layers) == 500
    assert refusal(many) == "lowerdir: names 501 directories; give from 1 to 500"


def test_no_lower_is_refused(layers: Layers) -> None:
    assert refusal([]).startswith("lowerdir: names 0 directories")


def test_an_upper_without_work_is_refused(layers: Layers) -> None:
    with pytest.raises(LayerError, match="one is missing; give both, or neither"):
        open_stack([b"/"], b"/u", None, volatile=False, log=print)


def test_the_same_lower_may_be_in_two_stacks_at_once(layers: Layers) -> None:
    first = opened([layers.lower], layers.upper, layers.work)
    second = opened([*layers.lowers])
    assert names_in(first)[1] == names_in(second)[0] == ["in-lower0"]


def test_what_is_made_in_the_work_directory_can_be_renamed_into_the_upper(layers: Layers) -> None:
    stack = opened([layers.lower], layers.upper, layers.work)
    assert stack.work is not None
    work, upper = stack.work.work.fd, stack.layers[0].root.fd
    os.mkdir(b"directory", dir_fd=work)
    os.rename(b"directory", b"directory", src_dir_fd=work, dst_dir_fd=upper)
    assert (layers.upper / "directory").is_dir()


@pytest.mark.root
def test_what_is_mounted_later_is_in_no_layer(layers: Layers) -> None:
    for path in (layers.lower, layers.upper):
        (path / "mountpoint").mkdir()
    stack = opened([layers.lower], layers.upper, layers.work)
    assert all(layer.private for layer in stack.layers)
    with bound(layers.lowers[1], layers.lower / "mountpoint"), bound(layers.lowers[1], layers.upper / "mountpoint"):
        for layer in stack.layers:
            inside = os.open(b"mountpoint", os.O_RDONLY, dir_fd=layer.root.fd)
            assert os.listdir(inside) == []
            os.close(inside)


@pytest.mark.root
def test_a_layer_does_not_keep_its_filesystem_from_being_unmounted(layers: Layers) -> None:
    with new_filesystem(layers.base / "other") as other:
        for name in ("lower", "upper", "work"):
            (other / name).mkdir()
        stack = opened([other / "lower"], other / "upper", other / "work")
    assert names_in(stack) == [[], []]


# --- without privilege ---

SHOW = """
import sys, os
from overlay.stack import open_stack
stack = open_stack([b"lower0"], b"upper", b"work", volatile=False, log=print)
work = stack.work
print([layer.private for layer in stack.layers], work.prefix, work.whiteouts, work.has_tmpfile, work.index is not None)
os.mkdir(b"directory", dir_fd=work.work.fd)
os.rename(b"directory", b"directory", src_dir_fd=work.work.fd, dst_dir_fd=stack.layers[0].root.fd)
"""


def owned(layers: Layers, uid: int) -> Layers:
    for path in (layers.base, *layers.lowers, layers.upper, layers.work):
        os.chown(path, uid, uid)
    return layers


@pytest.mark.root
def test_a_user_has_the_directories_as_they_are(layers: Layers) -> None:
    owned(layers, DAEMON)
    said = as_user(DAEMON, [sys.executable, "-c", SHOW], cwd=layers.base)
    assert said.stdout == "[False, False] b'user.overlay.' device True True\n"
    assert (layers.upper / "directory").is_dir()


@pytest.mark.root
@pytest.mark.parametrize("mounts", [[], ["unshare", "--mount"]], ids=["same mounts", "own mounts"])
def test_root_of_a_user_namespace_too(layers: Layers, mounts: list[str]) -> None:
    owned(layers, 100000)
    said = in_userns([*mounts, sys.executable, "-c", SHOW], cwd=layers.base)
    assert said.stdout == f"[{bool(mounts)}, {bool(mounts)}] b'user.overlay.' device True True\n"
    assert (layers.upper / "directory").stat().st_uid == 100000


# --- what is refused ---


def test_what_is_no_directory_is_refused(layers: Layers) -> None:
    (layers.base / "file").touch()
    (layers.base / "loop").symlink_to("loop")
    absent, file, loop = (layers.base / name for name in ("absent", "file", "loop"))
    assert refusal([layers.lower, absent]) == (
        f"lowerdir {absent}: No such file or directory; give an existing directory that you may read"
    )
    assert refusal([layers.lower], absent, layers.work).startswith(f"upperdir {absent}: No such file")
    assert refusal([layers.lower], layers.upper, file).startswith(f"workdir {file}: Not a directory")
    assert "symbolic links" in refusal([loop])


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("lower0", 0o333, "lowerdir lower0: Permission denied; give an existing directory that you may read"),
        ("lower0", 0o444, "lowerdir lower0: Permission denied; give a directory that you may read and enter"),
        ("upper", 0o555, "upperdir upper: Permission denied; give a directory that you may write to"),
        ("work", 0o555, "workdir work: Permission denied; give a directory that you may write to"),
    ],
)
def test_what_a_user_may_not_use_is_refused(layers: Layers, name: str, mode: int, said: str) -> None:
    owned(layers, DAEMON)
    (layers.base / name).chmod(mode)
    answer = as_user(DAEMON, [sys.executable, "-c", SHOW], cwd=layers.base, check=False)
    assert answer.stderr.splitlines()[-1] == f"overlay.directory.LayerError: {said}"


def test_a_directory_given_twice_is_refused(layers: Layers) -> None:
    (layers.base / "link").symlink_to(layers.lower)
    assert refusal([layers.lower, layers.base / "link"]) == (
        f"lowerdir {layers.base}/link: is the same directory as lowerdir {layers.lower}; give each directory once"
    )
    assert "same directory as lowerdir" in refusal([layers.lower], layers.lower, layers.work)
    assert "same directory as lowerdir" in refusal([layers.lower], layers.upper, layers.lower)
    assert "same directory as upperdir" in refusal([layers.lower], layers.upper, layers.upper)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("lower0", "lower1"),
        ("lower1", "lower0"),
        ("lower0", "upper"),
        ("lower0", "work"),
        ("upper", "lower0"),
        ("upper", "work"),
        ("work", "lower0"),
        ("work", "upper"),
    ],
)
@pytest.mark.parametrize("by_symlink", [False, True], ids=["directly", "by symlink"])
def test_a_directory_inside_another_is_refused(layers: Layers, outer: str, inner: str, by_symlink: bool) -> None:
    places: dict[str, Path | str] = {name: layers.base / name for name in ("lower0", "lower1", "upper", "work")}
    inside = layers.base / outer / "deep/down"
    inside.mkdir(parents=True)
    if by_symlink:
        (layers.base / "link").symlink_to(inside)
    places[inner] = layers.base / "link" if by_symlink else inside
    text = refusal([places["lower0"], places["lower1"]], places["upper"], places["work"])
    roles = {"upper": "upperdir", "work": "workdir"}
    assert f"{roles.get(inner, 'lowerdir')} {places[inner]}: lies inside {roles.get(outer, 'lowerdir')}" in text
    assert sorted(os.listdir(layers.work)) in ([], ["deep"])


@pytest.mark.root
def test_a_bind_mount_does_not_hide_that_one_is_inside_the_other(layers: Layers) -> None:
    (layers.lower / "deep/down").mkdir(parents=True)
    with bound(layers.lower / "deep", layers.base / "elsewhere") as elsewhere:
        assert "lies inside lowerdir" in refusal([layers.lower], elsewhere / "down", layers.work)
        assert "lies inside lowerdir" in refusal([layers.lower, elsewhere / "down"])
        assert "same directory" in refusal([layers.lower / "deep/down", elsewhere / "down"])


@pytest.mark.root
def test_a_filesystem_mounted_in_a_layer_is_inside_of_it(layers: Layers) -> None:
    with new_filesystem(layers.lower / "other") as other:
        (other / "upper").mkdir()
        (other / "work").mkdir()
        assert "lies inside lowerdir" in refusal([layers.lower], other / "upper", other / "work")


@pytest.mark.root
def test_directories_that_only_share_a_name_are_no_overlap(layers: Layers) -> None:
    with new_filesystem(layers.base / "other") as other:
        path = other / layers.lower.relative_to("/") / "upper"
        path.mkdir(parents=True)
        (other / "work").mkdir()
        assert len(opened([layers.lower], path, other / "work").layers) == 2


@pytest.mark.root
def test_a_work_directory_that_nothing_can_be_renamed_from_is_refused(layers: Layers) -> None:
    with new_filesystem(layers.base / "other") as other:
        (other / "work").mkdir()
        text = refusal([layers.lower], layers.upper, other / "work")
        assert text == (
            f"workdir {other}/work: lies on another filesystem or mount than upperdir {layers.upper};"
            " give a directory beside that"
        )
    with bound(layers.work, layers.base / "bound") as elsewhere:
        assert "another filesystem or mount" in refusal([layers.lower], layers.upper, elsewhere)
    assert os.listdir(layers.work) == []


@pytest.mark.root
def test_an_upper_that_is_read_only_is_refused(layers: Layers) -> None:
    (layers.base / "area").mkdir()
    for name in ("upper", "work"):
        (layers.base / "area" / name).mkdir()
    with bound(layers.base / "area", layers.base / "bound", "ro") as area:
        assert refusal([layers.lower], area / "upper", area / "work") == (
            f"upperdir {area}/upper: lies on a read-only filesystem; make that writable, or leave out upperdir and"
            " workdir for a read-only mount"
        )


def test_a_refusal_leaves_nothing_open(layers: Layers) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    refusal([*layers.lowers, layers.base / "absent"])
    refusal([*layers.lowers], layers.upper, layers.upper)
    (layers.work / "work").touch()
    refusal([*layers.lowers], layers.upper, layers.work)
    assert sorted(os.listdir("/proc/self/fd")) == before
