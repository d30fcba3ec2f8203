"""`shiftfs`: parse, compose, mount, serve. The only composition root.

Owns the life of the process: the order in which things are opened, signals, the log, and the one line that an error
becomes. Main thread, which becomes the loop's.
"""

import contextlib
import os
import signal
import sys
import syslog
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from . import faults, mount, native
from .channel import Buffers
from .daemon import Daemon, tell_service_manager
from .interpreter import Interpreter
from .loop import INTERRUPTING, Loop
from .mount import MountError
from .opening import (
    check_at_rest,
    lie_elsewhere,
    open_tree,
    raise_descriptor_limit,
    show_sizes_that_lie,
    stay_within_quota,
    why_nothing_is_passed_through,
)
from .ops.control import REPORTS
from .options import Help, MountOptions, UsageError, Version, parse_command_line
from .reflect.agent import Agent
from .reflect.employment import Employment
from .reflect.journal import Journal
from .reflect.reflection import Reflection
from .session import Session
from .shift.idmap import IDENTITY
from .sys import mounts, privileges
from .sys.mountinfo import MountInfo
from .wire.abi import Opcode

if TYPE_CHECKING:  # who has no use for these does not wait for them
    from .locks.mounts import Locking
    from .mark.marking import Marking

_MAX_WRITE: Final = 1 << 20
"""Bytes; the kernel takes no more than 256 pages unless told to (fs.fuse.max_pages_limit)."""

_INNER_ROOT: Final = b".shiftfs-root"
"""Seen in the root field of /proc/PID/mountinfo alone; it hides nothing of that name in the source."""

_QUIET: Final = 0.1
"""Seconds without a write after which no more comes, as many are under way at a time."""

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SIGNALS: Final = (*_ENDING, signal.SIGUSR1)


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
    users = None
    try:
        is_initial = privileges.in_initial_namespace()
        if parsed.mark or not is_initial:
            from .mark import client

            if client.has_mounted(parsed, is_initial, _say):
                return 0
        mount.check(parsed)
        if parsed.mark:
            from .mark import marking

            users = marking.check(parsed)
    except MountError as error:
        return _complain(str(error), 1)
    if parsed.fake:
        return 0
    if parsed.foreground:
        return _serve(parsed, None, users)
    daemon = Daemon.fork()
    return _serve(parsed, daemon, users)


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


def _serve(options: MountOptions, daemon: Daemon | None, users: frozenset[int] | None) -> int:
    """Mount and serve until the mount is gone."""
    try:
        Mount(options, daemon, users).run()
        return 0
    except MountError as error:
        message, details = str(error), ""
    except Exception as error:
        said = " ".join(str(error).split())
        message = f"unexpected {type(error).__name__} ({said}): nothing is mounted; -d tells where it happened"
        details = faults.told(error)
    if daemon is not None:
        daemon.failed(message, details)
        return 1
    if options.debug and details:
        _say(details.rstrip())
    return _complain(message, 1)


class Mount:
    """One mount from its options to its end."""

    def __init__(self, options: MountOptions, daemon: Daemon | None, users: frozenset[int] | None) -> None:
        """`users`: who may mount what is to be marked; everybody for None."""
        self._options = options
        self._daemon = daemon
        self._in_background = False
        agent = _start_agent(options)  # before there is anything that it is not to have
        self._loop = Loop()
        self._faults = faults.Faults(self._log)
        self._journal = Journal()
        self._mounted: MountInfo | None = None
        self._number = 0
        self._is_stopping = False
        self._failure: Exception | None = None
        bound, unlinked = raise_descriptor_limit(len(options.lowerdirs))
        # Before we lose the right to a large pipe.
        self._buffers = Buffers(options.max_write or _MAX_WRITE, has_pipe=native.Lane is not None)
        stay_within_quota()
        if options.mark:
            unlinked = bound  # the rest is for the mounts that are made of it
        self._tree, layers = open_tree(options, bound, unlinked, self._log if options.debug else _say_nothing)
        self._marking: Marking | None = None
        if options.mark:
            from .mark import marking

            self._marking = marking.Marking(self._loop, options, self._tree, users, self._log)
            self._tree, _ = self._marking.tree.use()
        self._locking: Locking | None = None
        if options.locks == "layers":
            from .locks import mounts as locking

            note = self._log if options.debug else _say_nothing
            self._locking = locking.Locking(self._loop.wait_aside, note, has_many=options.mark)
        only_uids = frozenset({0, os.geteuid()}) if options.allow_root and os.geteuid() != 0 else None
        # What the kernel opens by itself, it opens for everybody: allow_root needs to be asked.
        # And without the right to pass over modes, what was created unreadable is only written while it stays open.
        powerless = not privileges.effective_capabilities() >> privileges.CAP_DAC_OVERRIDE & 1
        check_at_rest(options, layers)
        exact = powerless or options.locks == "layers" or options.passthrough == "on" or lie_elsewhere(layers)
        asks = options.open == "serve" or only_uids is not None
        asks = asks or (options.open == "auto" and show_sizes_that_lie(layers))
        serves_open = asks or (options.open == "auto" and exact)
        self._not_passed = why_nothing_is_passed_through(options, self._tree, layers, serves_open)
        self._mountpoint = os.path.realpath(options.mountpoint)
        for layer in layers:
            if not layer.private:
                mount.check_outside(layer.root.fd, layer.path, options)
        # Until `run` has set the handlers, a signal would leave a mount that nobody serves.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        fd = mount.mount(options)
        try:
            self._is_at(mount.find(self._mountpoint))
            self._session = Session(
                self._loop, fd, self._tree,
                IDENTITY if options.mark else options.uidmap, IDENTITY if options.mark else options.gidmap,
                timeout=options.timeout,
                serves_open=serves_open,
                serves_opendir=asks,
                report=self._report,
                buffers=self._buffers,
                log=self._log,
                trace=self._log if options.debug else None,
                only_uids=only_uids,
                syncs_directories=options.dirsync or options.sync,
                read_only=options.read_only,
                passthrough=self._not_passed is None,
                writeback=options.writeback,
            )  # fmt: skip
            self._session.needs_passthrough = options.passthrough == "on"
            if self._locking is not None:
                self._session.context.serve_locks(self._locking.of(self._tree))
            self._reflection = self._reflect()
            if self._marking is not None and self._reflection is not None:
                self._marking.neighbours.join(self._session, self._reflection)
            self._employment = self._employ(agent)
        except BaseException:
            os.close(fd)
            mount.detach(self._mountpoint)
            raise

    def _reflect(self) -> Reflection | None:
        """Follow what others do in the layers, from before the first request on."""
        if self._options.writeback:
            from .reflect.resting import Resting  # most mounts follow their layers

            self._session.context.live = Resting(self._session.context.inodes.root)
        if self._options.watch == "off":
            return None
        hub = self._marking.hub if self._marking is not None else None
        return Reflection(self._loop, self._session, self._options.watch, self._journal, self._log, hub)

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
            if self._marking is not None:
                self._marking.drop_privileges()
            for note in self._options.notes if self._options.debug else ():
                self._log(note)
            loop.run()
        finally:
            if self._marking is not None:
                self._marking.close()
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
        is_expecting = False
        if self._marking is not None:
            is_expecting = self._marking.tick(now)
            if self._marking.has_lost_some:
                self._marking.has_lost_some = False
                self._interpreter.much_has_gone()
        is_expecting = self._interpreter.tick() or is_expecting
        is_untidy = self._tree.tidy(now)
        backings = self._session.context.backings
        if backings is not None:
            is_untidy = backings.tidy(now) or is_untidy
        for steps in self._tree.unfinished():
            self._session.run_aside(steps)
        for chore in self._tree.chores():
            self._session.context.aside(chore)
        times = self._session.context.times
        if times is not None:
            is_untidy = times.tidy(now) or is_untidy
        is_busy = self._reflection is not None and self._reflection.live.tick()
        is_ending = self._employment is not None and self._employment.look(now)
        return self._session.underway.look_for_killed() or is_untidy or is_ending or is_busy or is_expecting

    def _disconnected(self) -> None:
        if self._marking is not None:
            self._marking.close_door(self._loop.stop)
        else:
            self._loop.stop()

    def _is_at(self, mounted: MountInfo | None) -> None:
        self._mounted = mounted
        self._number = mount.lasting_number(mounted) if mounted is not None else 0

    def _unmount(self) -> None:
        """Wherever it is by now, if anywhere. The connection ends first: what waits for it would make the kernel wait.

        As long as it has not ended, its device's number is nobody else's. Where the kernel has ended it (aborted, the
        mount is still there), only our very mount is taken for it: the next one may have been given its numbers.
        """
        mounted, has_ended = self._mounted, self._session.has_ended()
        left = mount.copies(mounted) if mounted is not None else []
        if has_ended:
            left = [info for info in left if mounted is not None and info.id == mounted.id
                    and mount.lasting_number(info) == self._number]  # fmt: skip
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
            self._is_at(next(iter(mount.copies(self._mounted)), self._mounted))  # another mount of the same now
        if error is not None and self._options.debug:
            self._log(f"ACLs of the root will not be cached: {error}")
        if self._employment is not None and self._mounted is not None:
            clone = partial(mount.clone_for_agent, self._mounted)
            self._employment.begin(clone, self._mounted.device, self._serving)
        else:
            self._serving()

    def _serving(self) -> None:
        try:
            self._open_door()
        except MountError as error:
            self._fail(error)
            return
        self._loop.on_failure = self._faults.survive
        if self._daemon is None:
            tell_service_manager()
        else:
            self._daemon.ready()
            self._in_background = True

    def _open_door(self) -> None:
        if self._marking is None or self._mounted is None:
            return
        self._marking.open_door(
            self._mounted.device,
            serves_open=self._session.context.serves_open,
            max_write=self._options.max_write or _MAX_WRITE,
            locks=self._locking.of if self._locking is not None else None,
            unmounted=self._session.end,
        )

    def _stop(self, number: int, frame: object) -> None:
        """At once; or, where the kernel collects writes, when it has sent them, or when we are told so again."""
        if self._session.context.times is None or self._is_stopping or self._mounted is None:
            self._loop.stop()
        else:
            self._is_stopping = True
            collect = partial(mount.write_out, self._mountpoint, self._mounted.device)
            self._loop.submit(collect, self._stop_when_quiet)
        self._loop.wake()

    def _stop_when_quiet(self, result: object, error: object, written: int = -1) -> None:
        """syncfs(2) may return before FUSE has what it sends (seen with Linux 6.18)."""
        session = self._session
        count = session.counters[Opcode.WRITE].count
        if count == written and not session.waiting:
            self._loop.stop()
        else:
            self._loop.submit(partial(time.sleep, _QUIET), partial(self._stop_when_quiet, written=count))

    def _tell(self, number: int, frame: object) -> None:
        for name in REPORTS:
            if name not in ("events", "locks"):
                self._log(self._report(name).decode())

    def _report(self, name: str, after: int = 0, when: float = 0.0) -> bytes:
        from . import status  # most mounts are never asked

        parts = status.Parts(
            self._options, self._mountpoint, self._session, self._tree, self._loop, self._faults.total,
            self._journal, self._reflection,
            [one.session for one in self._marking.mounts] if self._marking is not None else None,
            self._not_passed,
        )  # fmt: skip
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
        if not options.mark:
            return Agent.start()
        from .mark.marking import drop_privileges

        return Agent.start(drop=drop_privileges)
    except OSError:
        return None


def _say_nothing(text: str) -> None:
    """For what is told at -d alone."""


if __name__ == "__main__":
    sys.exit(main())
