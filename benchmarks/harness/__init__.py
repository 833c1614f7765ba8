"""What the benchmarks share: rounds that take turns, result files and the targets they are held to."""
