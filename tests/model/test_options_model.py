"""Whatever is typed is understood or is a UsageError of one printable line."""

from hypothesis import given
from hypothesis import strategies as st

from shiftfs import vocabulary
from shiftfs.options import MountOptions, UsageError, parse_command_line
from shiftfs.shift.idmap import IdMap, MapError

NAMES = st.sampled_from(sorted(vocabulary.KNOWN))
VALUES = st.just("") | st.text('=:0123456789,"\\.-', max_size=12).map("=".__add__)
LISTS = st.lists(st.tuples(NAMES, VALUES).map("".join), min_size=1).map(",".join)
LETTERS = st.sampled_from(["-f", "-d", "-o", "--", "-", "-h", "-N", "-t", "-s", "/src", "/mnt", "-oro"])
ANY = st.text(st.characters(), max_size=20)  # lone surrogates and NUL as well


def no_maps(option: str, value: str) -> tuple[IdMap, IdMap]:
    raise MapError(f"there are none for {option!r} {value!r}")


@given(
    st.lists(ANY | LETTERS | LISTS.map("-o".__add__), max_size=6),
    st.sampled_from(["shiftfs", "/sbin/mount.shiftfs"]),
    st.booleans(),
    st.booleans(),
)
def test_any_command_line_is_understood_or_refused(
    argv: list[str], program: str, is_root: bool, is_whole: bool
) -> None:
    if is_whole:
        argv = ["/src", "/mnt", *argv]
    try:
        parsed = parse_command_line(argv, program=program, is_root=is_root, resolve_maps=no_maps)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1, "more than one line"
        assert str(error).encode(), "not printable"
        return
    if isinstance(parsed, MountOptions):
        assert parsed.source or parsed.lowerdirs
        assert parsed.mountpoint
        assert not (parsed.allow_other and parsed.allow_root)
        assert (parsed.upperdir is None) == (parsed.workdir is None)
        assert parsed.upperdir is not None or not parsed.lowerdirs or parsed.read_only
        assert is_root or not (parsed.dev or parsed.suid)
