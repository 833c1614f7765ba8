"""Generates Grafana's dashboards and docs/metrics.md. The committed files are what this writes."""
