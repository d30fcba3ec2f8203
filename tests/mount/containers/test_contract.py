"""Run as an engine runs its mount program: in a user's namespace, beneath the graph's home, with short names of layers.

Each test is one shell script as the namespace's root, with mounts of its own; what it leaves is looked at from outside.
"""

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import SHIFTFS, Layers, UserNamespace, run, user_namespace, write_tree
from harness.overrides import say

USER, FIRST = 65533, 100000
FUSE = "65735546"

SHORT = "l/AAAAAAAAAAAAAAAAAAAAAAAAAA:l/BBBBBBBBBBBBBBBBBBBBBBBBBB/../diff1"


@pytest.fixture
def home(our_layers: Layers) -> Path:
    """As containers/storage lays it out: layers by their ids, and links with short names that lead to their `diff`."""
    home = our_layers.base / "home"
    layers: dict[str, bytes | dict[str, bytes]] = {
        "kept": b"1", "gone": b"1", "dir": {"hidden": b"1", "seen": b"1"}, "opaque": {"hidden": b"1"}
    }  # fmt: skip
    write_tree(our_layers.base, {"home": {"l": {}, "top": {"diff": {}}, "below": {"diff": {}, "diff1": layers}}})
    write_tree(home / "top/diff", {".wh.gone": b"", "dir": {".wh.hidden": b""}})
    write_tree(home / "top/diff", {"opaque": {".wh..wh..opq": b"", "new": b"2"}})
    (home / "l" / ("A" * 26)).symlink_to("../top/diff")
    (home / "l" / ("B" * 26)).symlink_to("../below/diff")
    write_tree(home, {"ours": {"diff": {}, "work": {}, "merged": {}}})
    run(["chown", "-hR", f"{USER}:{USER}", home])
    return home


@pytest.fixture
def rootless() -> Iterator[UserNamespace]:
    """As `unshare --map-root-user --map-auto` by a user makes it."""
    with user_namespace((0, USER, 1), (1, FIRST, 65536), owner=USER) as namespace:
        yield namespace


def script(home: Path, namespace: UserNamespace, text: str, options: str = "") -> list[str]:
    """The lines that a script says which has `mount`, and the mount at ours/merged after that."""
    layers = f"lowerdir={SHORT},upperdir=ours/diff,workdir=ours/work"
    command = shlex.join([*map(str, SHIFTFS), "-o", f"{layers}{options}", "ours/merged"])
    script = f"cd {shlex.quote(str(home))}\nmount() {{\n{command}\n}}\n{text}"
    return namespace.run(["unshare", "-m", "sh", "-euc", script]).stdout.splitlines()


def test_layers_by_their_short_names(home: Path, rootless: UserNamespace) -> None:
    text = """
        said=$(mount 2>&1)  # returns once standard error has come to its end
        echo "said:$said"
        stat -f -c %t ours/merged
        (cd ours/merged; find . | sort)
        umount ours/merged
    """
    names = [".", "./dir", "./dir/seen", "./kept", "./opaque", "./opaque/new"]
    assert script(home, rootless, text) == ["said:", FUSE, *names]


@pytest.mark.parametrize("unmount", ["umount", "umount -l", "fusermount3 -u"])
def test_its_place_is_free_once_it_is_unmounted(home: Path, rootless: UserNamespace, unmount: str) -> None:
    text = f"""
        mount
        echo new >ours/merged/new
        sync -f ours/merged
        {unmount} ours/merged
        mkdir ours/other
        mv -T ours/other ours/merged
        rmdir ours/merged
        cat ours/diff/new
    """
    assert script(home, rootless, text) == ["new"]


def test_what_is_written_is_what_a_user_may_write(home: Path, rootless: UserNamespace) -> None:
    text = """
        mount
        rm ours/merged/kept
        rm -r ours/merged/dir
        mkdir ours/merged/dir
        chown 7:8 ours/merged/opaque/new
        ls ours/merged ours/merged/dir
        umount ours/merged
    """
    assert script(home, rootless, text) == ["ours/merged:", "dir", "opaque", "", "ours/merged/dir:"]
    upper = home / "ours/diff"
    whiteout = (upper / "kept").lstat()
    assert stat.S_ISCHR(whiteout.st_mode) and whiteout.st_rdev == 0
    assert os.getxattr(upper / "dir", "user.overlay.opaque") == b"y"
    changed = (upper / "opaque/new").lstat()
    assert (changed.st_uid, changed.st_gid) == (FIRST + 6, FIRST + 7)
    found = {name for path in upper.rglob("*") for name in os.listxattr(path, follow_symlinks=False)}
    assert not any(name.startswith("trusted.") for name in found)


def test_maps_begin_with_a_colon(home: Path, rootless: UserNamespace) -> None:
    """What the graph has as 0 to 9 is shown as 1000 to 1009, which the namespace's other ids are."""
    text = """
        mount
        stat -c %u:%g ours/merged/opaque/new
        umount ours/merged
    """
    assert script(home, rootless, text, ",uidmapping=:0:1000:10,gidmapping=:0:2000:10") == ["1000:2000"]


def test_a_map_of_one_id(home: Path, rootless: UserNamespace) -> None:
    text = """
        mount
        chown 7:8 ours/merged/opaque/new
        stat -c %u:%g ours/merged/opaque/new ours/merged
        umount ours/merged
    """
    assert script(home, rootless, text, ",squash_to_uid=5,squash_to_gid=6") == ["5:6", "5:6"]


def test_owners_in_an_attribute(home: Path, rootless: UserNamespace) -> None:
    """force_mask: no device can be made in a user namespace, and that of an image is there all the same."""
    layer = home / "below/diff1"
    (layer / "null").write_bytes(b"")
    say(layer, "0:0:0755:dir")
    say(layer / "null", "0:0:0644:char-1-3")
    run(["chown", "-R", f"{USER}:{USER}", layer])
    text = """
        mount
        touch ours/merged/null
        mkfifo -m 600 ours/merged/fifo
        chown 7:8 ours/merged/opaque/new
        stat -c '%u:%g %A' ours/merged/null ours/merged/fifo ours/merged/opaque/new
        umount ours/merged
    """
    expected = ["0:0 crw-r--r--", "0:0 prw-------", "7:8 -rw-r--r--"]
    assert script(home, rootless, text, ",xattr_permissions=2") == expected
    assert {path.lstat().st_uid for path in (home / "ours/diff").rglob("*")} == {USER}


def test_a_context_is_for_hosts_that_have_them(home: Path, rootless: UserNamespace) -> None:
    text = """
        mount
        cat ours/merged/kept
        umount ours/merged
    """
    context = ',context="system_u:object_r:container_file_t:s0:c1,c2"'
    assert script(home, rootless, text, context) == ["1"]


def test_volatile_again_and_again(home: Path, rootless: UserNamespace) -> None:
    """The engine removes the mark that forbids the second mount."""
    text = """
        for time in 1 2; do
            mount
            echo $time >>ours/merged/new
            sync ours/merged/new
            umount ours/merged
            while ! rm -r ours/work/work/incompat/volatile; do sleep 0.1; done
        done
        cat ours/diff/new
    """
    assert script(home, rootless, text, ",volatile") == ["1", "2"]


def test_without_an_upper_it_is_read_only(home: Path, rootless: UserNamespace) -> None:
    text = f"""
        {shlex.join(map(str, SHIFTFS))} -o lowerdir={SHORT},noacl,static_nlink,private ours/merged
        cat ours/merged/kept
        stat -c :%h ours/merged
        ! touch ours/merged/new 2>/dev/null
        umount ours/merged
    """
    assert script(home, rootless, text) == ["1:1"]
