"""`shiftfs`: parse, compose, mount, serve. The only composition root.

Owns the life of the process: the order in which things are opened, signals, the log, and the one line that an error
becomes. Main thread, which becomes the loop's.
"""

import contextlib
import os
import resource
import signal
import sys
import syslog
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from . import mount, status
from .daemon import Daemon, tell_service_manager
from .interpreter import Interpreter
from .layer import Layer, sizes_may_lie, sizes_of_kind_may_lie
from .locks.places import Places, files_of, opener
from .locks.real import RealFile
from .locks.table import Locks
from .loop import INTERRUPTING, Loop
from .mount import MountError
from .ops.control import REPORTS
from .options import Help, MountOptions, UsageError, Version, parse_command_line
from .reflect.agent import Agent
from .reflect.employment import Employment
from .reflect.journal import Journal
from .reflect.reflection import Reflection
from .session import Session
from .source import SourceTree
from .sys import mounts, privileges
from .sys.mountinfo import MountInfo, listed
from .tree import Descriptor, Tree

_MAX_WRITE: Final = 1 << 20
"""Bytes; the kernel takes no more than 256 pages unless told to (fs.fuse.max_pages_limit)."""

_INNER_ROOT: Final = b".shiftfs-root"
"""Seen in the root field of /proc/PID/mountinfo alone; it hides nothing of that name in the source."""

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SIGNALS: Final = (*_ENDING, signal.SIGUSR1)

_DESCRIPTORS: Final = 16384
_SPARE_DESCRIPTORS: Final = 256
_PER_LOCKED: Final = 16
"""Descriptors that a file may come to with its locks, and more: others need some too."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0 once the mount serves, 1 for what cannot be mounted, 2 for bad usage."""
    try:
        return _main(argv)
    except KeyboardInterrupt:  # before there is a mount: later, the loop takes the signal
        return 130


def _main(argv: Sequence[str] | None) -> int:
    _open_streams()
    program = os.path.basename(sys.argv[0]) if argv is None else "shiftfs"
    try:
        parsed = parse_command_line(sys.argv[1:] if argv is None else argv, program=program, is_root=os.geteuid() == 0)
    except UsageError as error:
        return _complain(str(error), 2)
    if isinstance(parsed, Help | Version):
        print(parsed.text.rstrip())
        return 0
    try:
        mount.check(parsed)
    except MountError as error:
        return _complain(str(error), 1)
    if parsed.fake:
        return 0
    if parsed.foreground:
        return _serve(parsed, None)
    daemon = Daemon.fork()
    return _serve(parsed, daemon)


def _open_streams() -> None:
    """Whoever starts us with a standard stream closed (a boot script may) must not have a descriptor of ours in its
    place, which would be taken for the stream and overwritten."""
    try:
        null = os.open("/dev/null", os.O_RDWR)  # the lowest number that is free
    except OSError:
        null = os.open("/", os.O_RDONLY)  # without devices there is no mount either, which is still to be said
    while null <= 2:
        null = os.dup(null)
    os.close(null)


def _say(text: str) -> None:
    """To whom it may concern: a reader of standard error that has gone away is no failure of ours."""
    left = os.fsencode(f"shiftfs: {text}\n")
    with contextlib.suppress(OSError):
        while left:
            left = left[os.write(2, left) :]


def _complain(message: str, code: int) -> int:
    _say(message)
    return code


def _serve(options: MountOptions, daemon: Daemon | None) -> int:
    """Mount and serve until the mount is gone."""
    try:
        Mount(options, daemon).run()
        return 0
    except MountError as error:
        message, details = str(error), ""
    except Exception as error:
        said = " ".join(str(error).split())
        message = f"unexpected {type(error).__name__} ({said}): nothing is mounted; -d tells where it happened"
        details = traceback.format_exc()
    if daemon is not None:
        daemon.failed(message, details)
        return 1
    if options.debug and details:
        _say(details.rstrip())
    return _complain(message, 1)


class Mount:
    """One mount from its options to its end."""

    def __init__(self, options: MountOptions, daemon: Daemon | None) -> None:
        self._options = options
        self._daemon = daemon
        self._in_background = False
        agent = _start_agent(options)  # before there is anything that it is not to have
        self._loop = Loop()
        self._journal = Journal()
        self._mounted: MountInfo | None = None
        self._is_disconnected = False
        self._failure: Exception | None = None
        bound, unlinked = _raise_descriptor_limit(len(options.lowerdirs))
        _stay_within_quota()
        self._tree, layers = _open_tree(options, bound, unlinked, self._log if options.debug else _say_nothing)
        only_uids = frozenset({0, os.geteuid()}) if options.allow_root and os.geteuid() != 0 else None
        # What the kernel opens by itself, it opens for everybody: allow_root needs to be asked.
        # And without the right to pass over modes, what was created unreadable is only written while it stays open.
        powerless = not privileges.effective_capabilities() >> privileges.CAP_DAC_OVERRIDE & 1
        # An overlay copies up at open(2), as the kernel's does: who is refused for want of room hears of it there.
        exact = powerless or options.upperdir is not None or options.locks == "layers"
        serves_open = options.open == "serve" or only_uids is not None or (options.open == "auto" and exact)
        if options.open == "auto" and not serves_open:
            serves_open = _sizes_may_lie(layers)
        self._mountpoint = os.path.realpath(options.mountpoint)
        for layer in layers:
            if not layer.private:
                mount.check_outside(layer.root.fd, layer.path, options)
        # Until `run` has set the handlers, a signal would leave a mount that nobody serves.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        fd = mount.mount(options)
        try:
            self._mounted = mount.find(self._mountpoint)
            self._session = Session(
                self._loop, fd, self._tree, options.uidmap, options.gidmap,
                timeout=options.timeout,
                serves_open=serves_open,
                max_write=options.max_write or _MAX_WRITE,
                report=self._report,
                log=self._log,
                trace=self._log if options.debug else None,
                only_uids=only_uids,
                syncs_directories=options.dirsync or options.sync,
                read_only=options.read_only,
            )  # fmt: skip
            if options.locks == "layers":
                self._session.context.serve_locks(self._locks())
            self._reflection = self._reflect()
            self._employment = self._employ(agent)
        except BaseException:
            os.close(fd)
            mount.detach(self._mountpoint)
            raise

    def _locks(self) -> Locks:
        """Hold them on the real files too, also on those that come to be by copy-up."""
        tree, places = self._tree, Places.find()
        if places is None and self._options.debug:
            self._log("there is no directory for locks that mounts share: lower files are locked by themselves")
        most = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _PER_LOCKED)
        locks = Locks(lambda inode: files_of(tree, places, inode.entry), self._loop.wait_aside, most)
        tree.on_copy(lambda entry, made: locks.copied_up(entry, lambda: RealFile("upper", opener(_duplicate(made)))))
        return locks

    def _reflect(self) -> Reflection | None:
        """Follow what others do in the layers, from before the first request on."""
        if self._options.watch == "off":
            return None
        return Reflection(self._loop, self._session, self._options.watch, self._journal, self._log)

    def _employ(self, agent: Agent | None) -> Employment | None:
        if agent is None or self._reflection is None:
            return None
        note = self._log if self._options.debug else _say_nothing
        return Employment(self._loop, agent, self._reflection, self._log, note)

    def run(self) -> None:
        """Serve. Raises MountError if the kernel and we cannot agree."""
        session, loop = self._session, self._loop
        session.on_ready = self._ready
        session.on_end = self._disconnected
        loop.on_tick = self._tick
        try:
            for number in _ENDING:
                signal.signal(number, self._stop)
            signal.signal(signal.SIGUSR1, self._tell)
            signal.signal(INTERRUPTING, lambda number, frame: None)  # that a call ends is all it is for
            signal.signal(signal.SIGIO, signal.SIG_IGN)  # leases of ours last no longer than a call (locks/places.py)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._interpreter = Interpreter()
            for note in self._options.notes if self._options.debug else ():
                self._log(note)
            loop.run()
        finally:
            try:
                self._unmount()
            finally:
                if self._employment is not None:
                    self._employment.end()
                if session.context.locks is not None:
                    session.context.locks.close()
        if session.failure is not None:
            raise MountError(session.failure)
        if self._failure is not None:
            raise self._failure

    def _tick(self, now: float) -> bool:
        """True if there is more to be done later."""
        self._interpreter.tick()
        is_untidy = self._tree.tidy(now)
        for steps in self._tree.unfinished():
            self._session.run_aside(steps)
        for chore in self._tree.chores():
            self._session.context.aside(chore)
        is_busy = self._reflection is not None and self._reflection.live.tick()
        is_ending = self._employment is not None and self._employment.look(now)
        return self._session.look_for_killed() or is_untidy or is_ending or is_busy

    def _disconnected(self) -> None:
        self._is_disconnected = True
        self._loop.stop()

    def _unmount(self) -> None:
        """Wherever it is by now, if anywhere. The connection ends first: what waits for it would make the kernel wait.

        As long as it has not ended, its device's number is nobody else's. Where the kernel has ended it (aborted, the
        mount is still there), only what has our mount's number too is taken for it.
        """
        mounted = self._mounted
        left = mount.copies(mounted) if mounted is not None else []
        if self._is_disconnected:
            left = [info for info in left if mounted is not None and info.id == mounted.id]
        self._session.end()
        for info in left:
            mount.unmount(info)

    def _ready(self) -> None:
        """INIT is answered. What fails here fails the mount; the session would take it for a request's failure."""
        mounted = self._mounted
        try:
            if mounted is None or not privileges.effective_capabilities() >> privileges.CAP_SYS_ADMIN & 1:
                self._serving()
                return
            self._session.context.inner_root = _INNER_ROOT
            call = partial(mount.finish, mounted, _INNER_ROOT, self._options.read_only)
            self._loop.submit(call, self._settled)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._loop.stop()

    def _settled(self, result: object, error: BaseException | None) -> None:
        """Where that failed the mount is as good, and slower for users that do not own its root."""
        self._session.context.inner_root = None
        if isinstance(error, MountError):
            self._fail(error)
            return
        if self._mounted is not None:
            self._mounted = next(iter(mount.copies(self._mounted)), self._mounted)  # another mount of the same now
        if error is not None and self._options.debug:
            self._log(f"ACLs of the root will not be cached: {error}")
        if self._employment is not None and self._mounted is not None:
            clone = partial(mount.clone_for_agent, self._mounted)
            self._employment.begin(clone, self._mounted.device, self._serving)
        else:
            self._serving()

    def _serving(self) -> None:
        if self._daemon is None:
            tell_service_manager()
        else:
            self._daemon.ready()
            self._in_background = True

    def _stop(self, number: int, frame: object) -> None:
        self._loop.stop()
        self._loop.wake()

    def _tell(self, number: int, frame: object) -> None:
        for name in REPORTS:
            if name not in ("events", "locks"):
                self._log(self._report(name).decode())

    def _report(self, name: str, after: int = 0, when: float = 0.0) -> bytes:
        parts = status.Parts(
            self._options, self._mountpoint, self._session, self._tree, self._loop, self._journal, self._reflection
        )
        return status.report(name, parts, after, when)

    def _log(self, text: str) -> None:
        if self._in_background:
            for line in text.splitlines():
                syslog.syslog(line)
        else:
            _say(text)


def _start_agent(options: MountOptions) -> Agent | None:
    """For whom the kernel lets make a mount that nobody sees."""
    if options.watch == "off" or not mounts.may_mount():
        return None
    try:
        return Agent.start()
    except OSError:
        return None


def _open_tree(
    options: MountOptions, bound: int, unlinked: int, log: Callable[[str], None]
) -> tuple[Tree, tuple[Layer, ...]]:
    """What is to be shown, and the real directories that it is made of."""
    if options.lowerdirs or options.source is None:
        return _open_overlay(options, bound, unlinked, log)
    try:
        layer = Layer(options.source)
    except OSError as error:
        raise MountError(f"source {os.fsdecode(options.source)}: {error.strerror}; nothing was mounted") from None
    tree = SourceTree(layer, bound, unlinked, noatime=not options.atime, nodiratime=not options.diratime)
    return tree, (layer,)


def _open_overlay(
    options: MountOptions, bound: int, unlinked: int, log: Callable[[str], None]
) -> tuple[Tree, tuple[Layer, ...]]:
    from overlay.stack import LayerError, open_stack  # a mount without layers need not wait for it
    from overlay.tree import OverlayTree

    try:
        stack = open_stack(
            options.lowerdirs, options.upperdir, options.workdir, volatile=options.volatile, log=log,
            userxattr=options.userxattr, index=options.index,
        )  # fmt: skip
    except LayerError as error:
        raise MountError(str(error)) from None
    tree = OverlayTree(
        stack, bound, unlinked, redirect_dir=options.redirect_dir, metacopy=options.metacopy,
        noatime=not options.atime, nodiratime=not options.diratime, ghost=options.ghost,
    )  # fmt: skip
    return tree, stack.layers


def _duplicate(fd: int) -> Descriptor:
    return Descriptor(os.dup(fd), os.close)


def _say_nothing(text: str) -> None:
    """For what is told at -d alone."""


def _raise_descriptor_limit(layers: int) -> tuple[int, int]:
    """Take all descriptors that we may have; how many of them, besides those of the lower layers, the tree may hold
    as long as it likes, and how many more for removed files in use. Open files may keep as many as the first
    (ops/handles.py)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ours = hard - min(_SPARE_DESCRIPTORS, hard // 8) - layers
    bound = max(32, min(_DESCRIPTORS, ours // 5))
    return bound, max(32, ours - 2 * bound)


def _stay_within_quota() -> None:
    """Files belong to callers who have quotas; with CAP_SYS_RESOURCE our writes would pass them (quotactl(2))."""
    if privileges.effective_capabilities() >> privileges.CAP_SYS_RESOURCE & 1:
        privileges.drop_capability(privileges.CAP_SYS_RESOURCE)


def _sizes_may_lie(layers: Sequence[Layer]) -> bool:
    """Is there a filesystem in a layer whose files have content and a size of 0? They are read only if OPEN is
    served."""
    above = tuple(os.path.realpath(layer.path).rstrip(b"/") + b"/" for layer in layers)
    inside = any(sizes_of_kind_may_lie(info.kind) and info.path.startswith(above) for info in listed())
    return inside or any(sizes_may_lie(layer.root.fd) for layer in layers)


if __name__ == "__main__":
    sys.exit(main())
