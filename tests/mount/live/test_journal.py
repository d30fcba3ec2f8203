"""`shiftfsctl events`: what changed in which layer, and whether it showed."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Argument, Layers, environment, mounted, shiftfsctl, wait_until, write_tree
from harness.commands import SHIFTFSCTL

LIMIT = 5.0


def events(path: Path, *args: Argument) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shiftfsctl("events", path, "--json", *args).stdout.splitlines()]


def told(path: Path, *names: str) -> list[dict[str, Any]]:
    """All, once these paths are among them."""

    def all_there() -> bool:
        paths = {event.get("path", "").lstrip("/") for event in events(path)}
        return paths >= set(names)

    wait_until(all_there, f"changes of {names}", LIMIT)
    return events(path)


def test_what_and_where(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_tree(source, {"dir": {"file": b"", "moves": b"", "goes": b""}})
    with mounted(source) as mount:
        os.listdir(mount.path / "dir")
        started = time.time()
        (source / "dir/new").mkdir()
        (source / "dir/moves").rename(source / "dir/moved")
        (source / "dir/goes").unlink()
        (source / "dir/file").write_bytes(b"content")
        (source / "dir/last").touch()
        found = told(mount.path, "dir/last")
        by_path = {event["path"].lstrip("/"): event for event in found}
        assert {"dir/new", "dir/moves", "dir/goes", "dir/file", "dir/last"} <= set(by_path)
        assert by_path["dir/moves"]["to"].lstrip("/") == "dir/moved"
        for event in found:
            assert event["layer"] == 0 and event["shown"] is True
            assert started - 1 < event["time"] < time.time() + 1
        order = [event["path"].lstrip("/") for event in found]
        assert order.index("dir/new") < order.index("dir/moves") < order.index("dir/goes") < order.index("dir/last")
        # What is done through the mount did not change behind it.
        (mount.path / "dir/own").mkdir()
        (source / "dir/behind").mkdir()
        assert "dir/own" not in {event["path"].lstrip("/") for event in told(mount.path, "dir/behind")}


def test_layers_and_what_they_hide(our_layers: Layers) -> None:
    write_tree(our_layers.lower, {"dir": {"hidden": b"", "shown": b""}})
    our_layers.add_lower({"dir": {"hidden": b"", "second": b""}})
    write_tree(our_layers.upper, {"dir": {"hidden": b""}})
    with our_layers.mount() as mount:
        os.listdir(mount.path / "dir")
        (our_layers.lower / "dir/hidden").chmod(0o600)
        (our_layers.lowers[1] / "dir/second").chmod(0o600)
        (our_layers.lower / "dir/shown").chmod(0o600)
        (our_layers.upper / "dir/upper").mkdir()
        found = {event["path"].lstrip("/"): event for event in told(mount.path, "dir/upper")}
        assert (found["dir/hidden"]["layer"], found["dir/hidden"]["shown"]) == (1, False)
        assert (found["dir/shown"]["layer"], found["dir/shown"]["shown"]) == (1, True)
        assert (found["dir/second"]["layer"], found["dir/second"]["shown"]) == (2, True)
        assert (found["dir/upper"]["layer"], found["dir/upper"]["shown"]) == (0, True)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = [b"\xff\xfe", b"new\nline", b"back\\slash", "ä".encode(), b'"quoted"', b"last"]
    with mounted(source) as mount:
        os.listdir(mount.path)
        for name in names:
            os.mkdir(os.fsencode(source) + b"/" + name)
        found = {os.fsencode(event["path"]).lstrip(b"/") for event in told(mount.path, "last")}
        assert found >= set(names)
        said = shiftfsctl("events", mount.path).stdout
        assert len(said.splitlines()) == len(events(mount.path))


def test_followed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with tempfile.TemporaryFile("w+") as output, mounted(source) as mount:
        os.listdir(mount.path)
        args = [*SHIFTFSCTL, "events", str(mount.path), "--follow", "--json"]
        process = subprocess.Popen(args, stdout=output, env=environment())
        try:
            for name in ("one", "two", "three"):
                (source / name).mkdir()
                wait_until(lambda: f'{name}"' in _content(output), f"a line of {name}", LIMIT)  # noqa: B023
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(LIMIT)


def _content(file: Any) -> str:
    return os.pread(file.fileno(), 1 << 16, 0).decode()


def test_since(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with mounted(source) as mount:
        os.listdir(mount.path)
        (source / "before").mkdir()
        told(mount.path, "before")
        time.sleep(0.05)
        moment = time.time()
        time.sleep(0.05)
        (source / "after").mkdir()
        told(mount.path, "after")
        assert [event["path"].lstrip("/") for event in events(mount.path, "--since", f"{moment:.6f}")] == ["after"]


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with mounted(source) as mount:
        os.listdir(mount.path)
        for number in range(12_000):
            (source / f"name{number}").mkdir()
        (source / "last").mkdir()
        wait_until(lambda: mount.status()["journal"]["total"] >= 12_001, "all changes", 30.0)
        found = events(mount.path)
        dropped = [event["dropped"] for event in found if "dropped" in event]
        numbers = [event["number"] for event in found if "number" in event]
        assert dropped == [numbers[0] - 1] and numbers == list(range(numbers[0], numbers[-1] + 1))
        assert mount.status()["journal"]["dropped"] == numbers[0] - 1
