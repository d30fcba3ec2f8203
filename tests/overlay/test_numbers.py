"""st_ino over layers: no two inodes share one, and the first layer's stay as they are."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.numbers import Numbers

DEVICES = st.lists(st.integers(0, 9), min_size=1, max_size=6)
NUMBERS = st.integers(0, (1 << 48) - 1)
INODES = st.sets(st.tuples(st.integers(0, 9), NUMBERS), max_size=20)


@given(DEVICES, INODES)
def test_each_inode_has_a_number_of_its_own(devices: list[int], inodes: set[tuple[int, int]]) -> None:
    numbers = Numbers(devices)
    assert len({numbers.of(device, number) for device, number in inodes}) == len(inodes)


@given(DEVICES, NUMBERS)
def test_those_of_the_first_layer_are_shown_as_they_are(devices: list[int], number: int) -> None:
    assert Numbers(devices).of(devices[0], number) == number


@given(DEVICES, INODES)
def test_the_same_layers_give_the_same_numbers(devices: list[int], inodes: set[tuple[int, int]]) -> None:
    inodes = {(device, number) for device, number in inodes if device in devices}
    first, again = Numbers(devices), Numbers(devices)
    there = {inode: first.of(*inode) for inode in sorted(inodes)}
    assert there == {inode: again.of(*inode) for inode in sorted(inodes, reverse=True)}


def test_further_devices_are_told_apart_from_bit_48_on() -> None:
    numbers = Numbers([7, 5, 7, 3])
    assert [numbers.of(device, 12) for device in (7, 5, 3)] == [12, 12 | 1 << 48, 12 | 2 << 48]


def test_devices_within_a_layer_come_after_those_of_the_layers() -> None:
    numbers = Numbers([7, 5])
    assert [numbers.of(device, 12) >> 48 for device in (8, 9, 8)] == [2, 3, 2]


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 9))
def test_every_number_fits_in_64_bits(number: int, device: int) -> None:
    assert 0 <= Numbers([0]).of(device, number) < 1 << 64
