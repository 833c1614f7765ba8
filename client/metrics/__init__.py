"""Reads both services' /metrics over time, for `python -m client.top` and for whatever else shows what they do.

names.py     the metrics that are read
scrape.py    reads and parses one /metrics
rates.py     compares two readings: growth and quantiles
experts.py   selections by layer and expert
monitor.py   reads both services over time and makes snapshots
snapshot.py  the fields of a snapshot
"""
