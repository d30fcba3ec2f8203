"""Leases (fcntl(2), F_SETLEASE): broken by users of the mount as on a plain filesystem, and by writes behind the mount.

Row L4 of the problems.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import wait_until
from harness.calls import IN_CLOSE_WRITE, watching
from harness.lockable import CONTENT, Ground, Lockable, ground
from harness.lockers import LIMIT, Stage
from harness.recorded import append

LEASES = {
    "read: broken by who writes": """
        A opens f read
        A lease read
        A asks lease -> read
        held: lease read by A
        B opens f read
        B closes f
        A hears nothing
        B waits opens f write
        A hears SIGIO
        held: lease breaking by A
        A asks lease -> none
        A lease none
        B gets it
        held:
    """,
    "read: broken by who truncates it": """
        A opens f read
        A lease read
        B opens d read
        B waits truncates
        A hears SIGIO
        A lease none
        B gets it
    """,
    "read: several": """
        A opens f read
        B opens f read
        A lease read
        B lease read
        held: lease read by A, lease read by B
        C waits opens f both
        A hears SIGIO
        B hears SIGIO
        A lease none
        B closes f
        C gets it
    """,
    "write: broken by who reads": """
        A lease write
        A asks lease -> write
        B waits opens f read
        A hears SIGIO
        A asks lease -> read
        A lease read -> EAGAIN
        A lease none
        B gets it
    """,
    "write: who reads is content with a read lease": """
        A opens f read
        A lease write
        B waits opens f read
        A hears SIGIO
        A lease read
        B gets it
        held: lease read by A
        C waits opens f write
        A hears SIGIO
        A lease none
        C gets it
    """,
    "who does not wait is refused, and the holder is told": """
        A opens f read
        A lease write
        B opens f read nonblock -> EAGAIN
        A hears SIGIO
        held: lease breaking by A
        A lease none
        B opens f read nonblock
    """,
    "none where somebody has it open already": """
        A opens f read
        B opens f write
        A lease read -> EAGAIN
        B closes f
        A lease read
        A lease none
        B opens f read
        A lease write -> EAGAIN
        B closes f
        A lease write
        A opens g read nonblock -> EAGAIN
    """,
    "none for reading on what is open for writing": """
        A lease read -> EAGAIN
        A lease write
        A lease none
    """,
    "a child and a duplicate share it": """
        A opens f read
        A lease read
        A forks B
        A dups f g
        A closes f
        C opens f write nonblock -> EAGAIN
        A hears SIGIO
        B lease none
        C opens f write nonblock
    """,
    "gone with the last close": """
        A opens f read
        A lease write
        B waits opens f both
        A closes f
        B gets it
    """,
    "gone with its holder": """
        A opens f read
        A lease read
        B waits opens f write
        A dies
        B gets it
        held:
    """,
    "who waits may be killed": """
        A opens f read
        A lease read
        B waits opens f write
        B dies
        A hears SIGIO
        A lease none
        A lease read
    """,
    "who waits is interrupted": """
        A opens f read
        A lease read
        B waits opens f write
        B is signalled
        B gets EINTR
        A hears SIGIO
        A lease none
    """,
}


@pytest.mark.parametrize("name", LEASES)
def test_leases(each_ground: Ground, name: str) -> None:
    with Stage(each_ground.file().path) as stage:
        stage.play(LEASES[name])


def is_not_broken(file: Lockable, kind: str, change: Callable[[], Path]) -> None:
    """`change` says where the file is then."""
    with Stage(file.path) as stage:
        stage.play(f"""
            A opens f read
            A lease {kind}
        """)
        stage.path = change()
        stage.play(f"""
            A hears nothing
            held: lease {kind} by A
            B opens f write nonblock -> EAGAIN
            A hears SIGIO
        """)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_what_does_not_break_a_lease(each_ground: Ground, kind: str) -> None:
    """Attributes, names, and that it is copied up for these."""
    file = each_ground.file()

    def changed() -> Path:
        file.path.chmod(0o640)
        os.utime(file.path)
        path = file.path.rename(file.path.with_name("other"))
        if each_ground.upper is not None:
            assert (each_ground.upper / path.relative_to(each_ground.path)).exists()
        return path

    is_not_broken(file, kind, changed)


# Behind the mount. Natively whoever writes there would wait.


def write_over(file: Lockable) -> None:
    with file.layer.open("r+b") as opened:
        opened.write(b"CONTENT")


BREAKING: dict[str, Callable[[Lockable], object]] = {
    "append": lambda file: append(file.layer, b"more"),
    "write": write_over,
    "truncate": lambda file: file.layer.write_bytes(b""),
}


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("change", BREAKING)
def test_a_write_behind_the_mount_breaks_it(mounted_ground: Ground, change: str, kind: str) -> None:
    """Its holder is told, and what it reads then is new; nobody has waited for it."""
    file = mounted_ground.file()
    with Stage(file.path) as stage, watching(file.path, IN_CLOSE_WRITE) as watch:
        stage.play(f"""
            A opens f read
            A lease {kind}
        """)
        BREAKING[change](file)
        stage.play("""
            A hears SIGIO
            held: lease breaking by A
            A lease none
            held:
        """)
        mounted_ground.settled()
        assert file.path.read_bytes() == file.layer.read_bytes() != CONTENT
        # Opening it to raise this is what breaks the lease. A lease that is taken before is broken once more.
        assert watch.events(LIMIT) == [IN_CLOSE_WRITE]
        wait_until(lambda: stage.tries("A lease read"), "a lease again", LIMIT)
        stage.play("A hears nothing")
        BREAKING["append"](file)
        stage.play("A hears SIGIO")


@pytest.mark.parametrize("kind", ["read", "write"])
def test_what_does_not_break_a_lease_behind_the_mount(mounted_ground: Ground, kind: str) -> None:
    """Who reads, attributes and names, as on the mount."""
    file = mounted_ground.file()

    def changed() -> Path:
        file.layer.read_bytes()
        file.layer.chmod(0o640)
        file.layer.rename(file.layer.with_name("other"))
        mounted_ground.settled()
        return file.path.with_name("other")

    is_not_broken(file, kind, changed)


def test_where_nobody_watches_it_is_not_broken(area: object) -> None:
    """That the file is another by now is seen by who looks, and told to nobody."""
    with ground("source", "watch=off", "timeout=0.1") as place:
        file = place.file()
        with Stage(file.path) as stage:
            stage.play("""
                A opens f read
                A lease read
            """)
            append(file.layer, b"more")
            wait_until(lambda: file.path.stat().st_size == len(CONTENT) + 4, "the size", LIMIT)
            stage.play("""
                A hears nothing
                held: lease read by A
            """)
