"""What is done inside a container, and where that is on the host.

Owns nothing.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from harness.callers import Caller, errno_of
from harness.marks import Container, Marked
from harness.namespaces import UserNamespace


def by(user: Container, call: Callable[..., Any], *args: Any, uid: int = 0) -> Any:
    """What a call returns or raises that an id of a container makes, by default its root."""
    return Caller(uid, uid, namespace=UserNamespace(user.pid))(call, *args)


class Place(NamedTuple):
    """A directory on a mount of a mark. `image`: where a file is put that is to be there before; `disk`: where what is
    changed ends up, the same unless there are layers."""

    mark: Marked
    user: Container
    name: str
    image: Path
    disk: Path

    def seen_by(self, user: Container) -> Path:
        """The way to it for a call by root of a container."""
        return Path(f"/proc/{user.pid}/root{user.target}/{self.name}")

    @property
    def path(self) -> Path:
        return self.seen_by(self.user)

    @property
    def has_layers(self) -> bool:
        return self.disk != self.image

    def stored(self, name: str) -> Path:
        up = self.disk / name
        return up if os.path.lexists(up) else self.image / name

    def put(self, name: str, content: bytes = b"content", mode: int = 0o644) -> Path:
        """A file of the image's; where it shows inside."""
        path = self.image / name
        path.write_bytes(content)
        path.chmod(mode)
        return self.path / name

    def as_root(self, call: Callable[..., Any], *args: Any) -> Any:
        """What a call returns or raises that container root makes."""
        return by(self.user, call, *args)

    def ends(self, call: Callable[..., Any], *args: Any) -> int:
        """The errno of such a call; 0 if it succeeds."""
        return errno_of(lambda: self.as_root(call, *args))

    def shell(self, script: str, user: Container | None = None, uid: int = 0) -> str:
        return (user or self.user).shell(f"cd {self.name}\n{script}", uid=uid)
