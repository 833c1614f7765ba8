"""A pair under load for a long time, with cancels, deadlines and kills: `python -m benchmarks.soak`."""
