"""What a mount waits for before it is there: containers are started by the hundred."""

import re
import resource
import sys
from pathlib import Path

from harness import Layers, mounted, run, wait_until
from harness.commands import EXIT_LIMIT, Argument, environment, open_directory
from harness.marks import hidden_directory, named
from harness.mounts import newest_mount, unmount
from harness.shifted import Mount

EXPENSIVE = {
    "argparse", "base64", "bz2", "dataclasses", "hashlib", "hmac", "inspect", "json", "locale", "logging", "lzma",
    "mfusepy", "platform", "secrets", "shutil", "subprocess", "tempfile", "tokenize", "traceback", "zlib",
}  # fmt: skip
"""What is for failures, for searching, and for who asks."""
UNUSED = {"overlay", "shiftfs.ctl", "shiftfs.locks.mounts", "shiftfs.mark", "shiftfs.status"}
"""Of ours, on a mount without options."""
COMMAND = """
import re
import resource
import sys
noted = open(sys.argv.pop(1), "a", buffering=1)
def note(event, words):
    if event == "import":
        try:
            noted.write(f"{words[0]}\\n")
        except OSError:
            pass  # the agent has closed it
sys.addaudithook(note)
from shiftfs.__main__ import main
sys.exit(main())
"""


def imported(*args: Argument, **more: str) -> set[str]:
    """By mounting so, until the command returns: more than Python itself imports."""
    target, noted = open_directory("mnt-"), open_directory("noted-") / "names"
    try:
        run([sys.executable, "-P", "-c", COMMAND, noted, *args, target], env={**environment(), **more})
        return set(noted.read_text().split())
    finally:
        entry = newest_mount(target)
        pid = Mount(target, target, entry).status()["pid"]
        unmount(entry)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its end", EXIT_LIMIT)


def test_a_mount_waits_for_nothing_that_it_does_not_use() -> None:
    found = imported(open_directory("source-"))
    assert "shiftfs.cli" in found
    assert found & (EXPENSIVE | UNUSED) == set()


def test_a_mount_with_layers_waits_for_the_overlay_besides() -> None:
    layers = Layers(open_directory("layers-"))
    found = imported("-o", ",".join(named(layers)))
    assert found & (EXPENSIVE | UNUSED) == {"overlay"}


def test_a_mark_waits_for_what_makes_marks_besides() -> None:
    found = imported("-o", "mark", hidden_directory())
    assert found & (EXPENSIVE | UNUSED) == {"shiftfs.locks.mounts", "shiftfs.mark"}


def test_libfuse_is_searched_for_where_it_is_chosen() -> None:
    assert "mfusepy" in imported(open_directory("source-"), FUSE_LIBRARY_NAME="fuse3")


def test_the_table_of_descriptors_never_has_to_grow() -> None:
    """Each time the kernel would wait for all processors."""
    with mounted(open_directory("source-")) as mount:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        (size,) = re.findall(r"^FDSize:\s+(\d+)$", Path(f"/proc/{mount.pid}/status").read_text(), re.MULTILINE)
        assert int(size) >= min(hard, 32768)
