"""The command line and `-o` text -> MountOptions.

Owns every option's meaning and default, and the words of every error about them. Never mounts, and
never looks at SOURCE or MOUNTPOINT. Main thread, before the mount.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from . import __version__, arguments, usermaps
from .arguments import UsageError
from .shift.idmap import IDENTITY, IdMap, MapError
from .vocabulary import (
    FLAGS,
    FOR_LAYERS,
    FOR_MARKS,
    FOR_MOUNT,
    IGNORED,
    KERNEL,
    KNOWN,
    MAPS,
    MOST_LOWERS,
    TOKEN,
    UNSUPPORTED,
    VALUED,
    plain,
)

__all__ = ["Help", "MountOptions", "UsageError", "Version", "parse_command_line"]

ResolveMaps = Callable[[str, str], tuple[IdMap, IdMap]]


class Help(NamedTuple):
    """--help was asked for."""

    text: str


class Version(NamedTuple):
    """--version was asked for."""

    text: str


class MountOptions(NamedTuple):
    """What to mount, and how. The defaults are a user's; root's differ in allow_other and suid."""

    source: bytes | None  # None only with lowerdirs, where it is but a name to be shown
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
    timeout: float = 1.0  # seconds, in layers that nobody watches
    watch: Literal["auto", "fanotify", "inotify", "off"] = "auto"
    max_write: int = 0  # bytes; 0 leaves it to the negotiation
    open: Literal["auto", "refuse", "serve"] = "auto"
    locks: Literal["mount", "layers"] = "mount"
    passthrough: Literal["auto", "on", "off"] = "auto"
    writeback: bool = False  # the kernel collects writes, as nobody else changes the layers; True only if not read_only
    fsname: bytes | None = None
    subtype: bytes = b"shiftfs"
    uidmap: IdMap = IDENTITY
    gidmap: IdMap = IDENTITY
    lowerdirs: tuple[bytes, ...] = ()  # from top to bottom; none: the source is shown as it is
    upperdir: bytes | None = None  # None, with lowerdirs: read_only
    workdir: bytes | None = None  # as upperdir
    redirect_dir: Literal["auto", "on", "off", "follow", "nofollow"] = "auto"
    metacopy: bool = False
    index: bool = True  # type: ignore[assignment]  # a method of tuples, which nobody wants here
    volatile: bool = False
    userxattr: bool = False
    static_nlink: bool = False  # each directory has one link
    acl: bool = True  # False: neither shown nor heeded
    xattrs: bool = True  # False: there are none on the mount
    ino32: bool = False  # inode numbers of 32 bits, unique or not
    xattr_permissions: Literal[0, 1, 2] = 0  # where the upper's owners and modes live (shiftfs/override.py)
    ghost: Literal["keep", "drop"] = "keep"  # upper files whose directory was lower, and is there no more
    mark: bool = False  # others may mount it in their user namespaces; itself it is root's alone
    mark_users: tuple[str, ...] = ()  # those who may; everybody if there are none
    allow_exposed: bool = False
    kernel_options: tuple[bytes, ...] = ()  # NAME=VALUE, bare: who joins them quotes the commas
    notes: tuple[str, ...] = ()  # what was accepted and does nothing; said at -d


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
    fields = parsed.fields(resolve_maps)
    source, mountpoint = arguments.source_and_mountpoint(operands, usage, needs_source=not fields.get("lowerdirs"))
    fields["debug"] |= "d" in given
    fields["fake"] = is_helper and "f" in given
    # Debugging stays in the foreground, as libfuse has it.
    fields["foreground"] = fields["debug"] or (not is_helper and "f" in given)
    shown = None if source is None else os.fsencode(source)
    return MountOptions(shown, os.fsencode(mountpoint), **fields)


# --- the text of -o ---


def _words(text: str) -> Iterator[str]:
    r"""Split at commas. Double quotes keep those between, and go; `\,` `\:` `\"` `\\` stay for `plain`."""
    word: list[str] = []
    is_quoted = False
    for token in TOKEN.findall(text):
        if token == '"':
            is_quoted = not is_quoted
        elif token == "," and not is_quoted:
            yield "".join(word)
            word.clear()
        else:
            word.append(token)
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
        self._given: set[str] = set()
        self._notes: dict[str, None] = {}  # an ordered set

    def take(self, word: str) -> None:
        """Take one word, NAME or NAME=VALUE, with its escapes."""
        name, equals, value = word.partition("=")
        name = plain(name)
        if name == "remount":
            raise UsageError(
                "remount is not for a helper of mount(8), which can only mount anew; to change the flags of a mount run"
                " `mount -i -o remount,bind,ro MOUNTPOINT`, with all flags that it is to have"
            )
        if name in UNSUPPORTED:
            raise UsageError(
                f"{name} is not supported in this version, which shows files as they are but for their ids; omit it"
            )
        if name in VALUED:
            self._take_value(name, value if equals else None)
        elif plain(word) in FLAGS:
            self._flags.update(FLAGS[plain(word)])
            self._given.add(name)
        elif name in FLAGS and not (equals and name in IGNORED):
            raise UsageError(f"{plain(word)!r} cannot be: {name} takes no value; write {name} alone")
        elif name in IGNORED:
            self._check_ignored(name, plain(value))
            self._note(f"{name} does nothing here: {IGNORED[name]}")
            self._given.add(name)
        elif word and name not in FOR_MOUNT and not name.lower().startswith("x-"):
            self._take_unknown(name)

    def _take_value(self, name: str, value: str | None) -> None:
        convert, allowed = VALUED[name]
        if value is None:
            raise UsageError(f"{name} needs a value: {allowed}")
        self._given.add(name)
        if name != "lowerdir":
            value = plain(value)
        before = self._texts.get(name, value)
        if name in MAPS and before != value:
            raise UsageError(f"{name} is given twice, as {before!r} and as {value!r}; give it once")
        self._texts[name] = value
        try:
            self._values[name] = convert(value)
        except MapError as error:
            raise UsageError(f"{name}: {error}") from None
        except ValueError:
            raise UsageError(f"{f'{name}={value}'!r} cannot be; {name} takes {allowed}") from None

    def _check_ignored(self, name: str, value: str) -> None:
        if name == "xino" and value not in ("off", "auto", "on"):
            raise UsageError(f"{f'{name}={value}'!r} cannot be; {name} takes off, auto or on")

    def _take_unknown(self, name: str) -> None:
        import difflib  # for no start to wait for

        near = difflib.get_close_matches(name[:40], KNOWN, 1)
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
        uidmap, gidmap = self._squashed(flags, values, *self._maps(resolve_maps))
        flags["xattrs"] = not values.pop("noxattrs", 0)
        kernel = tuple(name.encode() + b"=" + values.pop(name) for name in KERNEL if name in values)
        if values.get("locks") == "layers" and values.get("open") == "refuse":
            raise UsageError(
                "locks=layers and open=refuse cannot go together: who closes a file has to be told; keep one"
            )
        if values.get("passthrough") == "on" and values.get("open") == "refuse":
            raise UsageError(
                "passthrough=on and open=refuse cannot go together: the answer to an open says what to pass it on to;"
                " keep one"
            )
        others = {name: value for name, value in values.items() if name not in MAPS}
        maps = {"uidmap": uidmap, "gidmap": gidmap}
        self._check_layers(flags, others)
        self._check_mark(flags, others)
        self._check_writeback(flags, others)
        if "lowerdir" in others:
            others["lowerdirs"] = others.pop("lowerdir")
        return {**flags, **others, **maps, "kernel_options": kernel, "notes": tuple(self._notes)}

    def _squashed(
        self, flags: dict[str, Any], values: dict[str, Any], uids: IdMap, gids: IdMap
    ) -> tuple[IdMap, IdMap]:
        root = 0 if flags.pop("squash_to_root", False) else None
        uid, gid = values.pop("squash_to_uid", root), values.pop("squash_to_gid", root)
        return uids if uid is None else IdMap(uids.ranges, uid), gids if gid is None else IdMap(gids.ranges, gid)

    def _check_layers(self, flags: dict[str, Any], values: dict[str, Any]) -> None:
        lowers = values.get("lowerdir", ())
        needing = [name for name in FOR_LAYERS if name in self._given]
        if needing and not lowers:
            raise UsageError(f"{needing[0]} needs layers: add lowerdir=TOP:...:BOTTOM, or omit {needing[0]}")
        if len(lowers) > MOST_LOWERS:
            raise UsageError(f"lowerdir names {len(lowers)} directories; give {MOST_LOWERS} at most")
        for name, other in (("upperdir", "workdir"), ("workdir", "upperdir")):
            if name in values and other not in values:
                raise UsageError(
                    f"{name} needs {other}: add {other}=DIRECTORY, or omit {name} for a mount that is read-only"
                )
        if not lowers:
            return
        if "upperdir" not in values:
            flags["read_only"] = True
            if flags.pop("volatile", False):
                self._note("volatile does nothing here: nothing is written without upperdir")
        elif values.get("metacopy") and values.get("redirect_dir", "auto") not in ("auto", "on"):
            raise UsageError(
                f"metacopy=on and redirect_dir={values['redirect_dir']} cannot go together: a redirect leads"
                " from a renamed file to its content; keep one"
            )

    def _check_mark(self, flags: dict[str, Any], values: dict[str, Any]) -> None:
        if not flags.get("mark"):
            needing = [name for name in FOR_MARKS if name in self._given]
            if needing:
                raise UsageError(f"{needing[0]} is for marks: add mark, or omit {needing[0]}")
            return
        if not self._is_root:
            raise UsageError("mark needs root: it lets others do as root what they like with what is marked")
        if values.get("passthrough") == "on":
            raise UsageError(
                "mark and passthrough=on cannot go together: who has mounted could open for writing what another has"
                " opened for reading; omit passthrough"
            )
        without = [name for name, flag in (("noacl", "acl"), ("noxattrs", "xattrs")) if not flags.get(flag, True)]
        if without:
            # With ACLs the kernel checks rights, however a user mounts (fs/fuse/inode.c, process_init_reply).
            raise UsageError(
                f"mark and {without[0]} cannot go together: nobody would check rights where a user mounts; omit"
                f" {without[0]}"
            )
        if values.get("open") != "refuse":
            values.setdefault("locks", "layers")  # those of one mount of it are to count on the others
        # The mark itself is for root to look at; what is executed is executed on the mounts that are made of it.
        flags.update(allow_other=False, allow_root=False, suid=False, dev=False, exec=False)

    def _check_writeback(self, flags: dict[str, Any], values: dict[str, Any]) -> None:
        if not flags.get("writeback"):
            return
        if flags.get("read_only"):
            flags["writeback"] = False
            self._note("writeback does nothing here: nothing is written")
            return
        why = "it says that nobody else changes the layers"
        if flags.get("mark"):
            raise UsageError(f"writeback and mark cannot go together: {why}, and the mounts of a mark do; keep one")
        if values.get("locks") == "layers":
            raise UsageError(f"writeback and locks=layers cannot go together: {why}, so nobody locks there; keep one")
        if values.get("passthrough") == "on":
            raise UsageError(
                "writeback and passthrough=on cannot go together: what is passed through is not collected by the mount;"
                " keep one"
            )
        if values.get("watch", "off") != "off":
            raise UsageError(
                f"writeback and watch={values['watch']} cannot go together: {why}, so there is nothing to watch for;"
                " omit one"
            )
        values.update(watch="off", passthrough="off")

    def _devices(self, *, wanted: bool, refused: bool) -> bool:
        if wanted and not refused and not self._is_root:
            raise UsageError(
                "allow_dev needs root: fusermount3 makes every user's mount nodev; omit it, or run as root"
            )
        return wanted and not refused

    def _maps(self, resolve_maps: ResolveMaps) -> tuple[IdMap, IdMap]:
        given = [name for name in MAPS if name in self._texts]
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
