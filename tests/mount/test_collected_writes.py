"""What the kernel has collected of what was stored into a mapping, and sends when it likes: all of it is written, or
somebody is told."""

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from harness import errno_of, mounted
from harness.calls import opened
from harness.listening import small_filesystem

pytestmark = pytest.mark.root

PAGE = mmap.PAGESIZE


@pytest.fixture
def small() -> Iterator[Path]:
    """A filesystem that has room for 32 pages."""
    with small_filesystem(32 * PAGE) as path:
        yield path


@pytest.mark.parametrize("option", ["open=refuse", "open=serve"])
def test_pages_for_which_there_is_no_room_are_an_error(small: Path, option: str) -> None:
    """They come as one large write, of which a part can be done."""
    with (
        mounted(small, None, option, "passthrough=off") as mount,
        opened(mount.path / "new", os.O_RDWR | os.O_CREAT) as fd,
    ):
        os.ftruncate(fd, 64 * PAGE)
        with closing(mmap.mmap(fd, 64 * PAGE)) as mapped:
            mapped[:] = b"x" * (64 * PAGE)
            assert errno_of(mapped.flush) == errno.ENOSPC
