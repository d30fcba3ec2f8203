"""Directory entries as READDIR and READDIRPLUS carry them.

Owns the layout and the size of one entry. Never knows a listing: whoever fills a reply asks for the size
first, so that an entry without room is not adopted. Any thread.

Entries are padded to 8 bytes. Mind that the kernel fails the whole listing with EIO for a name that is empty
or has a slash (fs/fuse/readdir.c). kind is DT_*, which is a mode's type >> 12.
"""

from shiftfs.wire.abi import DIRENT, ENTRY_OUT

DIRENT_FIXED = DIRENT.size
DIRENTPLUS_FIXED = ENTRY_OUT.size + DIRENT.size

# nodeid 0: no attributes and no lookup count. For "." and ".." in READDIRPLUS.
NO_ENTRY = bytes(ENTRY_OUT.size)

# Indexed by the name's length & 7; both fixed parts are multiples of 8.
PADDING = tuple(bytes(-length % 8) for length in range(8))


def dirent_size(name_length: int) -> int:
    return DIRENT_FIXED + name_length + 7 & ~7


def direntplus_size(name_length: int) -> int:
    return DIRENTPLUS_FIXED + name_length + 7 & ~7


def dirent(ino: int, cookie: int, kind: int, name: bytes) -> bytes:
    """cookie is where a listing goes on after this entry."""
    length = len(name)
    return DIRENT.pack(ino, cookie, length, kind) + name + PADDING[length & 7]


def direntplus(entry: bytes, ino: int, cookie: int, kind: int, name: bytes) -> bytes:
    """entry is what replies.entry gives, or NO_ENTRY."""
    length = len(name)
    return entry + DIRENT.pack(ino, cookie, length, kind) + name + PADDING[length & 7]
