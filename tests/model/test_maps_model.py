"""Maps against a plain dictionary that spells every id out."""

from hypothesis import given
from hypothesis import strategies as st

from shiftfs.shift.idmap import UNMAPPED, IdMap, MapError, Range, parse_triples

SMALL = st.integers(0, 40)  # so small that ranges touch and overlap often
RANGES = st.lists(st.builds(Range, SMALL, SMALL, st.integers(1, 8)), min_size=1, max_size=5)
HIGH = st.sampled_from([0, 100_000, UNMAPPED - 48])  # the model's window is moved here, up to the last id


def spelled_out(ranges: list[Range]) -> dict[int, int] | None:
    """Each real id and its shown one; None where one id would have two."""
    pairs = [(real + step, shown + step) for real, shown, count in ranges for step in range(count)]
    forth, back = dict(pairs), {shown: real for real, shown in pairs}
    return forth if len(forth) == len(back) == len(pairs) else None


@given(RANGES, HIGH, HIGH)
def test_a_map_agrees_with_a_dictionary(ranges: list[Range], real_base: int, shown_base: int) -> None:
    moved = [Range(real + real_base, shown + shown_base, count) for real, shown, count in ranges]
    model = spelled_out(moved)
    try:
        ids = parse_triples(":".join(map(str, moved)))
    except MapError as error:
        assert model is None, f"refused a good map: {error}"
        assert any(str(item) in str(error) for item in moved), "the message names no triple"
        return
    assert model is not None, "took ranges that overlap"
    back = {shown: real for real, shown in model.items()}
    for number in range(60):
        real, shown = real_base + number, shown_base + number
        assert ids.shown[real] == model.get(real, UNMAPPED)
        assert ids.real[shown] == back.get(shown, UNMAPPED)


@given(RANGES, st.integers(0, UNMAPPED))
def test_what_is_mapped_comes_back(ranges: list[Range], number: int) -> None:
    if spelled_out(ranges) is None:
        return
    ids = IdMap(ranges)
    for candidate in (number, number % 48):
        for there, back in ((ids.shown, ids.real), (ids.real, ids.shown)):
            assert there[candidate] == UNMAPPED or back[there[candidate]] == candidate


@given(st.text(":0123456789 -x", max_size=40))
def test_any_text_is_a_map_or_a_map_error(text: str) -> None:
    try:
        ids = parse_triples(text)
    except MapError:
        return
    assert str(ids.ranges[0])
    assert parse_triples(str(ids)) == ids
