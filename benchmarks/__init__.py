"""Benchmarks: the same work, interleaved in one process on one thread, as ratios to the plain step."""
