"""Filesystems to be compared with that no distribution has."""
