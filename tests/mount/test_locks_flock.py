"""flock(2) among users of a mount, as on a plain filesystem; and what ends a wait, or a holder, of any type of lock.

Each scenario is a script (harness.lockers) that is played on a plain directory, too.
"""

from collections.abc import Iterator

import pytest

from harness.lockable import KINDS, SERVED, Ground, ground
from harness.served import stage_on

FLOCK = {
    "shared or exclusive": """
        A flock shared
        B flock shared
        C flock exclusive -> EAGAIN
        held: flock shared by A, flock shared by B
        A flock none
        B closes f
        C flock exclusive
        A flock shared -> EAGAIN
    """,
    "whoever is refused another kind has lost his own": """
        A flock shared
        B flock shared
        A flock exclusive -> EAGAIN
        held: flock shared by B
        B flock exclusive
        B flock shared
        held: flock shared by B
    """,
    "who waits for another kind has let go of his own": """
        A flock shared
        B flock shared
        A waits flock exclusive
        held: flock shared by B
        B flock none
        A gets it
        held: flock exclusive by A
    """,
    "however it is open": """
        A opens f read
        A flock exclusive
        B opens f write
        B flock shared -> EAGAIN
        A closes f
        B flock shared
    """,
    "each open is its own, duplicates are one": """
        A flock exclusive
        A opens g both
        A flock shared g -> EAGAIN
        A dups f h
        A flock shared h
        A flock shared g
        A closes f
        B flock exclusive -> EAGAIN
        A closes h
        A closes g
        held:
    """,
    "a child shares it with its parent": """
        A flock exclusive
        A forks B
        A dies
        C flock shared -> EAGAIN
        B flock none
        C flock shared
        held: flock shared by C
    """,
    "record locks know nothing of it": """
        A flock exclusive
        B posix write 0-end
        C ofd read 0-0 -> EAGAIN
        C posix read 0-0 -> EAGAIN
        held: flock exclusive by A, posix write 0-end by B
    """,
    "those who wait get it in turn": """
        A flock exclusive
        B waits flock shared
        C waits flock shared
        A flock none
        B gets it
        C gets it
        held: flock shared by B, flock shared by C
    """,
    "threads": """
        A opens f both
        A starts T
        T opens g both
        A flock exclusive f
        T waits flock shared g
        A closes f
        T gets it
    """,
}

# Of all types of locks.

ENDS = {
    "a signal ends the wait, and nothing else": """
        A {write}
        B waits {write}
        C waits {write}
        B is signalled
        B gets EINTR
        B {read} -> EAGAIN
        A dies
        C gets it
        held: {c}
    """,
    "who is killed while he waits leaves nothing": """
        A {write}
        B waits {write}
        C waits {write}
        B dies
        held: {a}
        A closes f
        C gets it
        C closes f
        held:
    """,
    "who is killed while he holds it frees it": """
        A {write}
        B waits {read}
        C waits {read}
        A dies
        B gets it
        C gets it
        B dies
        C dies
        held:
    """,
}
LOCKS = {
    "posix": {
        "write": "posix write 0-9",
        "read": "posix read 0-9",
        "a": "posix write 0-9 by A",
        "c": "posix write 0-9 by C",
    },
    "ofd": {"write": "ofd write 0-9", "read": "ofd read 0-9", "a": "ofd write 0-9", "c": "ofd write 0-9"},
    "flock": {
        "write": "flock exclusive",
        "read": "flock shared",
        "a": "flock exclusive by A",
        "c": "flock exclusive by C",
    },
}


@pytest.fixture(scope="module", params=[*KINDS, *SERVED])
def place(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with ground(request.param) as found:
        yield found


@pytest.mark.parametrize("name", FLOCK)
def test_flock(place: Ground, name: str) -> None:
    with stage_on(place, place.file().path) as stage:
        stage.play(FLOCK[name])


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("name", ENDS)
def test_ends(place: Ground, name: str, lock: str) -> None:
    with stage_on(place, place.file().path) as stage:
        stage.play(ENDS[name].format(**LOCKS[lock]))
