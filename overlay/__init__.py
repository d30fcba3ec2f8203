"""An overlay of several real directories: real ids, real inodes, no FUSE."""
