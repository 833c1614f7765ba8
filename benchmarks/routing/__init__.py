"""A pair whose load changes its topic, and the plots of its metrics: `python -m benchmarks.routing`."""
