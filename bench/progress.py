"""How far a run has come: a bar where somebody looks at a terminal, a line now and then where not."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PAUSE = 30.0
"""Seconds between lines."""


@contextmanager
def bar(total: int) -> Iterator[Callable[[str], None]]:
    """To be called before each measurement with what it is."""
    if not sys.stderr.isatty():
        yield _lines(total)
        return
    from rich import progress as shown
    from rich.console import Console

    columns = (
        shown.BarColumn(),
        shown.MofNCompleteColumn(),
        shown.TimeElapsedColumn(),
        shown.TimeRemainingColumn(),
        shown.TextColumn("{task.description}"),
    )
    with shown.Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)

        def step(what: str) -> None:
            progress.update(task, description=what, advance=1)

        yield step


def _lines(total: int) -> Callable[[str], None]:
    done, told = 0, time.monotonic()

    def step(what: str) -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told > _PAUSE:
            told = time.monotonic()
            print(f"{done}/{total} {what}", file=sys.stderr, flush=True)

    return step
