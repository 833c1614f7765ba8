"""Makes Grafana's dashboards and docs/metrics.md from Python: what is committed is what this writes."""
