"""Which listings are kept: as many as have a number of names together, those that were made last."""

from shiftfs.inodes import Inode
from shiftfs.ops.listings import Listings


def directory(number: int) -> Inode:
    return Inode(number, (1, number, 0, 4), None)


def rows(count: int) -> list[int]:
    return list(range(count))


def test_the_oldest_goes_first() -> None:
    kept, (first, second, third) = Listings(100), map(directory, (2, 3, 4))
    kept.keep(first, rows(40))
    kept.keep(second, rows(40))
    kept.keep(first, rows(40))  # anew
    kept.keep(third, rows(40))
    assert list(kept) == [first, third] and kept.names == 82


def test_one_too_large_is_kept_alone() -> None:
    kept, small, large = Listings(100), directory(2), directory(3)
    kept.keep(small, rows(1))
    kept.keep(large, rows(1000))
    assert list(kept) == [large] and kept.names == 100
    kept.keep(small, rows(0))
    assert list(kept) == [small] and kept.names == 1


def test_what_is_dropped_counts_no_more() -> None:
    kept, one = Listings(100), directory(2)
    kept.keep(one, rows(10))
    kept.drop(one)
    kept.drop(one)
    assert not kept and kept.names == 0
