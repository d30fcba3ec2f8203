"""Changes in the layers of an overlay: only what the union shows is told, as it shows it."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness import Layers, Mount, layered, make_whiteout, read_tree, wait_until, write_tree
from harness.calls import drop_dentries
from harness.events import Event, Recorder, Streams
from harness.layered import Tree
from harness.overlaid import marked

LIMIT = 5.0


class Union:
    """An overlay of an upper and two lower layers, and what watches of all its directories have heard."""

    def __init__(self, layers: Layers, mount: Mount, recorder: Recorder) -> None:
        self.layers, self.mount, self.recorder = layers, mount, recorder
        self.upper, (self.lower, self.second) = layers.upper, layers.lowers
        self.path = mount.path
        self._markers = 0
        self._heard: dict[str, int] = {}

    def heard(self, *labels: str) -> dict[str, list[Event]]:
        """What each of these directories has said since the last time, and no more will come: each tells in order of
        what is done last, a name in the upper."""
        self._markers += 1
        marker = f".marker{self._markers}"
        for label in labels:
            (self.upper / label).mkdir(exist_ok=True)
            (self.upper / label / marker).mkdir()

        def told(streams: Streams) -> bool:
            return all(Event("CREATE ISDIR", marker) in streams[label] for label in labels)

        streams = self.recorder.until(told, 0.2)
        assert told(streams), streams
        found = {}
        for label in labels:
            said = streams[label][self._heard.get(label, 0) :]
            self._heard[label] = len(streams[label])
            found[label] = [event for event in said if not event.name.startswith(".marker")]
        return found


@contextmanager
def union(layers: Layers, lower: Tree, second: Tree, upper: Tree, *watched: str) -> Iterator[Union]:
    """Watched are the root and these directories, which the upper has as well."""
    layers.add_lower()
    for layer, tree in zip((layers.lower, layers.lowers[1], layers.upper), (lower, second, upper), strict=True):
        write_tree(layer, tree)
    with layers.mount() as mount, Recorder() as recorder:
        recorder.watch({"": mount.path, **{name: mount.path / name for name in watched}})
        yield Union(layers, mount, recorder)


def same_as_fresh(found: Union) -> None:
    with layered([found.upper, *found.layers.lowers]) as fresh:
        wait_until(lambda: read_tree(found.path) == read_tree(fresh.path), "what a fresh mount shows", LIMIT)


def change_all(path: Path) -> None:
    """Whatever can be done to a file, to the end that it is there."""
    path.write_bytes(b"written")
    path.chmod(0o600)
    os.utime(path)
    path.unlink()
    path.mkdir()
    (path / "in").touch()
    (path / "in").unlink()
    path.rmdir()
    path.touch()


HIDERS: dict[str, tuple[Tree, str]] = {
    "file": ({"dir": {"name": b"upper"}}, "name"),
    "directory": ({"dir": {"name": {}}}, "name"),
    "symlink": ({"dir": {"name": Path("nowhere")}}, "name"),
    "whiteout": ({"dir": {"name": None}}, "name"),
    "dotted whiteout": ({"dir": {".wh.name": b""}}, "name"),
    "opaque directory": ({"dir": marked("opaque", b"y", {})}, "name"),
}


@pytest.mark.parametrize("hider", HIDERS)
@pytest.mark.parametrize("layer", ["lower", "second"])
def test_hidden(our_layers: Layers, hider: str, layer: str) -> None:
    """What the upper hides changes in a lower: nobody hears of it, and nothing else shows."""
    upper, name = HIDERS[hider]
    tree: Tree = {"dir": {name: b"lower"}}
    with union(our_layers, tree, tree, upper, "dir") as found:
        before = read_tree(found.path)
        (getattr(found, layer) / "dir" / name).write_bytes(b"another")
        if hider != "directory":  # with a directory it would be merged
            change_all(getattr(found, layer) / "dir" / name)
        assert read_tree(found.path) == before
        assert found.heard("dir", "") == {"dir": [], "": []}


def test_hidden_by_the_lower_above(our_layers: Layers) -> None:
    tree: Tree = {"dir": {"name": b"lower"}}
    with union(our_layers, tree, tree, {"dir": {}}, "dir") as found:
        change_all(found.second / "dir/name")
        assert found.heard("dir") == {"dir": []}
        change_all(found.lower / "dir/name")
        assert found.heard("dir")["dir"]
        same_as_fresh(found)


def test_beneath_what_is_hidden(our_layers: Layers) -> None:
    """Directories that the upper hides are not the mount's concern, however deep."""
    tree: Tree = {"dir": {"sub": {"deep": {"file": b""}}}}
    with union(our_layers, tree, tree, {"dir": {"sub": b"a file"}}, "dir") as found:
        change_all(found.lower / "dir/sub/deep/file")
        (found.second / "dir/sub/deep").rename(found.second / "dir/sub/other")
        assert found.heard("dir", "") == {"dir": [], "": []}
        assert read_tree(found.path)["dir"]["sub"] == b"a file"


@pytest.mark.parametrize("layer", ["upper", "lower", "second"])
def test_all_that_contribute_are_heard(our_layers: Layers, layer: str) -> None:
    """A merged directory is a directory in each layer."""
    with union(our_layers, {"dir": {"one": b""}}, {"dir": {"two": b""}}, {"dir": {}}, "dir") as found:
        place = getattr(found, layer) / "dir"
        (place / "new").mkdir()
        (place / "new").rmdir()
        (place / "file").touch()
        (place / "file").rename(place / "moved")
        (place / "moved").unlink()
        heard = [event for event in found.heard("dir")["dir"] if event.what not in ("CLOSE_WRITE", "ATTRIB")]
        assert heard == [
            Event("CREATE ISDIR", "new"),
            Event("DELETE ISDIR", "new"),
            Event("CREATE", "file"),
            Event("MOVED_FROM", "file", 1),
            Event("MOVED_TO", "moved", 1),
            Event("DELETE", "moved"),
        ]
        same_as_fresh(found)


@pytest.mark.parametrize("option", ["open=auto", "open=serve"])
def test_uncovered(our_layers: Layers, option: str) -> None:
    """An entry of the upper goes, and that of the lower comes into its place: another file under the same name. Until
    that is heard of nobody can read it who has not read it before, unless opening it asks for it anew."""
    our_layers.options = (option,)
    with union(our_layers, {"dir": {"name": b"lower"}}, {}, {"dir": {"name": b"upper"}}, "dir") as found:
        found.recorder.watch({"file": found.path / "dir/name"})
        (found.upper / "dir/name").unlink()
        if option == "open=auto":
            found.mount.settled()
        wait_until(lambda: (found.path / "dir/name").read_bytes() == b"lower", "the lower's content", LIMIT)
        assert found.heard("dir")["dir"] == [Event("DELETE", "name"), Event("CREATE", "name")]
        assert Event("DELETE_SELF") in found.recorder.streams["file"]


def test_covered(our_layers: Layers) -> None:
    """The other way round: the lower's file is not there any more."""
    with union(our_layers, {"dir": {"name": b"lower"}}, {}, {"dir": {}}, "dir") as found:
        assert (found.path / "dir/name").read_bytes() == b"lower"
        (found.layers.base / "came").write_bytes(b"upper")
        (found.layers.base / "came").rename(found.upper / "dir/name")
        wait_until(lambda: (found.path / "dir/name").read_bytes() == b"upper", "the upper's content", LIMIT)
        heard = found.heard("dir")["dir"]
        assert heard and {event.name for event in heard} == {"name"}
        assert {event.what for event in heard} <= {"DELETE", "CREATE", "MOVED_TO"}
        assert heard[-1].what in ("CREATE", "MOVED_TO")


WHITEOUTS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "device": (make_whiteout, Path.unlink),
    "dotted": (
        lambda path: path.with_name(f".wh.{path.name}").touch(),
        lambda path: path.with_name(f".wh.{path.name}").unlink(),
    ),
}


@pytest.mark.parametrize("kind", WHITEOUTS)
@pytest.mark.parametrize("looked_up", [True, False])
def test_whiteouts_come_and_go(our_layers: Layers, kind: str, looked_up: bool) -> None:
    white, unwhite = WHITEOUTS[kind]
    tree: Tree = {"dir": {"name": b"lower", "sub": {"in": b""}}}
    with union(our_layers, tree, tree, {"dir": {}}, "dir") as found:
        if looked_up:
            read_tree(found.path)
        white(found.upper / "dir/name")
        assert found.heard("dir")["dir"] == [Event("DELETE", "name")]
        assert not (found.path / "dir/name").exists()
        unwhite(found.upper / "dir/name")
        assert found.heard("dir")["dir"] == [Event("CREATE", "name")]
        assert (found.path / "dir/name").read_bytes() == b"lower"
        white(found.upper / "dir/sub")
        assert found.heard("dir")["dir"] == [Event("DELETE ISDIR", "sub")]
        unwhite(found.upper / "dir/sub")
        assert found.heard("dir")["dir"] == [Event("CREATE ISDIR", "sub")]
        same_as_fresh(found)


def test_whiteouts_may_be_links_of_one(our_layers: Layers) -> None:
    """As all are that the kernel or we make. The mount has listed the names, and the kernel forgotten them."""

    def listed(found: Union) -> list[str]:
        names = sorted(name for name in os.listdir(found.path / "dir") if name[0] != ".")
        drop_dentries()
        return names

    names = [f"name{number}" for number in range(4)]
    with union(our_layers, {"dir": dict.fromkeys(names, b"")}, {}, {"dir": {}}, "dir") as found:
        assert listed(found) == names
        white = our_layers.lowers[0].parent / "white"
        os.mknod(white, stat.S_IFCHR, 0)
        for at, name in enumerate(names):
            os.link(white, found.upper / "dir" / name)
            assert found.heard("dir")["dir"] == [Event("DELETE", name)]
            assert listed(found) == names[at + 1 :]
        for at, name in enumerate(names):
            os.unlink(found.upper / "dir" / name)
            assert found.heard("dir")["dir"] == [Event("CREATE", name)]
            assert listed(found) == names[: at + 1]
        same_as_fresh(found)


def test_a_directory_becomes_opaque_and_is_so_no_more(our_layers: Layers) -> None:
    with union(our_layers, {"dir": {"one": b"", "two": b""}}, {}, {"dir": {"own": b""}}, "dir") as found:
        assert set(read_tree(found.path / "dir")) == {"one", "two", "own"}
        os.setxattr(found.upper / "dir", "trusted.overlay.opaque", b"y")
        wait_until(lambda: os.listdir(found.path / "dir") == ["own"], "only what is the upper's", LIMIT)
        heard = [event for event in found.heard("dir")["dir"] if event.name]
        assert sorted(heard) == [Event("DELETE", "one"), Event("DELETE", "two")]
        os.removexattr(found.upper / "dir", "trusted.overlay.opaque")
        wait_until(lambda: len(os.listdir(found.path / "dir")) == 4, "all that there is", LIMIT)
        heard = [event for event in found.heard("dir")["dir"] if event.name]
        assert sorted(heard) == [Event("CREATE", "one"), Event("CREATE", "two")]


def test_a_directory_gets_one_above_it(our_layers: Layers) -> None:
    """It is the same directory, merged; what comes into the new one comes into it."""
    lower, second = ({"dir": {"sub": {name: b""}}} for name in ("one", "two"))
    with union(our_layers, lower, second, {}, "dir", "dir/sub") as found:
        (found.upper / "dir/sub").mkdir(parents=True)
        (found.upper / "dir/sub/three").touch()
        heard = found.heard("dir/sub")["dir/sub"]
        assert [event for event in heard if event.name and event.what == "CREATE"] == [Event("CREATE", "three")]
        assert not [event for event in heard if event.what.startswith("DELETE")]
        (found.second / "dir/sub/four").touch()
        assert Event("CREATE", "four") in found.heard("dir/sub")["dir/sub"]
        same_as_fresh(found)


def test_a_directory_of_one_layer_is_renamed(our_layers: Layers) -> None:
    """What another layer has under the name stays, as it is on a fresh mount."""
    with union(our_layers, {"dir": {"one": b"1"}}, {"dir": {"two": b"2"}}, {}, "dir") as found:
        assert len(os.listdir(found.path / "dir")) == 2
        (found.lower / "dir").rename(found.lower / "other")
        same_as_fresh(found)
        (found.lower / "other").rename(found.lower / "dir")
        same_as_fresh(found)
        (found.second / "dir").rename(found.second / "other")
        same_as_fresh(found)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_from_what_is_hidden_to_what_is_not(our_layers: Layers, what: str) -> None:
    """A rename of which only one side shows."""
    lower: Tree = {"dir": {"hidden": b"1" if what == "file" else {"in": b""}}}
    with union(our_layers, lower, {}, {"dir": {"hidden": None}}, "dir") as found:
        suffix = "" if what == "file" else " ISDIR"
        (found.lower / "dir/hidden").rename(found.lower / "dir/shown")
        assert found.heard("dir")["dir"][0].what in (f"MOVED_TO{suffix}", f"CREATE{suffix}")
        (found.lower / "dir/shown").rename(found.lower / "dir/hidden")
        assert found.heard("dir")["dir"][0].what in (f"MOVED_FROM{suffix}", f"DELETE{suffix}")
        same_as_fresh(found)


def test_a_file_comes_above_a_directory(our_layers: Layers) -> None:
    """By a rename, which never replaces one within a layer."""
    tree: Tree = {"dir": {"name": {"in": b""}}}
    with union(our_layers, tree, {}, {"dir": {"file": b"upper"}}, "dir", "dir/name") as found:
        (found.upper / "dir/file").rename(found.upper / "dir/name")
        heard = found.heard("dir")["dir"]
        assert heard[0] == Event("DELETE ISDIR", "name")
        assert [event.what for event in heard[1:]] == ["MOVED_FROM", "MOVED_TO"]
        assert Event("DELETE_SELF") in found.recorder.streams["dir/name"]
        same_as_fresh(found)


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_what_a_redirect_leads_to_goes(our_layers: Layers, how: str) -> None:
    """The directory that was made of it as well loses what came from there."""
    upper: Tree = {"dir": {"new": marked("redirect", b"old", {"own": b""}), "old": None}}
    with union(our_layers, {"dir": {"old": {"in": b""}}}, {}, upper, "dir", "dir/new") as found:
        assert sorted(os.listdir(found.path / "dir/new")) == ["in", "own"]
        (found.path / "dir/new/in").lstat()
        if how == "moved":
            (found.lower / "dir/old").rename(found.layers.base / "away")
        else:
            shutil.rmtree(found.lower / "dir/old")
        heard = found.heard("dir", "dir/new")
        assert Event("DELETE", "in") in heard["dir/new"]
        assert not [event for event in heard["dir"] if event.what != "ATTRIB ISDIR"]
        same_as_fresh(found)


@pytest.mark.parametrize("renamed", ["before", "while it is mounted"])
@pytest.mark.parametrize("new", ["dir/new", "elsewhere/new"])
def test_what_a_redirect_leads_to_comes(our_layers: Layers, renamed: str, new: str) -> None:
    """No directory that it is made of so far tells of it: the kernel asks anew, every second."""
    second = our_layers.add_lower({"dir": {"old": {"second": b""}}, "elsewhere": {}})
    with ExitStack() as stack:
        mount = stack.enter_context(our_layers.mount())
        (mount.path / "dir/old").rename(mount.path / new)
        if renamed == "before":
            stack.close()
            mount = stack.enter_context(our_layers.mount())
        shown = mount.path / new
        assert os.listdir(shown) == ["second"]
        assert not (shown / "first").exists()
        write_tree(our_layers.lower, {"dir": {"old": {"first": b""}}})
        wait_until(lambda: names_in(shown) == {"first", "second"}, "what has come", LIMIT)
        (second / "dir").rename(second / "away")
        wait_until(lambda: names_in(shown) == {"first"}, "what is left", LIMIT)


def names_in(shown: Path) -> set[str]:
    """Listed, or else found by their names."""
    return {*os.listdir(shown), *(name for name in ("first", "second") if (shown / name).exists())}


def test_a_lower_of_several_mounts(our_layers: Layers, tmp_path: Path) -> None:
    """All hear of it, but for the one whose upper hides it."""
    write_tree(our_layers.lower, {"dir": {"name": b"", "other": b""}})
    with ExitStack() as stack:
        mounts = [stack.enter_context(our_layers.mount())]
        for number, upper in enumerate(({}, {"dir": {"name": b"hides"}})):
            base = tmp_path / f"more{number}"
            base.mkdir()
            more = Layers(base)
            write_tree(more.upper, upper)
            mounts.append(stack.enter_context(layered([our_layers.lower], more.upper, more.work)))
        recorder = stack.enter_context(Recorder())
        recorder.watch({str(number): mount.path / "dir" for number, mount in enumerate(mounts)})
        (our_layers.lower / "dir/name").chmod(0o600)
        (our_layers.lower / "dir/other").chmod(0o600)
        both = [Event("ATTRIB", "name"), Event("ATTRIB", "other")]
        expected = {"0": both, "1": both, "2": both[1:]}
        assert recorder.until(lambda streams: streams == expected) == expected


def test_copied_up_and_changed_behind(our_layers: Layers) -> None:
    """The watch goes on: on the lower's file, over the copy-up, on the upper's."""
    with union(our_layers, {"dir": {"log": b"1\n"}}, {}, {}, "dir") as found:
        found.recorder.watch({"log": found.path / "dir/log"})
        written = [Event("MODIFY"), Event("CLOSE_WRITE")]
        expected: list[Event] = []
        layers = [found.lower / "dir/log", found.path / "dir/log", found.upper / "dir/log", found.path / "dir/log"]
        for number, path in enumerate([*layers, found.upper / "dir/log"], 2):
            with path.open("ab") as file:
                file.write(b"%d\n" % number)
            expected += written
            length = len(expected)
            streams = found.recorder.until(lambda streams: len(streams["log"]) >= length, 0.2)  # noqa: B023
            assert streams["log"] == expected
        assert (found.path / "dir/log").read_bytes() == b"".join(b"%d\n" % number for number in range(1, 7))
        # What is hidden now is not told.
        (found.lower / "dir/log").write_bytes(b"hidden")
        assert Event("MODIFY", "log") not in found.heard("dir")["dir"][-1:]
        assert found.recorder.streams["log"] == expected
