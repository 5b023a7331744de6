"""Benchmarks of speed, memory and robustness, one file each."""
