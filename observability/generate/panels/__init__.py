"""Panels of the dashboards, by subject."""
