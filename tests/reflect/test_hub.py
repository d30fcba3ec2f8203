"""One source for several mounts: who hears of what."""

from collections.abc import Callable, Iterator

import pytest

from shiftfs.reflect.happening import Happening, Token, What
from shiftfs.reflect.hub import Hub


class Source:
    """Tells what a test lets it tell; each device and name is a token."""

    fd = 1000
    reader = None
    removes_by_way = False

    def __init__(self) -> None:
        self.known: set[Token] = set()
        self.told: list[Happening] = []
        self.is_closed = False

    def prepare(self, device: int, fd: int, name: bytes) -> None: ...

    def add(self, device: int, fd: int, name: bytes, is_directory: bool) -> Token:
        token = b"%d" % device + name
        self.known.add(token)
        return token

    def remove(self, token: Token, fd: int, name: bytes) -> bool:
        self.known.discard(token)
        return True

    def disregard(self, fd: int) -> bool:
        return True

    def identify(self, device: int, fd: int, name: bytes) -> Token | None:
        return None

    def read(self, own: object) -> list[Happening]:
        told, self.told = self.told, []
        return told

    def close(self) -> None:
        self.is_closed = True


class Ground:
    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.heard: dict[int, Callable[[], None]] = {}
        self.hub = Hub(self.heard.__setitem__, self._ignore, self._new)

    def _ignore(self, fd: int) -> None:
        del self.heard[fd]

    def _new(self, kind: str) -> Source:
        self.sources.append(Source())
        return self.sources[-1]

    def tell(self, *happenings: Happening) -> None:
        self.sources[0].told += happenings
        self.heard[Source.fd]()


@pytest.fixture
def ground() -> Iterator[Ground]:
    made = Ground()
    yield made
    made.hub.close()
    assert all(source.is_closed for source in made.sources) and not made.heard


def created(token: Token) -> Happening:
    return Happening(What.CREATED, False, token, b"name")


def test_each_hears_of_what_it_watches(ground: Ground) -> None:
    one, other = ground.hub.branch("some"), ground.hub.branch("some")
    assert len(ground.sources) == 1
    both, alone = one.add(1, 5, b"", True), one.add(2, 5, b"", True)
    assert other.add(1, 6, b"", True) == both
    ground.tell(created(both), created(alone), created(b"nobody's"))
    assert (one.read(()), other.read(())) == ([created(both), created(alone)], [created(both)])
    assert (one.read(()), other.read(())) == ([], [])
    one.close()
    other.close()


def test_a_watch_stays_as_long_as_somebody_wants_it(ground: Ground) -> None:
    one, other = ground.hub.branch("some"), ground.hub.branch("some")
    token = one.add(1, 5, b"", True)
    other.add(1, 5, b"", True)
    assert one.remove(token, 5, b"")
    assert token in ground.sources[0].known
    ground.tell(created(token))
    assert (one.read(()), other.read(())) == ([], [created(token)])
    one.close()
    other.close()
    assert ground.sources[0].known == set()


def test_whoever_did_it_does_not_hear_of_it(ground: Ground) -> None:
    one, other = ground.hub.branch("some"), ground.hub.branch("some")
    token = one.add(1, 5, b"", True)
    other.add(1, 5, b"", True)
    ground.hub.tell(created(token), own=[one])
    assert (one.read(()), other.read(())) == ([], [created(token)])
    one.close()
    other.close()


def test_all_hear_of_what_has_been_lost(ground: Ground) -> None:
    one, other = ground.hub.branch("some"), ground.hub.branch("some")
    lost = Happening(What.OVERFLOW, False, None, b"")
    ground.tell(lost)
    assert (one.read(()), other.read(())) == ([lost], [lost])
    one.close()
    other.close()


def test_what_happens_again_and_again_is_told_once(ground: Ground) -> None:
    one = ground.hub.branch("some")
    token = one.add(1, 5, b"", True)
    for _ in range(5):
        ground.hub.tell(created(token))
    assert one.read(()) == [created(token)]
    one.close()
