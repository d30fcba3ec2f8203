"""The command line: what it becomes, what is refused, and in which words."""


import pytest

from shiftfs import __version__, arguments, vocabulary
from shiftfs.options import Help, MountOptions, UsageError, Version, parse_command_line
from shiftfs.shift.idmap import IDENTITY, IdMap, MapError, parse_triples

UIDS, GIDS = parse_triples("0:100000:65536"), parse_triples("0:200000:65536")


def no_maps(option: str, value: str) -> tuple[IdMap, IdMap]:
    raise MapError("there are none in this test")


def parse(*argv: str, program: str = "shiftfs", is_root: bool = True) -> MountOptions:
    parsed = parse_command_line(argv, program=program, is_root=is_root, resolve_maps=no_maps)
    assert isinstance(parsed, MountOptions)
    return parsed


def with_o(text: str, *, is_root: bool = True) -> MountOptions:
    return parse("-o", text, "/src", "/mnt", is_root=is_root)


def refusal(*argv: str, program: str = "shiftfs", is_root: bool = True) -> str:
    with pytest.raises(UsageError) as caught:
        parse_command_line(argv, program=program, is_root=is_root, resolve_maps=no_maps)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusal_of(text: str, *, is_root: bool = True) -> str:
    return refusal("-o", text, "/src", "/mnt", is_root=is_root)


# --- letters and operands ---


def test_the_defaults_of_root_and_of_a_user() -> None:
    user = MountOptions(b"/src", b"/mnt")
    assert parse("/src", "/mnt", is_root=False) == user
    assert parse("/src", "/mnt") == user._replace(allow_other=True, suid=True)
    assert (user.timeout, user.watch, user.subtype, user.open, user.default_permissions) == (
        1.0,
        "auto",
        b"shiftfs",
        "auto",
        True,
    )
    assert (user.uidmap, user.gidmap) == (IDENTITY, IDENTITY)
    assert not (user.atime or user.dev or user.suid or user.allow_other or user.read_only)


@pytest.mark.parametrize(
    "argv",
    [
        ["-f", "-o", "ro", "/src", "/mnt"],
        ["/src", "/mnt", "-f", "-o", "ro"],
        ["/src", "-fo", "ro", "/mnt"],
        ["-foro", "/src", "/mnt"],
        ["-oro", "-f", "--", "/src", "/mnt"],
    ],
)
def test_options_stand_anywhere(argv: list[str]) -> None:
    assert parse(*argv) == parse("/src", "/mnt")._replace(foreground=True, read_only=True)


def test_options_stand_anywhere_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSIXLY_CORRECT", "1")
    assert parse("/src", "/mnt", "-o", "ro").read_only


def test_repeated_o_are_one_list() -> None:
    parsed = parse("-o", "ro,timeout=2", "/src", "/mnt", "-otimeout=3,noexec", "-o", "")
    assert (parsed.read_only, parsed.timeout, parsed.exec) == (True, 3.0, False)


@pytest.mark.parametrize("argv", [["-d"], ["--debug"], ["-o", "debug"]])
def test_debugging_stays_in_the_foreground(argv: list[str]) -> None:
    parsed = parse(*argv, "/src", "/mnt")
    assert (parsed.debug, parsed.foreground) == (True, True)


def test_foreground_is_not_debugging() -> None:
    parsed = parse("-f", "/src", "/mnt")
    assert (parsed.debug, parsed.foreground) == (False, True)


def test_after_two_dashes_all_are_operands() -> None:
    parsed = parse("--", "-f", "-o")
    assert (parsed.source, parsed.mountpoint, parsed.foreground) == (b"-f", b"-o", False)


def test_names_that_are_not_utf8_come_through() -> None:
    parsed = parse("/s\udcff", "/m\udcfe", "-o", "fsname=n\udcfd")
    assert (parsed.source, parsed.mountpoint, parsed.fsname) == (b"/s\xff", b"/m\xfe", b"n\xfd")


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["/src", "-h"], ["-o", "nonsense", "--help"]])
def test_help(argv: list[str]) -> None:
    parsed = parse_command_line(argv, is_root=True)
    assert isinstance(parsed, Help)
    assert parsed.text.startswith("usage: shiftfs [-f] [-d] [-o OPT[,OPT]...]... [SOURCE] MOUNTPOINT\n")


def test_help_lists_every_option() -> None:
    said = set(arguments.HELP.replace("=", " ").replace(",", " ").replace(".", " ").split())
    does_nothing_alone = {"norelatime", "nostrictatime", "nolazytime"}
    flags = {word.partition("=")[0] for word in vocabulary.FLAGS}
    missing = {*flags, *vocabulary.VALUED, *vocabulary.IGNORED} - does_nothing_alone - said
    assert not missing


@pytest.mark.parametrize("argv", [["-V"], ["--version", "/src"]])
def test_version(argv: list[str]) -> None:
    assert parse_command_line(argv, is_root=True) == Version(f"shiftfs {__version__}\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "SOURCE and MOUNTPOINT are missing"),
        (["/src"], "MOUNTPOINT is missing"),
        (["a", "b", "c d"], "'c d' is one too many"),
        (["", "/mnt"], "cannot be empty"),
        (["-x", "a", "b"], "unknown option '-x'"),
        (["-fx", "a", "b"], "unknown option '-fx'"),
        (["--verbose", "a", "b"], "unknown option '--verbose'"),
        (["a", "b", "-o"], "-o needs an argument"),
    ],
)
def test_a_wrong_command_line_is_answered_with_the_right_one(argv: list[str], said: str) -> None:
    text = refusal(*argv)
    assert said in text
    assert text.endswith("; usage: shiftfs [-f] [-d] [-o OPT[,OPT]...]... [SOURCE] MOUNTPOINT")


# --- as a helper of mount(8) ---


@pytest.mark.parametrize("program", ["mount.shiftfs", "/sbin/mount.fuse.shiftfs"])
def test_mount_runs_us_with_its_own_letters(program: str) -> None:
    argv = ["/src", "/mnt", "-sfnv", "-o", "rw,dev,suid,timeout=5", "-t", "fuse.shiftfs"]
    parsed = parse(*argv, program=program)
    assert parsed == parse("/src", "/mnt")._replace(fake=True, timeout=5.0, read_only=False)
    assert not parse("/src", "/mnt", program=program).fake


def test_sloppy_tolerates_the_unknown_but_not_the_unsupported() -> None:
    parsed = parse("/src", "/mnt", "-s", "-o", "strange=1,ro", program="mount.shiftfs")
    assert parsed.read_only
    assert "'strange'" in parsed.notes[0]
    assert "nfs_export" in refusal("/src", "/mnt", "-s", "-o", "nfs_export=on", program="mount.shiftfs")
    assert "'strange'" in refusal("/src", "/mnt", "-o", "strange=1", program="mount.shiftfs")


def test_another_mount_namespace_is_not_ignored() -> None:
    assert "-N is not supported" in refusal("/src", "/mnt", "-N", "/proc/1/ns/mnt", program="mount.shiftfs")


def test_a_helper_shows_its_own_usage() -> None:
    assert refusal("-d", program="mount.shiftfs").endswith(
        "usage: mount.shiftfs SOURCE MOUNTPOINT [-sfnv] [-o OPT[,OPT]...]... [-t TYPE]"
    )


# --- flags ---


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("ro", "read_only", True),
        ("ro,rw", "read_only", False),
        ("nosuid", "suid", False),
        ("nosuid,suid", "suid", True),
        ("allow_root", "allow_other", False),
        ("allow_root", "allow_root", True),
        ("allow_root,allow_other", "allow_root", False),
        ("dev", "dev", False),
        ("allow_dev", "dev", True),
        ("nodev,allow_dev", "dev", False),
        ("allow_dev,nodev,dev", "dev", False),
        ("noexec", "exec", False),
        ("noexec,exec", "exec", True),
        ("atime", "atime", True),
        ("relatime", "atime", True),
        ("strictatime", "atime", True),
        ("norelatime", "atime", False),
        ("atime,noatime", "atime", False),
        ("atime", "diratime", True),
        ("diratime", "diratime", False),
        ("atime,nodiratime", "diratime", False),
        ("nodiratime,diratime,atime", "diratime", True),
        ("sync", "sync", True),
        ("sync,async", "sync", False),
        ("sync=1", "sync", False),
        ("dirsync", "dirsync", True),
        ("default_permissions", "default_permissions", True),
    ],
)
def test_flags(text: str, field: str, *, expected: bool) -> None:
    assert getattr(with_o(text), field) is expected


def test_a_user_cannot_have_devices_and_is_told_that_suid_does_nothing() -> None:
    assert "allow_dev needs root" in refusal_of("allow_dev", is_root=False)
    assert not with_o("allow_dev,nodev", is_root=False).dev
    parsed = with_o("rw,dev,suid", is_root=False)
    assert not parsed.suid
    assert "suid does nothing here" in parsed.notes[0]


def test_a_flag_takes_no_value() -> None:
    assert refusal_of("ro=1") == "'ro=1' cannot be: ro takes no value; write ro alone"


# --- values ---


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("timeout=0", "timeout", 0.0),
        ("timeout=.5", "timeout", 0.5),
        ("timeout=1000000000", "timeout", 1e9),
        ("timeout=1,timeout=2", "timeout", 2.0),
        ("max_write=0", "max_write", 0),
        ("max_write=131072", "max_write", 131072),
        ("open=refuse", "open", "refuse"),
        ("open=serve", "open", "serve"),
        *((f"passthrough={word}", "passthrough", word) for word in ("auto", "on", "off")),
        *((f"watch={word}", "watch", word) for word in ("auto", "fanotify", "inotify", "off")),
        ("watch=off,watch=auto", "watch", "auto"),
        ("fsname=a=b", "fsname", b"a=b"),
        ("fsname=a\\,b\\:c\\\\d\\e", "fsname", b"a,b:c\\d\\e"),
        ('fsname="a,b"', "fsname", b"a,b"),
        ('fsname=\\"a', "fsname", b'"a'),
        ("subtype=other", "subtype", b"other"),
        ("context=u:r:t", "kernel_options", (b"context=u:r:t",)),
        (
            'fscontext=f,context="u:r:t:s0:c1,c2"',
            "kernel_options",
            (b"context=u:r:t:s0:c1,c2", b"fscontext=f"),
        ),
        ("defcontext=a,rootcontext=b", "kernel_options", (b"defcontext=a", b"rootcontext=b")),
    ],
)
def test_values(text: str, field: str, expected: object) -> None:
    assert getattr(with_o(text), field) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *(
            (f"timeout={value}", "seconds from 0")
            for value in ("-1", "nan", "inf", "1e3", "", "1000000001", "9" * 400)
        ),
        *((f"max_write={value}", "131072 to 1048576") for value in ("1", "131071", "1048577", "-1", "x", "")),
        *((f"open={value}", "auto, refuse or serve") for value in ("", "maybe", "Auto")),
        *((f"watch={value}", "auto, fanotify, inotify or off") for value in ("", "on", "Off", "fanotify:inotify")),
        ("fsname=", "a name"),
        ("context=", "a security context"),
        ('context=\\"a', "a security context"),
    ],
)
def test_a_bad_value_is_refused_with_its_option_and_what_is_allowed(text: str, said: str) -> None:
    message = refusal_of(text)
    assert said in message
    assert message.startswith((repr(text), repr(text.replace("\\", ""))))


@pytest.mark.parametrize("name", ["timeout", "uidmapping", "userns", "subid", "open", "watch", "fsname"])
def test_a_value_left_out_is_asked_for(name: str) -> None:
    assert refusal_of(name).startswith(f"{name} needs a value: ")


def test_a_quote_must_be_closed() -> None:
    assert "double quote that is not closed" in refusal_of('fsname="a,ro')


# --- maps ---


def test_maps_are_read() -> None:
    parsed = with_o("uidmapping=:0:100000:65536,gidmapping=0:200000:65536")
    assert (parsed.uidmap, parsed.gidmap) == (UIDS, GIDS)


def test_one_map_alone_leaves_the_other_ids_as_they_are() -> None:
    assert with_o("gidmapping=0:200000:65536").uidmap is IDENTITY
    assert with_o("uidmapping=0:100000:65536").gidmap is IDENTITY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uidmapping=", "uidmapping: the map is empty"),
        ("uidmapping=0:1", "uidmapping: '0:1' is not REAL:SHOWN:COUNT"),
        ("gidmapping=0:0:5:4:9:1", "gidmapping: 4:9:1 overlaps 0:0:5"),
        ("uidmapping=0:1:1,uidmapping=0:2:1", "uidmapping is given twice, as '0:1:1' and as '0:2:1'"),
        ("userns=1,userns=2", "userns is given twice"),
        ("uidmapping=0:1:1,userns=1", "uidmapping and userns cannot go together"),
        ("subid=me,gidmapping=0:1:1", "gidmapping and subid cannot go together"),
        ("subid=me,userns=1", "subid and userns cannot go together"),
        ("userns=7", "'userns=7' gives no maps: there are none in this test"),
        ("subid=", "'subid=' cannot be"),
    ],
)
def test_maps_that_cannot_be(text: str, said: str) -> None:
    assert said in refusal_of(text)


def test_a_map_may_be_repeated() -> None:
    assert with_o("uidmapping=0:100000:65536,uidmapping=0:100000:65536").uidmap == UIDS


@pytest.mark.parametrize(("option", "value"), [("userns", "42"), ("userns", "/run/ns"), ("subid", "me")])
def test_maps_named_by_something_else_are_asked_for(option: str, value: str) -> None:
    asked = []

    def resolve(*question: str) -> tuple[IdMap, IdMap]:
        asked.append(question)
        return UIDS, GIDS

    argv = ["-o", f"{option}={value}", "/src", "/mnt"]
    parsed = parse_command_line(argv, is_root=True, resolve_maps=resolve)
    assert isinstance(parsed, MountOptions)
    assert (parsed.uidmap, parsed.gidmap, asked) == (UIDS, GIDS, [(option, value)])


# --- names ---

def test_what_would_show_other_files_is_refused_not_ignored() -> None:
    assert refusal_of("nfs_export=on").startswith("nfs_export is not supported in this version")
    assert refusal_of("lowerdir=/l,nfs_export=on").startswith("nfs_export is not supported in this version")


NOTHING = """threaded=1 fsync=0 fast_ino=1 fast_ino_check=1 plugins=p splice_write splice_read
    splice_move kernel_cache private"""


@pytest.mark.parametrize("text", NOTHING.split())
def test_what_does_nothing_is_accepted_and_said_once(text: str) -> None:
    parsed = with_o(f"{text},{text}")
    assert parsed._replace(notes=()) == parse("/src", "/mnt")
    assert len(parsed.notes) == 1
    assert parsed.notes[0].startswith(f"{text.partition('=')[0]} does nothing here: ")


@pytest.mark.parametrize("text", ["writeback", "writeback=1", "writeback=0,writeback", "watch=off,writeback"])
def test_writeback_says_that_nobody_else_changes_the_layers(text: str) -> None:
    """So there is nothing to watch for, and the mount's own page cache has what is written."""
    parsed = with_o(text)
    assert parsed == parse("/src", "/mnt")._replace(writeback=True, watch="off", passthrough="off")


@pytest.mark.parametrize("text", ["writeback=0", "writeback,writeback=0"])
def test_no_writeback(text: str) -> None:
    assert with_o(text) == parse("/src", "/mnt")


def test_writeback_where_nothing_is_written() -> None:
    for text in ("ro,writeback", "writeback,ro", "ro,writeback,watch=inotify"):
        parsed = with_o(text)
        assert not parsed.writeback and parsed.watch == ("inotify" if "inotify" in text else "auto")
        assert parsed.notes == ("writeback does nothing here: nothing is written",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("writeback,watch=auto", "watch=auto"),
        ("watch=fanotify,writeback", "watch=fanotify"),
        ("writeback,locks=layers", "locks=layers"),
        ("writeback,passthrough=on", "passthrough=on"),
        ("writeback,mark", "mark"),
    ],
)
def test_what_writeback_excludes(text: str, named: str) -> None:
    assert refusal_of(text).startswith(f"writeback and {named} cannot go together: ")


def test_writeback_takes_no_other_value() -> None:
    assert refusal_of("writeback=2") == "'writeback=2' cannot be: writeback takes no value; write writeback alone"


def test_words_for_mount_alone_are_dropped() -> None:
    words = "defaults,auto,noauto,nofail,_netdev,user,user=me,users,owner,group,nouser,comment=hello,,rw"
    parsed = with_o(f"{words},x-systemd.automount,X-mount.mkdir=0755")
    assert parsed == parse("/src", "/mnt")._replace(read_only=False)
    assert not parsed.notes


@pytest.mark.parametrize(
    ("name", "near"), [("uidmaping", "uidmapping"), ("timout=3", "timeout"), ("allow_others", "allow_other")]
)
def test_an_unknown_option_is_named_with_the_nearest_known_one(name: str, near: str) -> None:
    assert refusal_of(name) == f"unknown option {name.partition('=')[0]!r}; did you mean {near}?"


def test_an_option_like_no_other_is_pointed_to_the_help() -> None:
    assert refusal_of("qqqqq") == "unknown option 'qqqqq'; --help lists those there are"
