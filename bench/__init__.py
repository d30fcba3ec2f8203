"""Benchmarks: ratios of medians in one run, never absolute promises."""
