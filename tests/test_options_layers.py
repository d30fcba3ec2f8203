r"""The options of layers: paths with every character, what goes together, what is forced, what is refused."""


import pytest

from shiftfs.options import MountOptions, UsageError, parse_command_line

PAIR = "upperdir=/u,workdir=/w"


def parse(text: str, *operands: str) -> MountOptions:
    parsed = parse_command_line(["-o", text, *(operands or ("/mnt",))], is_root=True)
    assert isinstance(parsed, MountOptions)
    return parsed


def refusal(text: str, *operands: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(text, *operands)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_layers_stand_in_the_order_in_which_they_were_given() -> None:
    parsed = parse(f"lowerdir=/top:/middle:/bottom,{PAIR}")
    assert parsed.lowerdirs == (b"/top", b"/middle", b"/bottom")
    assert (parsed.upperdir, parsed.workdir, parsed.read_only) == (b"/u", b"/w", False)


@pytest.mark.parametrize(
    ("text", "lowers"),
    [
        ("lowerdir=l/ABC/../diff1:l/DEF", (b"l/ABC/../diff1", b"l/DEF")),
        (r"lowerdir=/a\:b:/c", (b"/a:b", b"/c")),
        (r"lowerdir=/a\\:/b", (b"/a\\", b"/b")),
        (r"lowerdir=/a\\\:b", (b"/a\\:b",)),
        (r"lowerdir=/a\,b:/c", (b"/a,b", b"/c")),
        ('lowerdir="/a,b:/c"', (b"/a,b", b"/c")),
        (r'lowerdir="/a,b\:c":/d', (b"/a,b:c", b"/d")),
        (r"lowerdir=/a\"b", (b'/a"b',)),
        (r"lowerdir=/a\b", (b"/a\\b",)),
        ("lowerdir=/a=b:/c d", (b"/a=b", b"/c d")),
        ("lowerdir=/\udcff", (b"/\xff",)),
        ("lowerdir=/a,lowerdir=/b", (b"/b",)),
    ],
)
def test_a_lower_path_may_have_any_character(text: str, lowers: tuple[bytes, ...]) -> None:
    assert parse(text).lowerdirs == lowers


@pytest.mark.parametrize(
    ("text", "upper"), [(r"upperdir=/a\:b", b"/a:b"), ("upperdir=/a:b", b"/a:b"), ('upperdir="/a,b"', b"/a,b")]
)
def test_an_upper_path_is_one_whatever_is_in_it(text: str, upper: bytes) -> None:
    assert parse(f"lowerdir=/l,{text},workdir=/w").upperdir == upper


@pytest.mark.parametrize("text", ["lowerdir=", "lowerdir=:", "lowerdir=/a:", "lowerdir=:/a", "lowerdir=/a::/b"])
def test_an_empty_lower_is_refused(text: str) -> None:
    assert refusal(text).startswith(f"{text!r} cannot be; lowerdir takes directories from top to bottom")


def test_500_lowers_are_the_most() -> None:
    many = ":".join(f"/l{number}" for number in range(500))
    assert len(parse(f"lowerdir={many}").lowerdirs) == 500
    assert refusal(f"lowerdir={many}:/l500") == "lowerdir names 501 directories; give 500 at most"


def test_a_source_may_be_left_out_where_there_are_layers() -> None:
    assert parse("lowerdir=/l").source is None
    assert parse("lowerdir=/l", "shown", "/mnt") == parse("lowerdir=/l")._replace(source=b"shown")


@pytest.mark.parametrize(
    ("operands", "said"),
    [
        ([], "MOUNTPOINT is missing; usage: "),
        (["a", "b", "c"], "'c' is one too many; usage: "),
        ([""], "cannot be empty; usage: "),
    ],
)
def test_the_mountpoint_may_not(operands: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command_line(["-o", "lowerdir=/l", *operands], is_root=True)
    assert said in str(caught.value)


def test_the_defaults() -> None:
    parsed = parse(f"lowerdir=/l,{PAIR}")
    assert (parsed.redirect_dir, parsed.metacopy, parsed.index, parsed.ghost) == ("auto", False, True, "keep")
    assert not (parsed.volatile or parsed.userxattr or parsed.notes)


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        *((f"redirect_dir={word}", "redirect_dir", word) for word in ("auto", "on", "off", "follow", "nofollow")),
        ("metacopy=on", "metacopy", True),
        ("metacopy=on,metacopy=off", "metacopy", False),
        ("index=on", "index", True),
        ("index=off", "index", False),
        ("volatile", "volatile", True),
        ("userxattr", "userxattr", True),
        ("ghost=keep", "ghost", "keep"),
        ("ghost=drop", "ghost", "drop"),
        ("watch=inotify", "watch", "inotify"),
    ],
)
def test_how_layers_are_stacked(text: str, field: str, expected: object) -> None:
    assert getattr(parse(f"lowerdir=/l,{PAIR},{text}"), field) == expected


@pytest.mark.parametrize("value", ["on", "off", "auto"])
def test_inode_numbers_need_no_option(value: str) -> None:
    parsed = parse(f"lowerdir=/l,{PAIR},xino={value}")
    assert parsed._replace(notes=()) == parse(f"lowerdir=/l,{PAIR}")
    assert parsed.notes == ("xino does nothing here: inode numbers are always unique over the layers",)


@pytest.mark.parametrize("text", ["lowerdir=/l", "rw,lowerdir=/l", "lowerdir=/l,rw"])
def test_without_an_upper_the_mount_is_read_only(text: str) -> None:
    assert parse(text).read_only


def test_without_an_upper_volatile_is_told_to_do_nothing() -> None:
    parsed = parse("lowerdir=/l,volatile")
    assert not parsed.volatile
    assert parsed.notes == ("volatile does nothing here: nothing is written without upperdir",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lowerdir=/l,upperdir=/u", "upperdir needs workdir: add workdir=DIRECTORY, or omit upperdir"),
        ("lowerdir=/l,workdir=/w", "workdir needs upperdir: add upperdir=DIRECTORY, or omit workdir"),
        ("lowerdir=/l,upperdir=,workdir=/w", "'upperdir=' cannot be"),
        ("lowerdir=/l,upperdir", "upperdir needs a value"),
        ("lowerdir", "lowerdir needs a value"),
        ("lowerdir=/l,redirect_dir=maybe", "'redirect_dir=maybe' cannot be; redirect_dir takes auto, on, off, follow"),
        ("lowerdir=/l,metacopy=1", "'metacopy=1' cannot be; metacopy takes on or off"),
        ("lowerdir=/l,index=", "'index=' cannot be; index takes on or off"),
        ("lowerdir=/l,ghost=on", "'ghost=on' cannot be; ghost takes keep or drop"),
        ("lowerdir=/l,ghost", "ghost needs a value: keep or drop"),
        ("lowerdir=/l,volatile=1", "volatile takes no value"),
        ("lowerdir=/l,userxattr=on", "userxattr takes no value"),
        *(
            (f"lowerdir=/l,{PAIR},metacopy=on,redirect_dir={word}", f"metacopy=on and redirect_dir={word} cannot go")
            for word in ("off", "follow", "nofollow")
        ),
    ],
)
def test_what_cannot_be_stacked_is_refused(text: str, said: str) -> None:
    assert said in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "upperdir=/u",
        "workdir=/w",
        "redirect_dir=on",
        "metacopy=off",
        "index=on",
        "volatile",
        "userxattr",
        "xino=off",
        "ghost=keep",
    ],
)
def test_what_is_for_layers_alone_is_refused_without_any(text: str) -> None:
    name = text.partition("=")[0]
    assert refusal(text, "/src", "/mnt") == (
        f"{name} needs layers: add lowerdir=TOP:...:BOTTOM, or omit {name}"
    )
    assert refusal(f"{PAIR},{text}", "/src", "/mnt").startswith("upperdir needs layers")
