"""Locks that users of the mount hold on its files: who holds what, and what that asks of the real files."""
