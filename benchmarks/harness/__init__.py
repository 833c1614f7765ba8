"""Shared by the benchmarks: interleaved rounds, result files, targets, and the style of plots."""
