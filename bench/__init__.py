"""Benchmarks: rivals beside us in one run, medians with minimum and maximum, one JSON line last."""
