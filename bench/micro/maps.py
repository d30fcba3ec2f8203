"""Owners shifted: ids seen before, and ids seen for the first time."""

from shiftfs.shift import idmap

from ..jobs import MicroJob, Work, repeat

_MAP = "0:100000:65536"


def _known() -> Work:
    shown = idmap.parse_triples(_MAP).shown
    for number in range(100):
        shown[number]
    return repeat(lambda number: shown[number % 100], range(20_000))


def _new() -> Work:
    def run() -> None:
        shown = idmap.parse_triples(_MAP).shown
        for number in range(20_000):
            shown[number]

    return Work(run, 20_000)


def jobs() -> tuple[MicroJob, ...]:
    return MicroJob("known id", _known), MicroJob("new id", _new)
