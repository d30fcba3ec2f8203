"""Ids inside ACLs and file capabilities: translated, and never to more power than they had."""

import errno
import struct

import pytest

from shiftfs.shift.embedded import (
    ACL_NOBODY,
    acl_to_real,
    acl_to_shown,
    capability_from_inside,
    capability_to_inside,
    capability_to_real,
    capability_to_shown,
)
from shiftfs.shift.idmap import IDENTITY, UNMAPPED, IdMap, parse_triples

UIDS = parse_triples("0:100000:1000")
GIDS = parse_triples("0:200000:1000")
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 0x10, 0x20


def acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def both(user: int, group: int) -> bytes:
    """An ACL with one named user and one named group; the ids of the other entries mean nothing and stay."""
    return acl(
        (USER_OBJ, 7, UNMAPPED),
        (USER, 6, user),
        (GROUP_OBJ, 5, 3),
        (GROUP, 4, group),
        (MASK, 7, UNMAPPED),
        (OTHER, 0, 0),
    )


def refused(value: bytes, *, number: int) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        acl_to_real(value, UIDS, GIDS)
    assert caught.value.errno == number


def test_named_users_and_groups_are_translated_both_ways() -> None:
    assert acl_to_shown(both(5, 6), UIDS, GIDS) == both(100005, 200006)
    assert acl_to_real(both(100005, 200006), UIDS, GIDS) == both(5, 6)


def test_identity_leaves_an_acl_alone() -> None:
    assert acl_to_shown(both(5, 6), IDENTITY, IDENTITY) == both(5, 6)
    assert acl_to_real(both(5, 6), IDENTITY, IDENTITY) == both(5, 6)


def test_unmapped_ids_are_shown_as_nobody() -> None:
    assert acl_to_shown(both(1000, 99999), UIDS, GIDS) == both(ACL_NOBODY, ACL_NOBODY)
    assert acl_to_shown(both(UNMAPPED, 0), UIDS, GIDS) == both(ACL_NOBODY, 200000)


def test_a_map_that_shows_the_id_of_nobody_does_not_give_it_the_rights_of_strangers() -> None:
    reaching = parse_triples(f"0:{ACL_NOBODY}:1")
    assert acl_to_shown(acl((USER, 7, 0)), reaching, GIDS) == acl((USER, 7, ACL_NOBODY))
    assert acl_to_shown(acl((USER, 7, 1)), reaching, GIDS) == acl((USER, 0, ACL_NOBODY))


@pytest.mark.parametrize(
    "value", [both(5, 200000), both(100000, 5), both(ACL_NOBODY, 200000), both(UNMAPPED, 200000)]
)
def test_storing_an_unmapped_id_is_an_overflow(value: bytes) -> None:
    refused(value, number=errno.EOVERFLOW)


def test_nobody_cannot_be_stored_even_where_ids_are_as_they_are() -> None:
    with pytest.raises(OSError, match=r".") as caught:
        acl_to_real(both(ACL_NOBODY, 0), IDENTITY, IDENTITY)
    assert caught.value.errno == errno.EOVERFLOW


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        both(1, 1)[:-1],
        both(1, 1) + b"\0",
        acl(version=1),
        acl((USER, 7, 1), version=3),
        acl((64, 7, 1)),
    ],
)
def test_malformed_acls_are_left_to_the_kernel_and_never_stored(value: bytes) -> None:
    assert acl_to_shown(value, UIDS, GIDS) == value
    refused(value, number=errno.EINVAL)


def test_an_acl_without_entries_is_one() -> None:
    assert acl_to_shown(acl(), UIDS, GIDS) == acl()
    assert acl_to_real(acl(), UIDS, GIDS) == acl()


PERMITTED, INHERITABLE, HIGH_P, HIGH_I = 0x1000, 0x2000, 0x4, 0x8
BODY = struct.pack("<4I", PERMITTED, INHERITABLE, HIGH_P, HIGH_I)


def v1(effective: int = 1) -> bytes:
    return struct.pack("<3I", 0x01000000 | effective, PERMITTED, INHERITABLE)


def v2(effective: int = 1, body: bytes = BODY) -> bytes:
    return struct.pack("<I", 0x02000000 | effective) + body


def v3(root: int, effective: int = 1, body: bytes = BODY) -> bytes:
    return struct.pack("<I", 0x03000000 | effective) + body + struct.pack("<I", root)


@pytest.mark.parametrize("effective", [0, 1])
def test_a_capability_of_the_layers_root_is_shown_for_the_root_of_the_map(effective: int) -> None:
    assert capability_to_shown(v2(effective), UIDS) == v3(100000, effective)
    assert capability_to_shown(v3(5, effective), UIDS) == v3(100005, effective)


def test_only_shown_id_0_gets_a_version_2() -> None:
    assert capability_to_shown(v2(), IDENTITY) == v2()
    assert capability_to_shown(v3(1000), IDENTITY) == v3(1000)
    assert capability_to_shown(v3(1000), parse_triples("1000:0:1")) == v2()


def test_a_capability_of_an_unmapped_root_is_hidden() -> None:
    assert capability_to_shown(v2(), parse_triples("1000:0:1")) is None
    assert capability_to_shown(v3(100000), UIDS) is None
    assert capability_to_shown(v3(UNMAPPED), IDENTITY) is None


def test_version_1_is_read_as_version_2() -> None:
    low = struct.pack("<4I", PERMITTED, INHERITABLE, 0, 0)
    assert capability_to_shown(v1(), IDENTITY) == v2(body=low)
    assert capability_to_shown(v1(0), UIDS) == v3(100000, 0, body=low)


MALFORMED = [
    b"",
    b"\1",
    v2()[:-1],
    v2() + b"\0",
    v3(0)[:-1],
    v3(0) + b"\0",
    b"\0" * 20,
    struct.pack("<I", 0x04000000) + BODY,
]


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_capability_is_hidden_and_never_stored(value: bytes) -> None:
    assert capability_to_shown(value, IDENTITY) is None
    _capability_refused(value, number=errno.EINVAL)


def _capability_refused(value: bytes, *, number: int) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        capability_to_real(value, UIDS)
    assert caught.value.errno == number


@pytest.mark.parametrize("value", [v1(), v2(effective=2), v3(100000, effective=4)])
def test_what_the_kernel_only_reads_is_not_stored(value: bytes) -> None:
    _capability_refused(value, number=errno.EINVAL)


@pytest.mark.parametrize("effective", [0, 1])
def test_a_capability_is_stored_with_the_real_root(effective: int) -> None:
    assert capability_to_real(v3(100005, effective), UIDS) == v3(5, effective)
    assert capability_to_real(v2(effective), parse_triples("1000:0:10")) == v3(1000, effective)
    assert capability_to_real(v2(effective), IDENTITY) == v2(effective)
    assert capability_to_real(v3(1000, effective), IDENTITY) == v3(1000, effective)


def test_under_a_map_nothing_is_stored_as_version_2() -> None:
    assert capability_to_real(v2(), parse_triples("0:0:65536")) == v3(0)


@pytest.mark.parametrize("value", [v2(), v3(0), v3(99999), v3(UNMAPPED)])
def test_storing_an_unmapped_root_is_an_overflow(value: bytes) -> None:
    _capability_refused(value, number=errno.EOVERFLOW)


# --- a mount that belongs to a user namespace ---

INSIDE = parse_triples("100000:0:1000")
"""The namespace's map, as ids are shown there: its root is the host's 100000."""
OTHER_IMAGE = parse_triples("5000:0:1000")
"""A map of the layer's ids to those inside."""
CROSSING = [
    (v2(), IDENTITY, v2()),
    (v2(0), IDENTITY, v2(0)),
    (v1(), IDENTITY, v2(body=struct.pack("<4I", PERMITTED, INHERITABLE, 0, 0))),
    (v2(), parse_triples("0:1000:10"), v3(1000)),
    (v2(), OTHER_IMAGE, None),
    (v3(100000), IDENTITY, v2()),
    (v3(100000), OTHER_IMAGE, v2()),
    (v3(100005, 0), IDENTITY, v3(5, 0)),
    (v3(0), IDENTITY, None),
    (v3(5), IDENTITY, None),
    (v3(101000), IDENTITY, None),
    (v3(UNMAPPED), IDENTITY, None),
]


@pytest.mark.parametrize(("stored", "uids", "shown"), CROSSING)
def test_inside_a_capability_is_that_of_the_image_or_of_the_namespaces_own_root(
    stored: bytes, uids: IdMap, shown: bytes | None
) -> None:
    """Without a root id it is the image's root's, whom the mark's map makes somebody inside; with one, it is that of
    the namespace whose root that is on the host, whatever the mark's map."""
    assert capability_to_inside(stored, uids, INSIDE) == shown


@pytest.mark.parametrize("value", MALFORMED)
def test_inside_a_malformed_capability_is_hidden_and_never_stored(value: bytes) -> None:
    assert capability_to_inside(value, IDENTITY, INSIDE) is None
    _inside_refused(value, INSIDE, number=errno.EINVAL)


def _inside_refused(value: bytes, inside: IdMap, *, number: int) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        capability_from_inside(value, inside)
    assert caught.value.errno == number


@pytest.mark.parametrize("effective", [0, 1])
def test_what_is_set_inside_is_stored_for_the_namespaces_root(effective: int) -> None:
    assert capability_from_inside(v2(effective), INSIDE) == v3(100000, effective)
    assert capability_from_inside(v3(0, effective), INSIDE) == v3(100000, effective)
    assert capability_from_inside(v3(5, effective), INSIDE) == v3(100005, effective)


@pytest.mark.parametrize("root", [1000, 100000, UNMAPPED])
def test_inside_nothing_is_set_for_whoever_is_not_there(root: int) -> None:
    _inside_refused(v3(root), INSIDE, number=errno.EOVERFLOW)


@pytest.mark.parametrize("inside", ["0:0:1000", "0:0:4294967295", "1000:1000:10"])
@pytest.mark.parametrize("value", [v2(), v3(0), v3(5)])
def test_nothing_is_set_in_a_namespace_whose_root_is_the_hosts_or_nobody(value: bytes, inside: str) -> None:
    _inside_refused(value, parse_triples(inside), number=errno.EPERM)


def test_nothing_is_set_for_the_hosts_root_where_it_has_another_number() -> None:
    inside = parse_triples("100000:0:5:0:5:1")
    assert capability_from_inside(v3(4), inside) == v3(100004)
    _inside_refused(v3(5), inside, number=errno.EPERM)


@pytest.mark.parametrize("value", [v2(), v2(0), v3(0), v3(5)])
def test_what_is_set_inside_is_shown_there_as_it_was_set(value: bytes) -> None:
    shown = capability_to_inside(capability_from_inside(value, INSIDE), OTHER_IMAGE, INSIDE)
    assert shown == (v2() if value == v3(0) else value)


@pytest.mark.parametrize("value", [v2(), v3(0), v3(5), v3(999)])
def test_what_is_set_inside_is_nothing_to_the_host_or_to_others(value: bytes) -> None:
    stored = capability_from_inside(value, INSIDE)
    assert stored[3] == 3
    assert struct.unpack_from("<I", stored, 20)[0] >= 100000
    assert capability_to_inside(stored, IDENTITY, parse_triples("300000:0:1000")) is None
