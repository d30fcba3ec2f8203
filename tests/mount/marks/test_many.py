"""Many mounts of one mark, which one process serves."""

import os
from pathlib import Path

from harness import wait_until
from harness.commands import SHIFTFS
from harness.marks import container, marked

MANY = 500
MOST_KIB = 1024
"""Of each mount that nobody uses."""
MOUNTS = """
import os, sys
from shiftfs.mark import client
from shiftfs.options import parse_command_line
mark, above, many = sys.argv[1], sys.argv[2], int(sys.argv[3])
device = client.mark_at(mark.encode())
targets = [f"{above}/{number}" for number in range(many)]
for target in targets:
    os.mkdir(target)
    client.mount(parse_command_line([mark, target], is_root=True), device)
print(sum(os.listdir(target) == ["file"] for target in targets))
"""


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def test_hundreds_of_mounts_take_little_memory_each_and_leave_nothing() -> None:
    with marked() as mark, container() as user:
        (mark.source / "file").write_bytes(b"content")
        user.target.chmod(0o777)
        before, held = resident_kib(mark.mount.pid), len(os.listdir(f"/proc/{mark.mount.pid}/fd"))
        listed = user.run(*SHIFTFS[:2], "-c", MOUNTS, mark.path, user.target, str(MANY), limit=120)
        assert listed.stdout == f"{MANY}\n"
        assert resident_kib(mark.mount.pid) - before <= MANY * MOST_KIB
        (mark.source / "more").write_bytes(b"")
        last = user.target / str(MANY - 1)
        wait_until(lambda: user.run("ls", last).stdout == "file\nmore\n", "the change on the last one", 30)
        user.run("sh", "-c", f"for target in {user.target}/*; do umount $target; done", limit=60)
        wait_until(lambda: len(os.listdir(f"/proc/{mark.mount.pid}/fd")) <= held, "no descriptor is left", 30)
