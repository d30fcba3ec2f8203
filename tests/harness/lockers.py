"""A stage on which processes play about the locks of one file, step by step, as a script has it.

Owns the processes from their first step to the end of the stage's `with`, where all are killed. What is held and who
waits is read from /proc/locks; no answer is waited for longer than LIMIT seconds.

A script has one step a line, done one after another: somebody, what he does, and after `->` what comes of it, where
that is not success. Ranges are bytes, the last included. Descriptors have names; `f`, open for both, is there from the
beginning, unless the first step opens something, and is meant where none is named.

    A posix write 0-9                     F_SETLK; also `ofd`, `read`, `none`, 5-end
    B posix read 5-5 g -> EAGAIN          on the descriptor g
    B waits posix read 5-5                F_SETLKW, and it is seen to wait
    B gets it                             now; or `B gets EINTR`
    B asks posix read 5-5 -> write 0-9 by A     F_GETLK; or `free`
    A flock exclusive                     also `shared`, `none`, `waits flock …`
    A lease read                          F_SETLEASE; also `asks lease -> read`
    B opens g write                       also `read`, `both`, `write nonblock`, `waits opens …`, `opens g read NAME`
    A reads     A writes                  some bytes at the beginning of f
    B truncates                           by path; also `waits truncates`
    A closes g     A dups f g             dup(2)
    A forks C      A forks C apart        a process; in a pid namespace of its own
    A starts T                            a thread
    A dies         A is signalled         SIGKILL; a signal with a handler
    A hears SIGIO  A hears nothing
    held: posix write 0-9 by A, flock shared by B      all that /proc/locks has of the file
"""

import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness import playing
from harness.commands import wait_until

LIMIT = 10.0  # seconds
_READINGS = 20
_SHORT = 0.3  # for what is not to come


@dataclass
class Locker:
    """A process, or one of its threads. `pids`: what it is called, from our pid namespace inwards."""

    wire: socket.socket
    pidfd: int
    pids: list[int]
    is_child: bool = False

    @property
    def pid(self) -> int:
        return self.pids[0]

    def tell(self, call: Callable[..., str] | str, *args: Any, fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self.wire, [pickle.dumps((call, *args))], fds)

    def answer(self) -> tuple[str, list[int]]:
        """What came of it, and descriptors. AssertionError when nothing did."""
        if not self.answered(LIMIT):
            return f"no answer within {LIMIT:g} s", []
        content, fds, _, _ = socket.recv_fds(self.wire, 65536, 1)
        return content.decode() or "death", fds

    def answered(self, limit: float = 0.0) -> bool:
        return bool(select.select([self.wire], [], [], limit)[0])

    def ended(self) -> bool:
        return bool(select.select([self.pidfd], [], [], LIMIT)[0])

    def kill(self) -> None:
        """And wait until all that it held is free."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        assert self.ended(), f"process {self.pid} does not die"
        if self.is_child:
            os.waitpid(self.pid, 0)
            self.is_child = False


def _pids(pidfd: int) -> list[int]:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return next([int(word) for word in line.split()[1:]] for line in lines if line.startswith("NSpid:"))


class Stage:
    """Those who play about one file, `path`, which may be given another name meanwhile, but stays one inode."""

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        self.key = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        self._lockers: dict[str, Locker] = {}
        self._names: dict[int, str] = {}
        self._waiting: list[Locker] = []  # for locks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for locker in reversed(self._lockers.values()):
            locker.kill()
        for locker in self._lockers.values():
            locker.wire.close()
        for pidfd in {locker.pidfd for locker in self._lockers.values()}:
            os.close(pidfd)

    def __getitem__(self, name: str) -> Locker:
        return self._lockers[name]

    def play(self, script: str) -> None:
        """AssertionError names the first step of which something else comes."""
        for line in filter(None, map(str.strip, script.splitlines())):
            if line.startswith("held:"):
                wanted = sorted(filter(None, map(str.strip, line.removeprefix("held:").split(","))))
                found = self._settled(wanted)
                assert found == wanted, f"{line}\n  found: {', '.join(found) or 'nothing'}"
                continue
            step, _, outcome = map(str.strip, line.partition("->"))
            came = self._step(*step.split())
            assert came == (outcome or "it"), f"{line}\n  what came of it: {came}"

    def tries(self, step: str) -> bool:
        """One step: does it succeed?"""
        return self._step(*step.split()) == "it"

    def held(self) -> list[str]:
        """What /proc/locks has of the file, in a script's words."""
        found = []
        for words in self._listed():
            if words[1] == "->":
                continue
            kind, state, mode, pid = words[1].lower(), words[2], words[3].lower(), int(words[4])
            holder = "" if pid == -1 else f" by {self._names.get(pid, pid)}"
            if kind == "flock":
                found.append(f"flock {'exclusive' if mode == 'write' else 'shared'}{holder}")
            elif kind == "lease":
                found.append(f"lease {mode if state == 'ACTIVE' else state.lower()}{holder}")
            else:
                last = words[7] if words[7] != "EOF" else "end"
                found.append(f"{kind.removesuffix('lck')} {mode} {words[6]}-{last}{holder}")
        return sorted(found)

    def _settled(self, wanted: list[str]) -> list[str]:
        """What is held, read again where it is not what is wanted: nothing of it changes just now, but where others on
        the machine take locks meanwhile, /proc/locks, which is read in parts, has some twice or not at all."""
        found = self.held()
        for _ in range(_READINGS):
            if found == wanted:
                break
            time.sleep(0.01)
            found = self.held()
        return found

    def _listed(self) -> list[list[str]]:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines() if self.key in line]
        return [words for words in lines if self.key in words]

    def _step(self, name: str, verb: str, *words: str) -> str:
        locker = self._lockers.get(name) or self._new(name, opens=verb != "opens" and "opens" not in words)
        if verb in ("forks", "starts"):
            self._another(locker, words[0], "thread" if verb == "starts" else "apart" if words[1:] else "fork")
            return "it"
        if verb == "dies":
            locker.kill()
            return "it"
        if verb == "is":
            signal.pidfd_send_signal(locker.pidfd, signal.SIGUSR1)
            return "it"
        if verb == "gets":
            came = self._answer(locker)
            return "it" if came == words[0] else came
        if verb == "waits":
            return self._wait(locker, *words)
        locker.tell(*self._call(verb, list(words), waits=False))
        came = locker.answer()[0]
        if verb == "hears":
            return "it" if came == words[0] else came
        return self._named(locker, came) if verb == "asks" else came

    def _call(self, verb: str, words: list[str], waits: bool) -> tuple[Any, ...]:
        if verb == "asks":
            return (playing.leased, *words[1:]) if words[0] == "lease" else (playing.record, words[0], 2, *words[1:])
        if verb in playing.COMMANDS:
            return (playing.record, verb, int(waits), *words)
        if verb == "opens":
            path, how = self.path, words[1:]
            if how and how[-1] not in playing.OPENING:
                path = self.path.parent / how.pop()
            return (playing.open_as, str(path), words[0], *how)
        if verb == "hears":
            return (playing.hear, _SHORT if words[0] == "nothing" else LIMIT)
        calls: dict[str, tuple[Any, ...]] = {
            "flock": (playing.flock, waits),
            "lease": (playing.lease,),
            "truncates": (playing.truncate, str(self.path)),
            "closes": (playing.close,),
            "reads": (playing.read,),
            "writes": (playing.write,),
            "dups": (playing.dup,),
        }
        return (*calls[verb], *words)

    def _wait(self, locker: Locker, verb: str, *words: str) -> str:
        """Until it is seen to wait: for a lock, or for whom a lease is broken."""

        def waiting() -> bool:
            if verb in ("opens", "truncates"):
                return any(words[2] == "BREAKING" for words in self._listed())
            seen = sum(words[1] == "->" for words in self._listed())
            return seen >= sum(not one.answered() for one in self._waiting)

        if verb not in ("opens", "truncates"):
            self._waiting.append(locker)
        locker.tell(*self._call(verb, list(words), waits=True))
        wait_until(lambda: locker.answered() or waiting(), f"{verb} {words} that waits", LIMIT)
        return f"{self._answer(locker)}, at once" if locker.answered() else "it"

    def _answer(self, locker: Locker) -> str:
        if locker in self._waiting:
            self._waiting.remove(locker)
        return locker.answer()[0]

    def _named(self, asker: Locker, came: str) -> str:
        """With the name of whoever the asker's pid namespace knows by this number."""
        held, by, pid = came.rpartition(" by ")
        if not by:
            return came
        depth = len(asker.pids) - 1
        names = {self._names[locker.pid]: locker.pids for locker in self._lockers.values()}
        known = [name for name, pids in names.items() if pids[depth : depth + 1] == [int(pid)]]
        return f"{held} by {known[0] if known else pid}"

    def _new(self, name: str, opens: bool) -> Locker:
        ours, theirs = _pair()
        with theirs:
            pid = os.fork()
            if pid == 0:
                playing.begin(theirs)
        pidfd = os.pidfd_open(pid)
        locker = self._add(name, Locker(ours, pidfd, _pids(pidfd), is_child=True))
        if opens:
            locker.tell(playing.open_as, str(self.path), "f", "both")
            came = locker.answer()[0]
            assert came == "it", f"{name} opens f\n  what came of it: {came}"
        return locker

    def _another(self, locker: Locker, name: str, how: str) -> None:
        ours, theirs = _pair()
        with theirs:
            locker.tell(how, fds=(theirs.fileno(),))
            came, fds = locker.answer()
        if fds:
            self._add(name, Locker(ours, fds[0], _pids(fds[0])))
        else:
            self._add(name, Locker(ours, locker.pidfd, locker.pids))
        assert came == "it", f"{name}, {how}\n  what came of it: {came}"

    def _add(self, name: str, locker: Locker) -> Locker:
        self._lockers[name] = locker
        self._names.setdefault(locker.pid, name)
        return locker


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
