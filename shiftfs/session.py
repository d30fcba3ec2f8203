"""Owns one connection to the kernel: decodes requests, dispatches them, answers, and keeps those that wait.

Translates errors once, here: OSError to its errno, anything else to EIO with a traceback in the log. Knows no operation
beyond INIT, INTERRUPT and DESTROY. Loop thread, but for the calls that it hands to workers.
"""

import contextlib
import errno
import os
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from .channel import Buffers, Channel, Disconnected
from .counters import Counters
from .loop import Loop
from .ops import HANDLERS, LAYERED_HANDLERS, Handler, directories, without_xattrs
from .ops.context import Context, Later, Payload
from .ops.readonly import refusing_changes
from .shift.idmap import IdMap
from .tree import Gate, Steps, Tree, Work
from .wire import abi, negotiation, notices, replies, requests
from .wire.abi import InitFlag, Opcode
from .wire.requests import Header, ProtocolError

_FORGET: Final = int(Opcode.FORGET)
_BATCH_FORGET: Final = int(Opcode.BATCH_FORGET)
_INTERRUPT: Final = int(Opcode.INTERRUPT)
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_HEADER_SIZE: Final = 40
_NO_REPLY: Final = frozenset({_FORGET, _BATCH_FORGET, _INTERRUPT, int(Opcode.NOTIFY_REPLY)})
_DIRECTORY_CHANGES: Final = frozenset(
    [
        *(Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.LINK, Opcode.CREATE),
        *(Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2),
    ]
)
_SIGKILL_BIT: Final = 1 << 8
_MINOR_OF_STRIPPED_SET_GID: Final = 37
"""Of Linux 6.1. vfs_prepare_mode came with 6.0, which has no number of its own."""


class Waiting(NamedTuple):
    """A request whose handler waits for a worker."""

    header: Header
    began: int
    steps: Later


_MOST_NOTICES: Final = 20_000
"""That may wait to be written for a mount of somebody else."""


class Session:
    """One mount, served."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        tree: Tree,
        uids: IdMap,
        gids: IdMap,
        *,
        timeout: float,
        serves_open: bool,
        max_write: int,
        report: Callable[[str, int, float], bytes],
        log: Callable[[str], None],
        trace: Callable[[str], None] | None = None,
        only_uids: frozenset[int] | None = None,
        syncs_directories: bool = False,
        read_only: bool = False,
        buffers: Buffers | None = None,
    ) -> None:
        """Takes over `fd`. `only_uids`: who may use the mount at all (allow_root). `syncs_directories`: a change of
        one is on disk before it is answered (dirsync). `read_only`: nobody changes anything (EROFS). `trace` gets a
        line per request. `buffers`: those of all sessions of the loop, of this `max_write`."""
        self._loop = loop
        self.submit = loop.submit
        self._buffers = buffers = buffers or Buffers(max_write)
        self._channel = Channel(fd, buffers)
        self._max_write = buffers.max_write
        self._log = log
        self._trace = trace
        self._only_uids = only_uids
        self._syncs_directories = syncs_directories
        self.counters = Counters()
        self.agents: dict[int, Callable[[Header, Any], Payload | None]] = {}
        """Threads whose requests are answered here, if they come of what they were told to do (reflect.answers)."""
        self.negotiated: negotiation.Negotiated | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self.is_somebody_elses = False
        """Whoever has mounted could answer requests himself: had INIT been one, he had said what the kernel checks."""
        self.on_failure: Callable[[], None] = loop.stop
        """The kernel and we do not agree: `failure` says about what."""
        self.failure: str | None = None
        self._decoders = requests.decoders(setxattr_ext=False)
        handlers = LAYERED_HANDLERS if tree.layered else HANDLERS
        handlers = refusing_changes(handlers) if read_only else handlers
        self._handlers = handlers if tree.view.xattrs else without_xattrs(handlers)
        self._waiting: dict[int, Waiting] = {}
        self.context = Context(
            tree, uids, gids, timeout,
            serves_open=serves_open,
            scratch=buffers.scratch,
            aside=self._aside,
            notify=lambda message: self.notify([message], _nothing),
            tell=self._tell,
            is_telling=lambda inodes: any(loop.is_waiting(inode.nodeid, self) for inode in inodes),
            is_telling_anything=lambda: loop.is_busy(self),
            detach=buffers.detach,
            recycle=buffers.recycle,
            watch=self._watch,
            report=report,
        )  # fmt: skip
        loop.add(fd, self._ready)

    def wrap(self, wrapping: Callable[[dict[int, Handler]], dict[int, Handler]]) -> None:
        """Let somebody else hear of all requests from now on."""
        self._handlers = wrapping(self._handlers)

    def notify(self, messages: Sequence[bytes], done: Callable[[], None]) -> None:
        """Write notices, those of one inode or of the names in one directory in their order and after those that came
        before; then call `done` on the loop."""
        if self.is_somebody_elses and self._loop.backlog(self) > _MOST_NOTICES:
            # Whoever reads his own requests and never answers them holds the directories that notices are about.
            self._give_up("notices are not taken any more")
            return
        by_inode: dict[int, list[bytes]] = {}
        for message in messages:
            by_inode.setdefault(notices.about(message), []).append(message)
        left = len(by_inode)

        def written(result: Any, error: BaseException | None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                self._log(f"the kernel did not take a notice: {error}")
            if not left:
                done()

        for nodeid, parts in by_inode.items():
            self._loop.submit_waiting(nodeid, partial(self._write, parts), written, self)

    def _tell(self, messages: Sequence[bytes]) -> Gate:
        gate = Gate()
        self.notify(messages, gate.open)
        return gate

    def _write(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            self._channel.notify(message)

    @property
    def waiting(self) -> int:
        """Requests that wait for workers, for `status`."""
        return len(self._waiting)

    def _ready(self) -> None:
        """There is a request. One is taken at a time, so that no connection starves another."""
        try:
            size = self._channel.receive()
        except Disconnected:
            self.end()
            return
        except OSError as error:  # EINVAL: whoever has mounted has answered INIT himself, with larger requests
            self._give_up(f"the kernel's requests cannot be read: {error}")
            return
        if size:
            self._serve(size)

    def pause(self) -> None:
        """Leave further requests with the kernel."""
        self._loop.remove(self._channel.fd)

    def resume(self) -> None:
        if self._channel.fd >= 0:
            self._loop.add(self._channel.fd, self._ready)

    def _give_up(self, why: str) -> None:
        self._log(why)
        self.failure = self.failure or why
        self.on_failure()
        self.end()

    def end(self) -> None:
        """The mount is gone, or is to be."""
        if self._channel.fd >= 0:
            self._loop.remove(self._channel.fd)
            self._channel.close()
            self.on_end()

    def _serve(self, size: int) -> None:
        began = time.perf_counter_ns()
        view = memoryview(self._buffers.present)[:size]
        try:
            header = requests.decode_header(view)
        except ProtocolError as error:
            self._refuse_message(error)
            return
        if self.is_somebody_elses and self.negotiated is None and header.opcode != Opcode.INIT:
            self._give_up("somebody else has answered the kernel's first request")
            return
        try:
            opcode = header.opcode
            decoder = self._decoders.get(opcode)
            if decoder is None:
                raise ProtocolError(f"unknown opcode {opcode}", errno=errno.ENOSYS)
            request = decoder(view[_HEADER_SIZE : size - header.extlen])
            if header.pid in self.agents:
                own = self.agents[header.pid](header, request)
                if own is not None:
                    self._answer(header, began, own)
                    return
            handler = self._handlers.get(opcode)
            if self._only_uids is not None and header.uid not in self._only_uids and opcode not in _NO_REPLY:
                raise OSError(errno.EACCES, "allow_root")
            result = handler(self.context, header, request) if handler is not None else self._special(header, request)
        except Exception as error:
            self._fail(header, began, error)
            return
        if self._syncs_directories and opcode in _DIRECTORY_CHANGES and isinstance(result, bytes):
            changed = {header.nodeid, getattr(request, "newdir", header.nodeid)}
            result = directories.synced(self.context, changed, result)
        if isinstance(result, Generator):
            self._waiting[header.unique] = waiting = Waiting(header, began, result)
            self._step(waiting, None, None)
        elif result is not None:
            self._answer(header, began, result)
        else:
            self.counters[opcode].add(time.perf_counter_ns() - began)

    def _special(self, header: Header, request: Any) -> Payload | None:
        if header.opcode == Opcode.INIT:
            self._init(header.unique, request)
            return None
        if header.opcode == Opcode.INTERRUPT:
            self._interrupt(request.unique)
            return None
        if header.opcode == Opcode.DESTROY:
            return b""
        raise OSError(errno.ENOSYS, "not served")

    def _init(self, unique: int, offer: requests.Init) -> None:
        if self.negotiated is not None:
            raise OSError(errno.EINVAL, "negotiated already")
        if offer.major > abi.MAJOR:
            self._channel.send(negotiation.encode_version_only(unique), b"")
            return
        try:
            agreed = negotiation.negotiate(
                offer, max_write=self._max_write, refuse_open=not self.context.serves_open,
                serve_locks=self.context.locks is not None, page_size=_PAGE, shows_acls=self.context.shows_acls,
                allow_idmap=self._only_uids is None and not self.is_somebody_elses,
            )  # fmt: skip
        except ProtocolError as error:
            self.failure = str(error)
            self.on_failure()
            raise
        self.negotiated = agreed
        self.context.kernel_strips_set_gid = agreed.minor >= _MINOR_OF_STRIPPED_SET_GID
        self.context.requests_tell_ids = InitFlag.ALLOW_IDMAP not in agreed.flags
        self._decoders = requests.decoders(setxattr_ext=bool(agreed.flags & InitFlag.SETXATTR_EXT))
        self._channel.send(negotiation.encode(unique, agreed), b"")
        self.on_ready()

    def _answer(self, header: Header, began: int, payload: Payload) -> None:
        try:
            self._channel.send(replies.header(header.unique, len(payload)), payload)
        except OSError as error:  # it does not fit the request, which the kernel has failed then (fuse_dev_do_write)
            self._log(f"{_describe(header)}: the kernel did not take the answer: {error}")
        self.counters[header.opcode].add(time.perf_counter_ns() - began)
        if self._trace is not None:
            self._trace(f"{_describe(header)} -> {len(payload)} bytes")

    def _fail(self, header: Header, began: int, error: BaseException) -> None:
        number = error.errno if isinstance(error, OSError | ProtocolError) else None
        if number is None:
            number = errno.EIO
            self._log(f"{_describe(header)} failed:\n{''.join(traceback.format_exception(error))}")
        counter = self.counters[header.opcode]
        counter.add(time.perf_counter_ns() - began)
        counter.errors += 1
        if header.opcode not in _NO_REPLY:
            self._channel.send(replies.error(header.unique, number), b"")
        if self._trace is not None:
            self._trace(f"{_describe(header)} -> {errno.errorcode.get(number, number)}")

    def _refuse_message(self, error: ProtocolError) -> None:
        self._log(f"message from the kernel not understood: {error}")
        if error.unique:
            self._channel.send(replies.error(error.unique, error.errno), b"")

    # Requests that wait.

    def _step(self, waiting: Waiting, result: Any, error: BaseException | None) -> None:
        """Go on with a handler, with what its call gave or raised, until it calls again or answers."""
        header = waiting.header
        if self._waiting.get(header.unique) is not waiting:
            self._let_go_ended(header.unique)
            waiting.steps.close()  # its caller was killed: nothing more is done for it
            return
        try:
            call = waiting.steps.throw(error) if error is not None else waiting.steps.send(result)
        except StopIteration as answer:
            self._finish(header)
            self._answer(header, waiting.began, answer.value)
        except Exception as failure:
            self._finish(header)
            self._fail(header, waiting.began, failure)
            # One that was thrown in refers through its frames to itself, and to all that its call held; collections
            # are rare here.
            failure.__traceback__ = None
        else:
            if isinstance(call, Gate):
                call.wait(lambda: self._step(waiting, None, None))
                return
            self.submit(
                lambda: call() if self._waiting.get(header.unique) is waiting else None,
                lambda result, error: self._step(waiting, result, error),
            )

    def run_aside(self, steps: Steps) -> None:
        """Go through steps that no request waits for."""
        self._step_aside(steps, None, None)

    def _step_aside(self, steps: Steps, result: Any, error: BaseException | None) -> None:
        try:
            call = steps.throw(error) if error is not None else steps.send(result)
        except StopIteration:
            return
        except Exception as failure:
            self._aside_done(None, failure)
            return
        if isinstance(call, Gate):
            call.wait(lambda: self._step_aside(steps, None, None))
        else:
            self.submit(call, lambda result, error: self._step_aside(steps, result, error))

    def _let_go_ended(self, unique: int) -> None:
        self.context.interrupted.discard(unique)
        if unique in self.context.let_go:
            self.context.let_go.remove(unique)
            self._loop.regained()

    def _finish(self, header: Header) -> None:
        self.context.interrupted.discard(header.unique)
        del self._waiting[header.unique]

    def _interrupt(self, unique: int) -> None:
        """A signal has come for whoever waits. A copy stops early by itself. All else goes on, as on a local disk,
        unless the caller is being killed: then it is let go, and its handler goes no further than the call it is at."""
        waiting = self._waiting.get(unique)
        if waiting is None:
            return
        self.context.interrupted.add(unique)  # copies look for it
        waker = self.context.when_interrupted.get(unique)
        if waker is not None:
            waker()
        if unique in self._waiting:
            self._let_go_if_killed(unique, waiting)

    def look_for_killed(self) -> bool:
        """Let those go who have been killed after another signal: the kernel tells of the first alone
        (fuse_dev_queue_interrupt). True if there are any left to look at again."""
        for unique in self.context.interrupted & self._waiting.keys():
            self._let_go_if_killed(unique, self._waiting[unique])
        return bool(self.context.interrupted & self._waiting.keys())

    def _let_go_if_killed(self, unique: int, waiting: Waiting) -> None:
        if self.is_somebody_elses:
            return  # he may be numbered in another pid namespace than ours
        if is_being_killed(waiting.header.pid):
            del self._waiting[unique]
            self.context.let_go.add(unique)
            self._loop.lost()
            self._fail(waiting.header, waiting.began, InterruptedError(errno.EINTR, "killed"))

    def _aside(self, call: Work) -> None:
        self.submit(call, self._aside_done)

    def _aside_done(self, result: Any, error: BaseException | None) -> None:
        if error is not None:
            self._log(f"a call beside the requests failed: {error}")

    def _watch(self, fd: int, happened: Callable[[], None]) -> Callable[[], None]:
        self._loop.add(fd, happened, self._loop.URGENT)
        return lambda: self._loop.remove(fd)


def _nothing() -> None:
    """For what nobody waits for."""


def _describe(header: Header) -> str:
    with contextlib.suppress(ValueError):
        return f"#{header.unique} {Opcode(header.opcode).name} node {header.nodeid} uid {header.uid} pid {header.pid}"
    return f"#{header.unique} opcode {header.opcode} node {header.nodeid}"


def is_being_killed(pid: int) -> bool:
    """Has the thread a SIGKILL pending (proc(5), SigPnd and ShdPnd)? 0 is one outside our pid namespace: not known."""
    if pid == 0:
        return False
    try:
        with open(f"/proc/{pid}/status", "rb") as lines:
            for line in lines:
                if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & _SIGKILL_BIT:
                    return True
    except (FileNotFoundError, ProcessLookupError):
        return True  # it is gone
    except OSError:
        return False  # not ours to see (hidepid), or out of descriptors: not known
    return False
