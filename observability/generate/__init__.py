"""Generates Grafana's dashboards, docs/metrics.md and rules/vllm.yml. The committed files are what this writes."""
