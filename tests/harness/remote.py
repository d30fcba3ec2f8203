"""A directory as if it lay on another machine: sshfs over loopback, to an sftp-server of its own.

Owns the mount, its sshfs and the server to the end of the `with`.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.commands import wait_until
from harness.mounts import mount_table, newest_mount, unmount

LIMIT = 10.0
_SERVER = "/usr/lib/openssh/sftp-server"
_UNCACHED = "dir_cache=no,entry_timeout=0,attr_timeout=0,negative_timeout=0"


@contextmanager
def sshfs_at(path: Path, remote: Path) -> Iterator[None]:
    """`remote` at `path`; nothing of it is cached on the way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT)
        port = server.getsockname()[1]
        command: list[str | Path] = ["sshfs", "-f", "-o", f"directport={port},{_UNCACHED}", f"127.0.0.1:{remote}", path]
        with subprocess.Popen(command) as client, _killed_at_the_end(client):
            connection, _ = server.accept()
            end = connection.fileno()
            with (
                connection,
                subprocess.Popen([_SERVER], stdin=end, stdout=end) as peer,
                _killed_at_the_end(peer),
            ):
                connection.close()
                wait_until(lambda: any(entry.path == str(path) for entry in mount_table()), "sshfs is mounted", LIMIT)
                try:
                    yield
                finally:
                    unmount(newest_mount(path))
                    client.wait(LIMIT)
                    peer.wait(LIMIT)


@contextmanager
def _killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Unless it has ended: nobody is to wait for it for ever."""
    try:
        yield
    finally:
        process.kill()
