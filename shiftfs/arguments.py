"""The command line's own grammar: letters, operands, usage, help.

Owns which letters there are, in each of the two ways that we are called, and the help text. Never looks into
what `-o` says: that is options.py's. Main thread, before the mount.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple


class UsageError(Exception):
    """What the user gave cannot be. str() is one line: what, why, and what can be given instead."""


class Syntax(NamedTuple):
    """Letters that stand alone, letters that take an argument, long names of letters."""

    flags: str
    valued: str
    long: Mapping[str, str]
    synopsis: str


_LONG = {"--help": "h", "--version": "V"}
PROGRAM = Syntax("fdhV", "o", _LONG | {"--debug": "d"}, "[-f] [-d] [-o OPT[,OPT]...]... [SOURCE] MOUNTPOINT")
# What mount(8) runs (its EXTERNAL HELPERS): the letters are not ours to choose.
HELPER = Syntax("sfnvhV", "oNt", _LONG, "SOURCE MOUNTPOINT [-sfnv] [-o OPT[,OPT]...]... [-t TYPE]")


def check_words(argv: Sequence[str]) -> None:
    """Refuse what execve(2) cannot have given, so that every word can be made bytes."""
    for word in argv:
        try:
            is_word = b"\0" not in os.fsencode(word)
        except UnicodeError:
            is_word = False
        if not is_word:
            raise UsageError(f"{word!r} is no word of a command line")


def split(argv: Sequence[str], syntax: Syntax, usage: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Split options from operands, in any order, as getopt_long(3) does. Not getopt.gnu_getopt, which minds
    POSIXLY_CORRECT: mount(8) puts its `-o` last whatever the environment says."""
    letters: list[tuple[str, str]] = []
    operands: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            operands.extend(words)
        elif word in syntax.long:
            letters.append((syntax.long[word], ""))
        elif len(word) > 1 and word[0] == "-":
            letters.extend(_cluster(word, words, syntax, usage))
        else:
            operands.append(word)
    return letters, operands


def _cluster(word: str, following: Iterator[str], syntax: Syntax, usage: str) -> Iterator[tuple[str, str]]:
    """Take `-fdoOPT` apart; a letter's argument is the rest of its word or the following word."""
    for at, letter in enumerate(word[1:], 1):
        if letter in syntax.valued:
            argument = word[at + 1 :] or next(following, None)
            if argument is None:
                raise UsageError(f"-{letter} needs an argument; {usage}")
            yield letter, argument
            return
        if letter not in syntax.flags:
            raise UsageError(f"unknown option {word!r}; {usage}")
        yield letter, ""


def source_and_mountpoint(operands: Sequence[str], usage: str, *, needs_source: bool) -> tuple[str | None, str]:
    """Layers have said what is to be shown: then MOUNTPOINT may stand alone."""
    if len(operands) < 2 and (needs_source or not operands):
        missing = "SOURCE and MOUNTPOINT are" if needs_source and not operands else "MOUNTPOINT is"
        raise UsageError(f"{missing} missing; {usage}")
    if len(operands) > 2:
        raise UsageError(f"{operands[2]!r} is one too many; {usage}")
    if not all(operands):
        raise UsageError(f"SOURCE and MOUNTPOINT cannot be empty; {usage}")
    return (operands[0] if len(operands) == 2 else None), operands[-1]


HELP: Final = """
Show the directory SOURCE, or several as one, at MOUNTPOINT with its owners shifted.

  -f                  stay in the foreground
  -d, --debug         say what is done, and stay in the foreground
  -o OPT[,OPT]...     options, below; "..." keeps the commas between, \\, is one comma
  -h, --help          show this and exit
  -V, --version       show the version and exit

layers:
  lowerdir=TOP:...:BOTTOM
                      show these directories as one, instead of SOURCE; \\: is a colon in a path
  upperdir=DIRECTORY  take all changes here; without, the mount is read-only
  workdir=DIRECTORY   for this mount's own use, on the filesystem of upperdir
  redirect_dir=auto|on|off|follow|nofollow
                      renamed directories of lowers leave redirects, which are followed (on); such renames are
                      refused: redirects are followed (off, follow), or not even that (nofollow); auto, the
                      default, is on, but off in a user namespace
  metacopy=on|off     changes of owner, mode, times or xattrs copy no content up, or do (default)
  index=on|off        hard links of lowers stay together when copied up (default), or part
  volatile            sync nothing; after a crash the upper is not to be used
  userxattr           keep what there is to know about upper files in user.overlay.* attributes
  xattr_permissions=0|1|2
                      owners, modes and devices of the upper are its files' own (0, default), or live in
                      security.fuseoverlayfs.override_stat (1) or user.containers.override_stat (2)
  ghost=keep|drop     what the upper has in a directory of a lower stays when that disappears (default), or goes
                      with it

owners:
  uidmapping=MAP      users, as REAL:SHOWN:COUNT[:...]: ids in SOURCE, ids on the mount, how many
  gidmapping=MAP      groups likewise; whichever is not given stays as it is
  userns=PID|PATH     both maps from a user namespace
  subid=USER          both maps from /etc/subuid and /etc/subgid: root is USER, the others its ranges
  squash_to_root      show everything as root's
  squash_to_uid=UID   show everything as this user's; with squash_to_gid=GID, as this group's

marks:
  mark                let others mount it in their own user namespaces, as root there; this mount is root's alone
  mark_users=USER[:...]
                      only those whose namespaces these users have made (default: everybody)
  allow_exposed       though others than root can come to SOURCE by its path

access:
  ro, rw              read-only, or not (default)
  allow_other         let other users in (default for root)
  allow_root          let root in, but no other user
  default_permissions the kernel checks rights; always on
  suid, nosuid        honour set-id bits and file capabilities (default for root), or not
  allow_dev, nodev    honour device nodes (root only), or not (default); dev alone does nothing
  exec, noexec        allow programs to run (default), or not

behaviour:
  watch=auto|fanotify|inotify|off
                      how to hear of changes that others make in the layers: as each allows (auto, default),
                      in this way alone, or not at all (off)
  timeout=SECONDS     how long the kernel may trust a name or an attribute unasked (default 1), in layers of whose
                      changes nothing is heard
  open=auto|refuse|serve
                      whether opening a file reaches this program: where the layers need it (auto, default); with
                      serve, lower files come up at open(2) for writing, else at the first write
  locks=mount|layers  locks are held on the mount (default), or on the files in the layers too (default of
                      marks); brings open=serve
  passthrough=auto|on|off
                      the kernel reads and writes the layers' files by itself: where open=serve holds and it may
                      (default), or the mount fails and open=serve is brought, or nowhere
  atime, noatime      reading updates access times as the mount of SOURCE says, or never (default);
                      relatime and strictatime are taken as atime
  diratime, nodiratime
                      with atime: for directories as well (default), or not
  sync, async         write through to the disk at once, or not (default)
  dirsync             likewise for changes of directories
  writeback           the kernel collects what is written: nobody else changes SOURCE or any layer while it is mounted
  max_write=BYTES     the largest write request, 131072 to 1048576; 0 (default) leaves it to the program
  noacl               neither show access control lists nor go by them
  noxattrs=0|1        there are extended attributes (0, default), or none (1)
  static_nlink        one link for each directory, whatever it has
  ino32_t             inode numbers of 32 bits, which may not be unique
  fsname=NAME         what /proc/mounts shows as the source
  subtype=NAME        what it shows as the type, after "fuse." (default shiftfs)
  context=, fscontext=, defcontext=, rootcontext=CONTEXT
                      security contexts, for the kernel
  debug               as -d

Words that fstab(5) has for mount(8) alone are accepted. So are, with no effect, for callers that give them:
threaded, fsync, fast_ino, fast_ino_check, writeback, plugins, splice_write, splice_read, splice_move,
kernel_cache, private, lazytime, xino=off|auto|on.
"""
