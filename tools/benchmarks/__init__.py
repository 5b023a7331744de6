"""What ``tools/benchmarks`` measures, one file for each question."""
