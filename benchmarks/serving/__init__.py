"""Several sequences at once: `python -m benchmarks.serving`."""
