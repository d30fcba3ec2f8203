"""Which directories may be marked: set-id files that container root makes in them are the host's own, so that nobody
but root may come to them by a path. Main thread, before the mount.
"""

import os
import stat


def hiding_place(path: bytes) -> bytes | None:
    """The directory above `path` that only root may search, if there is one: not itself, whose mode is part of what is
    marked. Raises OSError."""
    above = os.path.realpath(path)
    while above != b"/":
        above = os.path.dirname(above)
        status = os.stat(above)
        if status.st_uid == 0 and not status.st_mode & (stat.S_IXGRP | stat.S_IXOTH):
            return above
    return None
