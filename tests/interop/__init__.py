"""Clients that were not written here, against a pair. They need what the protocol promises to every client."""
