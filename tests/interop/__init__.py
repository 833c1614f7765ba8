"""Clients that were not written here, against the server: what they need is what the contract promises to anyone."""
