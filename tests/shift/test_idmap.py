"""Maps: lookups, what is refused and how the message names it, and the three texts they come from."""

import pytest

from shiftfs.shift import idmap
from shiftfs.shift.idmap import (
    IDENTITY,
    UNMAPPED,
    IdMap,
    MapError,
    Range,
    from_proc_map,
    from_subid,
    parse_triples,
)

LAST = 4_294_967_294


def test_ids_are_translated_both_ways() -> None:
    ids = IdMap([Range(0, 100000, 65536), Range(70000, 5, 1)])
    assert [ids.shown[n] for n in (0, 65535, 70000)] == [100000, 165535, 5]
    assert [ids.real[n] for n in (100000, 165535, 5)] == [0, 65535, 70000]


@pytest.mark.parametrize("number", [65536, 69999, 70001, LAST, UNMAPPED])
def test_what_no_range_covers_is_unmapped(number: int) -> None:
    assert parse_triples("0:100000:65536:70000:5:1").shown[number] == UNMAPPED


@pytest.mark.parametrize("number", [0, 4, 6, 99999, 165536, UNMAPPED])
def test_what_no_range_shows_is_unmapped(number: int) -> None:
    assert parse_triples("0:100000:65536:70000:5:1").real[number] == UNMAPPED


def test_identity_keeps_all_but_minus_one() -> None:
    assert IDENTITY.is_identity
    assert [IDENTITY.shown[n] for n in (0, 1000, LAST, UNMAPPED)] == [0, 1000, LAST, UNMAPPED]
    assert [IDENTITY.real[n] for n in (0, 1000, LAST, UNMAPPED)] == [0, 1000, LAST, UNMAPPED]


def test_identity_may_be_written_in_pieces_but_not_with_holes() -> None:
    assert parse_triples("0:0:1000:1000:1000:4294966295").is_identity
    assert not parse_triples("0:0:65536").is_identity
    assert not parse_triples("0:1:1:1:0:1").is_identity


def test_remembered_ids_are_bounded_and_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idmap, "_REMEMBERED", 10)
    ids = parse_triples("0:1000:50")
    for number in range(100):
        assert ids.shown[number] == (number + 1000 if number < 50 else UNMAPPED)
        assert len(ids.shown) <= 10


def test_a_leading_colon_is_tolerated() -> None:
    assert parse_triples(":0:100000:65536") == parse_triples("0:100000:65536")


def test_the_text_of_a_map_makes_the_same_map() -> None:
    ids = parse_triples("0:1000:1:1:100000:65536")
    assert str(ids) == "0:1000:1:1:100000:65536"
    assert parse_triples(str(ids)) == ids
    assert hash(parse_triples(str(ids))) == hash(ids)
    assert ids != IDENTITY


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "the map is empty"),
        (":", "the map is empty"),
        ("0:0:0", "0:0:0 maps no id"),
        ("0:1:2:5:6", "'5:6' is not REAL:SHOWN:COUNT"),
        ("0:1:2:", "'' is not REAL:SHOWN:COUNT"),
        ("::0:1:2", "':0:1' is not REAL:SHOWN:COUNT"),
        ("0:-1:2", "'0:-1:2' is not"),
        ("0: 1:2", "'0: 1:2' is not"),
        ("0:1_0:2", "'0:1_0:2' is not"),
        ("0:\u0661:2", "is not"),
        ("0:1:" + "9" * 5000, "is not"),
        ("0:x:2", "'0:x:2' is not"),
        ("4294967295:0:1", "4294967295:0:1 reaches beyond"),
        ("0:4294967295:1", "0:4294967295:1 reaches beyond"),
        ("0:1:4294967295", "0:1:4294967295 reaches beyond"),
        ("0:0:9999999999", "0:0:9999999999 reaches beyond"),
        ("0:100:10:9:200:1", "9:200:1 overlaps 0:100:10 in its real ids"),
        ("0:100:10:20:109:1", "20:109:1 overlaps 0:100:10 in its shown ids"),
        ("0:100:10:0:100:10", "0:100:10 overlaps 0:100:10"),
    ],
)
def test_what_is_no_map_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(MapError) as caught:
        parse_triples(text)
    assert named in str(caught.value)


def test_ranges_may_touch_and_reach_the_last_id() -> None:
    ids = parse_triples("10:0:5:0:5:10:4294967294:4294967294:1")
    assert (ids.shown[9], ids.shown[10], ids.shown[LAST]) == (14, 0, LAST)


def test_negative_ranges_are_refused() -> None:
    with pytest.raises(MapError, match="-1:0:1"):
        IdMap([Range(-1, 0, 1)])


def test_a_namespace_maps_inside_ids_to_outside_ones() -> None:
    ids = from_proc_map(["         0       1000          1\n", "         1     100000      65536\n"])
    assert ids == parse_triples("0:1000:1:1:100000:65536")


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "no map yet"),
        (["0 1000"], "'0 1000'"),
        (["0 1000 1 1"], "'0 1000 1 1'"),
        (["a b c"], "'a:b:c'"),
        (["\n"], "''"),
    ],
)
def test_what_is_no_proc_map_is_refused(lines: list[str], named: str) -> None:
    with pytest.raises(MapError) as caught:
        from_proc_map(lines)
    assert named in str(caught.value)


SUBID = [
    "# a comment\n",
    "\n",
    "other:1:2:3\n",
    "u:100000:65536\n",
    "1000x:5:5\n",
    "1000:300000:10\n",
    "u:200000:5\n",
]


def test_subid_gives_root_to_the_user_and_the_ranges_in_order() -> None:
    ids = from_subid(SUBID, "u", 1000, 1001)
    assert ids == parse_triples("0:1001:1:1:100000:65536:65537:300000:10:65547:200000:5")


def test_subid_without_a_range_says_so() -> None:
    with pytest.raises(MapError, match="no range is given to nobody"):
        from_subid(SUBID, "nobody", 65534, 65534)


@pytest.mark.parametrize("line", ["u:1", "u:1:x", "u::5", "u", "u:1:2:3"])
def test_a_malformed_line_of_the_user_is_refused(line: str) -> None:
    with pytest.raises(MapError) as caught:
        from_subid(["u:100000:65536", line], "u", 1000, 1000)
    assert repr(line) in str(caught.value)


def test_a_range_that_holds_the_user_is_refused() -> None:
    with pytest.raises(MapError, match="overlaps"):
        from_subid(["u:1000:10"], "u", 1000, 1005)
