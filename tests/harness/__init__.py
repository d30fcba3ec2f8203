"""Real mounts, users, user namespaces and filesystems, for the tests and the demonstration.

Whatever is made here is taken away again within a limit, also when a filesystem no longer answers: then its
connection is aborted, the mount detached, and the test that made it fails. Nothing here looks at a path on a
mount to tidy up, since that may be what hangs: all there is to know stands in /proc/self/mountinfo.
"""

from harness.callers import Caller, errno_of, shifted_directory
from harness.commands import (
    SHIFTFS,
    Argument,
    CommandFailed,
    Completed,
    as_user,
    environment,
    open_directory,
    run,
    shiftfs,
    shiftfsctl,
    user_prefix,
    wait_until,
)
from harness.layered import OVERLAYS, Layers, Merged, layered, make_whiteout, new_merged, read_tree, write_tree
from harness.mounts import (
    Leftover,
    MountEntry,
    abort_connection,
    loop_filesystem,
    mount_table,
    newest_mount,
    unmount,
    unmount_by_force,
)
from harness.namespaces import UserNamespace, in_userns, user_namespace
from harness.shifted import Mount, fewest_requests, mounted, requests_during

__all__ = [
    "OVERLAYS",
    "SHIFTFS",
    "Argument",
    "Caller",
    "CommandFailed",
    "Completed",
    "Layers",
    "Leftover",
    "Merged",
    "Mount",
    "MountEntry",
    "UserNamespace",
    "abort_connection",
    "as_user",
    "environment",
    "errno_of",
    "fewest_requests",
    "in_userns",
    "layered",
    "loop_filesystem",
    "make_whiteout",
    "mount_table",
    "mounted",
    "new_merged",
    "newest_mount",
    "open_directory",
    "read_tree",
    "requests_during",
    "run",
    "shifted_directory",
    "shiftfs",
    "shiftfsctl",
    "unmount",
    "unmount_by_force",
    "user_namespace",
    "user_prefix",
    "wait_until",
    "write_tree",
]
