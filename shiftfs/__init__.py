"""shiftfs: a stacked filesystem over FUSE that shifts owners and never goes stale."""

__version__ = "0.1.0"
