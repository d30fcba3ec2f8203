"""Owns one connection to the kernel: decodes requests, dispatches them, and answers.

Translates errors once, here: OSError to its errno, anything else to EIO with a traceback in the log. Knows no operation
beyond INIT, INTERRUPT and DESTROY. Loop thread, but for the calls that it hands to workers.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Final

from . import faults, lane, native
from .channel import Buffers, Channel, Disconnected
from .counters import Counters
from .loop import Loop
from .ops import HANDLERS, LAYERED_HANDLERS, Handler, directories, without_xattrs
from .ops.context import Context, Payload, Result
from .ops.readonly import refusing_changes
from .reads import Reads
from .shift.idmap import IdMap
from .tree import Gate, Steps, Tree, Work
from .underway import Underway
from .wire import abi, negotiation, notices, replies, requests
from .wire.abi import InitFlag, Opcode
from .wire.requests import Header, ProtocolError

_FORGET: Final = int(Opcode.FORGET)
_BATCH_FORGET: Final = int(Opcode.BATCH_FORGET)
_INTERRUPT: Final = int(Opcode.INTERRUPT)
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_HEADER_SIZE: Final = 40
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_REPLY: Final = frozenset({_FORGET, _BATCH_FORGET, _INTERRUPT, int(Opcode.NOTIFY_REPLY)})
_DIRECTORY_CHANGES: Final = frozenset(
    [
        *(Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.LINK, Opcode.CREATE),
        *(Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2),
    ]
)
_MINOR_OF_STRIPPED_SET_GID: Final = 37
"""Of Linux 6.1. vfs_prepare_mode came with 6.0, which has no number of its own."""


_AT_ONCE: Final = 64
"""Requests."""
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
        buffers: Buffers,
        report: Callable[[str, int, float], bytes],
        log: Callable[[str], None],
        trace: Callable[[str], None] | None = None,
        only_uids: frozenset[int] | None = None,
        syncs_directories: bool = False,
        read_only: bool = False,
        serves_opendir: bool | None = None,
        passthrough: bool = False,
        writeback: bool = False,
    ) -> None:
        """Takes over `fd`. `only_uids`: who may use the mount at all (allow_root). `syncs_directories`: a change of
        one is on disk before it is answered (dirsync). `read_only`: nobody changes anything (EROFS). `serves_opendir`:
        opening a directory reaches us; if not given, as `serves_open`. `trace` gets a line per request.
        `passthrough`: the kernel may read and write files of the layers by itself, if it can. `writeback`: nobody else
        changes the layers, and the kernel may collect what is written. `buffers`: those of all sessions of the loop."""
        self._loop = loop
        self.submit = loop.submit
        self._buffers = buffers
        self._channel = Channel(fd, buffers)
        self._log = log
        self._trace = trace
        self._only_uids = only_uids
        self._syncs_directories = syncs_directories
        self._counters = Counters()
        self._lane: lane.Lane | None = None
        self.reads = Reads(fd)
        self._passes_through = passthrough
        self._writes_back = writeback
        self.needs_passthrough = False
        """It is no mount without."""
        self.agents: dict[int, Callable[[Header, Any], Payload | None]] = {}
        """Threads whose requests are answered here, if they come of what they were told to do (reflect.answers)."""
        self.negotiated: negotiation.Negotiated | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self.faults = 0
        """Errors that nobody expected."""
        self.is_somebody_elses = False
        """Whoever has mounted could answer requests himself: had INIT been one, he had said what the kernel checks."""
        self.on_failure: Callable[[], None] = loop.stop
        """The kernel and we do not agree: `failure` says about what."""
        self.failure: str | None = None
        self._decoders = requests.decoders(setxattr_ext=False)
        handlers = LAYERED_HANDLERS if tree.layered else HANDLERS
        handlers = refusing_changes(handlers) if read_only else handlers
        self._handlers = handlers if tree.view.xattrs else without_xattrs(handlers)
        self.context = Context(
            tree, uids, gids, timeout,
            serves_open=serves_open,
            serves_opendir=serves_open if serves_opendir is None else serves_opendir,
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
        self.underway = Underway(
            self.context, self.reads, loop, lambda call, done: self.submit(call, done), self._answer, self._fail,
            lambda: self.is_somebody_elses,
        )  # fmt: skip
        self.context.all_written = self.reads.written
        loop.add(fd, self._ready)

    def wrap(self, wrapping: Callable[[dict[int, Handler]], dict[int, Handler]]) -> None:
        """Let somebody else hear of all requests from now on."""
        self._handlers = wrapping(self._handlers)
        if self.negotiated is not None:
            self._open_lane()

    def _open_lane(self) -> None:
        """Serve natively what nobody else has to see."""
        self._fold()
        fd, poll, buffers = self._channel.fd, self._loop.poll_fd, self._buffers
        is_open = self._trace is None and self._only_uids is None and not self.is_somebody_elses
        self.context.lane = self._lane = None
        if is_open:
            self.context.lane = self._lane = lane.of(
                self.context, fd, poll, self._handlers, buffers, self.agents, self.reads, self._syncs_directories
            )

    @property
    def counters(self) -> Counters:
        """Of all requests so far."""
        self._fold()
        return self._counters

    def _fold(self) -> None:
        for opcode, *numbers in self._lane.counts() if self._lane is not None else ():
            self._counters[opcode].add_many(*numbers)
        self.reads.fold(self._counters)

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
        """Requests that wait for workers, or natively, for `status`."""
        return self.underway.count + self.reads.waiting

    def _ready(self) -> None:
        """There is a request. One is taken at a time, so that no connection starves another; or more, as long as there
        is nothing else to do, where a lane looks after that."""
        for _ in range(_AT_ONCE):
            lane = self._lane
            try:
                size = self._channel.receive() if lane is None else self._channel.received(self._served(lane))
            except Disconnected:
                self.end()
                return
            except OSError as error:  # EINVAL: whoever has mounted has answered INIT himself, with larger requests
                self._give_up(f"the kernel's requests cannot be read: {error}")
                return
            if size:
                self._serve(size)
            is_next = lane is not None and size > 0 and lane.answered()
            for fd in lane.others() if lane is not None else ():
                self._loop.is_ready(fd)
            if not is_next or self._lane is None:
                return

    def _served(self, lane: lane.Lane) -> int:
        """As Lane.serve."""
        try:
            return lane.serve()
        except Exception as error:
            return self._without_lane(error)

    def _without_lane(self, error: Exception) -> int:
        """The lane has failed at a request, which is the handlers', as are all others from now on. Its size."""
        self.faults += 1
        self._log(f"native code failed, and is not used any more:\n{faults.told(error)}")
        self._fold()
        self.context.lane = self._lane = None
        return requests.length(self._buffers.present)

    def pause(self) -> None:
        """Leave further requests with the kernel."""
        self._loop.remove(self._channel.fd)

    def resume(self) -> None:
        if self._channel.fd >= 0:
            self._loop.add(self._channel.fd, self._ready)

    def has_ended(self) -> bool:
        """Has the kernel ended the connection, or have we? Unmounted or not: by umount(8), -f, it is aborted first."""
        return self._channel.has_ended()

    def _give_up(self, why: str) -> None:
        self._log(why)
        self.failure = self.failure or why
        self.on_failure()
        self.end()

    def end(self) -> None:
        """The mount is gone, or is to be."""
        if self._channel.fd >= 0:
            self._fold()
            self.context.lane = self._lane = None
            self._loop.remove(self._channel.fd)
            self.context.collected.finish_all()
            if self.context.times is not None:
                self.context.times.settle_all()
            self.reads.close()
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
            result = self._handled(handler, header, request) if handler is not None else self._special(header, request)
        except Exception as error:
            self._fail(header, began, error)
            return
        if self._syncs_directories and opcode in _DIRECTORY_CHANGES and isinstance(result, bytes):
            changed = {header.nodeid, getattr(request, "newdir", header.nodeid)}
            result = directories.synced(self.context, changed, result)
        if isinstance(result, Generator):
            self.underway.begin(header, began, result)
        elif result is not None:
            self._answer(header, began, result)
        else:
            self._counters[opcode].add(time.perf_counter_ns() - began)

    def _handled(self, handler: Handler, header: Header, request: Any) -> Result:
        try:
            return handler(self.context, header, request)
        except OSError as error:
            if error.errno not in _FULL or not native.closed_all():
                raise
        return handler(self.context, header, request)  # there is what removed files have had, by now

    def _special(self, header: Header, request: Any) -> Payload | None:
        if header.opcode == Opcode.INIT:
            self._init(header.unique, request)
            return None
        if header.opcode == Opcode.INTERRUPT:
            self.underway.interrupt(request.unique)
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
                offer, max_write=self._buffers.max_write, refuse_open=not self.context.serves_open,
                serve_locks=self.context.locks is not None, page_size=_PAGE, shows_acls=self.context.shows_acls,
                allow_idmap=self._only_uids is None and not self.is_somebody_elses,
                pass_through=self._passes_through, write_back=self._writes_back,
            )  # fmt: skip
            if self.needs_passthrough and InitFlag.PASSTHROUGH not in agreed.flags:
                raise ProtocolError("passthrough=on: the kernel offers none; Linux 6.9 or later is needed")
        except ProtocolError as error:
            self.failure = str(error)
            self.on_failure()
            raise
        self.negotiated = agreed
        self.context.kernel_strips_set_gid = agreed.minor >= _MINOR_OF_STRIPPED_SET_GID
        self.context.requests_tell_ids = InitFlag.ALLOW_IDMAP not in agreed.flags
        if InitFlag.PASSTHROUGH in agreed.flags:
            from .backing import WORTH, Backings  # most mounts pass nothing through

            context, channel = self.context, self._channel
            context.backings = Backings(
                context.tree, context.written, channel.open_backing, channel.close_backing, context.disregard,
                0 if self.needs_passthrough or context.locks is not None else WORTH,
            )  # fmt: skip
        if InitFlag.WRITEBACK_CACHE in agreed.flags:
            from .ops.times import Times  # nor do most collect writes

            self.context.times = Times(self.context.tree)
        self._decoders = requests.decoders(setxattr_ext=bool(agreed.flags & InitFlag.SETXATTR_EXT))
        self._channel.send(negotiation.encode(unique, agreed), b"")
        self.on_ready()
        self._open_lane()

    def _answer(self, header: Header, began: int, payload: Payload) -> None:
        try:
            self._channel.send(replies.header(header.unique, len(payload)), payload)
        except OSError as error:  # it does not fit the request, which the kernel has failed then (fuse_dev_do_write)
            self._log(f"{_describe(header)}: the kernel did not take the answer: {error}")
        self._counters[header.opcode].add(time.perf_counter_ns() - began)
        if self._trace is not None:
            self._trace(f"{_describe(header)} -> {len(payload)} bytes")

    def _fail(self, header: Header, began: int, error: BaseException) -> None:
        number = error.errno if isinstance(error, OSError | ProtocolError) else None
        if number is None:
            number = errno.EIO
            self.faults += 1
            self._log(f"{_describe(header)} failed:\n{faults.told(error)}")
        counter = self._counters[header.opcode]
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

    # What nobody waits for.

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
