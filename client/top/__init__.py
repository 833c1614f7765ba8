"""`python -m client.top`: shows live in a terminal what the services do, from their /metrics.

It reads nothing but /metrics and stores nothing. Prometheus keeps history and raises alerts.

    names.py     the metrics that are read
    scrape.py    reads and parses one /metrics
    rates.py     compares two readings: growth and quantiles
    experts.py   selections by layer and expert
    monitor.py   reads both services over time and makes snapshots
    snapshot.py  the fields of a snapshot
    heat.py      fits a layer x expert map to columns and rows
    maps.py      draws the maps as a table
    view.py      draws a snapshot on the screen
    keys.py      reads keys
"""
