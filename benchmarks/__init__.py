"""Measurements of the pair: `python -m benchmarks.NAME` prints one JSON object per line, the machine first.

`python -m benchmarks` runs them all and writes benchmarks/results/NAME.jsonl.
"""
