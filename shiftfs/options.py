"""The command line and `-o` text -> MountOptions.

Owns every option's name, meaning and default, and the words of every error about them. Never mounts, and
never looks at SOURCE or MOUNTPOINT. Main thread, before the mount.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from . import __version__, arguments, usermaps
from .arguments import UsageError
from .shift.idmap import IDENTITY, IdMap, MapError, parse_triples

__all__ = ["Help", "MountOptions", "UsageError", "Version", "parse_command_line"]

ResolveMaps = Callable[[str, str], tuple[IdMap, IdMap]]


class Help(NamedTuple):
    """--help was asked for."""

    text: str


class Version(NamedTuple):
    """--version was asked for."""

    text: str


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What to mount, and how. The defaults are a user's; root's differ in allow_other and suid."""

    source: bytes
    mountpoint: bytes
    foreground: bool = False
    debug: bool = False
    fake: bool = False  # mount(8) -f: everything but the mount itself
    read_only: bool = False
    allow_other: bool = False
    allow_root: bool = False  # never together with allow_other
    default_permissions: bool = True  # always: the kernel checks rights, against shown ids
    suid: bool = False
    dev: bool = False
    exec: bool = True
    atime: bool = False
    diratime: bool = False  # True only with atime
    sync: bool = False
    dirsync: bool = False
    timeout: float = 1.0  # seconds
    max_write: int = 0  # bytes; 0 leaves it to the negotiation
    open: Literal["auto", "refuse", "serve"] = "auto"
    fsname: bytes | None = None
    subtype: bytes = b"shiftfs"
    uidmap: IdMap = IDENTITY
    gidmap: IdMap = IDENTITY
    kernel_options: tuple[bytes, ...] = ()  # NAME=VALUE, bare: who joins them quotes the commas
    notes: tuple[str, ...] = ()  # what was accepted and does nothing; said at -d


# --- what there is ---

_FLAGS: Final[Mapping[str, Mapping[str, bool]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "allow_other": {"allow_other": True, "allow_root": False},
    "allow_root": {"allow_other": False, "allow_root": True},
    "default_permissions": {},
    "suid": {"suid": True},
    "nosuid": {"suid": False},
    # mount(8) gives `dev` to whatever it runs, so it tells nothing of what the user wants; allow_dev does.
    "dev": {},
    "nodev": {"nodev": True},
    "allow_dev": {"allow_dev": True},
    "exec": {"exec": True},
    "noexec": {"exec": False},
    "atime": {"atime": True},
    "noatime": {"atime": False},
    # How often a time is updated is for the layer's own mount to decide, since the inode is the layer's.
    "relatime": {"atime": True},
    "strictatime": {"atime": True},
    "norelatime": {},
    "nostrictatime": {},
    "diratime": {"diratime": True},
    "nodiratime": {"diratime": False},
    "sync": {"sync": True},
    "async": {"sync": False},
    "dirsync": {"dirsync": True},
    "debug": {"debug": True},
}

# Said to mount(8), the boot, or whoever reads /etc/fstab (mount(8), fstab(5), systemd.mount(5)). Where one
# implies something for us (`user` means noexec, nosuid and nodev), mount(8) has added that.
_FOR_MOUNT: Final = frozenset(
    {
        "defaults",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "comment",
        "uhelper",
        "silent",
        "loud",
    }
)

_IGNORED: Final[Mapping[str, str]] = {
    "threaded": "one loop serves all requests",
    "fsync": "fsync always reaches the layer",
    "sync": "fsync always reaches the layer; `sync` without a value is the mount flag",
    "fast_ino": "inode numbers cost nothing extra",
    "fast_ino_check": "inode numbers cost nothing extra",
    "writeback": "the kernel would trust its own sizes and times where the layer's have changed",
    "plugins": "there are no plugins",
    "splice_write": "requests are read and answered without splice",
    "splice_read": "requests are read and answered without splice",
    "splice_move": "requests are read and answered without splice",
    "kernel_cache": "what the kernel may cache follows from timeout= and open=",
    "private": "the mount propagates as its parent does",
    "lazytime": "times are kept by the layer",
    "nolazytime": "times are kept by the layer",
}

# Ignoring one of these would show other names, owners or contents than were asked for.
_UNSUPPORTED: Final = frozenset(
    {
        "lowerdir",
        "upperdir",
        "workdir",
        "redirect_dir",
        "metacopy",
        "index",
        "volatile",
        "nfs_export",
        "userxattr",
        "squash_to_root",
        "squash_to_uid",
        "squash_to_gid",
        "noacl",
        "noxattrs",
        "xattr_permissions",
        "static_nlink",
        "ino32_t",
        "xino",
    }
)

_KERNEL: Final = ("context", "fscontext", "defcontext", "rootcontext")
_MAPS: Final = ("uidmapping", "gidmapping", "userns", "subid")


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", value, re.ASCII) or float(value) > 1e9:
        raise ValueError
    return float(value)


def _write_size(value: str) -> int:
    # It bounds answers too, in pages: with less, the kernel has no room for the reports of shiftfsctl.
    if not re.fullmatch("[0-9]{1,7}", value, re.ASCII) or not (value == "0" or 1 << 17 <= int(value) <= 1 << 20):
        raise ValueError
    return int(value)


def _one_of(*words: str) -> Callable[[str], str]:
    def convert(value: str) -> str:
        if value not in words:
            raise ValueError
        return value

    return convert


def _name(value: str) -> bytes:
    if not value:
        raise ValueError
    return os.fsencode(value)


def _context(value: str) -> bytes:
    if '"' in value:  # could not be quoted for the kernel
        raise ValueError
    return _name(value)


class _Valued(NamedTuple):
    """`convert` raises ValueError for what is not allowed; `allowed` says what is."""

    convert: Callable[[str], Any]
    allowed: str


_TRIPLES = _Valued(parse_triples, "triples REAL:SHOWN:COUNT joined by colons")
_VALUED: Final[Mapping[str, _Valued]] = {
    "uidmapping": _TRIPLES,
    "gidmapping": _TRIPLES,
    "userns": _Valued(_name, "the PID of a process in the user namespace, or the path of its file"),
    "subid": _Valued(_name, "a user that has ranges in /etc/subuid and /etc/subgid"),
    "timeout": _Valued(_seconds, "seconds from 0 to 1000000000, such as 1 or 0.5"),
    "max_write": _Valued(_write_size, "bytes from 131072 to 1048576, or 0 for the default"),
    "open": _Valued(_one_of("auto", "refuse", "serve"), "auto, refuse or serve"),
    "fsname": _Valued(_name, "a name to be shown as the source"),
    "subtype": _Valued(_name, "a name to be shown as the type"),
    **{name: _Valued(_context, "a security context without double quotes") for name in _KERNEL},
}

_KNOWN: Final = sorted({*_FLAGS, *_VALUED, *_IGNORED, *_UNSUPPORTED, *_FOR_MOUNT})

# --- the command line ---


def parse_command_line(
    argv: Sequence[str],
    *,
    program: str = "shiftfs",
    is_root: bool,
    resolve_maps: ResolveMaps = usermaps.resolve,
) -> MountOptions | Help | Version:
    """Parse the words after the program's name.

    `program` is how it was called: as `mount.TYPE` it takes the arguments of a mount(8) helper. `is_root`
    chooses the defaults. `resolve_maps(option, value)` reads what `userns=` and `subid=` name and raises
    MapError. Raises UsageError, and nothing else.
    """
    name = os.path.basename(program)
    is_helper = name.startswith("mount.")
    syntax = arguments.HELPER if is_helper else arguments.PROGRAM
    usage = f"usage: {name} {syntax.synopsis}"
    arguments.check_words(argv)
    letters, operands = arguments.split(argv, syntax, usage)
    given = [letter for letter, _ in letters]
    if "h" in given:
        return Help(f"{usage}\n{arguments.HELP}")
    if "V" in given:
        return Version(f"shiftfs {__version__}\n")
    if "N" in given:
        raise UsageError(
            "-N is not supported; run mount inside that namespace: nsenter --mount=FILE mount ..."
        )
    # -n and -v change nothing: we write no mtab and have no more to say. -t repeats what mount(8) ran us for.
    parsed = _Options(is_root=is_root, is_sloppy="s" in given)
    for text in (value for letter, value in letters if letter == "o"):
        for word in _words(text):
            parsed.take(word)
    # Before the operands: callers of an overlay give MOUNTPOINT alone, and want to be told of lowerdir=.
    fields = parsed.fields(resolve_maps)
    source, mountpoint = arguments.two_operands(operands, usage)
    fields["debug"] |= "d" in given
    fields["fake"] = is_helper and "f" in given
    # Debugging stays in the foreground, as libfuse has it.
    fields["foreground"] = fields["debug"] or (not is_helper and "f" in given)
    return MountOptions(os.fsencode(source), os.fsencode(mountpoint), **fields)


# --- the text of -o ---

_TOKEN = re.compile(r'\\[,:"\\]|.', re.DOTALL)


def _words(text: str) -> Iterator[str]:
    r"""Split at commas. Double quotes keep those between; `\,` `\:` `\"` `\\` stand for their second one."""
    word: list[str] = []
    is_quoted = False
    for token in _TOKEN.findall(text):
        if token == '"':
            is_quoted = not is_quoted
        elif token == "," and not is_quoted:
            yield "".join(word)
            word.clear()
        else:
            word.append(token[-1])
    if is_quoted:
        raise UsageError(
            f'-o {text!r} has a double quote that is not closed; add it, or write \\" for the character'
        )
    yield "".join(word)


class _Options:
    """What the words of all `-o` have said so far. The last of a name wins, but for maps."""

    def __init__(self, *, is_root: bool, is_sloppy: bool) -> None:
        self._is_root = is_root
        self._is_sloppy = is_sloppy
        self._flags = {"allow_other": is_root, "suid": is_root, "diratime": True, "debug": False}
        self._texts: dict[str, str] = {}
        self._values: dict[str, Any] = {}
        self._notes: dict[str, None] = {}  # an ordered set

    def take(self, word: str) -> None:
        """Take one word, NAME or NAME=VALUE."""
        name, equals, value = word.partition("=")
        if name == "remount":
            raise UsageError(
                "remount is not for a helper of mount(8), which can only mount anew; to change the flags of a mount run"
                " `mount -i -o remount,bind,ro MOUNTPOINT`, with all flags that it is to have"
            )
        if name in _UNSUPPORTED:
            raise UsageError(
                f"{name} is not supported in this version, which shows one SOURCE without layers; omit it"
            )
        if name in _VALUED:
            self._take_value(name, value if equals else None)
        elif name in _FLAGS and not (equals and name in _IGNORED):
            if equals:
                raise UsageError(f"{word!r} cannot be: {name} takes no value; write {name} alone")
            self._flags.update(_FLAGS[name])
        elif name in _IGNORED:
            self._note(f"{name} does nothing here: {_IGNORED[name]}")
        elif word and name not in _FOR_MOUNT and not name.lower().startswith("x-"):
            self._take_unknown(name)

    def _take_value(self, name: str, value: str | None) -> None:
        convert, allowed = _VALUED[name]
        if value is None:
            raise UsageError(f"{name} needs a value: {allowed}")
        before = self._texts.get(name, value)
        if name in _MAPS and before != value:
            raise UsageError(f"{name} is given twice, as {before!r} and as {value!r}; give it once")
        self._texts[name] = value
        try:
            self._values[name] = convert(value)
        except MapError as error:
            raise UsageError(f"{name}: {error}") from None
        except ValueError:
            raise UsageError(f"{f'{name}={value}'!r} cannot be; {name} takes {allowed}") from None

    def _take_unknown(self, name: str) -> None:
        near = difflib.get_close_matches(name[:40], _KNOWN, 1)
        hint = f"did you mean {near[0]}?" if near else "--help lists those there are"
        if not self._is_sloppy:
            raise UsageError(f"unknown option {name!r}; {hint}")
        self._note(f"unknown option {name!r} does nothing: -s tolerates it; {hint}")

    def _note(self, text: str) -> None:
        self._notes[text] = None

    def fields(self, resolve_maps: ResolveMaps) -> dict[str, Any]:
        """Return the fields of MountOptions that options decide."""
        flags, values = dict(self._flags), dict(self._values)
        flags["dev"] = self._devices(wanted=flags.pop("allow_dev", False), refused=flags.pop("nodev", False))
        flags["diratime"] &= flags.get("atime", False)
        if flags["suid"] and not self._is_root:
            flags["suid"] = False
            self._note("suid does nothing here: fusermount3 makes every user's mount nosuid")
        uidmap, gidmap = self._maps(resolve_maps)
        kernel = tuple(name.encode() + b"=" + values.pop(name) for name in _KERNEL if name in values)
        plain = {name: value for name, value in values.items() if name not in _MAPS}
        maps = {"uidmap": uidmap, "gidmap": gidmap}
        return {**flags, **plain, **maps, "kernel_options": kernel, "notes": tuple(self._notes)}

    def _devices(self, *, wanted: bool, refused: bool) -> bool:
        if wanted and not refused and not self._is_root:
            raise UsageError(
                "allow_dev needs root: fusermount3 makes every user's mount nodev; omit it, or run as root"
            )
        return wanted and not refused

    def _maps(self, resolve_maps: ResolveMaps) -> tuple[IdMap, IdMap]:
        given = [name for name in _MAPS if name in self._texts]
        for whole in ("userns", "subid"):
            if whole not in given:
                continue
            for other in given:
                if other != whole:
                    raise UsageError(
                        f"{other} and {whole} cannot go together: each says what the maps are; keep one"
                    )
            try:
                return resolve_maps(whole, self._texts[whole])
            except MapError as error:
                raise UsageError(f"{f'{whole}={self._texts[whole]}'!r} gives no maps: {error}") from None
        return self._values.get("uidmapping", IDENTITY), self._values.get("gidmapping", IDENTITY)
