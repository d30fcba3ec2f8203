"""Ids at the edge between a tree (real ids) and the mount (shown ids): maps, ids inside xattrs, acting as a
caller."""
