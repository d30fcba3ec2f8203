"""Programs that watch files, run as users run them: what they print of a directory that changes.

Owns each program from its start to the end of its `with`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.commands import EXIT_LIMIT, Argument, run, wait_until

START_LIMIT = 20.0
SAYS_LIMIT = 10.0
NPM_LIMIT = 120.0

# Says "ready", then "KIND PATH" of each change.
_WATCHDOG = """
import sys, time
from watchdog.events import FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver

class Print(FileSystemEventHandler):
    def on_any_event(self, event):
        if event.event_type in ("created", "deleted", "modified", "closed", "moved"):
            print(event.event_type, event.src_path, event.dest_path, flush=True)

observer = InotifyObserver()
observer.schedule(Print(), sys.argv[1], recursive=True)
observer.start()
print("ready", flush=True)
time.sleep(600)
"""

_CHOKIDAR = """
const watcher = require('chokidar').watch(process.argv[1], {ignoreInitial: true, atomic: false});
watcher.on('all', (event, path) => console.log(event, path));
watcher.on('ready', () => console.log('ready'));
"""


class Client:
    """A program that runs, and what it has printed."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: Path, errors: Path) -> None:
        self._process, self._output, self._errors = process, output, errors

    @property
    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def waits_for(self, text: str, limit: float = SAYS_LIMIT) -> None:
        """Until it has printed a text. It must not have ended."""
        try:
            wait_until(lambda: text in self.said or self._process.poll() is not None, text, limit)
        except AssertionError:
            said = f"{self.said!r}, and {self._errors.read_text()!r}"
            raise AssertionError(f"it did not print {text!r}, but {said}") from None
        assert text in self.said, f"it ended; it printed {self.said!r}; {self._errors.read_text()!r}"

    def ready_says(self, text: str, limit: float = START_LIMIT) -> None:
        """As `waits_for`, on standard error too."""
        wait_until(lambda: text in self.said + self._errors.read_text(), text, limit)


@contextmanager
def client(args: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Iterator[Client]:
    with tempfile.TemporaryDirectory(prefix="client-") as name:
        output, errors = Path(name, "output"), Path(name, "errors")
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd="/")
        try:
            yield Client(process, output, errors)
        finally:
            process.kill()
            process.wait(EXIT_LIMIT)


@contextmanager
def tail(path: Path, *options: str) -> Iterator[Client]:
    """`tail -f`, which has printed what there is."""
    with client(["tail", "-n", "+1", "-s", "0.1", *options, path]) as found:
        found.waits_for(path.read_text())
        yield found


@contextmanager
def inotifywait(path: Path) -> Iterator[Client]:
    """Prints "EVENTS PATH" of each change beneath a directory."""
    with client(["inotifywait", "-m", "-r", "--format", "%e %w%f", path]) as found:
        found.ready_says("Watches established")
        yield found


@contextmanager
def watchdog(path: Path) -> Iterator[Client]:
    """The watchdog package of PyPI."""
    with client([sys.executable, "-c", _WATCHDOG, path]) as found:
        found.ready_says("ready")
        yield found


def npm_install(directory: Path, *packages: str) -> None:
    """Install packages of npm's into a directory."""
    args: list[Argument] = ["npm", "install", "--no-audit", "--no-fund", "--prefix", directory, *packages]
    run(args, limit=NPM_LIMIT, env={**os.environ, "HOME": str(directory)})


@contextmanager
def chokidar(path: Path, modules: Path) -> Iterator[Client]:
    """What bundlers of JavaScript watch with, from where npm has installed it."""
    env = {**os.environ, "NODE_PATH": str(modules / "node_modules")}
    with client(["node", "-e", _CHOKIDAR, path], env) as found:
        found.ready_says("ready")
        yield found
