"""The kernel's table of mounts, /proc/PID/mountinfo (proc(5)). Touches no filesystem that is in it. Any thread."""

from typing import NamedTuple


class MountInfo(NamedTuple):
    """One mount. Whoever mounts chooses the bytes of kind (behind `fuse.`) and source."""

    id: int
    device: str
    """MAJOR:MINOR of the filesystem; st_dev is another on btrfs."""
    root: bytes
    """Which directory of its filesystem the mount shows."""
    path: bytes
    kind: bytes
    source: bytes
    options: bytes
    """The filesystem's own, as they stand there: joined by commas, and escaped."""


def listed(process: str = "self") -> list[MountInfo]:
    """All mounts that a process sees, in the order in which they were mounted. Raises OSError."""
    infos = []
    with open(f"/proc/{process}/mountinfo", "rb") as lines:
        for line in lines:
            fields, _, rest = line.partition(b" - ")
            words, kinds = fields.split(b" "), rest.rstrip(b"\n").split(b" ")
            root, path, kind, source = (unescape(text) for text in (words[3], words[4], kinds[0], kinds[1]))
            infos.append(MountInfo(int(words[0]), words[2].decode(), root, path, kind, source, kinds[-1]))
    return infos


def unescape(text: bytes) -> bytes:
    """Octal escapes, which stand for blanks, backslashes, and in options for commas."""
    head, *parts = text.split(b"\\")
    return head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in parts)
