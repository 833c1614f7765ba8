"""Measures what computing and copying experts costs, and keeps the measurements."""
