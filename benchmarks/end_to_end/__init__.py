"""A pair compared with transformers: `python -m benchmarks.end_to_end`."""
