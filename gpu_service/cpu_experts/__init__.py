"""Experts that the CPU expert service computes: the connection, the stream and its client."""
