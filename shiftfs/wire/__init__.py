"""The FUSE kernel protocol without I/O: bytes to values and values to bytes, and nothing else. Any thread."""
