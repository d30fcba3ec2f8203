"""POSIX record locks and OFD locks (fcntl(2)) among users of a mount: as on a plain filesystem.

Each scenario is a script (harness.lockers) that is played on a plain directory, too.
"""

from collections.abc import Iterator

import pytest

from harness.lockable import KINDS, SERVED, Ground, ground
from harness.served import stage_on

POSIX = {
    "readers share, a writer is alone": """
        A posix read 0-9
        B posix read 5-14
        B posix write 5-14 -> EAGAIN
        C posix write 10-14 -> EAGAIN
        C posix write 15-end
        held: posix read 0-9 by A, posix read 5-14 by B, posix write 15-end by C
        A posix none 0-9
        B posix write 5-14
        A posix read 14-14 -> EAGAIN
        A posix read 0-4
    """,
    "of two readers neither gets to write": """
        A posix read 0-9
        B posix read 0-9
        A posix write 0-9 -> EAGAIN
        held: posix read 0-9 by A, posix read 0-9 by B
        B closes f
        A posix write 0-9
        held: posix write 0-9 by A
    """,
    "a writer becomes a reader without letting go": """
        A posix write 0-9
        B waits posix read 0-9
        A posix read 0-9
        B gets it
        held: posix read 0-9 by A, posix read 0-9 by B
    """,
    "unlocking the middle leaves two": """
        A posix write 0-29
        A posix none 10-19
        held: posix write 0-9 by A, posix write 20-29 by A
        B posix write 9-9 -> EAGAIN
        B posix write 10-19
        B posix write 20-20 -> EAGAIN
    """,
    "another kind in the middle leaves three": """
        A posix write 0-29
        A posix read 10-19
        held: posix write 0-9 by A, posix read 10-19 by A, posix write 20-29 by A
        A posix write 10-19
        held: posix write 0-29 by A
    """,
    "those that touch or overlap become one": """
        A posix read 0-9
        A posix read 20-29
        A posix read 10-19
        held: posix read 0-29 by A
        A posix read 25-end
        held: posix read 0-end by A
        A posix write 30-39
        held: posix read 0-29 by A, posix write 30-39 by A, posix read 40-end by A
    """,
    "the end is wherever it will be": """
        A posix write 1000000-end
        B posix write 9223372036854775806-9223372036854775806 -> EAGAIN
        B posix write 0-999999
    """,
    "what is not open for it cannot be locked": """
        A opens r read
        A opens w write
        A posix write 0-9 r -> EBADF
        A posix read 0-9 w -> EBADF
        A posix read 0-9 r
        A posix write 20-29 w
    """,
    "closing any descriptor of the file lets go of all": """
        A posix write 0-9
        A opens g read
        A opens h read
        B posix read 0-0 -> EAGAIN
        A closes g
        held:
        B posix write 0-end
        B opens g read link
        B closes g
        held:
    """,
    "so does closing a duplicate": """
        A posix write 0-9
        A dups f g
        A posix read 0-4 g
        held: posix read 0-4 by A, posix write 5-9 by A
        A closes f
        held:
        A posix write 0-9 g
        held: posix write 0-9 by A
    """,
    "a child has none of its parent's": """
        A posix write 0-9
        A forks B
        B posix read 0-9 -> EAGAIN
        B posix none 0-9
        B closes f
        held: posix write 0-9 by A
        B dies
        held: posix write 0-9 by A
    """,
    "threads of a process share them": """
        A posix write 0-9
        A starts T
        T posix read 5-9
        held: posix write 0-4 by A, posix read 5-9 by A
        T opens g read
        T closes g
        held:
    """,
    "a thread waits, another goes on": """
        A posix write 0-9
        B opens f both
        B starts T
        T waits posix write 0-9
        B posix write 20-29
        A posix none 0-9
        T gets it
        held: posix write 0-9 by B, posix write 20-29 by B
    """,
    "a writer waits for all readers": """
        A posix read 0-9
        B posix read 5-14
        C waits posix write 0-14
        A posix none 0-9
        held: posix read 5-14 by B
        B closes f
        C gets it
        held: posix write 0-14 by C
    """,
    "some wait, and none for what is free": """
        A posix write 0-9
        B waits posix read 0-0
        C waits posix read 1-1
        D posix write 10-19
        D waits posix write 2-2
        A posix none 0-4
        B gets it
        C gets it
        D gets it
        A closes f
        held: posix read 0-0 by B, posix read 1-1 by C, posix write 2-2 by D, posix write 10-19 by D
    """,
    "two who wait for each other": """
        A posix write 0-0
        B posix write 1-1
        A waits posix write 1-1
        B waits posix write 0-0 -> EDEADLK, at once
        held: posix write 0-0 by A, posix write 1-1 by B
        B posix none 1-1
        A gets it
    """,
    "three who wait for each other": """
        A posix write 0-0
        B posix write 1-1
        C posix write 2-2
        A waits posix read 1-1
        B waits posix read 2-2
        C waits posix read 0-0 -> EDEADLK, at once
        C dies
        B gets it
    """,
}

OFD = {
    "each open of the file is its own": """
        A opens f both
        A opens g both
        A ofd write 0-9 f
        A ofd write 5-14 g -> EAGAIN
        A ofd write 10-14 g
        held: ofd write 0-9, ofd write 10-14
        A closes g
        held: ofd write 0-9
    """,
    "split, merged, upgraded, downgraded": """
        A ofd read 0-29
        A ofd write 10-19
        held: ofd read 0-9, ofd write 10-19, ofd read 20-29
        A ofd none 0-9
        B ofd read 20-29
        A ofd write 20-29 -> EAGAIN
        A ofd read 10-19
        held: ofd read 10-29, ofd read 20-29
    """,
    "a duplicate shares it, the last one frees it": """
        A ofd write 0-9
        A dups f g
        A ofd read 0-9 g
        held: ofd read 0-9
        A closes f
        B ofd write 0-9 -> EAGAIN
        A closes g
        B ofd write 0-9
    """,
    "a child shares it with its parent": """
        A ofd write 0-9
        A forks B
        B ofd write 0-19
        held: ofd write 0-19
        A closes f
        A dies
        C ofd read 0-9 -> EAGAIN
        B closes f
        held:
    """,
    "it excludes record locks, of its own process too": """
        A ofd write 0-9
        A posix write 0-9 -> EAGAIN
        B posix read 0-9 -> EAGAIN
        B posix write 10-19
        A ofd write 10-19 -> EAGAIN
        held: ofd write 0-9, posix write 10-19 by B
    """,
    "threads that open it themselves exclude each other": """
        A opens f both
        A starts T
        T opens g both
        A ofd write 0-9 f
        T waits ofd write 0-9 g
        A ofd none 0-9 f
        T gets it
        A ofd read 0-9 f -> EAGAIN
    """,
    "nobody tells two who wait for each other": """
        A ofd write 0-0
        B ofd write 5-5
        A waits ofd write 5-5
        B waits ofd write 0-0
        A dies
        B gets it
        held: ofd write 0-0, ofd write 5-5
    """,
}

ALIKE, BOTH_WAIT = "ofd: nobody tells two who wait for each other", "B waits ofd write 0-0"
"""In a request an OFD lock looks like a process's: where the mount serves locks, this is a circle as well."""

SCENARIOS = {
    **{f"posix: {name}": script for name, script in POSIX.items()},
    **{f"ofd: {name}": script for name, script in OFD.items()},
}


@pytest.fixture(scope="module", params=[*KINDS, *SERVED])
def place(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with ground(request.param) as found:
        yield found


@pytest.mark.parametrize("name", SCENARIOS)
def test_record_locks(place: Ground, name: str) -> None:
    script = SCENARIOS[name]
    if name == ALIKE and place.kind in SERVED:
        script = script.replace(BOTH_WAIT, BOTH_WAIT + " -> EDEADLK, at once").split("A dies")[0]
    with stage_on(place, place.file(linked=" link" in script).path) as stage:
        stage.play(script)
