"""The options that a container engine gives to its mount program, as it spells them."""

import pytest

from shiftfs.options import MountOptions, UsageError, parse_command_line
from shiftfs.shift.idmap import IDENTITY, IdMap, Range, parse_triples

LAYERS = "lowerdir=/l,upperdir=/u,workdir=/w"


def parse(text: str, is_root: bool = False) -> MountOptions:
    parsed = parse_command_line(["-o", f"{LAYERS},{text}" if text else LAYERS, "/mnt"], is_root=is_root)
    assert isinstance(parsed, MountOptions)
    return parsed


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "uids", "gids"),
    [
        ("squash_to_root", IdMap(IDENTITY.ranges, 0), IdMap(IDENTITY.ranges, 0)),
        ("squash_to_uid=1000", IdMap(IDENTITY.ranges, 1000), IDENTITY),
        ("squash_to_gid=0", IDENTITY, IdMap(IDENTITY.ranges, 0)),
        ("squash_to_uid=1,squash_to_root", IdMap(IDENTITY.ranges, 1), IdMap(IDENTITY.ranges, 0)),
        ("squash_to_root,squash_to_gid=2", IdMap(IDENTITY.ranges, 0), IdMap(IDENTITY.ranges, 2)),
        ("uidmapping=:0:100000:10,squash_to_uid=7", IdMap([Range(0, 100000, 10)], 7), IDENTITY),
    ],
)
def test_squashing(text: str, uids: IdMap, gids: IdMap) -> None:
    parsed = parse(text)
    assert (parsed.uidmap, parsed.gidmap) == (uids, gids)


def test_a_squashed_map_shows_one_id_and_stores_as_before() -> None:
    ids = IdMap([Range(0, 100000, 10)], 7)
    assert [ids.shown[real] for real in (0, 9, 10, 4294967294)] == [7, 7, 7, 7]
    assert (ids.real[100003], ids.named[3]) == (3, 100003)
    assert ids.named[10] == ids.real[7] == 0xFFFFFFFF
    assert not IdMap(IDENTITY.ranges, 0).is_identity
    assert ids != IdMap([Range(0, 100000, 10)])


@pytest.mark.parametrize("name", ["squash_to_uid", "squash_to_gid"])
@pytest.mark.parametrize("value", ["", "-1", "4294967295", "root", "1.0", "0x1"])
def test_who_cannot_be_squashed_to(name: str, value: str) -> None:
    assert refusal(f"{name}={value}") == f"{f'{name}={value}'!r} cannot be; {name} takes an id from 0 to 4294967294"


def test_maps_begin_with_a_colon_as_well() -> None:
    parsed = parse("uidmapping=:0:100000:65536,gidmapping=0:100000:65536")
    assert parsed.uidmap == parsed.gidmap == parse_triples("0:100000:65536")
    many = parse("uidmapping=0:1000:1:1:100000:65536")
    assert many.uidmap.ranges == (Range(0, 1000, 1), Range(1, 100000, 65536))


def test_what_a_mount_leaves_out() -> None:
    plain, parsed = parse(""), parse("noacl,static_nlink,ino32_t,noxattrs=1")
    assert (plain.acl, plain.static_nlink, plain.ino32, plain.xattrs) == (True, False, False, True)
    assert (parsed.acl, parsed.static_nlink, parsed.ino32, parsed.xattrs) == (False, True, True, False)
    assert parse("noxattrs=0") == plain


def test_where_owners_live() -> None:
    assert [parse(f"xattr_permissions={which}").xattr_permissions for which in "012"] == [0, 1, 2]
    lower = parse_command_line(["-o", "lowerdir=/l,xattr_permissions=2", "/mnt"], is_root=False)
    assert isinstance(lower, MountOptions)
    assert lower.xattr_permissions == 2, "nothing is written, but what layers say is believed"
    with pytest.raises(UsageError, match="xattr_permissions needs layers"):
        parse_command_line(["-o", "xattr_permissions=2", "/src", "/mnt"], is_root=False)


@pytest.mark.parametrize("flag", ["noacl", "static_nlink", "ino32_t", "squash_to_root", "volatile", "debug"])
def test_flags_take_no_value(flag: str) -> None:
    assert refusal(f"{flag}=1") == f"{f'{flag}=1'!r} cannot be: {flag} takes no value; write {flag} alone"


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("noxattrs=2", "0 or 1"),
        ("noxattrs=yes", "0 or 1"),
        ("xattr_permissions=3", "0, 1 or 2"),
        ("xattr_permissions=", "0, 1 or 2"),
        ("xino=maybe", "off, auto or on"),
        ("xino", "off, auto or on"),
    ],
)
def test_values_that_cannot_be(text: str, allowed: str) -> None:
    assert allowed in refusal(text)


NOTHING = """threaded=1 fsync=0 sync=0 fast_ino=1 fast_ino_check=1 plugins=/a.so private
    xino=auto"""
PASSED_ON = """allow_root suid nodev noexec diratime nodiratime splice_write splice_read splice_move
    kernel_cache"""


@pytest.mark.parametrize("text", NOTHING.split())
def test_what_does_nothing_is_accepted_and_said(text: str) -> None:
    parsed = parse(text)
    assert [note.partition(" does nothing here: ")[0] for note in parsed.notes] == [text.partition("=")[0]]


@pytest.mark.parametrize("text", [*PASSED_ON.split(), "timeout=1000000000", "redirect_dir=off", 'context="a:b,c"'])
def test_every_other_name_is_accepted(text: str) -> None:
    parse(text)


def test_a_line_as_podman_writes_it() -> None:
    names = [f"l/{number:026d}" for number in range(3)]
    line = f"lowerdir={':'.join(names)}:l/ABC/../diff1,upperdir=x/diff,workdir=x/work,,volatile"
    line += ',context="u:r:t:s0:c1,c2"'
    parsed = parse_command_line(["-o", line, "/merged"], is_root=False)
    assert isinstance(parsed, MountOptions)
    assert parsed.lowerdirs == (*map(str.encode, names), b"l/ABC/../diff1")
    assert (parsed.upperdir, parsed.workdir, parsed.volatile) == (b"x/diff", b"x/work", True)
    assert parsed.kernel_options == (b"context=u:r:t:s0:c1,c2",)


@pytest.mark.parametrize("text", ["noacl", "noxattrs=1"])
def test_marks_have_acls(text: str) -> None:
    """They make the kernel check rights where a user says `default_permissions` to nobody."""
    name = text.partition("=")[0]
    with pytest.raises(UsageError, match=f"mark and {name} cannot go together"):
        parse_command_line(["-o", f"mark,{text}", "/src", "/mnt"], is_root=True)
