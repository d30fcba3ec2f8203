"""What shiftfsctl tells of an overlay."""

import os
import signal
import threading
from pathlib import Path

from harness import Layers, layered, mounted, shiftfsctl, wait_until

SIZE = 4 << 20


def test_status_tells_the_layers_and_how_they_are_stacked(tmp_path: Path) -> None:
    layers = Layers(tmp_path, lowers=2)
    with layers.mount("redirect_dir=follow", "index=off", "userxattr") as mount:
        status = mount.status()
        assert [(layer["role"], layer["path"]) for layer in status["layers"]] == [
            ("upper", str(layers.upper)),
            ("lower", str(layers.lowers[0])),
            ("lower", str(layers.lowers[1])),
        ]
        assert {name: status["options"][name] for name in ("redirect_dir", "metacopy", "index", "userxattr")} == {
            "redirect_dir": "follow",
            "metacopy": False,
            "index": False,
            "userxattr": True,
        }
        assert status["copies"] == []
        said = shiftfsctl("status", mount.path).stdout.splitlines()
    assert "source: overlay" in said
    assert (
        f"layers: path {layers.upper}, role upper, private yes, handles yes, xattrs user.overlay., whiteouts device,"
        " index no, tmpfile yes, watch fanotify filesystem"
    ) in said


def test_a_copy_that_takes_long_is_told_of_while_it_lasts(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    (layers.lower / "large").write_bytes(b"x" * SIZE)
    # A lower filesystem that stops, once all has been asked of it but the content.
    with (
        mounted(layers.lower, None, "timeout=1000") as slow,
        layered([slow.path], layers.upper, layers.work, "timeout=1000") as mount,
    ):
        path = mount.path / "large"
        assert path.stat().st_size == SIZE
        os.kill(slow.pid, signal.SIGSTOP)
        writer = threading.Thread(target=lambda: os.close(os.open(path, os.O_WRONLY)))
        try:
            writer.start()
            wait_until(lambda: mount.status()["copies"], "word of the copy")
            (copy,) = mount.status()["copies"]
        finally:
            os.kill(slow.pid, signal.SIGCONT)
            writer.join()
        assert (copy["name"], copy["bytes"], copy["of"]) == ("/large", 0, SIZE)
        assert copy["seconds"] >= 1  # rounded
        assert mount.status()["copies"] == []
        assert (layers.upper / "large").stat().st_size == SIZE
