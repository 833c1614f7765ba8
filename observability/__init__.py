"""What watches the services: Prometheus' configuration and rules, Grafana's dashboards, and what makes them."""
