"""The cost of counting: `python -m benchmarks.metrics`."""
