"""`python -m client.top`: shows live in a terminal what the services do, from their /metrics.

It reads nothing but /metrics and stores nothing. Prometheus keeps history and raises alerts. client/metrics reads them.

    heat.py      fits a layer x expert map to columns and rows
    maps.py      draws the maps as a table
    view.py      draws a snapshot on the screen
    keys.py      reads keys
"""
