"""`python -m client.top`: what the services do, live in a terminal, read from their /metrics.

A view and no more: it asks nothing of the services but /metrics, and keeps nothing once it ends. What lasts, with
alerts, is for Prometheus.

    names.py     which metrics are read
    scrape.py    one /metrics, read and parsed
    rates.py     what lies between two of them
    monitor.py   both services over time, as snapshots
    snapshot.py  what one snapshot says
    heat.py      a layer x expert map, fitted to columns and rows
    view.py      a snapshot on the screen
"""
