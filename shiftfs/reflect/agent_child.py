"""What the agent does in its own process: jobs on the clone of the mount that it was given.

Owns the clone, and no other descriptor beyond its sockets for longer than a job takes: what it held open on the mount
would keep that from ending. Follows no symlink and never leaves the clone, whatever the layers are turned into
meanwhile. Each thread does the jobs from its own socket in their order; the first thread takes the clone, and ends the
process when the daemon has gone, however it went.
"""

import contextlib
import errno
import gc
import mmap
import os
import select
import signal
import socket
import stat
import struct
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, NoReturn

from ..sys import beneath, files, process
from .action import Verb

STARTED: Final = struct.Struct("=I")
"""The first packet of a thread: its id."""
JOB: Final = struct.Struct("=IB3xI")
"""Job, verb, mode; paths follow, with a NUL between them."""
OUTCOME: Final = struct.Struct("=II")
"""Job, errno."""
REFUSED: Final = 0
"""The verb of a job that cannot be sent; its mode is the errno to answer with."""
LONGEST_JOB: Final = 1 << 17
"""Bytes. A socket takes more by default (net.core.wmem_default)."""
GIVEN: Final = b"\1"
DROPPED: Final = b"\0"

_NAME: Final = b"shiftfs-agent"
_STACK: Final = 128 * 1024
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Which may come for the whole process group or control group: it goes when the daemon goes."""

_LOOK_AGAIN: Final = 2000
"""Milliseconds."""
_ORPHANED: Final = signal.SIGUSR2

_PATH_STEP: Final = 4095
"""Bytes, PATH_MAX without its NUL."""
_O_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_O_FILE: Final = os.O_PATH | os.O_NOFOLLOW
_O_WRITE: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_EXISTING: Final = frozenset(
    {Verb.UNLINK, Verb.RMDIR, Verb.RENAME, Verb.EXCHANGE, Verb.MODIFIED, Verb.ATTRIBUTES, Verb.CLOSED}
)
_TOLD_BEFORE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
"""What the kernel says by itself where it was told of something else, or of nothing."""
_NOW: Final = (0, files.UTIME_NOW)
_OMIT: Final = (0, files.UTIME_OMIT)


class Place(NamedTuple):
    """Where the agent of a mount in somebody else's namespaces is: it has the `clone` from the beginning, leaves the
    namespaces by `leave`, so that it keeps nothing there, and ends when `is_there` says that the mount is gone."""

    clone: int
    leave: Callable[[], None]
    is_there: Callable[[], bool]


def run(
    sockets: Sequence[int], mask: Iterable[int], place: Place | None = None, drop: Callable[[], None] | None = None
) -> NoReturn:
    """Be the agent from now on: the first socket tells of the clone, each other gives jobs to a thread. `drop` gives up
    rights."""
    try:
        gc.disable()  # nothing of the daemon's is ever to be touched here, or it would take memory of its own
        for ignored in _IGNORED:
            signal.signal(ignored, signal.SIG_IGN)
        signal.signal(_ORPHANED, signal.SIG_IGN)
        if place is None:
            process.set_parent_death_signal(_ORPHANED)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        process.set_name(_NAME)
        os.umask(0)
        os.chdir("/")
        null = _close_others([*sockets, *([place.clone] if place is not None else [])])
        if drop is not None:
            drop()
        # A number of its own for the clone, which no other descriptor has even while there is none.
        worker = Worker(socket.socket(fileno=sockets[0]), os.dup(null))
        if place is not None:
            worker.leave(place.leave)
            worker.take(place.clone)
        signal.signal(_ORPHANED, lambda number, frame: worker.abort())
        threading.stack_size(_STACK)
        for number in sockets[1:]:
            threading.Thread(target=worker.work, args=(number,), daemon=True).start()
        worker.wait(place.is_there if place is not None else None)
    finally:
        os._exit(0)


def _close_others(sockets: Sequence[int]) -> int:
    """Keep no descriptor but these, and /dev/null in the standard streams' place."""
    null = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    first = 3
    for kept in sorted(sockets):
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    return 0


class Worker:
    """Does jobs on a clone of the mount."""

    def __init__(self, control: socket.socket, clone: int) -> None:
        self._control = control
        self._clone = clone
        self._descriptors = -1
        """Of our descriptors, once we see no /proc any more."""
        self._has_clone = False
        self._connection: str | None = None
        self._lock = threading.Lock()
        self._calls: dict[int, Callable[[int, Sequence[bytes]], None]] = {
            Verb.MKNOD: self._mknod,
            Verb.MKDIR: self._mkdir,
            Verb.SYMLINK: self._symlink,
            Verb.LINK: self._link,
            Verb.UNLINK: self._unlink,
            Verb.RMDIR: self._rmdir,
            Verb.RENAME: self._rename,
            Verb.EXCHANGE: self._exchange,
            Verb.MODIFIED: self._modified,
            Verb.ATTRIBUTES: self._attributes,
            Verb.CLOSED: self._closed,
            REFUSED: self._refuse,
        }

    def wait(self, is_there: Callable[[], bool] | None = None) -> None:
        """Take clones, until the daemon has gone, or what `is_there` is asked for now and then."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while is_there is None or is_there():
            poll.poll(None if is_there is None else _LOOK_AGAIN)
            with self._lock:
                if not self._take_control():
                    return

    def _take_control(self) -> bool:
        """Hear all that was said of the clone; False if the other end is closed."""
        while True:
            rights: list[int] = []
            try:
                said, found, _, _ = self._control.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            for _, _, data in found:
                rights += array("i", data)
            if not said:
                return False
            if rights:
                self.take(rights[0])
            else:
                self._has_clone = False
                self._connection = None
                os.dup2(0, self._clone, inheritable=False)

    def leave(self, leave: Callable[[], None]) -> None:
        self._descriptors = os.open("/proc/self/fd", _O_PATH | os.O_CLOEXEC)
        leave()

    def take(self, clone: int) -> None:
        """In the very place of the one before: a job that is just being done must not meet another descriptor there."""
        os.dup2(clone, self._clone, inheritable=False)
        os.close(clone)
        self._connection = files.device(self._clone).rpartition(":")[2]  # its minor number
        self._has_clone = True

    def abort(self) -> None:
        """End the connection of the mount: a thread of the daemon that has been killed while it wrote a notice waits
        for a directory whose user waits for the daemon, so that neither would end (inode_lock cannot be killed)."""
        if self._connection is None:
            return
        with contextlib.suppress(OSError), open(f"/sys/fs/fuse/connections/{self._connection}/abort", "wb") as abort:
            abort.write(b"1")

    def work(self, fd: int) -> None:
        """Do what comes from a socket, until that is closed."""
        room = mmap.mmap(-1, LONGEST_JOB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # takes what it is used for
        view = memoryview(room)
        with contextlib.suppress(OSError):
            os.write(fd, STARTED.pack(threading.get_native_id()))
            while size := os.readv(fd, (room,)):
                job, verb, mode = JOB.unpack_from(room)
                number = self._perform(verb, mode, view[JOB.size : size].tobytes().split(b"\0"))
                os.write(fd, OUTCOME.pack(job, number))

    def _perform(self, verb: int, mode: int, paths: Sequence[bytes]) -> int:
        with self._lock:
            self._take_control()  # what was said before the job is here by now
        if not self._has_clone:
            return errno.ENODEV
        number = self._try(verb, mode, paths)
        is_to_be_known = number in _TOLD_BEFORE and verb in _EXISTING
        if (is_to_be_known and self._ask_again(paths[0])) or (number == errno.EOVERFLOW and self._look_at(paths)):
            number = self._try(verb, mode, paths)
        return number

    def _try(self, verb: int, mode: int, paths: Sequence[bytes]) -> int:
        try:
            self._calls[verb](mode, paths)
        except OSError as error:
            return error.errno or errno.EIO
        except Exception:
            return errno.EIO
        return 0

    def _ask_again(self, path: bytes) -> bool:
        """Let the kernel ask what a name leads to, whatever it was told before: it does so before it creates anything,
        and here finds that there is something (kernel fs/fuse/dir.c, LOOKUP_EXCL). False if there is nothing."""
        try:
            self._mknod(stat.S_IFREG, (path,))
        except FileExistsError:
            return True
        except OSError:
            return False
        return False

    def _look_at(self, paths: Sequence[bytes]) -> bool:
        """Let the kernel ask for owners: as long as it takes them for unmapped, it lets nobody change anything (kernel
        namei.c, may_delete), and being told that they have changed it does not ask by itself."""
        for path in paths:
            with contextlib.suppress(OSError):
                directory, name = self._parent(path)
                try:
                    os.stat(name, dir_fd=directory, follow_symlinks=False)
                finally:
                    self._close(directory)
        return True

    # Where a path leads.

    def _open(self, path: bytes, flags: int) -> int:
        """A descriptor of what is at a path of any length."""
        at = self._clone
        try:
            while len(path) > _PATH_STEP:
                end = path.rindex(b"/", 0, _PATH_STEP + 1)
                deeper = beneath.open_beneath(at, path[:end], _O_PATH)
                if at != self._clone:
                    os.close(at)
                at, path = deeper, path[end + 1 :]
            return beneath.open_beneath(at, path, flags)
        finally:
            if at != self._clone:
                os.close(at)

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        """A descriptor of the directory, to be given to `_close`, and the name in it."""
        directory, slash, name = path.rpartition(b"/")
        if not slash:
            return self._clone, name or b"."
        return self._open(directory, _O_PATH), name

    def _close(self, directory: int) -> None:
        if directory != self._clone:
            os.close(directory)

    # The verbs.

    def _mknod(self, mode: int, paths: Sequence[bytes]) -> None:
        directory, name = self._parent(paths[0])
        try:
            os.mknod(name, mode, dir_fd=directory)
        finally:
            self._close(directory)

    def _mkdir(self, mode: int, paths: Sequence[bytes]) -> None:
        directory, name = self._parent(paths[0])
        try:
            os.mkdir(name, mode & 0o7777, dir_fd=directory)
        finally:
            self._close(directory)

    def _symlink(self, mode: int, paths: Sequence[bytes]) -> None:
        directory, name = self._parent(paths[0])
        try:
            os.symlink(b"x", name, dir_fd=directory)
        finally:
            self._close(directory)

    def _unlink(self, mode: int, paths: Sequence[bytes]) -> None:
        directory, name = self._parent(paths[0])
        try:
            os.unlink(name, dir_fd=directory)
        finally:
            self._close(directory)

    def _rmdir(self, mode: int, paths: Sequence[bytes]) -> None:
        directory, name = self._parent(paths[0])
        try:
            os.rmdir(name, dir_fd=directory)
        finally:
            self._close(directory)

    def _link(self, mode: int, paths: Sequence[bytes]) -> None:
        self._with_two(paths, lambda old, name, new, new_name: os.link(
            name, new_name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False
        ))  # fmt: skip

    def _rename(self, mode: int, paths: Sequence[bytes]) -> None:
        self._with_two(paths, _rename)

    def _exchange(self, mode: int, paths: Sequence[bytes]) -> None:
        flags = files.RENAME_EXCHANGE
        self._with_two(paths, lambda old, name, new, new_name: files.rename(old, name, new, new_name, flags))

    def _with_two(self, paths: Sequence[bytes], call: Callable[[int, bytes, int, bytes], None]) -> None:
        old, name = self._parent(paths[0])
        try:
            new, new_name = self._parent(paths[1])
            try:
                call(old, name, new, new_name)
            finally:
                self._close(new)
        finally:
            self._close(old)

    def _modified(self, mode: int, paths: Sequence[bytes]) -> None:
        """IN_MODIFY comes of a change of mtime alone (kernel fs/notify, fsnotify_change)."""
        self._set_times(paths[0], _OMIT)

    def _attributes(self, mode: int, paths: Sequence[bytes]) -> None:
        """IN_ATTRIB comes of a change of both times."""
        self._set_times(paths[0], _NOW)

    def _set_times(self, path: bytes, atime: tuple[int, int]) -> None:
        directory, name = self._parent(path)
        try:
            files.set_times_at(directory, name, atime, _NOW)
        finally:
            self._close(directory)

    def _closed(self, mode: int, paths: Sequence[bytes]) -> None:
        """IN_CLOSE_WRITE comes of closing what was open for writing. Waits for no lease (EAGAIN)."""
        held = self._open(paths[0], _O_FILE)
        try:
            files.touch_for_writing(held, _O_WRITE, self._descriptors)
        finally:
            os.close(held)

    def _refuse(self, mode: int, paths: Sequence[bytes]) -> None:
        raise OSError(mode, os.strerror(mode))


def _rename(old: int, name: bytes, new: int, new_name: bytes) -> None:
    """A directory that has been looked up elsewhere is moved to where it is looked up now, but not under the lock that
    renames between directories hold (kernel dcache.c, __d_unalias): ESTALE. Then it is looked up before."""
    try:
        files.rename(old, name, new, new_name, 0)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        os.stat(name, dir_fd=old, follow_symlinks=False)
        files.rename(old, name, new, new_name, 0)
